"""Types of values in records: names, networks, digests, arguments and environment."""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from vllm_fleet.base.text_form import Form

_NAME_LENGTH = 42
_NAME = re.compile(rf"[a-z]([a-z0-9-]{{0,{_NAME_LENGTH - 2}}}[a-z0-9])?")
_MODEL_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
#: Python, and the forms of weights that are pickles or can contain them.
_CODE = (".py", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
#: RFC 1918; the units of vLLM accept connections from no other range.
PRIVATE = tuple(map(ipaddress.IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


#: Hosts of one fleet: the largest stack that is measured, in docs/performance.md.
MOST_HOSTS = 1000
#: Gateways of one fleet: the firewall of each serving host names each of them.
MOST_GATEWAYS = 64
#: Letters of a text in fleet.yml.
_MOST_LETTERS = 1000
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}")
#: Type of an SSH key -> the number of strings in its blob after the type: RFC 4253, RFC 5656, RFC 8709.
_KEY_STRINGS = {
    "ssh-ed25519": 1,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,
}
#: Bytes of the last string: a point that is not compressed, or an ed25519 key.
_KEY_BYTES = {"ssh-ed25519": 32, "ecdsa-sha2-nistp256": 65, "ecdsa-sha2-nistp384": 97, "ecdsa-sha2-nistp521": 133}
#: OpenSSH refuses smaller RSA keys (RequiredRSASize).
_RSA_BITS = 1024
_KEY_PATTERN = f"^({'|'.join(_KEY_STRINGS)}) [A-Za-z0-9+/]+={{0,2}}$"


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


def _whole(value: Any) -> Any:
    """JSON Schema, and so editors, count 2.0 as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _members(most: int, what: str, reason: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if isinstance(value, dict):
            # A fault to pydantic, so no TypeError.
            raise ValueError(  # noqa: TRY004
                f"is a number of {what}, or their names: list those that exist already under 'static'"
            )
        number = len(value) if isinstance(value, list) else _whole(value)
        if isinstance(number, int) and number > most:
            raise ValueError(f"is {number}, and a fleet has at most {most} {what}: {reason}")
        if not isinstance(value, list):
            return number
        if twice := [name for place, name in enumerate(value) if name in value[:place]]:
            raise ValueError(f"names {twice[0]!r} twice")
        return value

    return BeforeValidator(check)


def _form_of_members(value: Any) -> str:
    return "names" if isinstance(value, list) else "number"


def _line(value: str) -> str:
    if len(value) > _MOST_LETTERS:
        raise ValueError(f"has {len(value)} letters: write at most {_MOST_LETTERS}")
    if not value.isprintable():
        raise ValueError(f"{value!r} has a line break or a control character: write it in one line")
    return value


def parse_user(value: str) -> str:
    """The name of who logs in to a host.

    Raises:
        ValueError: it is another text; the message says what to write instead.
    """
    if not _USER.fullmatch(value):
        raise ValueError(
            f"{value[:80]!r} is not the name of a user: up to 64 letters, digits and '.', '_', '@', '-', no dash first"
        )
    return value


def _ssh_public_key(value: str) -> str:
    kind, _, encoded = value.partition(" ")
    if kind not in _KEY_STRINGS:
        raise ValueError(f"{value[:80]!r} is not 'type base64' with one of the types {', '.join(_KEY_STRINGS)}")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            f"{encoded[:80]!r} is not base64: give the type and the key as 'ssh-keyscan' prints them, without a comment"
        ) from None
    strings = _strings(blob)
    if (
        strings is None
        or strings[0] != kind.encode()
        or len(strings) != _KEY_STRINGS[kind] + 1
        or not _is_key(kind, strings)
    ):
        raise ValueError(f"{encoded[:80]!r} is not a whole key of the type {kind}: copy it again")
    return value


def _is_key(kind: str, strings: list[bytes]) -> bool:
    if kind == "ssh-rsa":
        return int.from_bytes(strings[2], "big").bit_length() >= _RSA_BITS and int.from_bytes(strings[1], "big") > 1
    if kind.startswith("ecdsa-") and (strings[1] != kind.rpartition("-")[2].encode() or strings[2][:1] != b"\x04"):
        return False
    return len(strings[-1]) == _KEY_BYTES[kind]


def _strings(blob: bytes) -> list[bytes] | None:
    """The strings of an SSH key, each with its length in front; None where lengths and bytes do not fit."""
    strings: list[bytes] = []
    while blob:
        length = int.from_bytes(blob[:4], "big")
        if len(blob) < 4 + length:
            return None
        strings.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return strings or None


def _secret_digest(value: Any) -> Any:
    """A digest of a secret. The error does not repeat the value: it may be the secret itself."""
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise ValueError("is not a digest: write 'sha256:' and 64 hexadecimal digits, in quotes, not the key itself")
    return value


def _owner(value: Any) -> Any:
    """The name of a secret's owner. The error does not repeat it: the secret may be in its place."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            "is not the name of an owner: write lower-case letters, digits and dashes, a letter first, and no key here"
        )
    return value


def _day(value: str) -> str:
    try:
        return datetime.date.fromisoformat(value).isoformat()
    except ValueError:
        raise ValueError(f"{value[:80]!r} is not a day: write YYYY-MM-DD") from None


Digest = Annotated[str, Field(pattern=f"^{_DIGEST.pattern}$")]
#: Of a secret.
SecretDigest = Annotated[str, BeforeValidator(_secret_digest)]
#: Of a secret: its name.
OwnerName = Annotated[str, BeforeValidator(_owner)]
Name = Annotated[
    str,
    Form(_NAME.pattern, "a name", f"at most {_NAME_LENGTH} lower-case letters, digits and dashes, a letter first"),
]
Network = Annotated[str, AfterValidator(_network)]
#: The network of a cloud.
PrivateNetwork = Annotated[str, AfterValidator(_private_network)]
#: A file of a model.
ModelFileName = Annotated[str, AfterValidator(_model_file)]
Sha256 = Annotated[str, Form("[0-9a-f]{64}", "a SHA-256 digest", "64 hexadecimal digits")]
#: Names as vLLM's command line spells them, dashed; ``None`` takes a key away.
Args = Annotated[dict[str, Any], AfterValidator(_plain)]
#: Values of the environment are strings, quoted in YAML, so that ``no`` and ``1`` stay unchanged.
Env = Annotated[dict[str, str | None], AfterValidator(_single_lines)]
#: Text in one line.
Line = Annotated[str, AfterValidator(_line), Field(json_schema_extra={"maxLength": _MOST_LETTERS})]
#: Who logs in: safe in the arguments of ssh and in the files of Ansible.
User = Annotated[str, AfterValidator(parse_user), Field(json_schema_extra={"pattern": f"^{_USER.pattern}$"})]
#: A public SSH key: type and base64.
SshPublicKey = Annotated[str, AfterValidator(_ssh_public_key), Field(json_schema_extra={"pattern": _KEY_PATTERN})]
#: The last annotation of an integer, after its bounds.
WHOLE = BeforeValidator(_whole)
Port = Annotated[int, Field(gt=0, lt=65536), WHOLE]
#: A number of hosts, or their names.
HostMembers = Annotated[
    Annotated[int, Field(ge=0, json_schema_extra={"maximum": MOST_HOSTS}), Tag("number")]
    | Annotated[list[Name], Field(json_schema_extra={"maxItems": MOST_HOSTS, "uniqueItems": True}), Tag("names")],
    Discriminator(_form_of_members),
    _members(MOST_HOSTS, "hosts", "docs/performance.md measures no more; split it into several fleets"),
]
#: A number of gateways, or their names.
GatewayMembers = Annotated[
    Annotated[int, Field(ge=0, json_schema_extra={"maximum": MOST_GATEWAYS}), Tag("number")]
    | Annotated[list[Name], Field(json_schema_extra={"maxItems": MOST_GATEWAYS, "uniqueItems": True}), Tag("names")],
    Discriminator(_form_of_members),
    _members(MOST_GATEWAYS, "gateways", "each serving host's firewall names each of them"),
]
#: A day: YYYY-MM-DD.
Day = Annotated[str, AfterValidator(_day), Field(json_schema_extra={"pattern": r"^\d{4}-\d{2}-\d{2}$"})]
