"""Types of values in records: names, networks, digests, arguments and environment."""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
#: Python, and the forms of weights that are pickles or can contain them.
_CODE = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
#: RFC 1918; the units of vLLM accept connections from no other range.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a name: lower-case letters, digits and dashes, a letter first")
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as fault:
        raise ValueError(f"{value!r} is not a network in CIDR form: {fault}") from None
    return value


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


def model_file_fault(name: str) -> str | None:
    """Why a file of this name is not taken from a model's repository; None: it is.

    A repository is a stranger's: names become paths on hosts and lines in logs, and a pickle runs code when it is read.
    """
    if not _MODEL_FILE.fullmatch(name):
        return f"{name!r} is not a plain file name: letters, digits, '.', '_' and '-'"
    if name.lower().endswith(_CODE):
        return f"{name!r} can run code when it is read: weights must be safetensors"
    return None


def _model_file(name: str) -> str:
    if fault := model_file_fault(name):
        raise ValueError(fault)
    return name


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
#: The pattern is for the JSON Schema; the validator has the clearer message.
Name = Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{_NAME.pattern}$"})]
Network = Annotated[str, AfterValidator(_network)]
#: The network of a cloud.
PrivateNetwork = Annotated[str, AfterValidator(_private_network)]
#: A file of a model.
ModelFileName = Annotated[str, AfterValidator(_model_file)]
Sha256 = Annotated[str, AfterValidator(_sha256), Field(json_schema_extra={"pattern": f"^{_SHA256.pattern}$"})]
#: Names as vLLM's command line spells them, dashed; ``None`` takes a key away.
Args = Annotated[dict[str, Any], AfterValidator(_plain)]
#: Values of the environment are strings, quoted in YAML, so that ``no`` and ``1`` stay unchanged.
Env = Annotated[dict[str, str | None], AfterValidator(_single_lines)]
