"""The strict records of ``placement`` in ``fleet.yml``: where a pool's hosts are, and how they are rented."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from vllm_fleet.base.field_types import WHOLE, Day, SshPublicKey
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.existing import (
    OCID,
    AwsExisting,
    AzureExisting,
    DigitalOceanExisting,
    Existing,
    GcpExisting,
    OciExisting,
    ProjectId,
)
from vllm_fleet.schema.recipe import Line, Name, PrivateNetwork, Strict

#: The ways to get a host. ``recipes/clouds`` has each cloud's own names for them.
CapacityKind = Literal["on-demand", "spot", "reservation", "capacity-block", "flex-start", "contract"]
Zone = Annotated[
    str, Form(r"[A-Za-z0-9][A-Za-z0-9:._-]*", "a zone", "copy its name as the cloud shows it, without blanks")
]


#: Azure's ids have groups, whose names may have parentheses.
_CLOUD_ID = Form(
    r"[A-Za-z0-9/][A-Za-z0-9/:._()@=+-]*", "an id", "copy it as the cloud shows it, without blanks and ';'"
)


def _region_like(value: str, pattern: str, example: str) -> str:
    """A region of a cloud, as far as its form tells."""
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{value[:80]!r} is not a region of this cloud: write it such as {example}")
    return value


def _managed_identity(value: str) -> str:
    part = r"[A-Za-z0-9_.()-]+"
    of = rf"/subscriptions/[0-9a-fA-F-]{{36}}/resource[gG]roups/{part}/providers/Microsoft\.ManagedIdentity"
    if not re.fullmatch(rf"{of}/userAssignedIdentities/{part}", value):
        raise ValueError(
            "is not the resource id of a user-assigned managed identity: copy it from 'az identity show --query id'"
        )
    return value


#: What a cloud calls a thing: an image, a reservation.
CloudId = Annotated[Line, _CLOUD_ID]


def _image_like(value: str | None, pattern: str, example: str) -> str | None:
    """An image of a cloud, as far as its form tells; ``latest`` in every cloud."""
    if value not in (None, "latest") and not re.fullmatch(pattern, value):
        raise ValueError(f"{value[:80]!r} is not an image of this cloud: write it such as {example}")
    return value


_START = Form(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2})?Z", "a time", "write it in UTC, such as 2026-12-01T11:30:00Z")
_GROUP_NAME = Form("[A-Za-z0-9][ -~]{0,254}", "a placement group", "write true, or the name of a group that exists")
#: IAM's API reference, AddRoleToInstanceProfile, InstanceProfileName.
_INSTANCE_PROFILE = Form(
    "[A-Za-z0-9_+=,.@-]{1,128}", "the name of an instance profile", "write its name, which is the end of its ARN"
)
_SERVICE_ACCOUNT = Form(
    r"[a-z0-9.-]+@[a-z0-9.-]+\.gserviceaccount\.com",
    "a service account",
    "write its e-mail address, such as serving@PROJECT.iam.gserviceaccount.com",
)
_COMPARTMENT = Form(rf"ocid1\.{OCID}", "the OCID of a compartment", "write it such as ocid1.compartment.oc1..aaaa")


class Purchase(Strict):
    """An order for capacity, which costs money when the stack is created. Nothing is bought without it."""

    offering_id: CloudId = Field(min_length=3, description="The offering, as the cloud's search names it.")
    duration_hours: Annotated[int, Field(gt=0, le=4368, multiple_of=24), WHOLE] = Field(
        description="Length of the block in hours: whole days."
    )
    starts: Annotated[str, _START] | None = Field(
        default=None,
        description="The offering's start, such as 2026-12-01T11:30:00Z: needed where AWS offers several blocks.",
    )
    accept_cost_usd: float = Field(
        gt=0,
        le=10_000_000,
        description="The whole price in US dollars that you accept; at another price nothing is bought.",
    )


class Capacity(Strict):
    """How a pool's hosts are rented."""

    kind: CapacityKind = Field(default="on-demand", description="The way to rent hosts.")
    id: CloudId | None = Field(default=None, description="The reservation or capacity block.")
    purchase: Purchase | None = Field(default=None, description="Buys the capacity block. Costs money.")

    @model_validator(mode="after")
    def _named(self) -> Capacity:
        needs_id = self.kind in ("reservation", "capacity-block")
        if needs_id and not (self.id or self.purchase):
            raise ValueError(f"{self.kind} needs the 'id' of what was reserved")
        if self.purchase and (self.kind != "capacity-block" or self.id):
            raise ValueError("'purchase' buys a capacity block that has no 'id' yet")
        if self.id and not needs_id:
            raise ValueError(f"{self.kind} takes no 'id'")
        return self


