"""The strict records of ``existing`` in a placement: a network that an account has, by the cloud's own ids.

The stack puts hosts into such a network. It changes nothing of it and deletes nothing of it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vllm_fleet.base.field_types import PRIVATE
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.recipe import Strict

#: A part of a path in Azure's ids.
_PART = r"[A-Za-z0-9_.()-]+"
_GROUP = rf"/subscriptions/[0-9a-fA-F-]{{36}}/resourceGroups/{_PART}"
#: Google's names: RFC 1035, hashicorp/terraform-provider-google, google/verify/validation.go.
_GCP_NAME = r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: The end of an OCID, after its kind.
OCID = r"[A-Za-z0-9._-]+"


def _private_range(value: str) -> str:
    try:
        network = ipaddress.ip_network(value)
    except ValueError as fault:
        raise ValueError(f"is no network: {fault}; write it such as 10.8.0.0/16") from None
    if not is_private_range(value):
        ranges = ", ".join(map(str, PRIVATE))
        raise ValueError(f"{network} is not in {ranges}: vLLM takes connections from no other range")
    return str(network)


def is_private_range(value: str) -> bool:
    """Whether a range is one from which hosts of a fleet take connections: RFC 1918.

    Args:
        value: a range in CIDR form.
    """
    network = ipaddress.ip_network(value, strict=False)
    return any(network.version == 4 and network.subnet_of(private) for private in PRIVATE)


def _azure_subnet(value: str) -> str:
    if not re.fullmatch(rf"{_GROUP}/providers/Microsoft\.Network/virtualNetworks/{_PART}/subnets/{_PART}", value):
        raise ValueError(
            "is not the resource id of a subnet: copy it from 'az network vnet subnet show --query id', such as "
            "/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Network/virtualNetworks/NETWORK/subnets/NAME"
        )
    return value


def _azure_group(value: str) -> str:
    if not re.fullmatch(rf"{_GROUP}/providers/Microsoft\.Network/networkSecurityGroups/{_PART}", value):
        raise ValueError(
            "is not the resource id of a network security group: copy it from 'az network nsg show --query id'"
        )
    return value


#: The range of a network that exists, of any size.
PrivateRange = Annotated[str, AfterValidator(_private_range)]
#: Ids of AWS: eight hexadecimal digits in old accounts, seventeen since 2016.
VpcId = Annotated[str, Form("vpc-[0-9a-f]{8,17}", "the id of a VPC", "write it such as vpc-0a1b2c3d4e5f67890")]
SubnetId = Annotated[
    str, Form("subnet-[0-9a-f]{8,17}", "the id of a subnet", "write it such as subnet-0a1b2c3d4e5f67890")
]
SecurityGroupId = Annotated[
    str, Form("sg-[0-9a-f]{8,17}", "the id of a security group", "write it such as sg-0a1b2c3d4e5f67890")
]
GcpName = Annotated[
    str,
    Form(
        _GCP_NAME,
        "a name at Google",
        "write the name alone, without a path: lower-case letters, digits and dashes, a letter first, 63 at most",
    ),
]
ProjectId = Annotated[
    str,
    Form(
        r"[a-z][a-z0-9:.-]{4,}",
        "the id of a project",
        "write the id, not the number or the title: 'gcloud projects list' shows it as PROJECT_ID",
    ),
]
_VCN = Form(rf"ocid1\.vcn\.{OCID}", "the OCID of a network", "write it such as ocid1.vcn.oc1.eu-frankfurt-1.aaaa")
_OCI_SUBNET = Form(
    rf"ocid1\.subnet\.{OCID}", "the OCID of a subnet", "write it such as ocid1.subnet.oc1.eu-frankfurt-1.aaaa"
)
_OCI_GROUP = Form(
    rf"ocid1\.networksecuritygroup\.{OCID}",
    "the OCID of a network security group",
    "write it such as ocid1.networksecuritygroup.oc1.eu-frankfurt-1.aaaa",
)


class Existing(Strict):
    """What a network that exists has in every cloud."""

    range: PrivateRange | None = Field(
        default=None,
        description="The private range of the whole network. It is needed where access.joined_networks is true.",
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """What hosts of one network have in common."""
        return ()

    @property
    def has_own_rules(self) -> bool:
        """Whether the account's own rules guard the hosts, so that the stack makes no firewall rules."""
        return False


