"""The strict records of ``recipes/clouds``: what can be rented, from which image, where, and what a cloud answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from vllm_fleet.base.field_types import Day
from vllm_fleet.schema.cloud import CapacityKind
from vllm_fleet.schema.recipe import Cloud, Line, Strict

#: What an image must bring: a vendor's driver for a processor architecture, or nothing (``plain``, for gateways).
ImageKind = Literal["nvidia-x86_64", "nvidia-aarch64", "amd-x86_64", "plain-x86_64"]
#: What an error message of a cloud means for a host that was asked for.
Meaning = Literal["no-capacity", "quota"]


class Source(Strict):
    """Where facts were read, and when."""

    where: Line = Field(min_length=3)
    read: Day


class Row(Strict):
    """A row of facts with the names of their sources."""

    sources: list[str] = Field(min_length=1)
    #: What in the row none of its sources says.
    unverified: Line | None = None


class Image(Row):
    """The image that hosts start from unless the fleet names one.

    Attributes:
        name: where it is looked up, in the cloud's own terms.
    """

    name: Line


class Answer(Row):
    """A part of an error message, as users reported it, and what it means.

    Attributes:
        words: the part; codes rather than sentences, which some clouds translate.
        means: whether the zone has no capacity, so that another one may, or a limit of the account is reached, which
            holds in every zone of the region.
        cure: what to do about a limit: which one to raise, and where.
    """

    words: Line
    means: Meaning
    cure: Line | None = None

    @model_validator(mode="after")
    def _says_what_to_do(self) -> Answer:
        if (self.means == "quota") != (self.cure is not None):
            raise ValueError("'cure' says which limit to raise: quota needs it, and no-capacity has none")
        return self


class Fabric(Strict):
    """The network cards that carry EFA: every ``step``-th one from ``first`` to ``last``."""

    first: int = Field(ge=0)
    last: int = Field(ge=0, le=63)
    step: int = Field(default=1, ge=1)

    @property
    def cards(self) -> tuple[int, ...]:
        """The indexes of the cards."""
        return tuple(range(self.first, self.last + 1, self.step))


class Range(Strict):
    """The least and the most that a cloud takes."""

    least: int = Field(gt=0)
    most: int = Field(gt=0)


class DiskType(Row):
    """A type of network disk: its speed, and what of it can be ordered."""

    #: What can be ordered; None: the speed is that of the size.
    iops: Range | None = None
    throughput_mib_s: Range | None = None
    #: The most IOPS for each GiB, and the most MiB/s for each of the IOPS.
    iops_per_gib: int = Field(default=0, ge=0)
    mib_s_per_iops: float = Field(default=0, ge=0)
    #: What a disk gets unless the fleet says otherwise: the most that needs no IOPS beyond those in the price.
    default_iops: int | None = None
    default_throughput_mib_s: int | None = None
    #: Speed by size: a part for every disk, a part for each GiB, or steps (up to so many GiB -> MiB/s).
    base_mib_s: float = Field(default=0, ge=0)
    mib_s_per_gib: float = Field(default=0, ge=0)
    steps_mib_s: dict[int, int] = {}

    @property
    def can_be_ordered(self) -> bool:
        """Whether its speed is ordered, apart from its size."""
        return self.iops is not None

    def mib_s_of(self, size_gib: int) -> float | None:
        """The throughput that comes with a size; None where that is not known."""
        for most_gib, mib_s in sorted(self.steps_mib_s.items()):
            if size_gib <= most_gib:
                return mib_s
        by_size = self.base_mib_s + self.mib_s_per_gib * size_gib
        return by_size or None


class DiskChoice(Strict):
    """The types of network disk that hosts get."""

    root: str
    models: str | None = None


class Shape(Row):
    """One instance type of a cloud that is a host class of the catalogue."""

    host_class: str
    capacity: list[CapacityKind] = Field(min_length=1)
    #: The image that this type needs in place of the cloud's usual one of its kind.
    image: Image | None = None
    #: The cards for traffic between hosts (EFA); None: the type has none.
    fabric: Fabric | None = None
    #: NVMe disks inside the host that are empty at each start, and the size of each where it is known.
    local_disks: int = Field(default=0, ge=0)
    local_disk_gib: int | None = Field(default=None, gt=0)
    #: A disk inside the host that the cloud has made with a file system.
    scratch_gib: int = Field(default=0, ge=0)
    #: The throughput of all network disks of a host together, where it is known.
    disks_mib_s: int | None = Field(default=None, gt=0)
    #: The types of its network disks, where they are others than the cloud's.
    disks: DiskChoice | None = None
    #: Whether the stack can buy a capacity block of it: UltraServers are offered in another way.
    can_be_bought: bool = True
    #: What a user should know before taking it, for the table of clouds.
    note: Line | None = None


class Regions(Row):
    """The regions of a cloud and the zones in each.

    Attributes:
        zones: region -> the names of its zones, of which a tenancy of Oracle sets a prefix before; an empty list:
            it has none; None: they are not known, so any is taken.
    """

    zones: dict[str, list[str] | None]


class CloudTable(Strict):
    """One file of ``recipes/clouds``."""

    name: Cloud
    #: Who logs in to a new host.
    user: str = Field(pattern=r"^[a-z_][a-z0-9_-]*$")
    #: The instance type of gateways.
    gateway_shape: str
    #: The Python package of the cloud's Pulumi SDK; None: its component needs none.
    sdk: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9-]*$")
    #: Name -> where and when it was read; every row below names those that it comes from.
    sources: dict[str, Source]
    #: Parts of this cloud's error messages, and what they mean.
    answers: list[Answer] = Field(min_length=1)
    images: dict[ImageKind, Image]
    #: Says that the cloud's images reject everything but SSH by rules of their own; None: they do not.
    image_firewall: Row | None = None
    #: Types of network disk, those that hosts get, and the label of the file systems on scratch disks.
    disk_types: dict[str, DiskType] = {}
    disks: DiskChoice | None = None
    scratch_label: str | None = None
    #: Whether the instance type decides the size of the root disk, and the fleet cannot.
    root_disk_is_the_type_s: bool = False
    #: Instance type -> what it is. The first one of a class and capacity kind is its default.
    shapes: dict[str, Shape]
    regions: Regions

    @model_validator(mode="after")
    def _sources_are_there(self) -> CloudTable:
        rows = dict(self._rows())
        for name, row in rows.items():
            if unknown := sorted(set(row.sources) - set(self.sources)):
                raise ValueError(f"{name} names the source {unknown[0]!r}, which 'sources' does not have")
        if unused := sorted(set(self.sources) - {source for row in rows.values() for source in row.sources}):
            raise ValueError(f"'sources' has {unused[0]!r}, which no row names")
        return self

    def _rows(self) -> Iterator[tuple[str, Row]]:
        yield from ((f"answers: {answer.words!r}", answer) for answer in self.answers)
        yield from ((f"images.{kind}", image) for kind, image in self.images.items())
        yield from ((f"shapes.{name}", shape) for name, shape in self.shapes.items())
        yield from ((f"shapes.{name}.image", shape.image) for name, shape in self.shapes.items() if shape.image)
        yield from ((f"disk_types.{name}", disk) for name, disk in self.disk_types.items())
        yield "regions", self.regions
        if self.image_firewall:
            yield "image_firewall", self.image_firewall

    def answer(self, error: str) -> Answer | None:
        """What an error message of this cloud means; None for one that says neither.

        A message may have the words of both, such as a limit on capacity: then it is the limit.
        """
        found = [answer for answer in self.answers if answer.words in error]
        return next((answer for answer in found if answer.means == "quota"), found[0] if found else None)

    def lacks_capacity(self, error: str) -> bool:
        """Whether an error message of this cloud means that the zone has no capacity, so that another zone may have."""
        answer = self.answer(error)
        return answer is not None and answer.means == "no-capacity"
