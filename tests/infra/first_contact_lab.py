"""Two bare lab hosts that no stack has made, and a controller with a folder for fleets."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hanging import HANGING_SECONDS

from lab import cleanup, host, network, state
from lab.artifacts.encodings import encodings_dir
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import paths
from vllm_fleet.edge.keys import ssh_key_pair

NAMES = ("a", "b")


@dataclass(frozen=True)
class Rack:
    """Two bare hosts, and a controller with a folder for fleets."""

    folder: Path
    host_keys: dict[str, str]
    #: In front of the commands of the controller: the network in which it is.
    within: tuple[str, ...] = ()

    def run(self, *words: str) -> tuple[int, str, str]:
        """Runs a command of the README; exit code, output, and what is told."""
        done = subprocess.run(
            [*self.within, *words],
            cwd=paths.root(),
            env={
                **os.environ,
                "VLLM_FLEET_INVENTORIES": str(self.folder / "inventories"),
                "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
            },
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def fleet(self, *words: str) -> tuple[int, str, str]:
        return self.run(sys.executable, "-m", "vllm_fleet", *words)

    def site(self, *words: str) -> tuple[int, str, str]:
        return self.run("ansible-playbook", "-i", str(self.folder / "inventories/rack/fleet.yml"), "site.yml", *words)

    def on(self, address: str, script: str) -> str:
        """What a script says that succeeds as root on a host, at the address that the host was made with."""
        known = self.folder / "known_hosts_of_tests"
        known.write_text("".join(f"{each} {key}\n" for each, key in self.host_keys.items()))
        words = ["ssh", "-F", "none", "-i", str(self.key), "-o", f"UserKnownHostsFile={known}"]
        words += ["-o", "StrictHostKeyChecking=yes", f"deploy@{address}", "sudo sh"]
        done = subprocess.run(words, input=script, capture_output=True, text=True, timeout=HANGING_SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def key(self) -> Path:
        """The private SSH key for the hosts."""
        return self.folder / "id_ed25519"

    def ask(self, address: str) -> str:
        """The role of the answer to one question at the gateway."""
        request = urllib.request.Request(
            f"http://{address}:8080/v1/chat/completions",
            json.dumps({"model": "vllm-fleet/lab-gpt-oss", "messages": [{"role": "user", "content": "2+2?"}]}).encode(),
            {"Authorization": f"Bearer {self.secret}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=HANGING_SECONDS) as answer:
            return str(json.load(answer)["choices"][0]["message"]["role"])

    @property
    def api_key_file(self) -> Path:
        return self.folder / "key"

    @property
    def secret(self) -> str:
        """The API key."""
        return self.api_key_file.read_text().strip()


@contextmanager
def bare_hosts(folder: Path, bridge: str, subnet: str, *, containers: bool = False) -> Iterator[Rack]:
    """Two hosts with Debian alone, ``SUBNET.11`` and ``SUBNET.12``, with the account ``deploy``.

    Args:
        folder: for the fleets, the keys and what else a test writes.
        bridge: the lab's bridge.
        subnet: its network, as ``10.79.16``.
        containers: whether a container engine can run in them.
    """
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / f"test-{bridge}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if bridge in state.labs():
            cleanup.down(bridge)
        ensure_tree()
        encodings_dir()
        own_private, own_public = ssh_key_pair()
        (folder / "id_ed25519").write_text(own_private)
        (folder / "id_ed25519").chmod(0o600)
        network.create(NetworkSpec(bridge, f"{subnet}.0/24", str(paths.root()), 12))
        host_keys = {}
        try:
            for name, address in zip(NAMES, (f"{subnet}.11", f"{subnet}.12"), strict=True):
                private, host_keys[address] = ssh_key_pair()
                spec = {
                    **{"bridge": bridge, "name": name, "address": address, "subnet": f"{subnet}.0/24"},
                    **{"user": "deploy", "authorised_key": own_public, "host_key": host_keys[address]},
                    **{"tree": tree_digest(), "peers": {name: address}, "disk_gib": 12},
                    "containers": containers,
                    "binds": {str(paths.cache_dir() / "uv"): "/var/cache/uv"},
                }
                host.create(HostSpec.from_properties(spec), private)
            yield Rack(folder, host_keys)
        finally:
            cleanup.down(bridge)
