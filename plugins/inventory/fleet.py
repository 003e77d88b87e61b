"""Inventory plugin: ``inventories/<fleet>/fleet.yml`` JOIN ``stack.json`` -> hosts, groups, variables."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.inventory import BaseInventoryPlugin
from ansible.utils.display import Display
from ansible.utils.vars import load_extra_vars

try:
    from vllm_fleet import inventory
    from vllm_fleet.base import paths
    from vllm_fleet.base.atomic_files import write_atomically
    from vllm_fleet.base.errors import FleetError, list_errors
    from vllm_fleet.fleet import reserved_names
    from vllm_fleet.operate import drift
    from vllm_fleet.operate.rollout import order
except ImportError as fault:
    raise AnsibleParserError(
        f"{fault}: ansible-playbook runs outside the project's virtual environment; use .venv/bin/ansible-playbook"
    ) from fault

DOCUMENTATION = """
name: fleet
short_description: A vllm-fleet fleet.yml with the stack.json beside it
description:
  - Reads the To-Be from fleet.yml and the As-Is from stack.json and gives each host the variables of its roles.
  - The extra variable fleet_region makes the batches of a rollout count the hosts of one region.
  - In a job of AWX, the extra variable fleet_inventory names the fleet.yml in the project.
  - After the probe of the same run, the groups needs_ROLE hold the hosts whose drift that role owns, and the group
    skipped those that the run leaves out because they gave no answer.
options:
  plugin:
    description: Not used; the plugin accepts every file called fleet.yml.
    type: str
"""


def _is_of_awx(path: str) -> bool:
    """Whether a file is the script that AWX makes of an inventory for a job. It cannot be refreshed during a run."""
    return Path(path).name == "hosts" and {"JOB_ID", "INVENTORY_ID"} <= set(os.environ)


def _find_fleet(loader: DataLoader) -> Path:
    """The ``fleet.yml`` in the project that an extra variable of the job template names.

    Raises:
        FleetError: it names none.
    """
    given = load_extra_vars(loader).get("fleet_inventory")
    file = paths.root() / str(given)
    if not given or file.name != "fleet.yml" or not file.is_file():
        raise FleetError(
            f"is {given!r}, and there is no such file in the project" if given else "is missing",
            "name the fleet.yml of the project in the extra variables of the job template, such as "
            "inventories/prod/fleet.yml",
            key="fleet_inventory",
        )
    return file


class InventoryModule(BaseInventoryPlugin):
    """Passes what :mod:`vllm_fleet.inventory` returns to Ansible."""

    NAME = "fleet"

    def verify_file(self, path: str) -> bool:
        """Accepts files called ``fleet.yml``, and the inventory that AWX writes for a job."""
        readable = super().verify_file(path)  # type: ignore[no-untyped-call] # Ansible gives it no types
        return readable and (Path(path).name == "fleet.yml" or _is_of_awx(path))

    def parse(self, inventory: InventoryData, loader: DataLoader, path: str, cache: bool = True) -> None:
        """Adds the fleet's hosts and groups."""
        super().parse(inventory, loader, path, cache)
        try:
            file = _find_fleet(loader) if _is_of_awx(path) else Path(path)
            fleet = drift.load_site_of_run(file.resolve().parent)
            for line in fleet.waiting:
                Display().warning(line)
            self._fill(inventory, fleet, loader)
            if file != Path(path):
                # What reads the fleet later looks for it here.
                for host in fleet.hosts:
                    inventory.set_variable(host.plan.name, "inventory_dir", str(fleet.plan.directory))
        except FleetError as fault:
            # Not AnsibleParserError: Ansible would try its other plugins on this file and print their errors too.
            errors, more = list_errors(fault)
            for error in errors:
                Display().error(str(error), wrap_text=False)
            if more:
                Display().error(f"and {more} more errors", wrap_text=False)
            raise SystemExit(fault.exit_code) from None

    def _fill(self, data: InventoryData, fleet: inventory.Site, loader: DataLoader) -> None:
        write_atomically(fleet.known_hosts_file, fleet.known_hosts)
        probing = str(load_extra_vars(loader).get("fleet_probe", True)).lower() not in ("false", "no", "0")
        needs = drift.roles_to_run(fleet.plan.fleet)
        idle = drift.find_idle_hosts(fleet) if probing else frozenset()
        skipped = drift.find_skipped_hosts(fleet.plan.fleet) if probing else {}
        for group in (*reserved_names.GROUPS, *(f"needs_{role}" for role in inventory.ALL_ROLES)):
            data.add_group(group)
        drifted = drift.find_drift(fleet.plan.fleet) if probing else {}
        region = str(load_extra_vars(loader).get("fleet_region") or "")
        batches = order.plan_rollout(fleet, probing=probing, region=region)
        for number in range(len(batches)):
            data.add_group(f"rollout_{number:04d}")
        for group in ("rollout", "rollout_canary"):
            data.add_group(group)
        for region, worker in fleet.plan.spec.workers.items():
            data.add_group("region_workers")
            name = data.add_host(f"worker-{region}", "region_workers")
            for variable, value in fleet.worker_variables(worker).items():
                data.set_variable(name, variable, value)
        for host in fleet.hosts:
            roles = needs.get(host.plan.name, frozenset()) if probing else frozenset(host.manifest.roles)
            self._add(data, replace(host, variables=drift.variables_of_run(host, skipped, drifted)), roles, fleet)
            for group, members in (("idle", idle), ("skipped", skipped)):
                if host.plan.name in members:
                    data.add_child(group, host.plan.name)
        # In this order the plays of the rollout take them.
        for number, batch in enumerate(batches):
            for name in batch.hosts:
                data.add_child(f"rollout_{number:04d}", name)
                data.add_child("rollout", name)
            for name in batch.canaries:
                data.add_child("rollout_canary", name)

    def _add(self, data: InventoryData, host: inventory.SiteHost, roles: frozenset[str], fleet: inventory.Site) -> None:
        key = fleet.private_key_file
        if other := data.hosts.get(host.plan.name):
            raise FleetError(
                f"the host {host.plan.name} is in the fleet {other.vars.get('fleet_name', '?')} too, which Ansible "
                "read before",
                "rename the pool, or set another gateway.name, in one of them",
                fleet.plan.document.file,
            )
        name = data.add_host(host.plan.name)
        pool = f"pool_{host.plan.pool.replace('-', '_')}"
        data.add_group(pool)
        groups = ["fleet", host.plan.kind, pool, *(f"needs_{role}" for role in roles)]
        for group in [*groups, *(["needs_any"] if roles else [])]:
            data.add_child(group, name)
        variables = {
            "ansible_host": host.location.ssh_alias or host.location.address,
            "ansible_port": host.location.port,
            "ansible_user": host.location.user,
            "ansible_ssh_common_args": fleet.ssh_arguments(host),
            # sshd refuses some of many connections that begin together, which those to a jump host do.
            **(
                {"ansible_control_path_dir": fleet.control_path_dir, "ansible_ssh_retries": 3}
                if fleet.jump(host)
                else {}
            ),
            **({"ansible_ssh_private_key_file": str(key)} if key else {}),
            **host.variables,
        }
        for variable, value in variables.items():
            data.set_variable(name, variable, value)
