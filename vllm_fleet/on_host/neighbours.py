"""What others have on this host where the manifest wants something of its own. Standard library only.

The probe calls it for the items that differ. It names ports, accounts, files, folders, services and packages of others
before a role touches them. It changes nothing.

What the toolkit has made is in ``/etc/vllm-fleet/record.json`` (:mod:`host_record` writes it). A host that was set up
before there was a record is known by the files of the role host_baseline.
"""

from __future__ import annotations

import fnmatch
import grp
import hashlib
import json
import os
import pwd
import re
import socket
import struct
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

from vllm_fleet.on_host import docker_engine

if TYPE_CHECKING:
    from vllm_fleet.on_host import manifest_items as items

RECORD = "/etc/vllm-fleet/record.json"
#: Files that every host of a fleet has had since the first release, and nothing else has.
OLD_MARKS = ("/etc/sysctl.d/60-vllm-fleet.conf", "/etc/apt/apt.conf.d/60-vllm-fleet")
#: What is below them is the toolkit's; a host that it has not set up must not have them (check_folder).
OWN_FOLDERS = ("/opt/vllm/", "/var/lib/vllm/", "/var/cache/vllm/", "/run/vllm-")
#: What a file of the toolkit contains or is called.
MARK = "vllm-fleet"
#: How much of a file is searched for the mark.
HEAD_BYTES = 4096
#: Units of the toolkit, and services that it takes over. Their sockets are not those of others.
UNITS = (
    *("vllm@*.service", "vllm-docker@*.service"),
    *("haproxy.service", "nginx.service", "docker-registry.service"),
)
#: Folders that belong to the toolkit as a whole.
FOLDERS = ("/opt/vllm", "/var/lib/vllm", "/var/cache/vllm")
#: Where an operator may mount a disk for models, or put a link to one, before the first run.
MODELS = "/var/lib/vllm/models"
#: Folder of a service's own configuration -> its file that the package brings, and the service.
SITES = ("/etc/nginx/sites-enabled", "/etc/nginx/conf.d")
REGISTRY_DATA = "/var/lib/docker-registry"
LISTENING = "0A"
#: Code of a conflict -> its text.
TEXTS = {
    "port_taken": "port %d is used by %s: stop it, or choose another port in fleet.yml",
    "other_fleet": "the fleet %s has set it up: take it out there with 'vllm-fleet leave'; "
    "if this fleet was called so, delete the key fleet in " + RECORD,
    "foreign_account": "the %s %s exists and vllm-fleet did not make it (%s): rename it, or use another host",
    "foreign_file": "%s exists and vllm-fleet did not make it: move it away, or use another host",
    "foreign_folder": "%s contains files that vllm-fleet did not make (%s): move them away, or use another host",
    "foreign_service": "%s has other users (%s): stop and remove it, or use another host",
    "would_remove": "to install %s, apt would remove %s: remove them yourself, or use another host",
}


def _conflict(code: str, *values: Any) -> tuple[str, str]:
    return code, TEXTS[code] % values


class Ours:
    """What the toolkit has made on this host, as keys ``kind:name``."""

    def __init__(self, made: Sequence[str], is_known: bool, is_old: bool, fleet: str = "") -> None:
        self.made = frozenset(made)
        self.is_known = is_known
        self.is_old = is_old
        #: The fleet that has set the host up; empty where it is not known.
        self.fleet = fleet

    def has(self, key: str) -> bool:
        """Whether something is ours; on a host without a record that was set up before, everything may be."""
        return key in self.made or (self.is_old and not self.is_known)


def read_ours(record: str = RECORD, marks: Sequence[str] = OLD_MARKS) -> Ours:
    """The record of this host; empty on a host that the toolkit has not touched."""
    try:
        with open(record, encoding="utf-8") as file:
            found = json.load(file)
        return Ours([str(key) for key in found["made"]], True, True, str(found.get("fleet") or ""))
    except (OSError, ValueError, KeyError, TypeError):
        return Ours((), False, any(os.path.exists(mark) for mark in marks))


def is_marked(path: str) -> bool:
    """Whether the name or the head of a file says that the toolkit made it."""
    if MARK in path:
        return True
    try:
        with open(path, "rb") as file:
            return MARK.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