EXISTING = (
    "A network that the account has, in place of one that the stack makes. The stack changes and deletes nothing of "
    "it. The same for all pools of a region, project or compartment."
)


class Placement(Strict):
    """Where the hosts of a pool are, in any cloud."""

    region: Zone = Field(description="The region, as the cloud names it.")
    zone: Zone | None = Field(default=None, description="The zone. 'zones' gives several zones instead.")
    zones: list[Zone] = Field(
        default=[],
        max_length=16,
        description="Zones in order: where one has no capacity, the next 'pulumi up' takes the next one.",
    )
    unlisted: bool = Field(
        default=False,
        description="True takes a region or zone that recipes/clouds does not list, because it is newer.",
    )
    network: PrivateNetwork | None = Field(
        default="10.60.0.0/16",
        description="Private range of the hosts' network, the same for all pools of a region, project or compartment. "
        "Networks that are joined need different ones. It cannot be changed later: hosts cannot move.",
    )
    shape: Line | None = Field(
        default=None, description="An instance type of the host class. Default: the first one of recipes/clouds."
    )
    capacity: Capacity = Field(default_factory=Capacity, description="How the hosts are rented. Default: on demand.")
    disk_gib: Annotated[int, Field(ge=50, le=16384), WHOLE] = Field(
        default=200, description="Size of the root disk in GiB. Engines take about 20 GiB each."
    )
    model_disk_gib: Annotated[int, Field(ge=0, le=65536), WHOLE] = Field(
        default=0,
        description="Size in GiB of a network disk for model weights, which outlives a stop of the host; the weights "
        "are on it even where the host has faster disks inside. 0: they are on those, or on the root disk.",
    )
    local_disks: bool = Field(
        default=True,
        description="True puts the weights on the disks inside the host, where its type has some. False leaves these "
        "disks alone, for uses of your own.",
    )
    disk_iops: Annotated[int, Field(gt=0, le=1_000_000), WHOLE] | None = Field(
        default=None, description="IOPS of the root disk, where they are ordered apart from its size."
    )
    disk_throughput_mib_s: Annotated[int, Field(gt=0, le=100_000), WHOLE] | None = Field(
        default=None, description="Throughput of the root disk in MiB/s, where it is ordered apart from its size."
    )
    model_disk_iops: Annotated[int, Field(gt=0, le=1_000_000), WHOLE] | None = Field(
        default=None, description="IOPS of the disk for weights."
    )
    model_disk_throughput_mib_s: Annotated[int, Field(gt=0, le=100_000), WHOLE] | None = Field(
        default=None, description="Throughput of the disk for weights in MiB/s: how fast a host loads them."
    )
    image: CloudId | None = Field(
        default=None,
        description="'latest' moves hosts to the newest image, an image's id pins it. "
        "Default: the image that was newest when the host was made.",
    )
    public_address: bool = Field(
        default=False,
        description="True gives each host its own address on the internet. Gateways have one by default; other hosts "
        "are reached as access.ssh_through says.",
    )
    outbound: Literal["nat", "none"] = Field(
        default="nat",
        description="How hosts without a public address reach the internet: through the cloud's NAT, which is paid, or "
        "not at all, where a mirror inside has everything.",
    )
    existing: Existing | None = Field(default=None, description=EXISTING)

    @model_validator(mode="after")
    def _network_is_made_or_exists(self) -> Placement:
        if self.existing:
            for key in ("network", "outbound"):
                if key in self.model_fields_set:
                    raise ValueError(
                        f"gives 'existing' and {key!r}, which is for a network that the stack makes: remove it"
                    )
        return self

    @model_validator(mode="after")
    def _one_list(self) -> Placement:
        if self.zone and self.zones:
            raise ValueError("gives 'zone' and 'zones': keep one of them")
        if len(set(self.zones)) != len(self.zones):
            raise ValueError("names a zone twice in 'zones'")
        return self

    @property
    def all_zones(self) -> tuple[str, ...]:
        """The zones in the order in which they are tried."""
        return (self.zone,) if self.zone else tuple(self.zones)

    @property
    def place(self) -> tuple[str, ...]:
        """What hosts of one network have in common."""
        return (self.region,)


