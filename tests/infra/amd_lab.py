"""Two bare lab hosts with stand-ins of AMD GPUs, a gateway, a fleet of them, and images for their engines.

A host's GPUs are its own (``rocm-smi`` and ``amd-smi`` say what they are); the driver's packages are the same for all.
The images are for both engines the same small one, whose ``vllm`` opens the devices and reads config, model and
vocabularies as the engine would, or ends, and then answers what it is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hanging import HANGING_SECONDS
from stand_in_vllm import HANDLER, WAIVE

from lab import apt, gpu, host, network, rootfs
from lab.artifacts import image
from lab.artifacts.encodings import encodings_dir
from lab.gpu import packages
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge.keys import ssh_key_pair

FLEET = "amdtest"
BRIDGE = "vf-amd"
SUBNET = "10.79.61"
REGISTRY = f"{SUBNET}.1:5000"
MODEL = "openai/gpt-oss-20b"
RELEASE = "amdgpu-30.10.2"
#: Packages of the kernel that runs, as Ubuntu has them, if its name can stand in theirs; a lab host has none of them.
KERNEL = [
    f"{name}-{platform.release()}"
    for name in ("linux-headers", "linux-modules-extra")
    if re.fullmatch(r"[a-z0-9+.-]+", platform.release())
]
REPOSITORY = "/srv/stand-ins"
KEY = "a-key-of-this-test"
GATEWAY, RADEON, INSTINCT = "gateway-0", "radeon-0", "instinct-0"
ADDRESSES = {GATEWAY: f"{SUBNET}.2", RADEON: f"{SUBNET}.11", INSTINCT: f"{SUBNET}.21"}
#: The second one has a firmware that needs no HSA_NO_SCRATCH_RECLAIM, and can say so when it has a driver.
GPUS = {RADEON: gpu.gpus("r9700-1"), INSTINCT: gpu.gpus("mi300x-1")}
#: An image of AMD's fork, which starts nothing by itself, and the one of vLLM's releases.
ENGINES = {RADEON: "rocm-open-r9700", INSTINCT: "vllm-0.32.0-rocm"}
VLLM = (
    """\
#!/usr/bin/python3
import glob, http.server, json, os, re, sys

assert sys.argv[1:3] == ["serve", "--config"], sys.argv
with open(sys.argv[3]) as file:
    config = dict(re.findall(r"^(host|port|model): (.+)$", file.read(), re.MULTILINE))
devices = ["/dev/kfd", *glob.glob("/dev/dri/renderD*")]
assert len(devices) > 1, "no device to render with"
for device in devices:
    os.close(os.open(device, os.O_RDWR))
read = {}
for folder in (config["model"], os.environ["TIKTOKEN_ENCODINGS_BASE"]):
    for path in glob.glob(folder + "/*"):
        with open(path, "rb") as file:
            read[os.path.basename(path)] = len(file.read())
assert {"model.safetensors", "o200k_base.tiktoken"} <= set(read), read
os.makedirs(os.environ["VLLM_CACHE_ROOT"], exist_ok=True)
with open("/proc/self/status") as file:
    rights = re.search(r"CapEff:\\s+(\\w+)", file.read())[1]
seen = {"devices": devices, "environment": dict(os.environ), "uid": os.getuid(), "groups": os.getgroups()}
seen.update(rights=rights, socket=os.path.exists("/run/docker.sock"))

"""
    + HANDLER
    + """\
    def do_GET(self):
        self.answer(b"vllm:num_requests_running 0\\n" if self.path == "/metrics" else json.dumps(seen).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps({"choices": [{"text": os.uname().nodename}]}).encode())

