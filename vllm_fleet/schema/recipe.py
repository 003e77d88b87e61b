"""The strict records of ``recipes/``; those of a fleet are in :mod:`vllm_fleet.schema.fleet`.

An unknown key is an error; nothing is coerced. What several records must agree on is checked in
:mod:`vllm_fleet.catalogue.catalogue` (recipes) and :mod:`vllm_fleet.fleet.plan` (fleets).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_fleet.base.field_types import Args as Args
from vllm_fleet.base.field_types import Digest as Digest
from vllm_fleet.base.field_types import Env as Env
from vllm_fleet.base.field_types import Line as Line
from vllm_fleet.base.field_types import ModelFileName as ModelFileName
from vllm_fleet.base.field_types import Name as Name
from vllm_fleet.base.field_types import Network as Network
from vllm_fleet.base.field_types import Port as Port
from vllm_fleet.base.field_types import PrivateNetwork as PrivateNetwork
from vllm_fleet.base.field_types import Sha256 as Sha256

Profile = Literal["max-throughput", "balanced", "min-latency"]
Accelerator = Literal["cuda", "rocm", "cpu"]
Install = Literal["wheel", "docker"]
Cloud = Literal["lab", "aws", "gcp", "azure", "oci", "digitalocean", "static"]
Status = Literal["verified", "unverified", "unsupported"]
Affinity = Literal["none", "session", "conversation"]
#: How the GPUs of a host reach each other. ``nvlink``: by direct links, ``nvswitch``: through switches.
Interconnect = Literal["nvlink", "nvswitch", "pcie", "xgmi", "none"]
#: Features of a deployment besides plain serving.
Feature = Literal["function-calling", "structured-output", "builtin-tools", "eagle3", "benchmark"]
#: The kind of a host's processors, as its kernel names it.
Machine = Literal["x86_64", "aarch64"]
Benchmark = Literal["gpqa", "aime25"]


class Strict(BaseModel):
    """A record that is frozen, knows all its keys and converts nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class FactChecks(Strict):
    """What a host must be before anything is installed on it; other hosts are refused, never changed.

    All of it goes into the manifest, with the vendor, the architecture and the count of the class;
    :mod:`vllm_fleet.facts.vetoes` judges it.
    """

    cpu_count_min: int | None = None
    #: What ``flags`` in /proc/cpuinfo must hold.
    cpu_flags: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] | None = Field(default=None, min_length=1)
    memory_gib_min: float | None = None
    machine: Machine | None = None
    #: A part of the name that the driver reports.
    gpu_name: str | None = None
    #: Memory of one GPU as the driver reports it.
    gpu_memory_gib_min: float | None = None
    cuda_min: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    rocm_min: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    #: The oldest kernel driver, as the host itself reports its version: for AMD that of the amdgpu module.
    driver_min: str | None = Field(default=None, pattern=r"^\d+(\.\d+)+$")


class HostClass(Strict):
    """One file of ``recipes/host_classes``: a hardware family in the counts that exist."""

    name: Name
    vendor: Literal["nvidia", "amd", "cpu"]
    accelerator: Accelerator
    arch: str
    counts: list[int] = Field(min_length=1)
    #: Memory of one device; for a CPU class, of the whole host.
    memory_gib: float = Field(gt=0)
    #: Of the sizes with more than one device.
    interconnect: Interconnect
    #: Vendor and device of its GPUs on the PCI bus, by which a host without a driver is recognised.
    pci_ids: list[Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")]] = []
    facts: FactChecks = FactChecks()
    status: Literal["supported", "unsupported"] = "supported"
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)
    #: Where ``interconnect`` and ``facts.driver_min`` come from; says "unverified" of what no host has shown yet.
    hardware_source: str = Field(min_length=10)


class WheelInstall(Strict):
    """An engine as a virtual environment from a complete, hash-locked list, which ``tools.locks`` makes from this."""

    distribution: str = "vllm"
    #: The versions of Python that a lock holds for; a host has one of them.
    python: list[Annotated[str, Field(pattern=r"^3\.\d+$")]] = Field(min_length=1)
    #: File under ``recipes/engines/`` by machine. None: not locked, so a recipe can be shown and no host can be built.
    locks: dict[Machine, str] = {}
    #: Why there is no lock for a machine.
    unlocked: dict[Machine, Annotated[str, Field(min_length=10)]] = {}
    #: Extras of the distribution that a lock must hold.
    extras: list[str] = []
    #: Further requirements.
    beside: list[str] = []
    #: Requirements in place of those that packages have.
    overrides: list[str] = []
    #: Packages that are left out, even if other packages require them.
    without: list[str] = []
    #: Packages that are published as sources only, so that each host builds them.
    sources: list[str] = []
    #: Only what the package index had before this day is locked: what the release was made for.
    as_of: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    #: An index that has this build, in front of the package index.
    index: str | None = Field(default=None, pattern=r"^https://")
    #: The oldest glibc of the hosts; wheels are locked for it. That of Ubuntu 22.04; Debian 12 has 2.36.
    glibc_min: str = Field(default="2.35", pattern=r"^\d+\.\d+$")
    rocm_min: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    #: A second name under which the installed distribution must be found.
    alias: dict[str, str] = {}

    @model_validator(mode="after")
    def _locked_or_not(self) -> WheelInstall:
        if both := sorted(set(self.locks) & set(self.unlocked)):
            raise ValueError(f"{', '.join(both)} is in 'locks' and in 'unlocked'")
        return self