class _Zoned(Placement):
    @model_validator(mode="after")
    def _has_zone(self) -> _Zoned:
        if not self.all_zones:
            raise ValueError("names no zone: give 'zone', or 'zones' in the order to try")
        return self


class AwsPlacement(_Zoned):
    """Amazon Web Services; account and credentials are those of the AWS SDK."""

    placement_group: bool | Annotated[str, _GROUP_NAME] = Field(
        default=False,
        description="True places the instances close together in one zone, in a cluster placement group of the stack; "
        "a name takes the group of that name. A capacity block has its own placement instead.",
    )
    fabric: bool = Field(
        default=False,
        description="An EFA interface on each network card, for traffic between hosts. Serving needs none.",
    )
    existing: AwsExisting | None = Field(default=None, description=EXISTING)
    instance_profile: Annotated[str, _INSTANCE_PROFILE] | None = Field(
        default=None,
        description="The name of an instance profile that the hosts get. Default: none, because nothing on them uses "
        "the API of AWS.",
    )

    @field_validator("region")
    @classmethod
    def _region(cls, value: str) -> str:
        return _region_like(value, r"[a-z]{2,4}(-[a-z]+){1,3}-[0-9]{1,2}", "us-east-1")

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return _image_like(value, r"ami-([0-9a-f]{8}|[0-9a-f]{17})", "ami-0123456789abcdef0")

    @model_validator(mode="after")
    def _zones_of_the_region(self) -> AwsPlacement:
        for zone in self.all_zones:
            if re.fullmatch(rf"{re.escape(self.region)}(-[a-z0-9]+)+-[0-9]+[a-z]", zone):
                # Subnets are cut by the letter of a zone, which local zones and Wavelength zones share with others.
                raise ValueError(f"{zone!r} is a local zone, which this release does not use: take another zone")
            if not re.fullmatch(rf"{re.escape(self.region)}[a-p]", zone):
                raise ValueError(f"{zone!r} is not a zone of {self.region}: correct one of them (as {self.region}a)")
        return self

    @model_validator(mode="after")
    def _a_subnet_in_each_zone(self) -> AwsPlacement:
        subnets = self.existing.subnets if self.existing else {}
        for zone in subnets:
            if not re.fullmatch(rf"{re.escape(self.region)}[a-p]", zone):
                raise ValueError(f"gives existing.subnets.{zone}, which is not a zone of {self.region}")
        for zone in self.all_zones if self.existing else ():
            if zone not in subnets:
                raise ValueError(f"gives existing.subnets for {', '.join(subnets)}, and none for its zone {zone}")
        return self

    @model_validator(mode="after")
    def _no_group_in_a_block(self) -> AwsPlacement:
        if self.placement_group and self.capacity.kind == "capacity-block":
            raise ValueError("a capacity-block has its own placement: remove 'placement_group'")
        if self.placement_group is True and self.capacity.kind == "reservation":
            raise ValueError(
                "a reservation is used in the placement group that it was made in, or in none: give the name of that "
                "group as 'placement_group', or remove it"
            )
        return self

    @model_validator(mode="after")
    def _bought_in_one_zone(self) -> AwsPlacement:
        if self.capacity.purchase and len(self.all_zones) != 1:
            raise ValueError("a capacity block is in one zone: give 'zone', that of the offering")
        return self


