"""The strict records of ``recipes/``; those of a fleet stand in :mod:`vllm_fleet.fleet_schema`.

An unknown key is an error; nothing is coerced. What several records must agree on is checked in
:mod:`vllm_fleet.catalog` (recipes) and :mod:`vllm_fleet.plan` (fleets).
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Profile = Literal["max-throughput", "balanced", "min-latency"]
Accelerator = Literal["cuda", "rocm", "cpu"]
Install = Literal["wheel", "docker"]
Cloud = Literal["lab", "aws", "gcp", "azure", "oci", "digitalocean", "static"]
Status = Literal["verified", "unverified", "unsupported"]
Affinity = Literal["none", "prefix"]

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r} is not a SHA-256 digest: 64 hexadecimal digits")
    return value


Name = Annotated[str, AfterValidator(_name)]
Network = Annotated[str, AfterValidator(_network)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
#: Names as vLLM's command line spells them, dashed; ``None`` takes a key away.
Args = dict[str, Any]
#: Environment values are strings, quoted in YAML, so that ``no`` and ``1`` stay what was written.
Env = dict[str, str | None]


class Strict(BaseModel):
    """A record that is frozen, knows all its keys and converts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FactChecks(Strict):
    """What a host must be before anything is installed on it; a host that is not is refused, never bent."""

    cpu_count_min: int | None = None
    memory_gib_min: float | None = None
    machine: Literal["x86_64", "aarch64"] | None = None


class HostClass(Strict):
    """One file of ``recipes/host_classes``: a hardware family in the counts that exist."""

    name: Name
    vendor: Literal["nvidia", "amd", "cpu"]
    accelerator: Accelerator
    arch: str
    counts: list[int] = Field(min_length=1)
    #: Memory of one device; for a CPU class, of the whole host.
    memory_gib: float = Field(gt=0)
    facts: FactChecks = FactChecks()
    status: Literal["supported", "unsupported"] = "supported"
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)


class WheelInstall(Strict):
    """An engine as a virtual environment built from a complete, hash-locked list."""

    python: str = Field(pattern=r"^3\.\d+$")
    #: File under ``recipes/engines/``.
    lock: str
    #: A second name under which the installed distribution must be found.
    alias: dict[str, str] = {}


class Engine(Strict):
    """One file of ``recipes/engines``: a vLLM release in one build, with its install forms."""

    id: str
    release: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    accelerator: Accelerator
    #: The generated file under ``recipes/engines/names`` that lists what this release reads.
    names: str
    wheel: WheelInstall | None = None
    source: str = Field(min_length=3)


class Flag(Strict):
    """One ``vllm serve`` flag, as generated from the release."""

    type: str
    default: Any = None
    choices: list[Any] | None = None
    deprecated: bool = False
    aliases: list[str] = []


class When(Strict):
    """The closed set of selectors of a rule; every one that is given must hold."""

    accelerator: Accelerator | None = None
    arch: list[str] | None = None
    host_class: list[str] | None = None
    devices: list[int] | None = None
    engine: str | None = Field(default=None, description="release range, such as '>=0.12,<0.32'")
    install: Install | None = None
    profile: list[Profile] | None = None


class Rule(Strict):
    """A step of a recipe: where it holds, what it sets, and why."""

    when: When = When()
    args: Args = {}
    env: Env = {}
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)


class Support(Strict):
    """What is known of a model on a host class with a range of engine releases."""

    host_class: list[Name]
    engine: str
    status: Status
    evidence: str = Field(min_length=10)


class ModelShape(Strict):
    """What the memory arithmetic needs of a model."""

    layers: int = Field(gt=0)
    sliding_layers: int = Field(ge=0)
    sliding_window_tokens: int = Field(ge=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    weights_gib: float = Field(gt=0)
    context_tokens: int = Field(gt=0)


class Model(Strict):
    """One file of ``recipes/models/<org>``: the model's facts and its ordered rules."""

    name: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    shape: ModelShape
    encodings: list[str]
    support: list[Support]
    rules: list[Rule]


class Profiles(Strict):
    """``recipes/profiles.yml``: what each profile optimises for."""

    profiles: dict[Profile, str]


class Encoding(Strict):
    """One vocabulary file of ``recipes/encodings.yml``."""

    sha256: Sha256
    source: str


class Encodings(Strict):
    """``recipes/encodings.yml``."""

    encodings: dict[str, Encoding]
