"""The strict records of ``recipes/drivers.yml``, and what a fleet may say about its drivers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vllm_fleet.base.field_types import Name, Sha256
from vllm_fleet.schema.recipe import Strict

Vendor = Literal["nvidia", "amd"]
#: ``managed``: the project installs it. ``verified``: the image's own is judged and held, never replaced.
DriverMode = Literal["managed", "verified"]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
#: A Debian version, at its end perhaps ``*`` for what the packagers count: apt takes it nowhere else.
VersionPattern = Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+:~-]*\*?$")]
#: ``ID-VERSION_ID`` of /etc/os-release.
System = Annotated[str, Field(pattern=r"^[a-z]+-[0-9.]+$")]


class AptSource(Strict):
    """Where one system's packages lie: a flat repository has the suite ``/`` and no components."""

    uri: str = Field(pattern=r"^(https?://|file:/)\S+$")
    suites: list[str] = Field(min_length=1)
    components: list[str] = []
    #: Whether apt minds the end of its lists' validity, which may lie in the past of a mirror without network.
    check_valid_until: bool = True


class SigningKey(Strict):
    """The key of a repository: what is fetched is used only when its fingerprint is this one."""

    url: str = Field(pattern=r"^https://\S+$")
    fingerprint: str = Field(pattern=r"^[0-9A-F]{40}$")
    #: Of the file at the url, where it is known.
    sha256: Sha256 | None = None


class Repository(Strict):
    """A vendor's apt repository. ``{machine}`` in a URI is replaced by the repository's name of the processor."""

    systems: dict[System | Literal["any"], AptSource] = Field(min_length=1)
    machines: dict[Literal["x86_64", "aarch64"], str]
    key: SigningKey
    #: What apt's preferences call it wherever it lies: ``o=`` its Origin or ``l=`` its Label.
    pin: str = Field(default="", pattern=r"^([ol]=[^,\n]+)?$")
    source: str = Field(min_length=10)


class FabricManager(Strict):
    """The service of NVSwitch hosts, which must have exactly the driver's version."""

    packages: dict[Name, VersionPattern] = Field(min_length=1)
    unit: str


class DriverRelease(Strict):
    """One driver with all of its packages at exact versions."""

    vendor: Vendor
    #: As the loaded module says it.
    version: Version
    #: The highest CUDA version that it supports.
    cuda: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    #: The ROCm that is installed beside it.
    rocm: str | None = Field(default=None, pattern=r"^\d+\.\d+\.\d+$")
    #: Open kernel modules, the only ones for Blackwell and NVIDIA's choice from Turing on.
    open_modules: bool
    repositories: list[str] = Field(min_length=1)
    packages: dict[Name, VersionPattern] = Field(min_length=1)
    #: The oldest kernel that its module does not build for; None if no such kernel is known.
    kernel_below: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    #: Of the kernel that runs, whose version is added: modules that a distribution keeps apart and its own one needs.
    kernel_modules: list[Name] = []
    fabric_manager: FabricManager | None = None
    #: The service that lends memory between hosts of one NVLink network, which stops at another driver's version.
    imex: dict[Name, VersionPattern] = {}
    source: str = Field(min_length=10)

    @model_validator(mode="after")
    def _fits_its_vendor(self) -> DriverRelease:
        if (self.vendor == "nvidia") != (self.cuda is not None) or (self.vendor == "amd") != (self.rocm is not None):
            raise ValueError("a driver of NVIDIA names 'cuda', one of AMD names 'rocm'")
        if (self.fabric_manager or self.imex) and self.vendor != "nvidia":
            raise ValueError("only NVIDIA has a fabric manager, and IMEX")
        return self


class ClassDriver(Strict):
    """What a host class gets: a release, or the reason why there is no release."""

    #: The first one that fulfils the engine's requirements is used.
    releases: list[str] = []
    #: The oldest version that this project refuses: no recipe covers newer drivers.
    driver_below: str | None = Field(default=None, pattern=r"^\d+(\.\d+)*$")
    #: Sizes of the class whose hosts have NVSwitches of their own.
    fabric_manager: list[int] = []
    #: Further packages of those hosts with versions of their own: the newest is installed once, and held.
    fabric_packages: list[Name] = []
    #: Whether hosts of the class share their NVLink network with others.
    imex: bool = False
    why: str = Field(min_length=10)
    source: str = Field(min_length=3)

    @model_validator(mode="after")
    def _is_whole(self) -> ClassDriver:
        if bool(self.releases) != bool(self.driver_below):
            raise ValueError("a class with releases has a ceiling in 'driver_below', and one without has none")
        if self.fabric_manager and not self.releases:
            raise ValueError("a class without a driver has no fabric manager")
        return self


class ContainerToolkit(Strict):
    """The packages through which containers reach NVIDIA's GPUs."""

    repository: str
    packages: dict[Name, VersionPattern] = Field(min_length=1)
    source: str = Field(min_length=10)


class VendorHolds(Strict):
    """Packages on hold on hosts of a vendor: shell patterns of names."""

    packages: list[str] = Field(min_length=1)


class Drivers(Strict):
    """``recipes/drivers.yml``."""

    #: Kernels: a driver is built for one, so that stays too.
    kernel: VendorHolds
    holds: dict[Vendor, VendorHolds]
    repositories: dict[str, Repository]
    releases: dict[str, DriverRelease]
    container_toolkit: ContainerToolkit
    classes: dict[Name, ClassDriver]


class RepositoryMirror(Strict):
    """A fleet's own copy of a vendor's repository, for hosts of any system."""

    uri: str = Field(pattern=r"^(https?://|file:/)\S+$", description="Where the repository is; file: on the hosts.")
    suites: list[str] = Field(default=["/"], min_length=1, description="Its suites; '/' for a flat repository.")
    components: list[str] = Field(default=[], description="Its components; none for a flat repository.")
    signing_key_file: str = Field(
        description="Public key that signs it: a file on the controller, relative to the fleet's folder."
    )
