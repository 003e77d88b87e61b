"""An Ansible inventory -> hosts as ``vllm-fleet init`` takes them, and how they are logged in to."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.edge import ansible_inventory
from vllm_fleet.edge.ssh_options import HARMLESS, HARMLESS_FLAGS
from vllm_fleet.operate import enrol
from vllm_fleet.operate.enrol import NamedHost
from vllm_fleet.schema.fleet import size_fault

#: What is read of a host -> Ansible's variables for it; the first that is set counts.
_VARIABLES = {
    "address": ("ansible_host", "ansible_ssh_host"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "key": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
    "connection": ("ansible_connection",),
}
_ARGUMENTS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
_CONNECTIONS = frozenset({"ssh", "ansible.builtin.ssh", "smart", "paramiko", "paramiko_ssh"})
#: ssh's options that a fleet has keys for: their setting -> their name here.
_SETTINGS = {"proxyjump": "bastion", "identityfile": "key", "port": "port", "user": "user"}
_FLAGS = {"-J": "bastion", "-i": "key", "-p": "port", "-l": "user", "-F": "config"}
_OWN_CONFIG = "give ssh's configuration of these hosts with --ssh-config, and remove the option from the inventory"


@dataclass(frozen=True)
class Imported:
    """Hosts of an inventory.

    Attributes:
        hosts: as if they were given with ``--host`` and ``--gateway``.
        bastion: the host through which all of them are reached; None: directly.
        key: their private key; None: ssh's own configuration.
        config: their configuration of ssh; None: that of the user.
        groups: each group that has a GPU host of its own -> those hosts.
    """

    hosts: tuple[NamedHost, ...]
    bastion: str | None = None
    key: Path | None = None
    config: Path | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class _Way:
    """How one host is reached: bastion, key, config, port and user, as far as the inventory says."""

    settings: dict[str, str] = field(default_factory=dict)


def import_inventory(file: Path, group: str, gateway_group: str | None) -> Imported:
    """Reads hosts of an Ansible inventory.

    Args:
        file: the inventory.
        group: the group of the GPU hosts; those of the gateway group are left out of it.
        gateway_group: the group of the gateways; None: there are none.

    Raises:
        FleetError: the inventory cannot be read, a group is not in it, or a host has a value that a fleet cannot have;
            it carries all of them.
    """
    shown = paths.display(file)
    data = ansible_inventory.read_inventory(file)
    gateways = list(_members(data, gateway_group, "--gateway-group", shown)) if gateway_group is not None else []
    outside = set(gateways)
    names = [name for name in _members(data, group, "--group", shown) if name not in outside]
    if too_many := size_fault(len(set(names)), len(set(gateways))):
        raise FleetError(f"the group {too_many}", "give another group", shown, key=enrol.INVENTORY_OPTION)
    if not names and not gateways:
        raise FleetError(f"the group {group!r} has no host", "give another group", shown, key="--group")
    variables = data.get("_meta", {}).get("hostvars", {})
    errors: list[FleetError] = []
    hosts: list[NamedHost] = []
    ways: dict[str, _Way] = {}
    for name in dict.fromkeys([*names, *gateways]):
        try:
            way = _read_way(name, variables.get(name, {}), shown)
            hosts.append(_read_host(name, variables.get(name, {}), way, is_gateway=name in outside))
            ways[name] = way
        except FleetError as fault:
            fault.file, fault.host = shown, name
            errors.append(fault)
    common = {}
    for what, option in (("bastion", "--bastion"), ("key", "--key"), ("config", "--ssh-config")):
        try:
            common[what] = _common(ways, what, option)
        except FleetError as fault:
            fault.file = shown
            errors.append(fault)
    raise_all(errors)
    key, config = (paths.expand_user(value) if value else None for value in (common["key"], common["config"]))
    return Imported(tuple(hosts), common["bastion"], key, config, _groups_of(data, names))


def _groups_of(data: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Each group that has one of these hosts of its own -> those hosts."""
    wanted = set(names)
    members = {
        group: tuple(name for name in map(str, record.get("hosts", ())) if name in wanted)
        for group, record in data.items()
        if group != "_meta"
    }
    return {group: found for group, found in members.items() if found}