http.server.ThreadingHTTPServer((config["host"], int(config["port"])), Handler).serve_forever()
"""
)


def python(tree: Path, target: Path) -> None:
    """The hosts' Python with its own libraries and nothing else: small enough to be packed and pulled in a second."""
    library = "usr/lib/x86_64-linux-gnu"
    for folder in ("usr/bin", library, "lib64", "tmp", "etc"):
        (target / folder).mkdir(parents=True)
    (target / "lib").symlink_to("usr/lib")
    shutil.copytree(
        tree / "usr/lib/python3.11",
        target / "usr/lib/python3.11",
        ignore=shutil.ignore_patterns("__pycache__", "test", "idlelib", "lib2to3", "pydoc_data", "config-*"),
        symlinks=True,
    )
    shutil.copy(tree / "usr/bin/python3.11", target / "usr/bin/python3")
    for name in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1"):
        shutil.copy(tree / library / name, target / library / name)
    shutil.copy(tree / library / "ld-linux-x86-64.so.2", target / "lib64")
    # Groups by name are looked up in here, and they have other numbers than on the host.
    (target / "etc/group").write_text("root:x:0:\nvideo:x:940:\nrender:x:941:\n")
    (target / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")


def store(folder: Path, catalog: Catalog) -> dict[str, str]:
    """A storage with the image of each engine; engine -> digest."""
    storage, content = folder / "storage", folder / "content"
    storage.mkdir()
    python(ensure_tree(), content)
    rootfs.write_files(content, {"usr/local/bin/vllm": rootfs.File(VLLM, 0o755)})
    layer, inside = image.add_layer(storage, content, ())
    found = {}
    for engine in ENGINES.values():
        install = catalog.engines[engine].docker
        assert install
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/bin:/usr/bin"],
                **({"Entrypoint": ["vllm", "serve"]} if install.serves else {}),
            },
            "rootfs": {"type": "layers", "diff_ids": [inside]},
            "history": [{"created_by": "test"}],
        }
        found[engine] = image.add_image(storage, config, [layer], install.image)
    return found


def model(folder: Path) -> Path:
    """Files in the place of the model's, and their list."""
    files = {"config.json": b"{}", "model.safetensors": os.urandom(1 << 20)}
    folder.mkdir()
    for name, body in files.items():
        (folder / name).write_bytes(body)
    listed = {name: {"sha256": hashlib.sha256(body).hexdigest()} for name, body in files.items()}
    (folder / "model.json").write_text(json.dumps({"revision": "0123456789ab", "files": listed}))
    return folder