class AwsExisting(Existing):
    """A VPC of AWS."""

    vpc: VpcId = Field(description="The id of the VPC.")
    subnets: dict[str, SubnetId] = Field(
        min_length=1, description="Zone -> the subnet for hosts in it. It has the routes that the hosts need."
    )
    security_groups: list[SecurityGroupId] = Field(
        default=[],
        max_length=16,
        description="Security groups of the hosts. The stack makes no rules then. Default: it makes its own groups.",
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """The VPC."""
        return (self.vpc,)

    @property
    def has_own_rules(self) -> bool:
        """Whether security groups of the account are given."""
        return bool(self.security_groups)

    @model_validator(mode="after")
    def _one_zone_each(self) -> AwsExisting:
        for zone, subnet in self.subnets.items():
            if other := next((name for name, id_ in self.subnets.items() if id_ == subnet and name != zone), None):
                raise ValueError(f"gives {subnet} for {other} and {zone}, and a subnet of AWS is in one zone")
        return self


class GcpExisting(Existing):
    """A VPC network of Google Cloud, also one of another project (Shared VPC)."""

    network: GcpName = Field(description="The name of the network.")
    subnetwork: GcpName = Field(description="The name of its subnetwork in the region; it spans the zones.")
    project: ProjectId | None = Field(
        default=None, description="The host project of a Shared VPC. Default: the project of the hosts."
    )
    firewall: Literal["fleet", "none"] = Field(
        default="fleet",
        description="'fleet': the stack makes firewall rules, for the fleet's network tags only. 'none': it makes "
        "none, where a network team does.",
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """The host project and the network."""
        return (self.project or "", self.network)

    @property
    def has_own_rules(self) -> bool:
        """Whether the stack makes no rules."""
        return self.firewall == "none"


class AzureExisting(Existing):
    """A virtual network of Azure."""

    subnet: Annotated[str, AfterValidator(_azure_subnet)] = Field(
        description="Resource id of the subnet; it spans the zones of its region."
    )
    network_security_group: Annotated[str, AfterValidator(_azure_group)] | None = Field(
        default=None,
        description="Resource id of the hosts' network security group. The stack makes no rules then. Default: it "
        "makes its own groups.",
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """The virtual network."""
        return (self.subnet.rpartition("/subnets/")[0].lower(),)

    @property
    def has_own_rules(self) -> bool:
        """Whether a group of the account is given."""
        return self.network_security_group is not None


class OciExisting(Existing):
    """A virtual cloud network of Oracle."""

    vcn: Annotated[str, _VCN] = Field(description="The OCID of the network.")
    subnet: Annotated[str, _OCI_SUBNET] = Field(
        description="The OCID of its subnet: a regional one, or one of the pool's only availability domain."
    )
    network_security_groups: list[Annotated[str, _OCI_GROUP]] = Field(
        default=[],
        max_length=5,
        description="OCIDs of the hosts' network security groups. The stack makes no rules then. Default: it makes its "
        "own groups.",
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """The network."""
        return (self.vcn,)

    @property
    def has_own_rules(self) -> bool:
        """Whether groups of the account are given."""
        return bool(self.network_security_groups)


class DigitalOceanExisting(Existing):
    """A VPC network of DigitalOcean. Firewalls are by tag there, and stay the fleet's own."""

    vpc_uuid: Annotated[str, Form(UUID, "the id of a VPC", "copy it from 'doctl vpcs list'")] = Field(
        description="The id of the network."
    )

    @property
    def network_id(self) -> tuple[str, ...]:
        """The network."""
        return (self.vpc_uuid,)