class DockerInstall(Strict):
    """An engine as an image. Without a digest it can be shown and not installed."""

    image: str = Field(pattern=r"^[a-z0-9][a-z0-9./-]*$")
    tag: str = Field(pattern=r"^[\w][\w.-]*$")
    digest: Digest | None = None
    #: False where no registry has it: a fleet that uses it names its own and the digest.
    published: bool = True
    #: What ``docker run`` needs to reach the devices, each word by itself.
    options: list[str] = Field(min_length=1)
    #: True where the image starts ``vllm serve`` by itself, so that the command is its arguments.
    serves: bool


class Engine(Strict):
    """One file of ``recipes/engines``: a vLLM release in one build, with its install forms."""

    id: str
    release: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    accelerator: Accelerator
    #: The generated file under ``recipes/engines/names`` that lists what this release reads.
    names: str
    wheel: WheelInstall | None = None
    docker: DockerInstall | None = None
    #: Entry of ``names/forks.yml``, for an image of a fork that reads more than its release.
    fork: str | None = None
    #: The device architectures that the build is for; None: all of its accelerator.
    arch: list[str] | None = None
    source: str = Field(min_length=3)


#: Arguments and variables that the memory arithmetic and the number of instances depend on.
FIT_READS = frozenset(
    {
        "gpu-memory-utilization",
        "kv-cache-dtype",
        "max-model-len",
        "max-num-seqs",
        "tensor-parallel-size",
        "VLLM_CPU_KVCACHE_SPACE",
    }
)


class FactCondition(Strict):
    """What a host's own facts must say. It is judged on the host; where the fact is not known it counts as true."""

    mec_firmware_below: int = Field(gt=0)


class When(Strict):
    """The closed set of selectors of a rule; every one that is given must hold.

    ``tensor_parallel`` is the final one, overrides included. ``at_least`` and ``env_set`` look at the final arguments
    and environment too, so only a refusal or a note may use them. ``fact`` does not select: it makes what the rule
    sets an alternative, which each host takes or leaves.
    """

    accelerator: Accelerator | None = None
    arch: list[str] | None = None
    host_class: list[str] | None = None
    devices: list[int] | None = None
    engine: str | None = Field(default=None, description="release range, such as '>=0.12,<0.32'")
    install: Install | None = None
    profile: list[Profile] | None = None
    model: list[str] | None = None
    feature: Feature | None = None
    #: A second feature that is asked for beside it.
    with_feature: Feature | None = None
    tensor_parallel: list[int] | None = None
    #: Numeric arguments that are at least this large.
    at_least: dict[str, float] | None = None
    #: Variables that are all set.
    env_set: list[str] | None = None
    fact: FactCondition | None = None


class Rule(Strict):
    """A step of a recipe: where it holds, what it sets, notes or refuses, and why."""

    when: When = When()
    args: Args = {}
    env: Env = {}
    #: Text that reaches the user.
    note: str | None = Field(default=None, min_length=10)
    #: The reason why such a deployment is refused; judged when everything else is set.
    refuse: str | None = Field(default=None, min_length=10)
    #: Names that these releases no longer read, and what replaces them; 'vllm-fleet upgrade-check' shows it.
    replaces: dict[str, str] = {}
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _does_one_thing(self) -> Rule:
        sets = bool(self.args or self.env)
        if not (sets or self.note or self.refuse or self.replaces):
            raise ValueError("a rule sets, notes, refuses or replaces something")
        if sets and (self.refuse or self.when.at_least or self.when.env_set):
            raise ValueError("a rule that refuses, or that looks at final values, sets nothing")
        if self.when.tensor_parallel and "tensor-parallel-size" in self.args:
            raise ValueError("a rule that selects by tensor_parallel cannot set it")
        if self.when.fact and (self.note or not sets):
            raise ValueError("a rule with a fact sets something, and its note is made from the fact")
        if self.when.fact and (fitted := sorted(FIT_READS & {*self.args, *self.env})):
            raise ValueError(f"a fact cannot choose {', '.join(fitted)}: the memory arithmetic reads it for all hosts")
        return self


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


#: Bytes and SHA-256 of a file; YAML has lists in place of tuples.
WeightFile = Annotated[tuple[Annotated[int, Field(gt=0)], Sha256], Field(strict=False)]


class Weights(Strict):
    """A model's files at the hub, pinned to one commit."""

    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    #: Files that vLLM does not read, such as the same weights in another format.
    ignore: list[str] = []
    source: str = Field(min_length=3)
    #: File name -> bytes and SHA-256 of every file that hosts get; empty where they are not known.
    files: dict[ModelFileName, WeightFile] = {}
    #: Where the digests were read, and when.
    files_source: str | None = Field(default=None, min_length=3)
    files_as_of: str | None = Field(default=None, pattern=r"^\d{4}-\d\d-\d\d$")

    @model_validator(mode="after")
    def _digests_have_a_source(self) -> Weights:
        if bool(self.files) != bool(self.files_source and self.files_as_of):
            raise ValueError("'files', 'files_source' and 'files_as_of' belong together")
        return self


class Scores(Strict):
    """Published accuracy in per cent, without tools, for each reasoning effort."""

    low: float = Field(gt=0, le=100)
    medium: float = Field(gt=0, le=100)
    high: float = Field(gt=0, le=100)


class Model(Strict):
    """One file of ``recipes/models/<org>``: the model's facts and its ordered rules."""

    name: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    shape: ModelShape
    encodings: list[str]
    #: Where its files come from; None: only from a folder that the fleet names.
    weights: Weights | None = None
    scores: dict[Benchmark, Scores] = {}
    scores_source: str | None = None
    support: list[Support]
    #: A model whose rules come before this one's own.
    rules_of: str | None = None
    rules: list[Rule]


class Profiles(Strict):
    """``recipes/profiles.yml``: what each profile optimises for."""

    profiles: dict[Profile, str]