@dataclass(frozen=True)
class Amd:
    """The hosts and the fleet of them."""

    folder: Path
    digests: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        own = {"VLLM_FLEET_INVENTORIES": str(self.folder), "VLLM_FLEET_CACHE": str(self.folder / "cache")}
        return {**os.environ, **own, "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg")}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            cwd=paths.root(),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )

    def site(self, *arguments: str) -> str:
        """What site.yml says that succeeds."""
        done = self.run("ansible-playbook", "-i", str(self.folder / FLEET / "fleet.yml"), "site.yml", *arguments)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        return done.stdout

    def drift(self) -> tuple[int, Any]:
        done = self.run("vllm-fleet", "drift", "--fleet", FLEET, "--json")
        return done.returncode, json.loads(done.stdout)

    def on(self, name: str, command: str, seconds: float = HANGING_SECONDS) -> str:
        """What a command says that succeeds as root on a host."""
        options = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={self.folder / 'known_hosts'}")
        done = subprocess.run(
            [
                *("ssh", "-F", "none", "-i", str(self.folder / FLEET / "ssh" / "id_ed25519")),
                *(word for option in options for word in ("-o", option)),
                *(f"deploy@{ADDRESSES[name]}", "sudo sh"),
            ],
            input=command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def seen(self, name: str) -> dict[str, Any]:
        """What the engine in the container of a host has seen."""
        ask = f"import urllib.request as u; print(u.urlopen('http://{ADDRESSES[name]}:8000/seen').read().decode())"
        found: dict[str, Any] = json.loads(self.on(name, f'python3 -c "{ask}"'))
        return found


def boot(folder: Path, catalog: Catalog) -> dict[str, Any]:
    """Makes the hosts; what the stack would say of them, with the login key in the fleet's folder."""
    network.create(NetworkSpec(BRIDGE, f"{SUBNET}.0/24", str(folder), 5))
    ensure_tree()
    private, public = ssh_key_pair()
    (folder / FLEET / "ssh").mkdir(parents=True)
    login = folder / FLEET / "ssh" / "id_ed25519"
    login.touch(0o600)
    login.write_text(private)
    release = catalog.drivers.releases[RELEASE]
    stand_ins, hardware = [], {}
    for name, gpus in GPUS.items():
        # What a GPU answers is the host's own, which it has before a driver: all hosts have one repository.
        names = release.packages[0].packages
        all_of_it = list(packages.amd(gpus, release.version, str(release.rocm), names))
        own = {path: file for each in all_of_it for path, file in each.files.items() if "/lab-gpu/" in path}
        hardware[name] = {path: file for path, file in own.items() if path.endswith("-smi")}
        stand_ins = [
            replace(each, files={path: file for path, file in each.files.items() if path not in hardware[name]})
            for each in all_of_it
        ]
    stand_ins += [apt.Package(name, "1") for name in KERNEL]
    shutil.copy(apt.build(folder / "repository", stand_ins), folder / FLEET / "amd.asc")

    def make(name: str) -> dict[str, Any]:
        own, host_key = ssh_key_pair()
        spec = HostSpec(
            *(BRIDGE, name, ADDRESSES[name], f"{SUBNET}.0/24", "deploy", public, host_key, tree_digest(), ADDRESSES),
            binds={str(folder / "repository"): REPOSITORY},
            disk_gib=2 if name in GPUS else 1,
            containers=name in GPUS,
        )
        # One of them is no container as far as its kernel goes: it gets what a module is built and loaded on.
        kernel = {f"boot/vmlinuz-{platform.release()}": rootfs.File("")} if KERNEL and name == INSTINCT else {}
        host.create(spec, own, {**hardware.get(name, {}), **kernel})
        return {"address": spec.address, "id": name, "user": "deploy", "ssh_host_key": host_key, "zone": ""}

    with ThreadPoolExecutor() as pool:
        return dict(zip(ADDRESSES, pool.map(make, ADDRESSES), strict=True))


def write_fleet(folder: Path, hosts: dict[str, Any], digests: dict[str, str], catalog: Catalog) -> None:
    """Writes the fleet, the stack as it would describe the hosts, and the key of its clients."""
    fleet = folder / FLEET
    (fleet / "stack.json").write_text(json.dumps({"version": 1, "fleet": FLEET, "hosts": hosts}))
    known = "".join(f"{record['address']} {record['ssh_host_key']}\n" for record in hosts.values())
    (folder / "known_hosts").write_text(known)
    placement = {"bridge": BRIDGE, "subnet": f"{SUBNET}.0/24"}
    pool = {"cloud": "lab", "placement": placement, "hosts": 1}
    spec = {
        "fleet": FLEET,
        "defaults": {"model": MODEL},
        "pools": {
            "radeon": {**pool, "host_class": "r9700-1", "engine": ENGINES[RADEON]},
            "instinct": {**pool, "host_class": "mi300x-1", "install": "docker"},
        },
        "gateway": {"hosts": 1},
        "access": {"ssh_private_key_file": "ssh/id_ed25519", "api_keys": "file"},
        "mirror": {"registry": REGISTRY},
        # In one batch, which is quicker than one after the other.
        "rollout": {"batches": ["100%"], "max_unavailable": "100%", "waive": WAIVE},
        "artifacts": {
            "models": {MODEL: str(model(folder / "model"))},
            "encodings": str(encodings_dir()),
            "images": digests,
            "repositories": {
                name: {"uri": f"file:{REPOSITORY}", "signing_key_file": "amd.asc"}
                for name in catalog.drivers.releases[RELEASE].repositories
            },
        },
    }
    (fleet / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False))
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (fleet / "api-keys.yml").write_text(yaml.safe_dump({"keys": {"test": f"sha256:{digest}"}}))
