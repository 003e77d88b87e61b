"""``host-keys.yml``: the SSH host keys that hosts made themselves, step by step from one key to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import raise_all
from vllm_fleet.schema.cloud import HostKeys

FILE = "host-keys.yml"
_HEAD = """\
# SSH host keys that the hosts made themselves: written by playbooks/rotate-host-keys.yml, public, to be kept with the
# fleet. Two keys of one host are here only while one replaces the other.
"""


@dataclass(frozen=True)
class Shown:
    """What a host reports about its keys, over a connection that is already trusted.

    Attributes:
        current: the key that its sshd shows.
        next: the key that it has made and does not show yet; None without one.
    """

    current: str
    next: str | None


def load(directory: Path, hosts: Collection[str] | None = None) -> HostKeys:
    """The file of a fleet; empty without one.

    Args:
        directory: the fleet's folder.
        hosts: the names of its hosts; None: any may be in the file.

    Raises:
        FleetError: the file cannot be read, is wrong, or has keys of other hosts.
    """
    path = directory / FILE
    if not os.path.lexists(path):
        return HostKeys(keys={})
    document = yaml_document.read(path)
    found = yaml_document.parse(document, HostKeys)
    if hosts is not None:
        unknown = [name for name in found.keys if name not in hosts]
        raise_all([document.error(("keys", name), "the fleet has no such host", "remove it") for name in unknown])
    return found


def standing(file: HostKeys, ids: Mapping[str, str]) -> Mapping[str, tuple[str, ...]]:
    """Host -> its own keys, without those of hosts that were replaced since.

    Args:
        file: the file.
        ids: host -> its id in the stack; static hosts are not in it.
    """
    return {name: tuple(keys) for name, keys in file.keys.items() if file.hosts.get(name) in (None, ids.get(name))}


def both(known: tuple[str, ...], shown: Shown) -> tuple[str, ...]:
    """The keys to trust before a host takes its next key: that one and the present one.

    Args:
        known: what is trusted now, over which the host was asked.
        shown: what the host says.
    """
    if shown.next is None:
        return known if shown.current in known else (shown.current,)
    return tuple(dict.fromkeys((shown.next, shown.current)))


def text(keys: Mapping[str, tuple[str, ...]], ids: Mapping[str, str]) -> str:
    """The file's text.

    Args:
        keys: host -> its own keys.
        ids: host -> its id in the stack.
    """
    lines = [_HEAD, "hosts:" + ("" if set(ids) & set(keys) else " {}") + "\n"]
    lines += [f"  {name}: {json.dumps(ids[name])}\n" for name in sorted(keys) if name in ids]
    lines.append("keys:" + ("" if keys else " {}") + "\n")
    for name in sorted(keys):
        lines.append(f"  {name}:\n")
        lines += [f"    - {key}\n" for key in keys[name]]
    return "".join(lines)
