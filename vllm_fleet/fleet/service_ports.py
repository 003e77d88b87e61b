"""The ports that services of one host listen on: two services of a host need two ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_fleet.base.addresses import parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.base.yaml_reader import Location
from vllm_fleet.fleet.host_plan import GATEWAY_PORTS, READINESS_OFFSET, HostPlan
from vllm_fleet.schema.acme import CERTBOT_PORT, CHALLENGE_PORT
from vllm_fleet.schema.fleet import Fleet


def port_errors(hosts: Sequence[HostPlan], spec: Fleet, document: Document) -> Iterator[FleetError]:
    """Keys of a fleet.yml that give a service a port which another service of the same host has.

    Args:
        hosts: the hosts of the plan.
        spec: the fleet.
        document: the fleet's file.
    """
    told: set[Location] = set()
    for host in hosts:
        taken: dict[int, str] = {}
        for port, service, at in _services(host, spec):
            owner = taken.setdefault(port, service)
            # The same key is wrong on every host.
            if owner is not service and at not in told:
                told.add(at)
                text = f"is {port} for {service}, and {host.name} has that port for {owner}"
                yield document.error(at, text, "give one of them another port")


def _services(host: HostPlan, spec: Fleet) -> Iterator[tuple[int, str, Location]]:
    """Port, service and key of what listens on a host; where two have one port, the later key is wrong."""
    section = host.section
    for name, port in host.instances:
        yield port, f"the instance {name} of vLLM", section
        yield port + READINESS_OFFSET, f"the readiness of the instance {name}", section
    if (ssh := _ssh_port(host)) is not None:
        yield ssh, "SSH", (*section, "static", host.name, "port") if host.static else section
    if host.kind == "gateway":
        if spec.gateway.tls and spec.gateway.tls.acme:
            acme = ("gateway", "tls", "acme")
            yield CHALLENGE_PORT, "the challenges of the CA, which takes no other", acme
            yield CERTBOT_PORT, "certbot", acme
        yield spec.gateway.port, "the API", ("gateway", "port")
        for own in range(GATEWAY_PORTS[0], GATEWAY_PORTS[1] + 1):
            yield own, "the gateway itself", ("gateway", "port")
    if spec.mirror.host == host.name:
        yield spec.mirror.port, "the mirror's files", ("mirror", "port")
        if spec.mirror.registry_port:
            yield spec.mirror.registry_port, "the mirror's images", ("mirror", "registry_port")


def _ssh_port(host: HostPlan) -> int | None:
    """The port of the host's sshd; None where only the port of a tunnel or of NAT is known."""
    if host.static is None or host.static.port == 22:
        return 22
    address = parse_ip(host.static.address)
    is_forwarded = host.static.private_address is not None or (address is not None and address.is_loopback)
    return None if is_forwarded else host.static.port
