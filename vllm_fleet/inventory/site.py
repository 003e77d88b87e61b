"""A fleet's hosts with everything that Ansible and the probe need of them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.fleet import private_key, ssh_routes
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.fleet.ssh_routes import Hop, Route
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.schema.fleet import RegionWorker


@dataclass(frozen=True)
class SiteHost:
    """One host, ready for Ansible and for the probe."""

    plan: HostPlan
    location: Location
    variables: Mapping[str, Any]
    manifest: Manifest


@dataclass(frozen=True)
class Site:
    """A whole fleet with its hosts in the order of the plan.

    Attributes:
        plan: the fleet, without the hosts that wait for their capacity.
        hosts: its hosts.
        waiting: a line for each wait.
    """

    plan: Plan
    hosts: tuple[SiteHost, ...]
    waiting: tuple[str, ...] = ()

    @property
    def known_hosts(self) -> str:
        """The SSH host keys of the fleet in the format of ``known_hosts``."""
        lines = []
        for host in self.hosts:
            name = self._known_name(host)
            lines += [f"{name} {key}\n" for key in host.location.ssh_host_keys]
            lines += [f"@cert-authority {name} {key}\n" for key in self.plan.access.ssh_host_authorities]
        if bastion := self.bastion:
            name = ssh_routes.known_name(bastion.address, bastion.port)
            lines += [f"{name} {key}\n" for key in bastion.host_keys]
        for worker in self.plan.spec.workers.values():
            lines.append(f"{ssh_routes.known_name(worker.address, worker.port)} {worker.ssh_host_key}\n")
        return "".join(lines)

    def _known_name(self, host: SiteHost) -> str:
        at = host.location
        # A certificate names the address, without a port.
        return ssh_routes.known_name(at.address, at.port if at.ssh_host_keys else 22)

    @cached_property
    def known_hosts_file(self) -> Path:
        """The file to which :attr:`known_hosts` is written for ``ssh``."""
        return paths.run_dir(self.plan.fleet) / "known_hosts"

    @cached_property
    def _gateways(self) -> Mapping[str, SiteHost]:
        return {host.plan.name: host for host in self.hosts if host.plan.kind == "gateway"}

    @property
    def bastion(self) -> Hop | None:
        """The bastion that the fleet names; None if it names none."""
        own = self.plan.access.bastion
        if own is None:
            return None
        return ssh_routes.bastion_hop(own, self.plan.access, self.plan.document.file)

    def jump(self, host: SiteHost) -> Hop | None:
        """The bastion or the gateway through which SSH reaches a host; None: directly."""
        if self.bastion:
            return self.bastion
        if not host.location.jump:
            return None
        gateway = self._gateways[host.location.jump]
        at = gateway.location
        return Hop(gateway.plan.name, at.user, at.address, at.port, at.ssh_host_keys, at.keys_file)

    def ssh_arguments(self, host: SiteHost) -> str:
        """The options that ``ssh`` needs to reach a host, besides address, port and user, for Ansible."""
        route = Route(
            self.known_hosts_file,
            self._known_name(host),
            self.private_key_file,
            self.ssh_config_file,
            self.jump(host),
        )
        return shlex.join(route.words())

    def worker_variables(self, worker: RegionWorker) -> Mapping[str, Any]:
        """How Ansible reaches the worker of a region."""
        name = ssh_routes.known_name(worker.address, worker.port)
        route = Route(self.known_hosts_file, name, self.private_key_file, self.ssh_config_file)
        return {
            "ansible_host": worker.address,
            "ansible_port": worker.port,
            "ansible_user": worker.user or self.plan.access.ssh_user or "root",
            "ansible_ssh_common_args": shlex.join(route.words()),
            **({"ansible_ssh_private_key_file": str(self.private_key_file)} if self.private_key_file else {}),
        }

    @cached_property
    def control_path_dir(self) -> str:
        """The folder in which ``ssh`` keeps shared connections to hosts behind a gateway.

        It differs for each fleet: two fleets may have the same private address, and Ansible names a connection by it.
        """
        base = os.environ.get("ANSIBLE_SSH_CONTROL_PATH_DIR") or "~/.ansible/cp"
        return f"{base}/{text_sha256(str(paths.absolute(self.plan.directory)))[:8]}"

    @cached_property
    def private_key_file(self) -> Path | None:
        """The private key that the fleet names; None if it names none, or an agent has it."""
        own = None if private_key.is_of_agent() else self.plan.access.ssh_private_key_file
        return paths.absolute(self.plan.directory / own) if own else None

    @cached_property
    def ssh_config_file(self) -> Path | None:
        """The configuration of ``ssh`` that the fleet names; None if it names none."""
        own = self.plan.access.ssh_config_file
        return paths.absolute(self.plan.directory / own) if own else None