class GcpPlacement(_Zoned):
    """Google Cloud; credentials are those of the SDK."""

    project: ProjectId = Field(description="The id of the project.")
    secure_boot: bool = Field(default=False, description="Needs an image whose driver modules are signed.")
    run_hours: Annotated[int, Field(gt=0, le=168), WHOLE] | None = Field(
        default=None, description="How long flex-start hosts may live, in hours; 168 at most."
    )
    reservation_bound: bool | None = Field(
        default=None,
        description="Whether hosts live as long as their reservation (RESERVATION_BOUND). Default: those of A3 Ultra, "
        "A4 and A4X. True for a calendar reservation of A3 Mega or A3 High.",
    )
    existing: GcpExisting | None = Field(default=None, description=EXISTING)
    service_account: Annotated[str, _SERVICE_ACCOUNT] | None = Field(
        default=None,
        description="The e-mail address of a service account that the hosts get. Default: none, because nothing on "
        "them uses Google's API.",
    )
    scopes: list[Line] | None = Field(
        default=None,
        min_length=1,
        description="OAuth scopes of the service account. Default: cloud-platform, so that its IAM roles decide.",
    )

    @property
    def place(self) -> tuple[str, ...]:
        """A network belongs to one project."""
        return (self.project, self.region)

    @field_validator("region")
    @classmethod
    def _region(cls, value: str) -> str:
        return _region_like(value, r"[a-z]+-[a-z]+[0-9]{1,2}", "us-central1")

    @model_validator(mode="after")
    def _zones_of_the_region(self) -> GcpPlacement:
        for zone in self.all_zones:
            # An AI zone has a number beside its letter: us-central1-ai1a.
            if not re.fullmatch(rf"{re.escape(self.region)}-(ai[0-9]+)?[a-z]", zone):
                raise ValueError(f"{zone!r} is not a zone of {self.region}: correct one of them (as {self.region}-b)")
        return self

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        name, project = r"[a-z]([a-z0-9-]*[a-z0-9])?", r"[a-z][a-z0-9:.-]+"
        address = r"https://(www|compute)\.googleapis\.com/compute/[a-z0-9]+/"
        forms = (
            rf"({address})?projects/{project}/global/images/(family/)?{name}",
            rf"(global/images/|family/)?{name}",
            rf"{project}/{name}",
        )
        return _image_like(value, "|".join(f"({form})" for form in forms), "projects/PROJECT/global/images/NAME")

    @model_validator(mode="after")
    def _scopes_are_somebody_s(self) -> GcpPlacement:
        if self.scopes and not self.service_account:
            raise ValueError("gives 'scopes' without the 'service_account' that they are for")
        return self

    @model_validator(mode="after")
    def _flex_is_finite(self) -> GcpPlacement:
        if (self.capacity.kind == "flex-start") != (self.run_hours is not None):
            raise ValueError("'run_hours' belongs to the capacity kind flex-start, which needs it")
        if self.reservation_bound is not None and self.capacity.kind != "reservation":
            raise ValueError("'reservation_bound' belongs to the capacity kind reservation")
        return self


#: The name of a resource at Azure; groups may have parentheses.
_AZURE_NAME = r"[A-Za-z0-9._()-]+"


class AzurePlacement(Placement):
    """Microsoft Azure; subscription and credentials are those of the Azure CLI. Without a zone Azure chooses."""

    encryption_at_host: bool = Field(
        default=False,
        description="Encrypts the host's own disks and caches too. The subscription must have the feature: az feature "
        "register --namespace Microsoft.Compute --name EncryptionAtHost. It cannot change while a host runs.",
    )
    existing: AzureExisting | None = Field(default=None, description=EXISTING)
    managed_identity: Annotated[str, AfterValidator(_managed_identity)] | None = Field(
        default=None,
        description="Resource id of a user-assigned managed identity that the hosts get. Default: none, because "
        "nothing on them uses Azure's API.",
    )

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        compute = rf"/subscriptions/[0-9A-Fa-f-]+/resourceGroups/{_AZURE_NAME}/providers/Microsoft\.Compute"
        version = r"(/versions/[A-Za-z0-9.]+)?"
        forms = (
            rf"(?i:{compute}/images/{_AZURE_NAME})",
            rf"(?i:{compute}/galleries/{_AZURE_NAME}/images/{_AZURE_NAME}{version})",
            r"[A-Za-z0-9._-]+(:[A-Za-z0-9._-]+){3}",
        )
        example = "PUBLISHER:OFFER:SKU:VERSION, or a resource id as 'az image list' prints it"
        return _image_like(value, "|".join(f"({form})" for form in forms), example)


