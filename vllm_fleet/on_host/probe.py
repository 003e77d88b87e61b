"""Runs on a host: a manifest from standard input, the part of it that is not true to standard output.

Standard library only, for the Python that the host has (3.8 or later); it changes nothing. Sent over SSH as
source and run by ``python3 -IS``.
"""

from __future__ import annotations

import fnmatch
import grp
import hashlib
import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from typing import Any, Callable


def _state(item: dict[str, Any]) -> os.stat_result | None:
    """What is there at a path: kind, mode and owner; None when nothing is."""
    try:
        info = os.lstat(item["path"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info


def _name(table: Callable[[int], Any], number: int) -> str:
    try:
        return str(table(number)[0])
    except KeyError:
        return str(number)


def _attributes(item: dict[str, Any], info: os.stat_result) -> str | None:
    if "mode" in item and stat.S_IMODE(info.st_mode) != int(item["mode"], 8):
        return "mode is %04o, not %s" % (stat.S_IMODE(info.st_mode), item["mode"])
    if "owner" in item and _name(pwd.getpwuid, info.st_uid) != item["owner"]:
        return "owner is %s, not %s" % (_name(pwd.getpwuid, info.st_uid), item["owner"])
    if "group" in item and _name(grp.getgrgid, info.st_gid) != item["group"]:
        return "group is %s, not %s" % (_name(grp.getgrgid, info.st_gid), item["group"])
    return None


def check_file(item: dict[str, Any]) -> str | None:
    """A regular file with its content's digest, mode and owner, as far as they are given."""
    info = _state(item)
    if info is None:
        return "is missing"
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    if "sha256" in item:
        digest = hashlib.sha256()
        with open(item["path"], "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        if digest.hexdigest() != item["sha256"]:
            return "content differs"
    return _attributes(item, info)


def check_directory(item: dict[str, Any]) -> str | None:
    """A directory with its mode and owner."""
    info = _state(item)
    if info is None:
        return "is missing"
    return _attributes(item, info) if stat.S_ISDIR(info.st_mode) else "is not a directory"


def check_link(item: dict[str, Any]) -> str | None:
    """A symbolic link to just this target, which exists."""
    info = _state(item)
    if info is None:
        return "is missing"
    if not stat.S_ISLNK(info.st_mode):
        return "is not a link"
    target = os.readlink(item["path"])
    if target != item["target"]:
        return "points to %s, not %s" % (target, item["target"])
    return None if os.path.exists(item["path"]) else "points to nothing"


def check_store(item: dict[str, Any]) -> str | None:
    """Large files by the stamp that was left when their digests were verified: size and time of each, then."""
    try:
        with open(os.path.join(item["path"], item["stamp"])) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return "is not complete"
    for name, wanted in sorted(item["files"].items()):
        seen = stamp.get(name) or {}
        if seen.get("sha256") != wanted:
            return "%s is not the file that was verified" % name
        try:
            info = os.stat(os.path.join(item["path"], name))
        except OSError:
            return "%s is missing" % name
        if [info.st_size, info.st_mtime_ns] != [seen.get("size"), seen.get("mtime_ns")]:
            return "%s was changed after it was verified" % name
    return None


def check_user(item: dict[str, Any]) -> str | None:
    """An account with its home and shell."""
    try:
        entry = pwd.getpwnam(item["name"])
    except KeyError:
        return "does not exist"
    for key, value in (("home", entry.pw_dir), ("shell", entry.pw_shell)):
        if key in item and item[key] != value:
            return "%s is %s, not %s" % (key, value, item[key])
    missing = [name for name in item.get("groups", ()) if not _is_member(item["name"], entry.pw_gid, name)]
    return "is not in %s" % ", ".join(missing) if missing else None


def _is_member(user: str, own: int, group: str) -> bool:
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return False
    return user in entry.gr_mem or entry.gr_gid == own


def check_sysctl(item: dict[str, Any]) -> str | None:
    """A kernel parameter; in a container some cannot be set, and the manifest does not ask for those."""
    try:
        with open("/proc/sys/" + item["name"].replace(".", "/")) as file:
            value = " ".join(file.read().split())
    except OSError:
        return None if item.get("may_be_missing") else "does not exist"
    return None if value == item["value"] else "is %s, not %s" % (value, item["value"])


def unit_states(names: list[str]) -> dict[str, dict[str, str]]:
    """Systemd's view of all the units in one call: name -> properties."""
    if not names:
        return {}
    wanted = "Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload"
    command = ["systemctl", "show", "--no-pager", "--property=" + wanted, *names]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    states = {}
    for name, block in zip(names, out.split("\n\n")):
        states[name] = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    return states


def check_unit(item: dict[str, Any], states: dict[str, dict[str, str]]) -> str | None:
    """A unit that is known, loaded as it stands on disk, active and enabled, as far as asked."""
    state = states.get(item["name"], {})
    if state.get("LoadState") != "loaded":
        return "is not known to systemd"
    if state.get("NeedDaemonReload") == "yes":
        return "was changed on disk since systemd read it"
    if "active" in item and (state.get("ActiveState") == "active") != item["active"]:
        return "is %s (%s)" % (state.get("ActiveState"), state.get("SubState"))
    if "enabled" in item and (state.get("UnitFileState") == "enabled") != item["enabled"]:
        return "is %s" % (state.get("UnitFileState") or "not enabled")
    return None


def installed_packages(patterns: list[str]) -> dict[str, tuple[str, bool]]:
    """The installed packages of these names or patterns, from dpkg's own database: name -> version, whether held."""
    if not patterns:
        return {}
    command = ["dpkg-query", "-W", "-f=${Package} ${Version} ${db:Status-Want} ${db:Status-Status}\\n", *patterns]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rows = [line.split() for line in out.splitlines() if line.endswith(" installed")]
    return {row[0]: (row[1], row[2] == "hold") for row in rows if len(row) == 4}


def check_package(item: dict[str, Any], packages: dict[str, tuple[str, bool]]) -> str | None:
    """A package that is installed, at a version where one is given (``*`` stands for anything)."""
    if item["name"] not in packages:
        return "is not installed"
    version = packages[item["name"]][0]
    if "version" in item and not fnmatch.fnmatchcase(version, item["version"]):
        return "is at %s, not %s" % (version, item["version"])
    return None


def check_holds(item: dict[str, Any], packages: dict[str, tuple[str, bool]]) -> str | None:
    """Whatever is installed of some patterns of names is on hold."""
    loose = [
        name
        for name, (_, held) in sorted(packages.items())
        if not held and any(fnmatch.fnmatchcase(name, pattern) for pattern in item["patterns"])
    ]
    return "do not include %s" % ", ".join(loose) if loose else None


def check_traffic(item: dict[str, Any]) -> str | None:
    """No server of HAProxy is left in drain; where HAProxy does not answer its unit is what has drifted."""
    text = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(10)
            channel.connect(item["path"])
            channel.sendall(b"show servers state\n")
            while block := channel.recv(1 << 16):
                text += block
    except OSError:
        return None
    rows = [line.split() for line in text.decode().splitlines()]
    # The seventh column is the administrative state, in which 8 is a drain that was asked for.
    left = sorted(row[3] for row in rows if len(row) > 6 and row[6].isdigit() and int(row[6]) & 8)
    return "gives no traffic to %s" % ", ".join(left) if left else None


def check_image(item: dict[str, Any]) -> str | None:
    """An image that was pulled by its digest, and that its tag names."""
    command = ["docker", "image", "inspect", "--format={{.Id}}", item["name"], item["tag"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "is not there, nor is docker"
    if "annot connect" in done.stderr:
        return "is unknown: docker does not answer"
    if item["name"] in done.stderr:
        return "is not there"
    if item["tag"] in done.stderr or len(set(done.stdout.split())) != 1:
        return "is not what %s names" % item["tag"]
    return None


def check_facts(facts: dict[str, Any]) -> list[str]:
    """What a host must be before anything is done to it; each fault is a veto."""
    faults = []
    cores = len(os.sched_getaffinity(0))
    if facts.get("cpu_count_min") and cores < facts["cpu_count_min"]:
        faults.append("has %d cores, its class needs %d" % (cores, facts["cpu_count_min"]))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if facts.get("memory_gib_min") and memory < facts["memory_gib_min"]:
        faults.append("has %.1f GiB of memory, its class needs %.1f" % (memory, facts["memory_gib_min"]))
    if facts.get("machine") and os.uname().machine != facts["machine"]:
        faults.append("is %s, its class is %s" % (os.uname().machine, facts["machine"]))
    return faults


def what(item: dict[str, Any]) -> str:
    """The name of an item, as a person would say it."""
    return str(item.get("path") or item["name"])


def probe(manifest: dict[str, Any]) -> dict[str, Any]:
    """The drift of this host: ``{"drift": [{role, kind, what, why}], "veto": [text]}``.

    Where the manifest says that there are GPUs, ``facts`` holds what the host says of them; what they veto is judged
    on the controller.
    """
    items = manifest["items"]
    states = unit_states([item["name"] for item in items if item["kind"] == "unit"])
    names = [item["name"] for item in items if item["kind"] == "package"]
    patterns = [pattern for item in items if item["kind"] == "holds" for pattern in item["patterns"]]
    packages = installed_packages([*names, *patterns])
    checks: dict[str, Callable[[dict[str, Any]], str | None]] = {
        "file": check_file,
        "directory": check_directory,
        "link": check_link,
        "store": check_store,
        "image": check_image,
        "user": check_user,
        "sysctl": check_sysctl,
        "unit": lambda item: check_unit(item, states),
        "package": lambda item: check_package(item, packages),
        "holds": lambda item: check_holds(item, packages),
        "traffic": check_traffic,
    }
    drift = []
    for item in items:
        try:
            why = checks[item["kind"]](item)
        except PermissionError as fault:
            why = "cannot be read: %s" % fault
        if why:
            drift.append({"role": item["role"], "kind": item["kind"], "what": what(item), "why": why})
    facts = manifest.get("facts") or {}
    report: dict[str, Any] = {"drift": drift, "veto": check_facts(facts)}
    if "gpu_vendor" in facts:
        # Only the program for hosts with GPUs carries this module.
        from vllm_fleet.on_host import gpu_facts

        report["facts"] = gpu_facts.read_facts(facts["gpu_vendor"])
    return report


def main() -> None:
    """Reads the manifest, prints the report."""
    json.dump(probe(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
