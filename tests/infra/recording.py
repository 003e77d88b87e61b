"""What the tests of the Pulumi program share: a plan without recipes, and mocks that record every resource."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi

from infra.hosts import CloudArgs, gateway_ports
from infra.zones import Zones
from vllm_fleet.base import yaml_document
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.fleet import Access, Fleet

FLEET = """\
fleet: demo
pools:
  lab:
    host_class: cpu-2
    cloud: lab
    placement: {bridge: vf-demo, subnet: 10.70.0.0/24}
    hosts: 2
gateway:
  hosts: 1
"""


#: What the real providers compute of a resource, as far as the program reads it.
_COMPUTED = {
    "aws:ec2/instance:Instance": ("publicIp", "privateIp", "availabilityZone", "primaryNetworkInterfaceId"),
    "aws:ec2/eip:Eip": ("publicIp",),
    "gcp:compute/address:Address": ("address",),
    "digitalocean:index/droplet:Droplet": ("ipv4Address", "ipv4AddressPrivate"),
    "digitalocean:index/sshKey:SshKey": ("fingerprint",),
    "oci:Core/instance:Instance": ("publicIp", "privateIp"),
    "azure-native:network:PublicIPAddress": ("ipAddress",),
    "azure-native:network:VirtualNetwork": ("name",),
    "azure-native:resources:ResourceGroup": ("name",),
}


@dataclass(frozen=True)
class Recorded:
    """One resource as the program asked for it."""

    type: str
    name: str
    inputs: dict[str, Any]


@dataclass
class Recorder(pulumi.runtime.Mocks):
    """Answers like the real providers, as far as outputs go, and keeps what was asked."""

    resources: list[Recorded] = field(default_factory=list)
    #: Outputs of a function by its token, or what makes them of its arguments; others may not be called.
    functions: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        inputs = {key: value for key, value in args.inputs.items() if key != "__provider"}
        self.resources.append(Recorded(args.typ, args.name, inputs))
        if args.typ.endswith(":SshKeyPair"):
            outputs = {"private_key": f"PRIVATE {args.name}", "public_key": f"ssh-ed25519 {args.name}"}
        elif args.typ.endswith(":ApiKey"):
            outputs = {"key": "KEY", "digest": f"sha256:{'0' * 64}"}
        elif args.typ == "aws:ec2/capacityBlockReservation:CapacityBlockReservation":
            begins, ends = "2026-01-01T11:30:00Z", "2099-01-01T11:30:00Z"
            outputs = {"availabilityZone": "us-east-1a", "startDate": begins, "endDate": ends}
        elif args.typ == "azure-native:network:NetworkInterface":
            (address,) = inputs["ipConfigurations"]
            outputs = {"ipConfigurations": [{**address, "privateIPAddress": f"{args.name}/private"}]}
        elif args.typ == "gcp:compute/instance:Instance":
            (interface,) = inputs["networkInterfaces"]
            public = [{"natIp": "198.51.100.9", **each} for each in interface.get("accessConfigs", [])]
            outputs = {
                "networkInterfaces": [{**interface, "networkIp": f"{args.name}/private", "accessConfigs": public}],
                "instanceId": f"number-of-{args.name}",
            }
        else:
            outputs = {key: f"{args.name}/{key}" for key in _COMPUTED.get(args.typ, ()) if key not in inputs}
        return f"id-of-{args.name}", {**inputs, **outputs}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        self.calls.append((args.token, dict(args.args)))
        if args.token not in self.functions:
            raise AssertionError(f"the program called {args.token}")
        answer = self.functions[args.token]
        found: dict[str, Any] = answer(dict(args.args)) if callable(answer) else answer
        return found

    def register_resource_hook(self, hook: pulumi.ResourceHook) -> None:
        """Keeps a hook, as the engine's callback server would."""
        self.hooks.append(hook.name)

    def register_error_hook(self, hook: pulumi.ErrorHook) -> None:
        """Keeps a hook for errors."""
        self.hooks.append(hook.name)

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Name -> inputs of the resources whose type ends with a word."""
        return {each.name: each.inputs for each in self.resources if each.type.endswith(f":{kind}")}


#: How a secret is marked on the wire.
_SECRET = "1b47061264138c4ac30d75fd1eb44270"


def secret(value: Any) -> Any:
    """What a secret input holds; an input in plain is an error."""
    assert isinstance(value, dict)
    assert value["4dabf18193072939515e22adb298388d"] == _SECRET
    return value["value"]


def make_plan(directory: Path, hosts: list[HostPlan], text: str = FLEET) -> Plan:
    """A plan of given hosts, with a real file behind it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "fleet.yml").write_text(text, encoding="utf-8")
    document = yaml_document.read(directory / "fleet.yml")
    spec = Fleet.model_validate({**document.data, "fleet": directory.name})
    return Plan(directory.name, directory, tuple(hosts), Access(), spec.gateway, document, spec)


def make_args(plan: Plan, unprotected: frozenset[str] = frozenset()) -> CloudArgs:
    """What a cloud's component of such a plan is made from."""
    return CloudArgs(
        fleet=plan.fleet,
        directory=plan.directory,
        hosts=plan.hosts,
        access=plan.access,
        document=plan.document,
        authorised_keys="ssh-ed25519 DEPLOY",
        zones=Zones(plan.directory),
        ports=gateway_ports(plan),
        unprotected=unprotected,
    )


def make_host(name: str, ordinal: int = 0, **changes: Any) -> HostPlan:
    """A lab host, or another after the changes."""
    known: dict[str, Any] = {
        "name": name,
        "kind": "gateway" if name.startswith("gateway") else "serving",
        "pool": name.rsplit("-", 1)[0],
        "cloud": "lab",
        "placement": {"bridge": "vf-demo", "subnet": "10.70.0.0/24"},
        "host_class": None,
        "ordinal": ordinal,
        "user": "deploy",
    }
    return HostPlan(**{**known, **changes})
