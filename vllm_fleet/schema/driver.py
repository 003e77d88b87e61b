"""The strict records of ``recipes/drivers.yml``, and what a fleet may say about its drivers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vllm_fleet.base.field_types import Name, Sha256
from vllm_fleet.schema.recipe import Machine, Strict

Vendor = Literal["nvidia", "amd"]
#: ``managed``: the project installs it. ``verified``: the image's own is judged and held, never replaced.
DriverMode = Literal["managed", "verified"]
Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
#: A Debian version, at its end perhaps ``*`` for what the packagers count: apt takes it nowhere else. ``*`` alone for a
#: distribution's package at any version.
VersionPattern = Annotated[str, Field(pattern=r"^([0-9][0-9A-Za-z.+:~-]*\*?|\*)$")]
#: ``ID-VERSION_ID`` of /etc/os-release.
System = Annotated[str, Field(pattern=r"^[a-z]+-[0-9.]+$")]


class AptSource(Strict):
    """The location of the packages of one system: a flat repository has the suite ``/`` and no components."""

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


class SystemSource(AptSource):
    """The packages of one system in a vendor's repository."""

    #: The key that signs them, where it is not the key of the repository.
    key: SigningKey | None = None
    #: The processors that it has packages for, where it lacks some of those of the repository.
    machines: list[Machine] = []


class Repository(Strict):
    """A vendor's apt repository. ``{machine}`` in a URI is replaced by the repository's name of the processor."""

    systems: dict[System | Literal["any"], SystemSource] = Field(min_length=1)
    machines: dict[Machine, str]
    key: SigningKey
    #: What apt's preferences call it wherever it lies: ``o=`` its Origin or ``l=`` its Label.
    pin: str = Field(default="", pattern=r"^([ol]=[^,\n]+)?$")
    source: str = Field(min_length=10)


class SystemPackages(Strict):
    """The packages of a driver on some systems, at exact versions."""

    systems: list[System] = Field(min_length=1)
    packages: dict[Name, VersionPattern] = Field(min_length=1)
    #: The service of hosts with NVSwitches, which must have exactly the driver's version.
    fabric_manager: dict[Name, VersionPattern] = {}
    #: The subnet manager of NVLink 5, which the fabric manager starts.
    subnet_manager: dict[Name, VersionPattern] = {}
    #: The service that lends memory between hosts of one NVLink network, which stops at another driver's version.
    imex: dict[Name, VersionPattern] = {}
    source: str = Field(min_length=10)

    @property
    def all_packages(self) -> dict[str, str]:
        """Every package of these systems, also those that only some hosts get."""
        return {**self.packages, **self.fabric_manager, **self.subnet_manager, **self.imex}


class DependencyPin(Strict):
    """A pin for packages that the named ones depend on: patterns of names, and their version."""

    names: list[str] = Field(min_length=1)
    version: VersionPattern


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
    #: For each system, once: vendors name and split packages differently on each.
    packages: list[SystemPackages] = Field(min_length=1)
    #: Pins for what these packages depend on; without them apt takes the newest, which does not fit.
    dependencies: DependencyPin | None = None
    #: The oldest kernel that its module does not build for; None if no such kernel is known.
    kernel_below: str | None = Field(default=None, pattern=r"^\d+\.\d+$")
    #: Of the kernel that runs, whose version is added: modules that a distribution keeps apart and its own one needs.
    kernel_modules: list[Name] = []
    fabric_manager_unit: str | None = None
    source: str = Field(min_length=10)

    @model_validator(mode="after")
    def _fits_its_vendor(self) -> DriverRelease:
        if (self.vendor == "nvidia") != (self.cuda is not None) or (self.vendor == "amd") != (self.rocm is not None):
            raise ValueError("a driver of NVIDIA names 'cuda', one of AMD names 'rocm'")
        switched = any(system.fabric_manager or system.subnet_manager or system.imex for system in self.packages)
        if switched and self.vendor != "nvidia":
            raise ValueError("only NVIDIA has a fabric manager, a subnet manager and IMEX")
        if switched != (self.fabric_manager_unit is not None):
            raise ValueError("packages of a fabric manager and 'fabric_manager_unit' belong together")
        systems = [system for row in self.packages for system in row.systems]
        if twice := sorted({system for system in systems if systems.count(system) > 1}):
            raise ValueError(f"{twice[0]} is in two entries of 'packages'")
        return self

    def packages_for(self, system: str) -> SystemPackages | None:
        """The packages of a system; None: the recipes have none for it."""
        return next((row for row in self.packages if system in row.systems), None)


class ClassDriver(Strict):
    """What a host class gets: a release, or the reason why there is no release."""

    #: The first one that fulfils the engine's requirements is used.
    releases: list[str] = []
    #: The oldest version that this project refuses: no recipe covers newer drivers.
    driver_below: str | None = Field(default=None, pattern=r"^\d+(\.\d+)*$")
    #: Sizes of the class whose hosts have NVSwitches of their own.
    fabric_manager: list[int] = []
    #: Whether those hosts need the subnet manager of NVLink 5, and the InfiniBand modules through which it works.
    subnet_manager: bool = False
    #: Of the kernel that runs, for those hosts: modules that a distribution may keep apart.
    kernel_modules: list[Name] = []
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