def is_pristine(path: str) -> bool:
    """Whether a file of /etc is as its package has brought it."""
    package = docker_engine.command_output("dpkg-query", "-S", path).split(":")[0]
    if not package:
        return False
    out = docker_engine.command_output("dpkg-query", "-W", "-f=${Conffiles}\\n", package)
    rows = dict(line.split()[:2] for line in out.splitlines() if len(line.split()) >= 2)
    if path not in rows:
        return False
    try:
        with open(path, "rb") as file:
            # dpkg keeps MD5; nothing depends on its strength here.
            return hashlib.md5(file.read()).hexdigest() == rows[path]  # noqa: S324
    except OSError:
        return False


def is_own_place(path: str) -> bool:
    """Whether a path is below a folder that is the toolkit's on every host that it has set up.

    Names there change with each release, so the record does not list them.
    """
    return path.startswith(OWN_FOLDERS)


def check_fleet(name: str, ours: Ours) -> tuple[str, str] | None:
    """A host that another fleet has set up: two fleets would replace each other's files."""
    return _conflict("other_fleet", ours.fleet) if name and ours.fleet not in ("", name) else None


def check_file(path: str, ours: Ours) -> tuple[str, str] | None:
    """A file with another content than the manifest's: whether vllm-fleet did not make it."""
    if not os.path.lexists(path) or ours.has("file:" + path) or is_marked(path):
        return None
    if is_own_place(path) and (ours.is_known or ours.is_old):
        return None
    # An earlier run has installed the package and was stopped before it wrote the file.
    return None if is_pristine(path) else _conflict("foreign_file", path)


def check_account(item: items.UserItem, ours: Ours) -> tuple[str, str] | None:
    """An account that differs, or a group without it."""
    name = item["name"]
    if "home" not in item or ours.has("user:" + name):
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        try:
            group = grp.getgrnam(name)
        except KeyError:
            return None
        return _conflict("foreign_account", "group", name, "number %d" % group.gr_gid)
    what = "number %d, home %s, shell %s" % (entry.pw_uid, entry.pw_dir, entry.pw_shell)
    return _conflict("foreign_account", "account", name, what)


def check_folder(path: str, ours: Ours) -> tuple[str, str] | None:
    """A folder with something in it on a host that the toolkit has not set up."""
    if ours.is_old or not os.path.isdir(path):
        return None
    names = sorted(name for name in os.listdir(path) if not _is_prepared(os.path.join(path, name)))
    if not names:
        return None
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return _conflict("foreign_folder", path, shown)


def _is_prepared(path: str) -> bool:
    """Whether an operator has made this for models; or it is a file system's own, or ours by its name."""
    return path.startswith(MODELS) or os.path.basename(path) in ("lost+found", "engines", "encodings", "releases")


def check_service(unit: str) -> tuple[str, str] | None:
    """Nginx or the registry with a configuration of others, which our drop-in would break."""
    if any(is_marked(path) for path in _drop_ins(unit)):
        return None
    if unit == "nginx.service":
        names = [
            os.path.join(folder, name)
            for folder in SITES
            if os.path.isdir(folder)
            for name in sorted(os.listdir(folder))
        ]
        # Debian links its own page from sites-available.
        theirs = [path for path in names if not is_marked(path) and not is_pristine(os.path.realpath(path))]
        return _conflict("foreign_service", unit, ", ".join(theirs[:3])) if theirs else None
    if unit == "docker-registry.service" and os.path.isdir(REGISTRY_DATA) and os.listdir(REGISTRY_DATA):
        return _conflict("foreign_service", unit, REGISTRY_DATA)
    return None


def _drop_ins(unit: str) -> list[str]:
    folder = "/etc/systemd/system/%s.d" % unit
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def listening_sockets() -> Iterator[tuple[str, int, int, int]]:
    """Every TCP socket that listens: (address, port, account, inode)."""
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            with open(table) as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            if len(row) > 9 and row[3] == LISTENING:
                text, _, port = row[1].partition(":")
                yield _address(family, text), int(port, 16), int(row[7]), int(row[9])


