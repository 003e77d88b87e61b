"""Many lab hosts, each with a state of its own: systemd, sshd, the units of the roles, and a stand-in for vLLM.

What is large is on the hosts from the start, for all contenders: the engine, the model and the vocabularies are one
folder of this machine that all hosts have mounted.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench import fleets, measure
from lab import cleanup, host, network, shell, state
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.base.processes import command_line, find_process, process_ids
from vllm_fleet.edge import keys

BRIDGE = "vf-change"
SUBNET = ipaddress.IPv4Network("10.79.64.0/22")
MODEL = "vllm-fleet/lab-gpt-oss"
GATEWAY = "gateway-0"
UNIT = "vllm@0.service"
CONFIG = "/opt/vllm/current/0/0.yaml"
#: The argument of vLLM whose value a change changes.
ARGUMENT = "max-num-seqs"
#: The gates that a program in place of vLLM cannot pass; the others run.
WAIVED = {
    "tools": "a small program stands in for vLLM",
    "vocabulary": "a small program stands in for vLLM",
    "speed": "the hosts share the processors of one machine",
    "questions": "a small program stands in for vLLM",
}
#: Stands in for vLLM in tests/infra too, and drains as vLLM was seen to.
_ENGINE = paths.root() / "tests" / "infra" / "rollout_engine.py"
_GATEWAY_PLACE, _FIRST_PLACE = 2, 11
#: Measured: 14 MiB for systemd and sshd, 25 MiB for the two programs of an instance, the rest for logins and tools.
HOST_MIB = 60
#: For the controller, its peers and the machine itself.
_RESERVE_MIB = 4096
#: Each systemd of a host has about six; the kernel's default, 128 for all of them, is enough for 20 hosts.
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_EACH = 16
_BOOTS_AT_A_TIME = 3


def largest_fleet(memory_text: str) -> int:
    """How many hosts fit into the memory of this machine.

    Args:
        memory_text: the text of ``/proc/meminfo``.
    """
    available = next(line.split()[1] for line in memory_text.splitlines() if line.startswith("MemAvailable:"))
    return max(0, (int(available) // 1024 - _RESERVE_MIB) // HOST_MIB)


def names(count: int) -> list[str]:
    """The names of the hosts that serve."""
    return [f"serve-{number:03d}" for number in range(1, count + 1)]


def address(name: str) -> str:
    """The address of a host."""
    if name == GATEWAY:
        return str(SUBNET[_GATEWAY_PLACE])
    return str(SUBNET[_FIRST_PLACE - 1 + int(name.rpartition("-")[2])])


@dataclass(frozen=True)
class Access:
    """The keys of the fleet.

    Attributes:
        private_key: the file of the login's private key.
        public_key: its public key, ``type base64``.
        private_host_key: the SSH host key of all hosts, in OpenSSH's format.
        host_key: the public one, ``type base64``.
    """

    private_key: Path
    public_key: str
    private_host_key: str
    host_key: str

    @classmethod
    def create(cls, folder: Path) -> Access:
        """New keys; the private key of the login goes into the folder."""
        private, public = keys.ssh_key_pair()
        private_host, public_host = keys.ssh_key_pair()
        file = folder / "id_ed25519"
        write_atomically(file, private, 0o600)
        return cls(file, public, private_host, public_host)


def fleet_text(name: str, serving: Sequence[str], access: Access, value: int) -> str:
    """``fleet.yml``.

    Args:
        name: the name of the fleet.
        serving: its hosts that serve.
        access: the keys.
        value: that of :data:`ARGUMENT`: another one is another file on each host, and a restart.
    """

    def static(host_name: str) -> str:
        return f'      {host_name}: {{address: {address(host_name)}, ssh_host_key: "{access.host_key}"}}'

    cache = paths.cache_dir()
    lines = [
        "# Made by the benchmark.",
        f"fleet: {name}",
        f"defaults: {{model: {MODEL}, profile: balanced}}",
        "pools:",
        "  serve:",
        "    host_class: cpu-2",
        "    cloud: static",
        f"    overrides: {{args: {{{ARGUMENT}: {value}}}, why: the change that the benchmark measures}}",
        "    static:",
        *map(static, serving),
        "gateway:",
        "  static:",
        static(GATEWAY)[2:],
        f"access: {{ssh_user: {fleets.USER}, ssh_private_key_file: {access.private_key}}}",
        "artifacts:",
        f"  models: {{{MODEL}: {cache / 'lab-model' / 'current'}}}",
        f"  encodings: {cache / 'encodings'}",
        f"rollout: {{waive: {json.dumps(WAIVED)}}}",
    ]
    return "\n".join(lines) + "\n"


def known_hosts_text(serving: Sequence[str], access: Access) -> str:
    """``known_hosts`` of the hosts that serve, for the peers."""
    return "".join(f"{address(name)} {access.host_key}\n" for name in serving)


def write_fleet(folder: Path, serving: Sequence[str], access: Access, value: int) -> Path:
    """Writes the folder of a fleet, which has its name; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "fleet.yml", fleet_text(folder.name, serving, access, value))
    write_atomically(folder / "api-keys.yml", fleets.benchmark_keys_text())
    return folder / "fleet.yml"


