"""The lifecycle of a lab host: an overlay on the shared tree, started by systemd-nspawn, reached by SSH."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from lab import process, rootfs, shell, state
from lab.spec import HostSpec
from lab.surroundings import read_site, site_files
from lab.tree import ensure_tree, require_disk, tree_digest
from vllm_fleet.base.errors import ErrorCode, FleetError

_START_SECONDS = 300.0
_ANSWER_SECONDS = 10.0
#: Servers may lock memory and raise limits; nspawn drops both capabilities by default.
_RIGHTS = (
    "--capability=CAP_SYS_RESOURCE,CAP_IPC_LOCK",
    "--rlimit=RLIMIT_NOFILE=1024:1048576",
    "--rlimit=RLIMIT_MEMLOCK=infinity",
)
#: What a container engine needs beyond them, with a folder for its images that is no overlay.
_CONTAINER_RIGHTS = ("--capability=all", "--system-call-filter=add_key keyctl bpf")
_IMAGES = "/var/lib/docker"


def create(spec: HostSpec, private_host_key: str, files: Mapping[str, rootfs.File] | None = None) -> str:
    """Creates a host and waits until its sshd answers with its key. Removes the rest of an earlier one first.

    Args:
        spec: the host.
        private_host_key: its SSH host key, in OpenSSH's format.
        files: path on the host -> file, in addition to the files of every lab host.

    Returns:
        The id of the host: its machine id, new for each creation.

    Raises:
        FleetError: a requirement is missing, or the host did not start; everything of it is removed then.
    """
    shell.require()
    if spec.tree != tree_digest():
        # It changed while a run of Pulumi was under way, which has the stack's name in its command.
        hint = "run the same command of pulumi again"
        raise FleetError(f"the file tree {spec.tree} belongs to another release", hint, host=spec.name)
    tree = ensure_tree()
    folder = state.host_dir(spec.bridge, spec.name)
    machine_id = uuid.uuid4().hex
    # A provider whose engine was killed may still be working: the later one waits, then creates the host again.
    with state.locked(spec.machine):
        _remove(spec.bridge, spec.name)
        require_disk(folder, spec.disk_gib)
        try:
            state.write_json(folder / "host.json", {**spec.properties(), "id": machine_id})
            root = _mount(folder, tree)
            _fill(root, spec, private_host_key, machine_id)
            rootfs.write_files(root, files or {})
            process.start(root, spec.machine, _arguments(spec, folder), folder / "boot.log")
            _wait(spec, folder)
        except BaseException:
            _remove(spec.bridge, spec.name)
            raise
    return machine_id


def update(spec: HostSpec) -> None:
    """Writes what may change while the host runs: its authorised key and the names of its peers."""
    folder = state.host_dir(spec.bridge, spec.name)
    known = state.read(folder / "host.json")
    rootfs.write_files(folder / "root", rootfs.changeable_files(spec))
    state.write_json(folder / "host.json", {**spec.properties(), "id": known["id"]})


def alive(spec: HostSpec, machine_id: str) -> bool:
    """Whether the host with this id runs and its sshd answers with its key."""
    shell.require()
    folder = state.host_dir(spec.bridge, spec.name)
    if state.read(folder / "host.json").get("id") != machine_id:
        return False
    deadline = time.monotonic() + _ANSWER_SECONDS
    while process.find(folder / "root"):
        if host_key_at(spec.address) == spec.host_key:
            return True
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return False


def delete(bridge: str, name: str) -> None:
    """Ends a host and removes all of it; does nothing for a host that does not exist."""
    with state.locked(f"{bridge}-{name}"):
        _remove(bridge, name)


def host_key_at(address: str, port: int = 22) -> str | None:
    """The ed25519 host key, ``type base64``, of the sshd at an address; None where none answers within a second."""
    try:
        out = shell.run(*("ssh-keyscan", "-T", "1", "-t", "ed25519", "-p", str(port), address), timeout_seconds=5)
    except FleetError:
        return None
    for line in out.splitlines():
        words = line.split()
        if len(words) == 3 and words[1] == "ssh-ed25519":
            return f"{words[1]} {words[2]}"
    return None


def _remove(bridge: str, name: str) -> None:
    folder = state.host_dir(bridge, name)
    process.end(folder / "root", f"{bridge}-{name}")
    if (folder / "images").is_dir():
        # A container engine names the cgroups of its containers as it names their folders.
        process.remove_container_cgroups(container.name for container in (folder / "images" / "containers").glob("*"))
    state.remove_tree(folder)


def _mount(folder: Path, tree: Path) -> Path:
    for part in ("upper", "work", "root"):
        (folder / part).mkdir(mode=0o755)
    options = f"lowerdir={tree},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    try:
        shell.run("mount", "-t", "overlay", "overlay", "-o", options, folder / "root")
    except FleetError as fault:
        raise FleetError(
            f"this machine cannot lay one file system over another: {fault.message}",
            "it needs the kernel module 'overlay', and VLLM_FLEET_CACHE on a disk (not on another overlay)",
            code=ErrorCode.REFUSED,
        ) from None
    return folder / "root"


def _fill(root: Path, spec: HostSpec, private_host_key: str, machine_id: str) -> None:
    rootfs.add_user(root, spec.user)
    rootfs.write_files(root, {path: rootfs.File(text) for path, text in site_files(read_site()).items()})
    rootfs.write_files(root, rootfs.host_files(spec, private_host_key, machine_id))
    rootfs.write_links(root, rootfs.host_links(spec))


def _arguments(spec: HostSpec, folder: Path) -> list[str]:
    binds = dict(spec.binds)
    if spec.containers:
        binds[str(folder / "images")] = _IMAGES
    for source in binds:
        Path(source).mkdir(parents=True, exist_ok=True)
    return [
        f"--machine={spec.machine}",
        f"--hostname={spec.name}",
        f"--network-bridge={spec.bridge}",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        *_RIGHTS,
        *(_CONTAINER_RIGHTS if spec.containers else ()),
        *(f"--bind={source}:{target}" for source, target in binds.items()),
        "--boot",
    ]


def _wait(spec: HostSpec, folder: Path) -> None:
    """Waits for sshd with the right key; systemd has started everything for a login then."""
    began = time.monotonic()
    while time.monotonic() - began < _START_SECONDS:
        time.sleep(0.1)
        host_key = host_key_at(spec.address)
        if host_key == spec.host_key:
            return
        if host_key:
            raise FleetError(
                f"another machine answers at {spec.address}",
                "give the pool another subnet or another 'placement.first'",
                host=spec.name,
                code=ErrorCode.WORK_FAILED,
            )
        if time.monotonic() - began > 1 and not process.find(folder / "root"):
            raise shell.failed(f"systemd-nspawn ended: {_last_words(folder)}", host=spec.name)
    raise shell.failed(f"sshd did not answer within {_START_SECONDS:g} s: {_last_words(folder)}", host=spec.name)


def _last_words(folder: Path) -> str:
    log = folder / "boot.log"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "; ".join(line.strip() for line in lines[-5:] if line.strip()) or "it said nothing"
