"""Runs on a host before the first role: writes down what is there, so that ``host_leave`` removes only the rest.

Standard library only. Reads ``{"items": [...], "fleet": "...", "check": bool}`` and prints
``{"changed": bool, "first_boot": bool, "theirs": [...]}``. What is in the record stays: a second run adds the items
that a new plan has.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Mapping

from vllm_fleet.on_host import docker_engine, neighbours

if TYPE_CHECKING:
    from vllm_fleet.on_host import manifest_items as items

VERSION = 1
#: What was on the host before the first run, as lists of names; null where it is unknown.
SEEN = ("held", "installed", "groups", "tables")


def read_record(path: str) -> dict[str, Any]:
    """The record, or an empty one. A record of an older version lacks keys."""
    empty: dict[str, Any] = {"version": VERSION, "made": [], "theirs": [], "units": {}, "fleet": ""}
    empty.update(dict.fromkeys(SEEN))
    try:
        with open(path, encoding="utf-8") as file:
            return {**empty, **json.load(file)}
    except FileNotFoundError:
        return empty


def write_record(path: str, record: Mapping[str, Any]) -> None:
    """Replaces the record at once."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(draft, 0o644)
    os.replace(draft, path)


def key_of(item: items.Item) -> str:
    """An item as it is in the record; empty for one that leaves nothing behind, or that its place makes ours."""
    kind = item["kind"]
    if item.get("absent") or neighbours.is_own_place(item.get("path", "")):  # type: ignore[arg-type]
        return ""
    if kind in ("file", "directory", "link", "store"):
        return "%s:%s" % (kind, item["path"])  # type: ignore[typeddict-item]
    if kind in ("package", "unit") or (kind == "user" and "home" in item):
        return "%s:%s" % (kind, item["name"])  # type: ignore[typeddict-item]
    return ""


def is_there(item: items.Item, packages: frozenset[str]) -> bool:
    """Whether an item is on the host already, in any state.

    Args:
        item: the item.
        packages: the installed packages.
    """
    if item["kind"] == "package":
        return bool({item["name"], *item.get("alternatives", ())} & packages)
    if item["kind"] == "user":
        try:
            pwd.getpwnam(item["name"])
        except KeyError:
            return False
        return True
    if item["kind"] == "unit":
        state = docker_engine.command_output("systemctl", "show", "--value", "--property=LoadState", item["name"])
        return state not in ("", "not-found")
    return os.path.lexists(item["path"])  # type: ignore[typeddict-item]


def is_ours(item: items.Item, ours: neighbours.Ours) -> bool:
    """Whether an item that is there was made by a run before this record, as far as a host can tell.

    It is unknown for a package: those that were there stay.
    """
    if item["kind"] == "package":
        return False
    if item["kind"] == "unit":
        return "vllm" in item["name"] or item["name"] == "nvidia-cdi.service"
    if item["kind"] == "file":
        return ours.is_old or neighbours.is_marked(item["path"]) or neighbours.is_pristine(item["path"])
    return ours.is_old


def unit_state(name: str) -> list[str]:
    """Whether a unit is active, and whether it starts with the host."""
    return [
        docker_engine.command_output("systemctl", "show", "--value", "--property=ActiveState", name),
        docker_engine.command_output("systemctl", "show", "--value", "--property=UnitFileState", name),
    ]


def tables_now() -> list[str]:
    """The tables of the kernel's packet filter, such as ``ip nat``."""
    rows = docker_engine.command_output("nft", "list", "tables").splitlines()
    return sorted(row[len("table ") :] for row in rows if row.startswith("table "))


def seen_now() -> dict[str, list[str]]:
    """What is on the host, for what packages leave behind when they go."""
    return {
        "held": sorted(docker_engine.command_output("apt-mark", "showhold").split()),
        "groups": sorted(entry.gr_name for entry in grp.getgrall()),
        "tables": tables_now(),
    }


def extend_record(record: dict[str, Any], wanted: list[items.Item], fleet: str = "") -> dict[str, Any]:
    """The record with the items that it does not have yet, and the fleet if it names none."""
    ours = neighbours.read_ours()
    known = {*record["made"], *record["theirs"]}
    packages = docker_engine.command_output("dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\\n").splitlines()
    installed = frozenset(row.split()[0] for row in packages if row.endswith(" installed"))
    made, theirs, units = list(record["made"]), list(record["theirs"]), dict(record["units"])
    for item in wanted:
        key = key_of(item)
        if not key or key in known:
            continue
        known.add(key)
        if is_there(item, installed) and not is_ours(item, ours):
            theirs.append(key)
            if item["kind"] == "unit":
                units[item["name"]] = unit_state(item["name"])
        else:
            made.append(key)
    seen = {name: record[name] for name in SEEN}
    if seen["held"] is None:
        # Unknown for a host that was set up before.
        seen = {**dict.fromkeys(SEEN), "held": []} if ours.is_old else {"installed": sorted(installed), **seen_now()}
    entries = {"made": sorted(made), "theirs": sorted(theirs), "units": units}
    return {"version": VERSION, "fleet": record["fleet"] or fleet, **entries, **seen}


def has_cloud_init() -> bool:
    """Whether cloud-init sets up this host, and may still be at work."""
    return os.path.isdir("/run/cloud-init") and shutil.which("cloud-init") is not None


def main(path: str = neighbours.RECORD) -> None:
    """Reads the request, extends the record and prints what was there before."""
    request = json.load(sys.stdin)
    before = read_record(path)
    after = extend_record(before, request["items"], request["fleet"])
    if after != before and not request["check"]:
        write_record(path, after)
    answer = {"changed": after != before, "first_boot": has_cloud_init(), "theirs": after["theirs"]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
