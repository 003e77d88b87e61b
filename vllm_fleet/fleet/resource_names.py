"""The names of what a stack makes in a cloud, and the longest ones that the cloud takes.

A fleet cannot be renamed later, so the longest name of each kind is judged as if every option were on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.cloud import GcpPlacement, OciPlacement, Placement


@dataclass(frozen=True)
class NameForm:
    """The longest name of some resources.

    Attributes:
        what: the resource, in words.
        types: its types on the wire.
        at: the property with the name.
        form: the name: ``{fleet}``, ``{network}``, ``{pool}`` and ``{host}`` are names.
        most: the most letters that the cloud takes.
        source: where that was read.
        of_serving: whether gateways have none.
    """

    what: str
    types: tuple[str, ...]
    at: str
    form: str
    most: int
    source: str
    of_serving: bool = False


_AWS = "botocore, data/ec2/2016-11-15/service-2.json: GroupName, up to 255 characters"
_RFC_1035 = "hashicorp/terraform-provider-google, google/verify/validation.go: RFC1035NameTemplate, 63 characters"
_AZURE = "hashicorp/terraform-provider-azurerm, internal/services"
_AZURE_NETWORK = f"{_AZURE}/network: names of 80 characters"
_OCI = "oracle/oci-python-sdk, CreateVcnDetails.display_name: 255 characters"
_DO = "digitalocean/openapi, specification/resources"
_GCP_OF_NETWORK = tuple(
    f"gcp:compute/{kind[:1].lower()}{kind[1:]}:{kind}" for kind in ("Network", "Subnetwork", "Router", "RouterNat")
)
_OCI_OF_NETWORK = tuple(
    f"oci:Core/{kind[:1].lower()}{kind[1:]}:{kind}" for kind in ("Vcn", "NatGateway", "Subnet", "SecurityList")
)

#: Cloud -> the longest names that its stack makes. tests/infra/test_resource_names.py compares them with the stacks.
FORMS: Mapping[str, tuple[NameForm, ...]] = {
    "aws": (
        NameForm("a security group", ("aws:ec2/securityGroup:SecurityGroup",), "name", "{network}-serving", 255, _AWS),
        NameForm("a placement group", ("aws:ec2/placementGroup:PlacementGroup",), "name", "{fleet}-{pool}", 255, _AWS),
    ),
    "gcp": (
        NameForm("a network", _GCP_OF_NETWORK, "name", "{network}", 63, _RFC_1035),
        NameForm(
            "a firewall rule", ("gcp:compute/firewall:Firewall",), "name", "{network}-ssh-inside-far", 63, _RFC_1035
        ),
        NameForm("a network tag", ("gcp:compute/instance:Instance",), "tags.*", "{fleet}-serving", 63, _RFC_1035),
        NameForm("a host", ("gcp:compute/instance:Instance",), "name", "{fleet}-{host}", 63, _RFC_1035),
        NameForm("an address", ("gcp:compute/address:Address",), "name", "{fleet}-{host}", 63, _RFC_1035),
        NameForm("a disk", ("gcp:compute/disk:Disk",), "name", "{fleet}-{host}-models", 63, _RFC_1035, True),
    ),
    "azure": (
        NameForm(
            "a resource group",
            ("azure-native:resources:ResourceGroup",),
            "resourceGroupName",
            "{network}",
            90,
            "hashicorp/go-azure-helpers, resourcemanager/resourcegroups/validate.go: 90 characters",
        ),
        NameForm(
            "a network",
            ("azure-native:network:VirtualNetwork",),
            "virtualNetworkName",
            "{network}",
            64,
            "Azure: Naming rules for resources, Microsoft.Network/virtualNetworks: 2 to 64 characters",
        ),
        NameForm(
            "a security group",
            ("azure-native:network:NetworkSecurityGroup",),
            "networkSecurityGroupName",
            "{network}-serving",
            80,
            _AZURE_NETWORK,
        ),
        NameForm(
            "a group of hosts",
            ("azure-native:network:ApplicationSecurityGroup",),
            "applicationSecurityGroupName",
            "{network}-serving",
            80,
            _AZURE_NETWORK,
        ),
        NameForm(
            "a NAT gateway",
            ("azure-native:network:NatGateway",),
            "natGatewayName",
            "{network}-nat",
            80,
            _AZURE_NETWORK,
        ),
        NameForm(
            "an address",
            ("azure-native:network:PublicIPAddress",),
            "publicIpAddressName",
            "{network}-nat",
            80,
            _AZURE_NETWORK,
        ),
        NameForm(
            "an address",
            ("azure-native:network:PublicIPAddress",),
            "publicIpAddressName",
            "{host}",
            80,
            _AZURE_NETWORK,
        ),
        NameForm(
            "an interface",
            ("azure-native:network:NetworkInterface",),
            "networkInterfaceName",
            "{host}",
            80,
            _AZURE_NETWORK,
        ),
        # Its computer name is the same.
        NameForm(
            "a host",
            ("azure-native:compute:VirtualMachine",),
            "vmName",
            "{host}",
            64,
            f"{_AZURE}/compute/validate/linux_computer_name.go: 64 characters",
        ),
    ),
    "oci": (
        NameForm("a network", _OCI_OF_NETWORK, "displayName", "{network}-closed", 255, _OCI),
        NameForm(
            "a security group",
            ("oci:Core/networkSecurityGroup:NetworkSecurityGroup",),
            "displayName",
            "{network}-serving",
            255,
            _OCI,
        ),
        NameForm("a host", ("oci:Core/instance:Instance",), "displayName", "{fleet}-{host}", 255, _OCI),
    ),
    "digitalocean": (
        NameForm(
            "a network",
            ("digitalocean:index/vpc:Vpc", "digitalocean:index/vpcNatGateway:VpcNatGateway"),
            "name",
            "{network}",
            255,
            f"{_DO}/vpcs/models/vpc.yml: 255 characters",
        ),
        NameForm(
            "a firewall",
            ("digitalocean:index/firewall:Firewall", "digitalocean:index/tag:Tag"),
            "name",
            "{fleet}-serving",
            255,
            f"{_DO}/tags/models/tags.yml: 255 characters",
        ),
        NameForm(
            "a key", ("digitalocean:index/sshKey:SshKey",), "name", "{fleet}-deploy", 255, f"{_DO}: none is stated"
        ),
        NameForm(
            "a host",
            ("digitalocean:index/droplet:Droplet",),
            "name",
            "{fleet}-{host}",
            64,
            "Linux, include/uapi/linux/utsname.h: a host's name has 64 characters; it is the droplet's there",
        ),
    ),
}


def network_name(fleet: str, placement: Placement, beside: Iterable[Placement]) -> str:
    """The name of a network of the stack, which begins the names of its parts.

    Args:
        fleet: the fleet's name.
        placement: that of a host in the network.
        beside: those of all hosts in the same cloud: only where they differ, the name has their project or compartment.
    """
    if isinstance(placement, GcpPlacement):
        several = len({other.project for other in beside if isinstance(other, GcpPlacement)}) > 1
        return "-".join([fleet, *([placement.project] if several else []), placement.region])
    if isinstance(placement, OciPlacement):
        several = len({other.compartment for other in beside if isinstance(other, OciPlacement)}) > 1
        # The ids of compartments differ at their ends.
        return "-".join([fleet, placement.region, *([placement.compartment[-6:]] if several else [])])
    return f"{fleet}-{placement.region}"


def longest_names(fleet: str, hosts: Sequence[HostPlan]) -> Iterator[tuple[NameForm, HostPlan, str]]:
    """The longest name of each kind for each pool: its form, the host, and the name.

    Args:
        fleet: the fleet's name.
        hosts: all hosts of one cloud.
    """
    placements = [host.rented.placement for host in hosts if host.rented]
    longest: dict[tuple[NameForm, str], tuple[HostPlan, str]] = {}
    for host in hosts:
        if host.rented is None:
            continue
        words = {
            "fleet": fleet,
            "network": network_name(fleet, host.rented.placement, placements),
            "pool": host.pool,
            "host": host.name,
        }
        for form in FORMS.get(host.cloud, ()):
            if form.of_serving and host.kind != "serving":
                continue
            name = form.form.format(**words)
            # Names without a host or a pool are the whole fleet's.
            group = host.pool if "{host}" in form.form or "{pool}" in form.form else ""
            if len(name) > len(longest.get((form, group), (host, ""))[1]):
                longest[form, group] = (host, name)
    for (form, _), (host, name) in longest.items():
        yield form, host, name


def name_errors(fleet: str, hosts: Sequence[HostPlan], document: yaml_document.Document) -> Iterator[FleetError]:
    """Names that a cloud of the fleet does not take, the worst of each place.

    Args:
        fleet: the fleet's name.
        hosts: its hosts.
        document: its file.
    """
    worst: dict[tuple[str, ...], tuple[int, FleetError]] = {}
    for cloud in dict.fromkeys(host.cloud for host in hosts if host.rented):
        for form, host, name in longest_names(fleet, [host for host in hosts if host.cloud == cloud]):
            over = len(name) - form.most
            if over <= 0:
                continue
            of_host = "{host}" in form.form or "{pool}" in form.form
            section = ("gateway", "name") if host.kind == "gateway" else ("pools", host.pool)
            at, whose = (section, "the host or of the fleet") if of_host else (("fleet",), "the fleet")
            fault = document.error(
                at,
                f"{form.what} of {cloud} would be named {name!r}: {len(name)} letters, and {form.most} are the most",
                f"shorten the name of {whose} by {over}; {form.source}",
            )
            if over > worst.get(at, (0, fault))[0]:
                worst[at] = (over, fault)
    yield from (fault for _, fault in worst.values())
