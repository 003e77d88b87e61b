"""One lab host for the role vllm_engine: the role runs on it as in a fleet, and its files are looked at from here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import one_run
from hanging import HANGING_SECONDS

from lab import cleanup, host, network, state
from lab.spec import HostSpec, NetworkSpec
from lab.tree import tree_digest
from vllm_fleet.base import paths
from vllm_fleet.edge.keys import ssh_key_pair

BRIDGE = "vf-wheels"
SUBNET = "10.79.12"
ADDRESS = f"{SUBNET}.11"
#: Two engines of 8 GB that share their files, and what a cut-off build leaves.
_DISK_GIB = 12


@dataclass(frozen=True)
class EngineHost:
    """The host, reached by Ansible as by a fleet."""

    folder: Path
    root: Path

    @property
    def gateway(self) -> str:
        """This machine as the host sees it."""
        return f"{SUBNET}.1"

    def engine(self, directory_id: str) -> Path:
        """An engine's directory, from this machine."""
        return self.root / "opt/vllm/engines" / directory_id

    def start(self, *asked: Mapping[str, Any], roles: Sequence[str] = ("vllm_engine",)) -> subprocess.Popen[str]:
        """Begins a run of roles on the host, once with each of the variables: the n-th knows it as ``gpu-n``.

        One that fails does not stop the next.
        """
        names = [f"gpu-{number}" for number in range(len(asked))]
        plays = [one_run.play(dict.fromkeys(names, roles))]
        (self.folder / "play.yml").write_text(json.dumps(plays), encoding="utf-8")
        reached = {
            "ansible_host": ADDRESS,
            "ansible_user": "deploy",
            "ansible_ssh_private_key_file": str(self.folder / "id_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.folder / 'known_hosts'}",
            "fleet_ssh_host_keys": [(self.folder / "known_hosts").read_text(encoding="utf-8").split(maxsplit=1)[1]],
        }
        hosts = {name: {**reached, **variables} for name, variables in zip(names, asked, strict=True)}
        inventory = {"all": {"hosts": hosts}}
        (self.folder / "hosts.yml").write_text(json.dumps(inventory), encoding="utf-8")
        return subprocess.Popen(
            ["ansible-playbook", "-i", self.folder / "hosts.yml", self.folder / "play.yml", *one_run.ARGUMENTS],
            cwd=paths.root(),
            env={**os.environ, "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, *asked: Mapping[str, Any], roles: Sequence[str] = ("vllm_engine",)
    ) -> tuple[int, list[dict[str, int]], str]:
        """As :meth:`start`, to its end.

        Returns:
            Exit code; the counts of each; all that was said.
        """
        started = self.start(*asked, roles=roles)
        said, _ = started.communicate(timeout=HANGING_SECONDS)
        return started.returncode, list(one_run.counts(said).values()), said

    def on(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host, as root."""
        known = f"UserKnownHostsFile={self.folder / 'known_hosts'}"
        words = ("ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", known)
        words += ("-o", "ConnectTimeout=10")
        return subprocess.run(
            [*words, "-i", str(self.folder / "id_ed25519"), f"deploy@{ADDRESS}", "sudo", "sh", "-s"],
            input=command,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )


@contextmanager
def made(folder: Path) -> Iterator[EngineHost]:
    """Makes the host, whatever a killed run has left, and removes all of it."""
    if BRIDGE in state.labs():
        cleanup.down(BRIDGE)
    (own_private, own_public), (host_private, host_public) = ssh_key_pair(), ssh_key_pair()
    network.create(NetworkSpec(BRIDGE, f"{SUBNET}.0/24", str(paths.root()), _DISK_GIB))
    try:
        spec = {
            **{"bridge": BRIDGE, "name": "gpu-0", "address": ADDRESS, "subnet": f"{SUBNET}.0/24", "user": "deploy"},
            **{"authorised_key": own_public, "host_key": host_public, "tree": tree_digest()},
            **{"peers": {"gpu-0": ADDRESS}, "binds": {str(paths.cache_dir() / "uv"): "/var/cache/uv"}},
            "disk_gib": _DISK_GIB,
        }
        host.create(HostSpec.from_properties(spec), host_private)
        (folder / "id_ed25519").write_text(own_private, encoding="utf-8")
        (folder / "id_ed25519").chmod(0o600)
        (folder / "known_hosts").write_text(f"{ADDRESS} {host_public}\n", encoding="utf-8")
        yield EngineHost(folder, state.host_dir(BRIDGE, "gpu-0") / "root")
    finally:
        cleanup.down(BRIDGE)