class OciPlacement(_Zoned):
    """Oracle Cloud; zones are availability domains. Images with drivers are the tenant's own: ``image`` is needed."""

    compartment: Annotated[str, _COMPARTMENT] = Field(description="The OCID of the compartment.")
    existing: OciExisting | None = Field(default=None, description=EXISTING)

    @property
    def place(self) -> tuple[str, ...]:
        """A network belongs to one compartment."""
        return (self.region, self.compartment)

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return _image_like(value, r"ocid1\.image\.[a-z0-9]+\.[a-z0-9-]*\.[a-z0-9]+", "ocid1.image.oc1.iad.aaaa...")

    @model_validator(mode="after")
    def _no_model_disk(self) -> OciPlacement:
        if self.model_disk_gib:
            raise ValueError(
                "Oracle's bare metal reaches volumes by iSCSI alone, for which vllm-fleet makes no login; its GPU "
                "hosts have NVMe inside: remove 'model_disk_gib'"
            )
        return self


class DigitalOceanPlacement(Placement):
    """DigitalOcean: a region has no zones."""

    network: PrivateNetwork | None = Field(
        default=None,
        description="Private range of the hosts' network. No two networks of an account may overlap. "
        "Default: DigitalOcean takes a free range.",
    )
    existing: DigitalOceanExisting | None = Field(default=None, description=EXISTING)

    @field_validator("image")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        return _image_like(value, r"[0-9]+|[a-z0-9]+(-[a-z0-9]+)*", "ubuntu-24-04-x64, or the number of a snapshot")

    @model_validator(mode="after")
    def _no_zones(self) -> DigitalOceanPlacement:
        if self.all_zones:
            raise ValueError("a region of DigitalOcean has no zones: remove 'zone' and 'zones'")
        return self

    @model_validator(mode="after")
    def _disks_are_the_size_s(self) -> DigitalOceanPlacement:
        if {"disk_gib", "model_disk_gib"} & self.model_fields_set:
            raise ValueError(
                "a size of DigitalOcean has its disks (500 GiB or more, and mostly a scratch disk of 5 TiB, which "
                "holds the weights): remove 'disk_gib' and 'model_disk_gib'"
            )
        return self


def _lab_network(value: str) -> str:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as fault:
        raise ValueError(f"is {value!r}: {fault}; give an IPv4 network such as 10.77.0.0/24") from None
    if network.prefixlen > 29 or not network.is_private:
        raise ValueError(f"is {value!r}: give a private IPv4 network of 8 addresses or more")
    return value


class LabPlacement(Strict):
    """Where the hosts of the lab are: systemd hosts of this machine."""

    #: A network interface of Linux has at most 15 characters.
    bridge: str = Field(pattern=r"^[a-z][a-z0-9-]{0,14}$", description="The bridge on this machine that they share.")
    subnet: Annotated[str, AfterValidator(_lab_network)] = Field(description="The IPv4 network of the bridge.")
    first: Annotated[int, Field(ge=2, le=65534), WHOLE] | None = Field(
        default=None, description="The place of the first host in the subnet. Default: 11, and 2 for gateways."
    )


#: The placement of every cloud whose hosts are rented.
PLACEMENTS: dict[str, type[Placement]] = {
    "aws": AwsPlacement,
    "gcp": GcpPlacement,
    "azure": AzurePlacement,
    "oci": OciPlacement,
    "digitalocean": DigitalOceanPlacement,
}


class Prices(Strict):
    """A fleet's own price list, for ``vllm-fleet plan``."""

    as_of: Day = Field(description="The day of the prices: YYYY-MM-DD.")
    source: Line = Field(min_length=3, description="Where the prices come from.")
    usd_per_hour: dict[str, dict[CapacityKind, Annotated[float, Field(ge=0, le=100_000)]]] = Field(
        description="Instance type -> kind of capacity -> US dollars for one host and hour."
    )


class HostKeys(Strict):
    """``host-keys.yml``: SSH host keys that hosts made themselves after their first contact, by host.

    It has two keys while one replaces the other, the new one first.
    """

    #: The id in ``stack.json`` of the host that made the key: a replaced host shows the stack's key.
    hosts: dict[Name, str] = {}
    keys: dict[
        Name,
        Annotated[list[SshPublicKey], Field(min_length=1)],
    ]