@dataclass
class LabFleet:
    """The hosts of the benchmark.

    Attributes:
        access: their keys.
        image: the folder of what is on them from the start.
        inits: host -> its first process, while it runs.
    """

    access: Access
    image: Path
    inits: dict[str, int]

    def cpu_stats(self) -> list[Path]:
        """The files that count the CPU time of the hosts; none where the machine's cgroups do not count it."""
        files = [measure.cpu_stat(pid) for pid in self.inits.values()]
        known = [file for file in files if file]
        return known if len(known) == len(files) else []

    def root(self, name: str) -> Path:
        """The root folder of a host, as its own processes see it."""
        return Path(f"/proc/{self.inits[name]}/root")

    def boot(self, chosen: Sequence[str]) -> None:
        """Creates hosts, or creates them anew: they have nothing of what was installed on them.

        Raises:
            FleetError: one of them does not start.
        """
        with Heartbeat(f"bench: booting {len(chosen)} hosts") as beat, ThreadPoolExecutor(_BOOTS_AT_A_TIME) as pool:
            for done, _ in enumerate(pool.map(self._boot, chosen), 1):
                beat.note = f"{done} are up"
        self.inits |= _first_processes(chosen)

    def run(self, name: str, *command: str) -> str:
        """The output of a command that root runs on a host, without SSH.

        Raises:
            FleetError: it failed.
        """
        return shell.run("nsenter", f"--target={self.inits[name]}", "--all", "--", *command)

    def _boot(self, name: str) -> None:
        spec = HostSpec(
            bridge=BRIDGE,
            name=name,
            address=address(name),
            subnet=str(SUBNET),
            user=fleets.USER,
            authorised_key=self.access.public_key,
            host_key=self.access.host_key,
            tree=tree_digest(),
            peers={},
            binds=_binds(self.image) if name != GATEWAY else {},
            disk_gib=1,
        )
        host.create(spec, self.access.private_host_key)


@contextlib.contextmanager
def running(work: Path, most: int) -> Iterator[LabFleet]:
    """An empty network for that many hosts; removes all hosts at the end, and first what a killed run left.

    Args:
        work: an existing folder.
        most: the largest number of hosts.

    Raises:
        FleetError: not root, or a tool is missing.
    """
    shell.require()
    ensure_tree()
    cleanup.down(BRIDGE)
    before = _INOTIFY.read_text(encoding="ascii")
    try:
        if int(before) < most * _INOTIFY_EACH:
            _INOTIFY.write_text(f"{most * _INOTIFY_EACH}\n", encoding="ascii")
        network.create(NetworkSpec(bridge=BRIDGE, subnet=str(SUBNET), owner="bench", disk_gib=1))
        access = Access.create(work)
        yield LabFleet(access, _image(work, access), {})
    finally:
        with Heartbeat("bench: removing the hosts"):
            cleanup.down(BRIDGE)
        _INOTIFY.write_text(before, encoding="ascii")


def _binds(image: Path) -> Mapping[str, str]:
    return {
        str(image / "engines"): "/opt/vllm/engines",
        str(image / "models"): "/var/lib/vllm/models",
        str(image / "encodings"): "/var/lib/vllm/encodings",
    }


def _image(work: Path, access: Access) -> Path:
    """The folder with the engine, the model with the stamp of its verification, and the vocabularies."""
    folder = work / "fleets" / "bench-image"
    write_fleet(folder, names(1), access, 1)
    own = next(each for each in inventory.load(folder).hosts if each.plan.name == names(1)[0]).variables
    image = work / "image"
    engine = image / "engines" / str(own["vllm_engine_directory_id"])
    (engine / "bin").mkdir(parents=True)
    (engine / ".complete").write_text(f"{engine.name}\n", encoding="utf-8")
    shutil.copyfile(_ENGINE, engine / "bin" / "vllm")
    (engine / "bin" / "vllm").chmod(0o555)
    (image / "models").mkdir()
    for model in own["model_store_models"]:
        store = image / "models" / Path(model["directory"]).relative_to("/var/lib/vllm/models")
        shutil.copytree(model["source"], store)
        stamp = {each["name"]: _stamp(store / each["name"], each["sha256"]) for each in model["files"]}
        (store / ".verified.json").write_text(json.dumps(stamp), encoding="utf-8")
    (image / "encodings").mkdir()
    for each in own["harmony_encodings_files"]:
        shutil.copyfile(each["source"], image / "encodings" / each["name"])
    for path in image.glob("**/*"):
        os.chown(path, 0, 0)
    return image


def _stamp(file: Path, digest: str) -> dict[str, object]:
    seen = file.stat()
    return {"sha256": digest, "size": seen.st_size, "mtime_ns": seen.st_mtime_ns}


def _first_processes(chosen: Sequence[str]) -> dict[str, int]:
    """Host -> its first process, from one look at all processes of the machine."""
    roots = {f"--directory={state.host_dir(BRIDGE, name) / 'root'}": name for name in chosen}
    everyone = [found for found in map(find_process, process_ids()) if found]
    supervisors: dict[int, str] = {}
    for each in everyone:
        for word in command_line(each.pid):
            if word in roots:
                supervisors[each.pid] = roots[word]
    found = {
        supervisors[each.parent]: each.pid
        for each in everyone
        if each.parent in supervisors and each.pid not in supervisors
    }
    if missing := sorted(set(chosen) - set(found)):
        raise FleetError(f"{missing[0]} has no first process", "run it again", code=ErrorCode.WORK_FAILED)
    return found
