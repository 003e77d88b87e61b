"""Types of values in records: names, networks, digests, arguments and environment."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: RFC 1918; the units of vLLM accept connections from no other range.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: lower-case letters, digits and dashes, a letter first")
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a network in CIDR form{_nearest_network(value)}") from None
    return value


def _nearest_network(value: str) -> str:
    """What to write instead; empty where nothing is near."""
    try:
        return f": write {str(ipaddress.ip_network(value.strip('[] '), strict=False))!r}"
    except ValueError:
        return ", such as 10.0.0.0/24 or fd00::/64"


def _private_network(value: str) -> str:
    network = ipaddress.ip_network(_network(value))
    if not any(network.version == 4 and network.subnet_of(private) for private in PRIVATE):
        raise ValueError(f"{value!r} is not a private range: use one in {', '.join(map(str, PRIVATE))}")
    if not 16 <= network.prefixlen <= 22:
        raise ValueError(f"{value!r} has the wrong size: clouds take from /16 to /22")
    return value


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is not a SHA-256 digest: 64 hexadecimal digits")
    return value


def _plain(value: Any) -> Any:
    """YAML reads some text without quotes as dates or bytes, which neither a config file nor JSON can contain."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text: quote it")  # noqa: TRY004 - a fault to pydantic
            _plain(item)
    elif isinstance(value, list):
        for item in value:
            _plain(item)
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{value!r} is not a number, text, true or false, list or mapping: quote it if it is text")
    return value


def _single_lines(env: dict[str, str | None]) -> dict[str, str | None]:
    """Systemd reads the environment from a file with one line for each variable."""
    for name, value in env.items():
        if value and ("\n" in value or "\r" in value):
            raise ValueError(f"the value of {name!r} holds a line break: write it in one line")
    return env


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
#: The pattern is for the JSON Schema; the validator has the clearer message.
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{_NAME.pattern}$"})]
Network = Annotated[str, AfterValidator(_network)]
#: The network of a cloud.
PrivateNetwork = Annotated[str, AfterValidator(_private_network)]
Sha256 = Annotated[str, AfterValidator(_sha256), Field(json_schema_extra={"pattern": f"^{_SHA256.pattern}$"})]
#: Names as vLLM's command line spells them, dashed; ``None`` takes a key away.
Args = Annotated[dict[str, Any], AfterValidator(_plain)]
#: Values of the environment are strings, quoted in YAML, so that ``no`` and ``1`` stay unchanged.
Env = Annotated[dict[str, str | None], AfterValidator(_single_lines)]
