"""Runs on a host: manifest on standard input -> the items that differ on standard output.

Standard library only, for the Python that the host has (3.8 or later); it changes nothing. The controller sends its
source over SSH, and ``python3 -IS`` runs it.
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
import time
from typing import TYPE_CHECKING, Any, Callable, Mapping

if TYPE_CHECKING:
    from vllm_fleet.on_host import manifest_items as items

#: State of an item -> its text for people. The states are those of ``facts.states.DriftState``; programs read these.
TEXTS = {
    "missing": "is missing",
    "unwanted": "is there, and the plan does not have it any more",
    "wrong_type": "is not a %s",
    "wrong_content": "content differs",
    "wrong_mode": "mode is %s, not %s",
    "wrong_owner": "owner is %s, not %s",
    "wrong_group": "group is %s, not %s",
    "wrong_target": "points to %s, not %s",
    "dangling": "points to nothing",
    "incomplete": "is not complete",
    "unverified": "%s is not the file that was verified",
    "file_missing": "%s is missing",
    "file_changed": "%s was changed after it was verified",
    "wrong_home": "home is %s, not %s",
    "wrong_shell": "shell is %s, not %s",
    "not_in_group": "is not in %s",
    "wrong_value": "is %s, not %s",
    "unknown_unit": "is not known to systemd",
    "not_reloaded": "was changed on disk since systemd read it",
    "foreign_unit_file": "is changed by %s",
    "not_loaded": "is not loaded",
    "other_rules": "has other rules than %s",
    "inactive": "is %s (%s)",
    "failed": "is %s (%s)",
    "in_transition": "is %s (%s)",
    "active": "is %s (%s)",
    "not_enabled": "is %s",
    "not_installed": "is not installed",
    "wrong_version": "is at %s, not %s",
    "not_held": "do not include %s",
    "drained": "gives no traffic to %s",
    "other_keys": "is not what HAProxy has loaded",
    "no_tool": "is missing, and so is %s",
    "no_answer": "is unknown: %s does not answer",
    "wrong_tag": "is not what %s names",
    "renewal_due": "%s: replace gateway.tls.certificate_file",
    "not_renewed": "%s, and was not renewed: read 'journalctl -u vllm-certificate'",
    "self_signed": "is signed by the gateway itself, and not yet by the CA",
    "wrong_names": "is not for %s",
    "unreadable": "cannot be read: %s",
}
#: Code of a veto -> its text. The codes are those of ``facts.states.VetoCode``.
VETO_TEXTS = {
    "too_few_cores": "has %d cores, its class needs %d",
    "no_cpu_flag": "its processor lacks %s, which its class needs: choose the class of its hardware",
    "too_little_memory": "has %.1f GiB of memory, its class needs %.1f",
    "wrong_machine": "is %s, its class is %s",
    "wrong_system": "has %s, and the roles support %s: use one of those",
}
#: systemd's ActiveState -> state; every other one is a change from one of these to another.
ACTIVE_STATES = {"inactive": "inactive", "failed": "failed", "active": "active"}
#: Where packages keep units. Operators use /etc and /run.
PACKAGED = ("/usr/", "/lib/")
#: Files of a plan are smaller.
MAX_FILE_MIB = 64
#: docker reports by text alone that its daemon does not answer.
DOCKER_DOWN = "annot connect"


def differs(state: str, *values: Any) -> tuple[str, str]:
    """A state with its text; bytes of a name that are no text become escapes, which JSON can contain."""
    return state, (TEXTS[state] % values).encode("utf-8", "backslashreplace").decode()


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _name(table: Callable[[int], Any], number: int) -> str:
    try:
        return str(table(number)[0])
    except KeyError:
        return str(number)


def _attributes(item: items.FileItem | items.DirectoryItem, info: os.stat_result) -> tuple[str, str] | None:
    mode = stat.S_IMODE(info.st_mode)
    if "mode" in item and mode != int(item["mode"], 8):
        return differs("wrong_mode", "%04o" % mode, item["mode"])
    if "owner" in item and _name(pwd.getpwuid, info.st_uid) != item["owner"]:
        return differs("wrong_owner", _name(pwd.getpwuid, info.st_uid), item["owner"])
    if "group" in item and _name(grp.getgrgid, info.st_gid) != item["group"]:
        return differs("wrong_group", _name(grp.getgrgid, info.st_gid), item["group"])
    return None


def check_file(item: items.FileItem) -> tuple[str, str] | None:
    """A regular file: digest, mode, owner and group, as far as the item has them."""
    info = _lstat(item["path"])
    if item.get("absent"):
        return differs("unwanted") if info else None
    if info is None:
        return differs("missing")
    if not stat.S_ISREG(info.st_mode):
        return differs("wrong_type", "regular file")
    if "sha256" in item:
        digest = hashlib.sha256()
        # Another account may own the directory: no link is followed, no pipe is waited for, no huge file is read.
        with open(os.open(item["path"], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            for _ in range(MAX_FILE_MIB):
                digest.update(file.read(1 << 20))
        if digest.hexdigest() != item["sha256"]:
            return differs("wrong_content")
    return _attributes(item, info)


def check_settings(item: items.SettingsItem) -> tuple[str, str] | None:
    """A JSON file that contains these values, beside any others."""
    from vllm_fleet.on_host import docker_engine

    if _lstat(item["path"]) is None:
        return differs("missing")
    try:
        settings = docker_engine.read_settings(item["path"])
    except ValueError:
        return differs("wrong_content")
    return None if docker_engine.same_value(settings, item["values"]) else differs("wrong_content")


def check_directory(item: items.DirectoryItem) -> tuple[str, str] | None:
    """A directory: mode, owner and group, as far as the item has them."""
    info = _lstat(item["path"])
    if info is None:
        return differs("missing")
    return _attributes(item, info) if stat.S_ISDIR(info.st_mode) else differs("wrong_type", "directory")


def check_link(item: items.LinkItem) -> tuple[str, str] | None:
    """A symbolic link to exactly this target, which exists."""
    info = _lstat(item["path"])
    if info is None:
        return differs("missing")
    if not stat.S_ISLNK(info.st_mode):
        return differs("wrong_type", "link")
    target = os.readlink(item["path"])
    if target != item["target"]:
        return differs("wrong_target", target, item["target"])
    return None if os.path.exists(item["path"]) else differs("dangling")


def as_account(name: str, check: Callable[[], tuple[str, str] | None]) -> tuple[str, str] | None:
    """What a check returns for another account: on a network file system root may read less than it."""
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        return differs("incomplete")
    if os.geteuid() != 0:
        return check()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: Any = differs("unreadable", "the check failed")
        try:
            os.setgroups(os.getgrouplist(name, account.pw_gid))
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            answer = check()
        except OSError as fault:
            answer = differs("unreadable", fault)
        finally:
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    return tuple(found) if found else None


def check_store(item: items.StoreItem) -> tuple[str, str] | None:
    """Large files: digest in the stamp, and size and time as they were when the digest was verified."""
    if "account" in item:
        return as_account(item["account"], lambda: check_stamp(item))
    return check_stamp(item)


def check_stamp(item: items.StoreItem) -> tuple[str, str] | None:
    """The files of a store against its stamp."""
    try:
        with open(os.path.join(item["path"], item["stamp"])) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return differs("incomplete")
    for name, wanted in sorted(item["files"].items()):
        verified = stamp.get(name) if isinstance(stamp, dict) else None
        if not isinstance(verified, dict) or verified.get("sha256") != wanted:
            return differs("unverified", name)
        try:
            info = os.stat(os.path.join(item["path"], name))
        except OSError:
            return differs("file_missing", name)
        if [info.st_size, info.st_mtime_ns] != [verified.get("size"), verified.get("mtime_ns")]:
            return differs("file_changed", name)
        if "inode" in verified and [info.st_ino, info.st_ctime_ns] != [verified["inode"], verified.get("ctime_ns")]:
            return differs("file_changed", name)
    # A file that was added later is one that vLLM might read.
    own = stamp.get(".") if isinstance(stamp, dict) else None
    if own is not None and own != {"mtime_ns": os.stat(item["path"]).st_mtime_ns}:
        return differs("file_changed", item["path"])
    return None


def check_user(item: items.UserItem) -> tuple[str, str] | None:
    """An account: home, shell and groups, as far as the item has them."""
    try:
        entry = pwd.getpwnam(item["name"])
    except KeyError:
        return differs("missing")
    if "home" in item and entry.pw_dir != item["home"]:
        return differs("wrong_home", entry.pw_dir, item["home"])
    if "shell" in item and entry.pw_shell != item["shell"]:
        return differs("wrong_shell", entry.pw_shell, item["shell"])
    missing = [name for name in item.get("groups", ()) if not _is_member(item["name"], entry.pw_gid, name)]
    return differs("not_in_group", ", ".join(missing)) if missing else None


def _is_member(user: str, own: int, group: str) -> bool:
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return False
    return user in entry.gr_mem or entry.gr_gid == own


def check_sysctl(item: items.SysctlItem) -> tuple[str, str] | None:
    """A kernel parameter and its value."""
    try:
        with open("/proc/sys/" + item["name"].replace(".", "/")) as file:
            value = " ".join(file.read().split())
    except OSError:
        return None if item.get("may_be_missing") else differs("missing")
    return None if value == item["value"] else differs("wrong_value", value, item["value"])


def unit_states(names: list[str]) -> dict[str, dict[str, str]]:
    """The state of all units in one call of systemctl: name -> properties."""
    if not names:
        return {}
    wanted = "Id,LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,FragmentPath,DropInPaths"
    command = ["systemctl", "show", "--no-pager", "--property=" + wanted, *names]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    states = {}
    for name, block in zip(names, out.split("\n\n")):
        states[name] = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    return states


def check_unit(item: items.UnitItem, states: Mapping[str, Mapping[str, str]]) -> tuple[str, str] | None:
    """A unit that systemd has loaded as it is on disk: active, enabled, its files, as far as the item has them."""
    state = states.get(item["name"], {})
    if state.get("LoadState") != "loaded":
        return differs("unknown_unit")
    if state.get("NeedDaemonReload") == "yes":
        return differs("not_reloaded")
    if "files" in item:
        paths = [*state.get("FragmentPath", "").split(), *state.get("DropInPaths", "").split()]
        foreign = set(paths) - set(item["files"])
        if own := sorted(path for path in foreign if not path.startswith(PACKAGED)):
            return differs("foreign_unit_file", ", ".join(own))
    now = state.get("ActiveState")
    if "active" in item and (now == "active") != item["active"]:
        return differs(ACTIVE_STATES.get(str(now), "in_transition"), now, state.get("SubState"))
    if "enabled" in item and (state.get("UnitFileState") == "enabled") != item["enabled"]:
        return differs("not_enabled", state.get("UnitFileState") or "not enabled")
    return None


def installed_packages(patterns: list[str]) -> dict[str, tuple[str, bool]]:
    """The installed packages with these names or patterns, by dpkg: name -> version, and whether it is on hold."""
    if not patterns:
        return {}
    command = ["dpkg-query", "-W", "-f=${Package} ${Version} ${db:Status-Want} ${db:Status-Status}\\n", *patterns]
    out = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    rows = [line.split() for line in out.splitlines() if line.endswith(" installed")]
    return {row[0]: (row[1], row[2] == "hold") for row in rows if len(row) == 4}


def check_package(item: items.PackageItem, packages: Mapping[str, tuple[str, bool]]) -> tuple[str, str] | None:
    """An installed package, at a version if the item has one (``*`` matches anything)."""
    name = next((name for name in (item["name"], *item.get("alternatives", ())) if name in packages), None)
    if name is None:
        return differs("not_installed")
    version = packages[name][0]
    if "version" in item and not fnmatch.fnmatchcase(version, item["version"]):
        return differs("wrong_version", version, item["version"])
    return None


def read_system() -> str:
    """``ID-VERSION_ID`` of /etc/os-release, such as ``debian-12``; empty without such a file."""
    try:
        with open("/etc/os-release") as file:
            pairs = dict(line.strip().split("=", 1) for line in file if "=" in line)
    except (OSError, ValueError):
        return ""
    return "-".join(pairs.get(key, "").strip("\"'") for key in ("ID", "VERSION_ID")).strip("-")


def check_holds(item: items.HoldsItem, packages: Mapping[str, tuple[str, bool]]) -> tuple[str, str] | None:
    """Every installed package that matches a pattern is on hold."""
    not_held = [
        name
        for name, (_, held) in sorted(packages.items())
        if not held and any(fnmatch.fnmatchcase(name, pattern) for pattern in item["patterns"])
    ]
    return differs("not_held", ", ".join(not_held)) if not_held else None


def _cordons(path: str) -> set[str]:
    """The servers that an operator keeps out of traffic, as ``vllm-gateway`` has noted, until their time is over."""
    try:
        with open(path) as file:
            drains = json.load(file)
        return {name for name, row in drains.items() if row["kind"] == "cordon" and row["until"] > time.time()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _ask_haproxy(path: str, command: str) -> str:
    """The answer of an HAProxy at its admin socket."""
    blocks = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(10)
        channel.connect(path)
        channel.sendall((command + "\n").encode())
        while block := channel.recv(1 << 16):
            blocks.append(block)
    return b"".join(blocks).decode("utf-8", "replace")


def check_keys(item: items.KeysItem) -> tuple[str, str] | None:
    """HAProxy has the API keys of their file. If it does not answer, its unit is the drift."""
    try:
        answer = _ask_haproxy(item["socket"], "show map " + item["path"])
    except OSError:
        return None
    try:
        with open(item["path"]) as file:
            planned = sorted(file.read().splitlines())
    except FileNotFoundError:
        return None  # the file is the drift
    # Each row has an address in front.
    loaded = sorted(line.split(" ", 1)[-1] for line in answer.splitlines() if line.startswith("0x"))
    return None if loaded == planned else differs("other_keys")


def check_traffic(item: items.TrafficItem) -> tuple[str, str] | None:
    """HAProxy drains no server but cordons. If HAProxy does not answer, its unit is the drift."""
    try:
        answer = _ask_haproxy(item["path"], "show servers state")
    except OSError:
        return None
    rows = [line.split() for line in answer.splitlines()]
    # The seventh column is the administrative state; its bit 8 is a requested drain.
    kept = _cordons(item["drains"])
    drained = sorted(
        row[3] for row in rows if len(row) > 6 and row[6].isdigit() and int(row[6]) & 8 and row[3] not in kept
    )
    return differs("drained", ", ".join(drained)) if drained else None


def check_image(item: items.ImageItem) -> tuple[str, str] | None:
    """An image that was pulled by its digest, and has its tag."""
    command = ["docker", "image", "inspect", "--format={{.Id}}", item["name"], item["tag"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return differs("no_tool", "docker")
    if DOCKER_DOWN in done.stderr:
        return differs("no_answer", "docker")
    # docker names the images that it does not have, and prints the id of each that it has.
    if item["name"] in done.stderr:
        return differs("missing")
    if item["tag"] in done.stderr or len(set(done.stdout.split())) != 1:
        return differs("wrong_tag", item["tag"])
    return None


def check_table(item: items.TableItem) -> tuple[str, str] | None:
    """A table of nftables as its file makes it in an empty network namespace, without counters."""
    listing = ["/usr/sbin/nft", "--stateless", "list", "table", *item["name"].split()]
    fresh = ["unshare", "--net", "sh", "-c", '/usr/sbin/nft -f "$0" && exec "$@"', item["rules"], *listing]
    try:
        loaded, planned = [subprocess.run(command, capture_output=True, text=True) for command in (listing, fresh)]
    except FileNotFoundError as fault:
        return differs("no_tool", fault.filename)
    if loaded.returncode:
        return differs("not_loaded")
    if planned.returncode or loaded.stdout != planned.stdout:
        return differs("other_rules", item["rules"])
    return None


def check_certificate(item: items.CertificateItem) -> tuple[str, str] | None:
    """The first certificate of a file; a file that is missing is a drift of its own."""
    # Only gateways with TLS get this module.
    from vllm_fleet.on_host import certificate_facts

    return certificate_facts.find_fault(item, differs) if _lstat(item["path"]) else None


def read_cpu_flags() -> set[str]:
    """What the processor of this host can do, as its kernel says."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return {flag for line in file if line.startswith("flags") for flag in line.partition(":")[2].split()}
    except OSError:
        return set()


