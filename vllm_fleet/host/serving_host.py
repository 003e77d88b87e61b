"""A host that serves: the record from which its data files, manifest and variables are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import SizedClass
from vllm_fleet.fleet.host_plan import READINESS_OFFSET, HostPlan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host import host_paths
from vllm_fleet.host.container import Image
from vllm_fleet.host.firewall import Peers, firewall_rules, unit_filter
from vllm_fleet.host.model_files import ModelFiles
from vllm_fleet.host.role_files import unit_digest
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.resolve.start_promises import Promise


@dataclass(frozen=True)
class EncodingFile:
    """A file of the harmony encodings.

    Attributes:
        name: its name on the host.
        sha256: its digest.
        source: its path on the controller; empty where the host downloads it.
        url: the address from which the host downloads it; empty where the controller has it.
    """

    name: str
    sha256: str
    source: str = ""
    url: str = ""


@dataclass(frozen=True)
class ServingHost:
    """A host that serves.

    Attributes:
        plan: the host in the plan.
        location: where it is.
        deployment: what it serves.
        host_class: its class.
        peers: the addresses that vLLM exchanges packets with.
        model: the model's files.
        encodings: the harmony encodings that the model needs.
        cache_key: the name of the caches that its engine compiles.
        promises: what the log of its starts must say.
        lock: the lock that its engine is installed from; None for an image.
        image: the image of its engine; None for a lock.
    """

    plan: HostPlan
    location: Location
    deployment: Deployment
    host_class: SizedClass
    peers: Peers
    model: ModelFiles
    encodings: tuple[EncodingFile, ...]
    cache_key: str
    promises: tuple[Promise, ...] = ()
    lock: engine_locks.Lock | None = None
    image: Image | None = None

    @property
    def model_directory(self) -> str:
        """The directory of the model on the host."""
        if self.model.adopted:
            return self.model.adopted.directory
        return host_paths.model_directory(self.deployment.model, self.model.revision)

    @property
    def model_tree(self) -> str:
        """The directory that contains the model and all that its links lead to."""
        return self.model.adopted.place if self.model.adopted else self.model_directory

    @property
    def cache_directory(self) -> str:
        """The directory of the caches on the host."""
        return host_paths.cache_directory(self.cache_key)

    @property
    def engine_directory(self) -> str:
        """The directory of the engine on the host."""
        return f"{host_paths.ENGINES}/{self.deployment.engine_directory_id}"

    @cached_property
    def firewall(self) -> str:
        """The nftables rules of the host."""
        ports = [port for _, port in self.plan.instances]
        return firewall_rules([*ports, *(port + READINESS_OFFSET for port in ports)], self.peers)

    @property
    def unit_filter(self) -> str:
        """The drop-in of vLLM's units with the addresses of the fleet."""
        return unit_filter(self.peers)

    @property
    def line(self) -> str:
        """What it has in common with the hosts of its class that run the same release: one canary speaks for all."""
        return f"{self.deployment.host_class} {self.cache_key} {unit_digest(self.deployment.install)}"

    @property
    def required_facts(self) -> Mapping[str, Any]:
        """The facts that the engine's lock requires of the host."""
        return engine_locks.asked_facts(self.deployment.engine, self.lock) if self.lock else {}
