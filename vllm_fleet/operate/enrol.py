"""Hosts that a person names -> hosts that a fleet can hold: their keys, what they say of themselves, their classes."""

from __future__ import annotations

import ipaddress
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog, raise_all
from vllm_fleet.edge import ssh_scan, ssh_target
from vllm_fleet.edge.ssh_scan import Address
from vllm_fleet.facts.recognise import recognise, seen
from vllm_fleet.facts.vetoes import counted_gpus
from vllm_fleet.fleet import plan
from vllm_fleet.operate import probing
from vllm_fleet.operate.new_fleet import FoundHost

_SPELLING = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^\[\]:@\s]+))(?::(?P<port>\d+))?")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class Asked:
    """A host as a person names it."""

    address: str
    port: int
    user: str
    gateway: bool

    @property
    def at(self) -> Address:
        """Where its sshd listens."""
        return (self.address, self.port)


def asked_hosts(hosts: Sequence[str], gateways: Sequence[str], known: Mapping[Address, str]) -> tuple[Asked, ...]:
    """Reads what was typed.

    Args:
        hosts: ``user@address:port`` of each GPU host.
        gateways: the same of each gateway.
        known: address -> name of the hosts that the fleet has already.

    Raises:
        FleetError: with every one that is no address, is given twice, or is in the fleet already.
    """
    faults: list[FleetError] = []
    found: dict[Address, Asked] = {}
    for text, gateway in (*((each, False) for each in hosts), *((each, True) for each in gateways)):
        option = "--gateway" if gateway else "--host"
        try:
            asked = _parse(text, gateway)
        except ValueError as fault:
            faults.append(FleetError(f"{text!r} {fault}", "write user@address or user@address:port", key=option))
            continue
        if asked.at in found:
            faults.append(FleetError(f"{asked.address} is given twice", "leave one out", key=option))
        elif asked.at in known:
            text = f"{asked.address} is in the fleet already, as {known[asked.at]}"
            faults.append(FleetError(text, "leave it out", key=option))
        found[asked.at] = asked
    if not found and not faults:
        faults.append(FleetError("no host is named", "give --host root@10.0.0.5", key="--host"))
    raise_all(faults)
    return tuple(found.values())


def _parse(text: str, gateway: bool) -> Asked:
    match = _SPELLING.fullmatch(text)
    if not match:
        raise ValueError("is no address")
    address, port = match["v6"] or match["name"], int(match["port"] or 22)
    if match["v6"] or re.fullmatch(r"[\d.]+", address):
        ipaddress.ip_address(address)
    elif not _HOST_NAME.fullmatch(address):
        raise ValueError("is no address")
    if not 0 < port < 65536:
        raise ValueError("has a port that does not exist")
    return Asked(address, port, match["user"] or "root", gateway)


def known_fingerprints(given: Sequence[str], asked: Sequence[Asked]) -> dict[Address, str]:
    """Reads ``ADDRESS=SHA256:…`` or ``ADDRESS:PORT=SHA256:…``.

    Raises:
        FleetError: with every one that has another form or names no host that is asked.
    """
    faults: list[FleetError] = []
    known: dict[Address, str] = {}
    for text in given:
        place, _, value = text.rpartition("=")
        named = [each for each in asked if place in (each.address, f"{each.address}:{each.port}")]
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", value):
            hint = "write ADDRESS=SHA256:… as ssh-keygen -l prints it"
            faults.append(FleetError(f"{text!r} holds no fingerprint", hint, key="--fingerprint"))
        elif len(named) != 1:
            hint = "write the address as in --host, with :PORT where two hosts share it"
            faults.append(FleetError(f"{text!r} is of no one host that is asked", hint, key="--fingerprint"))
        else:
            known[named[0].at] = value
    raise_all(faults)
    return known


def shown_keys(asked: Sequence[Asked]) -> list[tuple[Asked, str]]:
    """The host key that each host shows, not trusted yet.

    Raises:
        FleetError: with every host that shows none.
    """
    shown = ssh_scan.scan_host_keys([each.at for each in asked])
    keys: list[tuple[Asked, str]] = []
    faults: list[FleetError] = []
    for each in asked:
        key = shown[each.at]
        if isinstance(key, str):
            keys.append((each, key))
        else:
            text = f"cannot be reached at port {each.port}: {key}"
            faults.append(FleetError(text, "is it on, and is its sshd reachable from here?", host=each.address))
    raise_all(faults)
    return keys


def look(hosts: Sequence[tuple[Asked, str]], key_file: Path | None, catalog: Catalog) -> list[FoundHost]:
    """Asks each host, with just its own key trusted, what it is.

    Args:
        hosts: the hosts with the keys that a person has confirmed.
        key_file: the private key that opens them; None leaves it to ssh's configuration and agent.
        catalog: the recipes.

    Raises:
        FleetError: with every host that does not answer or is of no class.
    """
    targets = [
        ssh_target.Target(each.address, each.address, each.port, each.user, (key,), key_file) for each, key in hosts
    ]
    answers = probing.facts(targets)
    faults: list[FleetError] = []
    found: list[FoundHost] = []
    for (each, key), answer in zip(hosts, answers, strict=True):
        if isinstance(answer, str):
            hint = "give the user in --host user@address and its key with --key"
            faults.append(FleetError(answer, hint, host=each.address))
            continue
        try:
            sized = None if each.gateway else recognise(answer, catalog)
        except FleetError as fault:
            fault.host = each.address
            faults.append(fault)
            continue
        says = ", ".join(_says(answer)) if sized else ""
        found.append(FoundHost(each.address, each.port, each.user, key, sized, says))
    raise_all(faults)
    return found


def _says(facts: Mapping[str, Any]) -> Iterator[str]:
    yield seen(counted_gpus(facts))
    for key, name in (("driver", "driver"), ("cuda", "CUDA up to"), ("rocm", "ROCm")):
        if facts.get(key):
            yield f"{name} {facts[key]}"


def record(host: FoundHost) -> dict[str, Any]:
    """A host as ``init --json`` spells it."""
    return {
        "address": host.address,
        "port": host.port,
        "user": host.user,
        "fingerprint": ssh_scan.fingerprint(host.ssh_host_key),
        "host_class": host.sized.id if host.sized else None,
        "says": host.says,
    }


def validate(name: str, text: str, directory: Path) -> None:
    """Reads a ``fleet.yml`` as every command will, before it is written.

    Args:
        name: the fleet.
        text: its file.
        directory: where it will be, for the messages.

    Raises:
        FleetError: with every fault.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        (folder / "fleet.yml").write_text(text, encoding="utf-8")
        try:
            plan.load(folder)
        except FleetError as fault:
            for each in (fault, *fault.others):
                each.file, each.line = f"{directory.name}/fleet.yml, not written", None
            raise