def check_facts(facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """What a host must be before a run touches it: a veto ``{code, why}`` for each fact that differs."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = os.uname().machine
    vetoes: dict[str, tuple[Any, ...]] = {}
    if facts.get("cpu_count_min") and cores < facts["cpu_count_min"]:
        vetoes["too_few_cores"] = (cores, facts["cpu_count_min"])
    lacking = sorted(set(facts.get("cpu_flags") or ()) - read_cpu_flags())
    if lacking:
        vetoes["no_cpu_flag"] = (", ".join(lacking),)
    if facts.get("memory_gib_min") and memory < facts["memory_gib_min"]:
        vetoes["too_little_memory"] = (memory, facts["memory_gib_min"])
    if facts.get("machine") and machine != facts["machine"]:
        vetoes["wrong_machine"] = (machine, facts["machine"])
    system = read_system()
    if facts.get("systems") and system not in facts["systems"]:
        vetoes["wrong_system"] = (system or "an unknown system", ", ".join(facts["systems"]))
    return [{"code": code, "why": VETO_TEXTS[code] % values} for code, values in vetoes.items()]


def checks_by_kind(
    states: Mapping[str, Mapping[str, str]], packages: Mapping[str, tuple[str, bool]]
) -> dict[str, Callable[[Any], tuple[str, str] | None]]:
    """Kind of an item -> its check.

    Args:
        states: what :func:`unit_states` returns.
        packages: what :func:`installed_packages` returns.
    """
    return {
        "file": check_file,
        "settings": check_settings,
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
        "keys": check_keys,
        "table": check_table,
        "certificate": check_certificate,
    }


def probe(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The drift of this host: ``{"drift": [{role, kind, what, state, why}], "veto": [{code, why}]}``.

    Where the manifest names a vendor of GPUs, ``facts`` holds what the host reports about them; the controller judges
    those.
    """
    system = read_system()
    wanted = [item for item in manifest["items"] if system in item.get("systems", (system,))]
    states = unit_states([item["name"] for item in wanted if item["kind"] == "unit"])
    packages = [item for item in wanted if item["kind"] == "package"]
    names = [name for item in packages for name in (item["name"], *item.get("alternatives", ()))]
    patterns = [pattern for item in wanted if item["kind"] == "holds" for pattern in item["patterns"]]
    checks = checks_by_kind(states, installed_packages([*names, *patterns]))
    drift = []
    for item in wanted:
        try:
            difference = checks[item["kind"]](item)
        except OSError as fault:
            difference = differs("unreadable", fault)
        if difference:
            what = item.get("path") or item["name"]
            state, why = difference
            drift.append({"role": item["role"], "kind": item["kind"], "what": what, "state": state, "why": why})
    facts = manifest.get("facts") or {}
    from vllm_fleet.on_host import neighbours

    report: dict[str, Any] = {
        "drift": drift,
        "veto": check_facts(facts) + neighbours.find_conflicts({**manifest, "items": wanted}, drift),
    }
    if "gpu_vendor" in facts:
        # Only hosts with GPUs get this module.
        from vllm_fleet.on_host import gpu_facts

        report["facts"] = gpu_facts.read_facts(facts["gpu_vendor"])
    return report


def main() -> None:
    """Reads the manifest and prints the report."""
    json.dump(probe(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