def _members(data: Mapping[str, Any], group: str, option: str, shown: str) -> Iterator[str]:
    """The hosts of a group and of the groups below it, in the order of the inventory."""
    known = {"all", "ungrouped", *(name for name in data if name != "_meta")}
    if group not in known:
        groups = ", ".join(sorted(known - {"ungrouped"}))
        raise FleetError(f"there is no group {group!r}", f"it has {groups}", shown, key=option)
    seen: set[str] = set()
    waiting = [group]
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        record = data.get(name, {})
        yield from map(str, record.get("hosts", ()))
        waiting += map(str, record.get("children", ()))


def _value(variables: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The text of the first variable that is set.

    Raises:
        FleetError: it is a template, or not text.
    """
    for name in names:
        value = variables.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise FleetError("is not text", "write the value itself; a secret of Ansible Vault is not read", key=name)
        if "{{" in str(value) or "{%" in str(value):
            raise FleetError(f"{str(value)[:80]!r} is a template, which is not filled in", "write the value", key=name)
        return str(value)
    return None


def _read_way(name: str, variables: Mapping[str, Any], shown: str) -> _Way:
    connection = _value(variables, _VARIABLES["connection"])
    if connection and connection not in _CONNECTIONS:
        text = f"{name} is reached by {connection!r}, not by SSH"
        raise FleetError(text, f"leave it out of the group, in {shown}", key="ansible_connection")
    way = _Way()
    for variable in _ARGUMENTS:
        arguments = _value(variables, (variable,)) or ""
        try:
            words = shlex.split(arguments)
        except ValueError as fault:
            raise FleetError(f"cannot be split: {fault}", "correct the quotation marks", key=variable) from None
        way.settings.update(_settings(words, variable))
    for what in ("port", "user", "key"):
        if value := _value(variables, _VARIABLES[what]):
            way.settings[what] = value
    return way


def _settings(words: list[str], variable: str) -> Iterator[tuple[str, str]]:
    """The settings of arguments of ssh that a fleet has keys for; those that do not change the way are left out."""
    rest = iter(words)
    for word in rest:
        if word[:2] in _FLAGS:
            yield _FLAGS[word[:2]], word[2:] or next(rest, "")
            continue
        setting = (word[2:] or next(rest, "")) if word.startswith("-o") else ""
        keyword, _, value = setting.partition("=" if "=" in setting else " ")
        keyword = keyword.strip().lower()
        if keyword in _SETTINGS:
            yield _SETTINGS[keyword], value.strip()
        elif word not in HARMLESS_FLAGS and keyword not in HARMLESS:
            text = f"{word} {setting}" if word == "-o" else word
            raise FleetError(f"{text[:120]!r} has no key in fleet.yml", _OWN_CONFIG, key=variable)


def _read_host(name: str, variables: Mapping[str, Any], way: _Way, *, is_gateway: bool) -> NamedHost:
    address = _value(variables, _VARIABLES["address"])
    at = address or name
    user, port = way.settings.get("user"), way.settings.get("port")
    text = f"{f'{user}@' if user else ''}{f'[{at}]' if ':' in at else at}{f':{port}' if port else ''}"
    try:
        return enrol.parse_host(text, gateway=is_gateway, option=enrol.INVENTORY_OPTION, label=name)
    except ValueError as fault:
        hint = "correct ansible_host, ansible_port or ansible_user"
        raise FleetError(str(fault), hint, key="ansible_host" if address else None) from None


def _common(ways: Mapping[str, _Way], what: str, option: str) -> str | None:
    """The one value that all hosts have.

    Raises:
        FleetError: they differ.
    """
    values: dict[str | None, str] = {}
    for name, way in ways.items():
        values.setdefault(way.settings.get(what), name)
    if len(values) > 1:
        (first, one), (second, other) = list(values.items())[:2]
        words = [
            f"{name} has {value!r}" if value else f"{name} has none" for value, name in ((first, one), (second, other))
        ]
        raise FleetError(
            f"a fleet has one {what} for all hosts, and {', '.join(words)}",
            "give ssh's configuration of these hosts with --ssh-config, or make a fleet of each",
            key=option,
        )
    return next(iter(values), None)
