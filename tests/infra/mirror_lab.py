"""Lab hosts that reach nothing but this machine and each other, and a copy of the project with a small engine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import host, network
from lab.artifacts.encodings import encodings_dir
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet import paths
from vllm_fleet.edge.keys import ssh_key_pair

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "vllm-fleet/lab-gpt-oss"
FLEET = "mirrored"


#: Stands in for vLLM, which the end-to-end tests run for real: here only its way to the hosts is tested. It answers
#: what the unit asks of a start, as roles/vllm_service/files/vllm-instance reads it: a completion, and metrics.
ENGINE = b"""
import http.server, json, os, re, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(b"vllm:num_requests_running 0\\n")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps({"choices": [{"text": "1"}]}).encode())

def main():
    if sys.argv[1:2] != ["serve"]:
        print("0.32.0")
        return
    os.makedirs(os.path.join(os.environ["HOME"], "vllm"), exist_ok=True)  # what a start compiles would be in here
    with open(sys.argv[sys.argv.index("--config") + 1]) as file:
        config = dict(re.findall(r"^(host|port): (.+)$", file.read(), re.MULTILINE))
    http.server.ThreadingHTTPServer((config["host"], int(config["port"])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class Hosts:
    """Their addresses and keys."""

    bridge: str
    addresses: dict[str, str]
    host_keys: dict[str, str]
    private_key: str

    def on(self, name: str, command: str, key: Path) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host as root."""
        known = key.with_name("known_hosts")
        known.write_text("".join(f"{self.addresses[each]} {line}\n" for each, line in self.host_keys.items()))
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}")
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-i", str(key)),
                *(word for option in options for word in ("-o", option)),
                *(f"deploy@{self.addresses[name]}", f"sudo sh -c '{command}'"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )


def boot(bridge: str, subnet: str, names: Sequence[str], owner: Path, containers: Sequence[str] = ()) -> Hosts:
    """Hosts on a bridge from which nothing is forwarded: a site without a way out; some of them can run containers."""
    ensure_tree()
    network.create(NetworkSpec(bridge, f"{subnet}.0/24", str(owner), len(names)))
    table = network.table_name(bridge)
    rules = f"table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n chain forward {{\n"
    rules += "  type filter hook forward priority -10; policy accept;\n"
    rules += f'  iifname "{bridge}" oifname != "{bridge}" drop\n }}\n}}\n'
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    private, public = ssh_key_pair()
    addresses = {name: f"{subnet}.{11 + number}" for number, name in enumerate(names)}
    host_keys = {}
    for name in names:
        own, host_keys[name] = ssh_key_pair()
        spec = HostSpec(
            *(bridge, name, addresses[name], f"{subnet}.0/24", "deploy", public, host_keys[name], tree_digest()),
            *(addresses, {}, 2 if name in containers else 1, name in containers),
        )
        host.create(spec, own)
    return Hosts(bridge, addresses, host_keys, private)


@dataclass(frozen=True)
class Project:
    """A copy of the project, with recipes of its own, and the environment of its commands."""

    root: Path
    environment: dict[str, str]

    @property
    def fleet(self) -> Path:
        return self.root / "inventories" / FLEET

    def run(self, *words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=timeout
        )

    def mirror(self, *words: str) -> dict[str, Any]:
        """``vllm-fleet mirror --json``."""
        done = self.run(sys.executable, "-m", "vllm_fleet", "mirror", "--fleet", FLEET, "--json", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def playbooks(self, *words: str) -> str:
        """Runs playbooks on the fleet."""
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        done = self.run(program, "-i", str(self.fleet / "fleet.yml"), *words)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        return done.stdout


def project(root: Path, cache: Path, hosts: Hosts, lock: str, endpoint: str) -> Project:
    """Copies the project; its CPU engine becomes a lock of small packages, its lab model comes from a hub.

    Args:
        root: an empty place for it.
        cache: its cache, with the mirror in it.
        hosts: the fleet's hosts; the first one is gateway and mirror.
        lock: the lock of the engine.
        endpoint: the stand-in of hub and package index.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=paths.root(), capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.startswith(("tests/", "docs/")) or not (paths.root() / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.root() / name, root / name)
    (root / "recipes/engines/locks/vllm-0.32.0-cpu.txt").write_text(lock)
    recipe = root / f"recipes/models/{MODEL}.yml"
    data = yaml.safe_load(recipe.read_text())
    data["weights"] = {"revision": COMMIT, "ignore": ["original/*"], "source": "the stand-in of the tests"}
    recipe.write_text(yaml.safe_dump(data, sort_keys=False))
    fleet = root / "inventories" / FLEET
    (fleet / "ssh").mkdir(parents=True)
    key = fleet / "ssh" / "id_ed25519"
    key.touch(0o600)
    key.write_text(hosts.private_key)
    first, *others = hosts.addresses
    static = {
        name: {"address": address, "user": "deploy", "ssh_host_key": hosts.host_keys[name]}
        for name, address in hosts.addresses.items()
    }
    spec = {
        "fleet": FLEET,
        "defaults": {"model": MODEL},
        "pools": {"lab": {"host_class": "cpu-2", "cloud": "static", "static": {name: static[name] for name in others}}},
        "gateway": {"static": {first: static[first]}},
        "access": {"ssh_private_key_file": "ssh/id_ed25519", "api_keys": "file"},
        "mirror": {"host": first, "distribution": "debian-12"},
        "artifacts": {"encodings": str(encodings_dir())},
    }
    (fleet / "fleet.yml").write_text(yaml.safe_dump(spec))
    (fleet / "api-keys.yml").write_text(f"keys: {{nobody: 'sha256:{'0' * 64}'}}\n")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VLLM_FLEET_", "HF_"))},
        "PYTHONPATH": str(root),
        "VLLM_FLEET_CACHE": str(cache),
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "hf"),
        "UV_DEFAULT_INDEX": f"{endpoint}/simple",
    }
    return Project(root, environment)


def wheel(name: str, version: str, files: dict[str, bytes], scripts: str = "") -> tuple[str, bytes]:
    """A wheel that pip and uv take: its file name and its bytes."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{info}/entry_points.txt": scripts.encode()} if scripts else {}),
    }
    lines = []
    for path, body in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(body)}\n")
    files[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, body in files.items():
            archive.writestr(path, body)
    return f"{name}-{version}-py3-none-any.whl", packed.getvalue()
