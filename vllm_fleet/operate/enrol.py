"""Hosts as the user types them -> hosts of a fleet, with their host keys, facts and classes."""

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
from vllm_fleet.facts.notes import describe_state
from vllm_fleet.facts.recognise import describe_gpus, recognise
from vllm_fleet.facts.vetoes import counted_gpus
from vllm_fleet.fleet import plan
from vllm_fleet.operate import probing
from vllm_fleet.operate.new_fleet import IdentifiedHost

_SPELLING = re.compile(r"(?:(?P<user>[\w.-]+)@)?(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^\[\]:@\s]+))(?::(?P<port>\d+))?")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True)
class NamedHost:
    """A host as the user types it."""

    address: str
    port: int
    user: str
    gateway: bool

    @property
    def at(self) -> Address:
        """The address and port of its sshd."""
        return (self.address, self.port)


def parse_hosts(hosts: Sequence[str], gateways: Sequence[str], known: Mapping[Address, str]) -> tuple[NamedHost, ...]:
    """Parses what was typed.

    Args:
        hosts: ``user@address:port`` of each GPU host.
        gateways: the same of each gateway.
        known: address -> name of the hosts that are already in the fleet.

    Raises:
        FleetError: an address is not valid, is given twice, or is already in the fleet; it carries all of them.
    """
    errors: list[FleetError] = []
    parsed: dict[Address, NamedHost] = {}
    for text, gateway in (*((text, False) for text in hosts), *((text, True) for text in gateways)):
        option = "--gateway" if gateway else "--host"
        try:
            host = _parse(text, gateway)
        except ValueError as fault:
            errors.append(FleetError(f"{text!r} {fault}", "write user@address or user@address:port", key=option))
            continue
        if host.at in parsed:
            errors.append(FleetError(f"{host.address} is given twice", "leave one out", key=option))
        elif host.at in known:
            text = f"{host.address} is already in the fleet, as {known[host.at]}"
            errors.append(FleetError(text, "leave it out", key=option))
        parsed[host.at] = host
    if not parsed and not errors:
        errors.append(FleetError("no host is given", "give --host root@10.0.0.5", key="--host"))
    raise_all(errors)
    return tuple(parsed.values())


def _parse(text: str, gateway: bool) -> NamedHost:
    match = _SPELLING.fullmatch(text)
    if not match:
        raise ValueError("is not an address")
    address, port = match["v6"] or match["name"], int(match["port"] or 22)
    if match["v6"] or re.fullmatch(r"[\d.]+", address):
        ipaddress.ip_address(address)
    elif not _HOST_NAME.fullmatch(address):
        raise ValueError("is not an address")
    if not 0 < port < 65536:
        raise ValueError("has a port that does not exist")
    return NamedHost(address, port, match["user"] or "root", gateway)


def parse_fingerprints(texts: Sequence[str], hosts: Sequence[NamedHost]) -> dict[Address, str]:
    """Parses ``ADDRESS=SHA256:…`` or ``ADDRESS:PORT=SHA256:…``.

    Raises:
        FleetError: one has another form or matches no given host; it carries all of them.
    """
    errors: list[FleetError] = []
    known: dict[Address, str] = {}
    for text in texts:
        place, _, value = text.rpartition("=")
        matching = [host for host in hosts if place in (host.address, f"{host.address}:{host.port}")]
        if not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", value):
            hint = "write ADDRESS=SHA256:… as ssh-keygen -l prints it"
            errors.append(FleetError(f"{text!r} contains no fingerprint", hint, key="--fingerprint"))
        elif len(matching) != 1:
            hint = "write the address as in --host, with :PORT where two hosts share it"
            message = f"{text!r} matches {len(matching)} of the given hosts"
            errors.append(FleetError(message, hint, key="--fingerprint"))
        else:
            known[matching[0].at] = value
    raise_all(errors)
    return known


def scan_keys(hosts: Sequence[NamedHost]) -> list[tuple[NamedHost, str]]:
    """The host key that each host presents; not trusted yet.

    Raises:
        FleetError: a host presents none; it carries all of them.
    """
    scanned = ssh_scan.scan_host_keys([host.at for host in hosts])
    keys: list[tuple[NamedHost, str]] = []
    errors: list[FleetError] = []
    for host in hosts:
        key = scanned[host.at]
        if isinstance(key, str):
            keys.append((host, key))
        else:
            text = f"cannot be reached at port {host.port}: {key}"
            hint = "check that it runs and that its sshd can be reached from here"
            errors.append(FleetError(text, hint, host=host.address))
    raise_all(errors)
    return keys


def identify_hosts(
    hosts: Sequence[tuple[NamedHost, str]], key_file: Path | None, catalog: Catalog
) -> list[IdentifiedHost]:
    """Reads the facts of each host and finds its class. Only the confirmed key of each host is trusted.

    Args:
        hosts: the hosts with the host keys that the user has confirmed.
        key_file: the private key to log in with; None uses ssh's configuration and agent.
        catalog: the recipes.

    Raises:
        FleetError: a host does not answer or has no class; it carries all of them.
    """
    targets = [
        ssh_target.Target(host.address, host.address, host.port, host.user, (key,), key_file) for host, key in hosts
    ]
    answers = probing.read_facts(targets)
    errors: list[FleetError] = []
    identified: list[IdentifiedHost] = []
    for (host, key), answer in zip(hosts, answers, strict=True):
        if isinstance(answer, str):
            hint = "give the user in --host user@address and its key with --key"
            errors.append(FleetError(answer, hint, host=host.address))
            continue
        try:
            sized = None if host.gateway else recognise(answer, catalog)
        except FleetError as error:
            error.host = host.address
            errors.append(error)
            continue
        says = ", ".join(_describe(answer)) if sized else ""
        identified.append(IdentifiedHost(host.address, host.port, host.user, key, sized, says))
    raise_all(errors)
    return identified


def _describe(facts: Mapping[str, Any]) -> Iterator[str]:
    if gpus := counted_gpus(facts):
        yield describe_gpus(gpus)
    for key, name in (("driver", "driver"), ("cuda", "CUDA up to"), ("rocm", "ROCm")):
        if facts.get(key):
            yield f"{name} {facts[key]}"
    yield from describe_state(facts)


def host_record(host: IdentifiedHost) -> dict[str, Any]:
    """A host in the output of ``init --json``."""
    return {
        "address": host.address,
        "port": host.port,
        "user": host.user,
        "fingerprint": ssh_scan.fingerprint(host.ssh_host_key),
        "host_class": host.sized.id if host.sized else None,
        "says": host.says,
    }


def validate_fleet_text(name: str, text: str, directory: Path) -> None:
    """Checks the text of a ``fleet.yml`` before it is written, as every command will read it.

    Args:
        name: the fleet.
        text: the text.
        directory: the directory that it will be in, for the messages.

    Raises:
        FleetError: the text is not valid; it carries every error.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        folder.mkdir()
        (folder / "fleet.yml").write_text(text, encoding="utf-8")
        try:
            plan.load(folder)
        except FleetError as first:
            for error in (first, *first.others):
                error.file, error.line = f"{directory.name}/fleet.yml, not written", None
            raise