def _address(family: int, text: str) -> str:
    """An address of /proc/net: words of four bytes in the host's order."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    packed = b"".join(struct.pack("=I", word) for word in words)
    address = socket.inet_ntop(family, packed)
    return address[len("::ffff:") :] if address.startswith("::ffff:") else address


def _canonical(address: str) -> str:
    """An address in the kernel's spelling; empty for a name, which may be any address of the host."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address.strip("[]")))
        except OSError:
            continue
    return ""


def _holders(inodes: frozenset[int]) -> dict[int, int]:
    """Inode of a socket -> a process that has it open."""
    holders: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or holders.keys() >= inodes:
            continue
        folder = "/proc/%s/fd" % name
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            match = re.match(r"socket:\[(\d+)\]", _target(os.path.join(folder, entry)))
            if match and int(match.group(1)) in inodes:
                holders.setdefault(int(match.group(1)), int(name))
    return holders


def _target(path: str) -> str:
    """Where a link points; empty if it has gone meanwhile."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _unit_of(pid: int) -> str:
    """The systemd unit of a process; empty for none."""
    try:
        with open("/proc/%d/cgroup" % pid) as file:
            parts = [part for line in file for part in line.strip().split("/")]
    except OSError:
        return ""
    return next((part for part in reversed(parts) if part.endswith((".service", ".scope"))), "")


def _name_of(pid: int) -> str:
    try:
        with open("/proc/%d/comm" % pid, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def check_ports(wanted: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """The ports that the plan wants and another program listens on.

    Args:
        wanted: ``{"port", "address"}`` each; an empty address is every one.
    """
    try:
        account = pwd.getpwnam("vllm").pw_uid
    except KeyError:
        account = -1
    everywhere = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
    wanted = [{"port": want["port"], "address": _canonical(want["address"])} for want in wanted]
    hits = [
        (want["port"], inode)
        for want in wanted
        for address, port, user, inode in listening_sockets()
        if port == want["port"]
        and (address == want["address"] or address in everywhere or want["address"] in everywhere)
        # What runs in our container has no unit of ours.
        and user != account
    ]
    holders = _holders(frozenset(inode for _, inode in hits)) if hits else {}
    for port, inode in dict(hits).items():
        pid = holders.get(inode)
        unit = _unit_of(pid) if pid else ""
        if any(fnmatch.fnmatchcase(unit, pattern) for pattern in UNITS):
            continue
        who = "%s (process %d%s)" % (_name_of(pid), pid, ", %s" % unit if unit else "") if pid else "the kernel"
        yield _conflict("port_taken", port, who)


def find_conflicts(manifest: Mapping[str, Any], drift: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What others have, as vetoes ``{code, why}``; empty on a host that is as its manifest says.

    Args:
        manifest: the items, the ``ports`` that the plan wants, and the ``fleet`` that the host is in.
        drift: the items that differ, as the probe reports them.
    """
    ours = read_ours()
    differing = {(row["kind"], row["what"]): row["state"] for row in drift}
    found: list[tuple[str, str] | None] = list(check_ports(manifest.get("ports") or ()))
    found.append(check_fleet(manifest.get("fleet") or "", ours))
    packages = []
    settings: Mapping[str, Any] | None = None
    for item in manifest["items"]:
        what = item.get("path") or item["name"]
        kind = item["kind"]
        if kind == "directory" and what in FOLDERS:
            # A folder with the right owner and mode may hold files of others.
            found.append(check_folder(what, ours))
        if (kind, what) not in differing:
            continue
        if kind == "file":
            found.append(check_file(what, ours))
        elif kind == "user":
            found.append(check_account(item, ours))
        elif kind == "unit" and not ours.has("unit:" + what):
            found.append(check_service(what))
        elif kind == "package" and what in docker_engine.PACKAGES:
            settings = settings or {}
        elif kind == "package" and "version" not in item:
            packages.append(what)
        elif kind == "settings":
            settings = item["values"]
    if settings is not None:
        found += docker_engine.find_conflicts(settings)
    gone = docker_engine.removed_by_apt(packages)
    if gone:
        found.append(_conflict("would_remove", ", ".join(packages), ", ".join(gone)))
    unique = dict.fromkeys(conflict for conflict in found if conflict)
    return [{"code": code, "why": why} for code, why in unique]
