"""What ``site.yml`` would refuse, as far as it can be known without the hosts.

``check`` and ``plan`` say it, and the inventory refuses a run with the same errors before a host is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import names
from vllm_fleet.fleet import host_keys_file, private_key, stack, zones_file
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host import apt_repositories, engine_install, model_sources
from vllm_fleet.inventory import gateway
from vllm_fleet.mirror import apt_packages, client, parts

#: A host that is not rented yet has this address; TEST-NET-1 has no hosts.
_NOWHERE = "192.0.2.1"


@dataclass(frozen=True)
class Refusal:
    """Something that ``site.yml`` would refuse.

    Attributes:
        error: what, where, and what to do.
        is_wrong: whether a file of the fleet is wrong. Otherwise something is not on this machine yet, such as a
            download or a secret, and the fleet can be planned without it.
        stops_plan: whether such a file is there and cannot be read as what it must be: a plan without it would be of
            another fleet.
    """

    error: FleetError
    is_wrong: bool
    stops_plan: bool = False


def list_file_refusals(plan: Plan, catalog: Catalog) -> Iterator[Refusal]:
    """What the files of the fleet and of this machine lack or have wrong. An error may come more than once.

    Args:
        plan: the To-Be.
        catalog: the recipes.
    """
    try:
        paths.cache_dir()
    except FleetError as wrong:
        # Every file may be in it.
        yield Refusal(wrong, is_wrong=True, stops_plan=True)
        return
    for fault in (*engine_install.lock_faults(plan, catalog), *_find_wrong_files(plan)):
        yield Refusal(fault, is_wrong=True, stops_plan=True)
    for fault in stack.find_moved(plan):
        yield Refusal(fault, is_wrong=True, stops_plan=True)
    for fault in _find_old_keys(plan):
        yield Refusal(fault, is_wrong=True)
    for fault in (
        *engine_install.unpinned_engines(plan, catalog),
        *apt_packages.find_missing(plan, catalog),
        *stack.address_errors(plan, names.resolve_names),
        *_find_missing_gateways(plan),
    ):
        yield Refusal(fault, is_wrong=False)
    for fault, is_wrong in client.model_faults(plan, catalog):
        yield Refusal(fault, is_wrong)
    for fault, is_wrong in gateway.find_faults(plan):
        yield Refusal(fault, is_wrong, stops_plan=is_wrong)


def _find_wrong_files(plan: Plan) -> Iterator[FleetError]:
    """Files that are there and wrong, whether the hosts of this plan need them or not."""
    for read in (host_keys_file.load, zones_file.load):
        try:
            read(plan.directory)
        except FleetError as fault:
            yield from (fault, *fault.others)
    yield from model_sources.find_wrong_files(plan)
    yield from apt_repositories.find_wrong_keys(plan)
    yield from parts.find_wrong_authority(plan)


def _find_old_keys(plan: Plan) -> Iterator[FleetError]:
    """Keys of hosts that the fleet no longer has. The fleet can be planned, and the hosts removed, with them."""
    try:
        host_keys_file.load(plan.directory, {host.name for host in plan.hosts})
    except FleetError as fault:
        yield from (fault, *fault.others)


def find_access_faults(plan: Plan) -> Iterator[Refusal]:
    """A private key that ssh cannot use, or that is missing."""
    if fault := private_key.fleet_error(plan):
        is_there = paths.is_there(plan.directory / str(plan.access.ssh_private_key_file))
        yield Refusal(fault, is_wrong=is_there)


def _find_missing_gateways(plan: Plan) -> Iterator[FleetError]:
    """Gateways that a fleet of static hosts only counts. A stack is not a file of the user: 'pulumi up' writes it."""
    if all(host.cloud == "static" for host in plan.hosts):
        try:
            stack.check_stack(plan)
        except FleetError as fault:
            yield from (fault, *fault.others)


def planned_locations(plan: Plan) -> Mapping[str, Location]:
    """Locations for hosts that are not rented yet, to see what else would be refused."""
    return {
        host.name: Location(host.static.address if host.static else _NOWHERE, 22, host.user, (), _NOWHERE, (_NOWHERE,))
        for host in plan.hosts
    }
