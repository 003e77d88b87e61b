"""Hosts as the user types them -> hosts of a fleet, with their host keys, facts and classes."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.addresses import parse_host_address, parse_ip
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import parse_user
from vllm_fleet.base.private_keys import private_key_fault
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, raise_all
from vllm_fleet.edge import openssh, ssh, ssh_options, ssh_scan
from vllm_fleet.edge.connection import NoAnswerError
from vllm_fleet.edge.names import resolve_names
from vllm_fleet.edge.ssh_scan import Address
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts.notes import describe_state
from vllm_fleet.facts.recognise import check_said_class, describe_gpus, recognise
from vllm_fleet.facts.vetoes import counted_gpus
from vllm_fleet.fleet import plan, ssh_routes
from vllm_fleet.operate import probing
from vllm_fleet.operate.new_fleet import IdentifiedHost
from vllm_fleet.schema.fleet import size_fault

#: An address and a port; parse_host_address has the grammar of the address.
_PLACE = re.compile(r"(?P<address>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[^:]*))?")
#: The option of hosts with a label.
INVENTORY_OPTION = "--from-inventory"
#: sshd's own address on this connection is the third word.
_SAY_ADDRESS = """printf '{"address": "%s"}' "$(echo "$SSH_CONNECTION" | cut -d' ' -f3)\""""
_SAID_ADDRESS = re.compile(r'\{"address": "([0-9a-fA-F.:]{2,45})"\}')


@dataclass(frozen=True)
class NamedHost:
    """A host as the user types it.

    Attributes:
        name: the name or address.
        port: the port of its sshd; None: that of ssh's configuration, or 22.
        user: who logs in; None: that of ssh's configuration, or root.
        option: what gave it.
    """

    name: str
    port: int | None
    user: str | None
    gateway: bool = False
    #: Its name in the user's own inventory; empty: the fleet numbers it.
    label: str = ""
    option: str = "--host"

    @property
    def shown(self) -> str:
        """The host in an error: by the name that its user knows."""
        return self.label or self.name


@dataclass(frozen=True)
class FoundHost:
    """A host as ssh's configuration reaches it.

    Attributes:
        named: as the user typed it.
        address: the host name or address that is connected to.
        port: the port of its sshd.
        user: who logs in.
        proxy: the command through which it is reached; empty: directly.
        alias: its name in ssh's configuration, where the address alone would be reached in another way.
    """

    named: NamedHost
    address: str
    port: int
    user: str
    proxy: str = ""
    alias: str = ""

    @property
    def at(self) -> Address:
        """The address and port of its sshd."""
        return (self.address, self.port)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The words by which the user may name it in ``--fingerprint``."""
        names = (self.address, self.named.name)
        return (*names, *(f"{name}:{self.port}" for name in names), *(f"[{name}]:{self.port}" for name in names))


@dataclass(frozen=True)
class Login:
    """How new hosts are logged in to.

    Attributes:
        key_file: the private key; None uses ssh's configuration and agent.
        config_file: the configuration of ssh; None uses those of the user and the system.
        bastion: the host through which all of them are reached, with its confirmed key.
        become_password: the password for sudo on the hosts; None: sudo asks for none.
    """

    key_file: Path | None = None
    config_file: Path | None = None
    bastion: Target | None = None
    become_password: str | None = field(default=None, repr=False)


def parse_hosts(
    hosts: Sequence[str], gateways: Sequence[str], bastion: str | None, imported: Sequence[NamedHost] = ()
) -> list[NamedHost]:
    """Parses what was typed.

    Args:
        hosts: ``user@address:port`` of each GPU host.
        gateways: the same of each gateway.
        bastion: the same of the bastion; it becomes the last of the result.
        imported: hosts that were read elsewhere.

    Raises:
        FleetError: an address is not valid, or none is given; it carries all of them.
    """
    errors: list[FleetError] = []
    parsed: list[NamedHost] = []
    typed = [("--host", text) for text in hosts] + [("--gateway", text) for text in gateways]
    for option, text in [*typed, *([("--bastion", bastion)] if bastion is not None else [])]:
        try:
            parsed.append(parse_host(text, gateway=option == "--gateway", option=option))
        except ValueError as fault:
            errors.append(FleetError(str(fault), key=option))
    if not typed and not imported:
        hint = "give --host root@10.0.0.5, or --from-inventory FILE"
        errors.append(FleetError("no host is given", hint, key="--host"))
    raise_all(errors)
    return [*parsed[: len(typed)], *imported, *parsed[len(typed) :]]


def refuse_too_many(hosts: Sequence[NamedHost], fleet: plan.Plan | None) -> None:
    """Refuses more hosts than a fleet can have, before one of them is asked.

    Args:
        hosts: those to add, with the bastion.
        fleet: the fleet that they are added to; None: a new one.

    Raises:
        FleetError: they are too many.
    """
    kinds = [each.gateway for each in hosts if each.option != "--bastion"]
    kinds += [each.kind == "gateway" for each in (fleet.hosts if fleet else ())]
    if fault := size_fault(kinds.count(False), kinds.count(True)):
        raise FleetError(f"the fleet {fault}", key="--gateway" if "gateways" in fault else "--host")


def parse_host(text: str, *, gateway: bool, option: str = "--host", label: str = "") -> NamedHost:
    """Parses ``[USER@]ADDRESS[:PORT]``, each part as fleet.yml takes it.

    Args:
        text: what was typed.
        gateway: whether it is a gateway.
        option: what gave it.
        label: its name in the user's own inventory.

    Raises:
        ValueError: it is not one; the message says what is wrong.
    """
    user, at, place = text.rpartition("@")
    match = _PLACE.fullmatch(place)
    if match is None:
        # An IPv6 address without brackets: its end may be meant as a port.
        raise ValueError(f"{parse_host_address(place)!r} has no brackets: write '[{place}]'")
    address, port = parse_host_address(match["address"]), match["port"]
    if port is not None and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise ValueError(f"{text[:200]!r} has the port {port[:20]!r}: a port is a number from 1 to 65535")
    if at:
        parse_user(user)
    # ssh compares a name with its configuration as it is typed.
    name = address if parse_ip(address) else match["address"]
    return NamedHost(name, int(port) if port else None, user if at else None, gateway, label, option)


def find_hosts(named: Sequence[NamedHost], config_file: Path | None) -> list[FoundHost]:
    """Looks hosts up in ssh's configuration, which may give each another address, a port, a user and a proxy.

    Args:
        named: the hosts.
        config_file: the configuration; None uses those of the user and the system.

    Raises:
        FleetError: the configuration cannot be read; it carries the error of each host.
    """
    if not ssh_options.have_settings(config_file):
        return [FoundHost(host, parse_host_address(host.name), host.port or 22, host.user or "root") for host in named]
    found: list[FoundHost] = []
    errors: list[FleetError] = []
    for host, settings in zip(named, asyncio.run(_find_settings(named, config_file)), strict=True):
        if isinstance(settings, NoAnswerError):
            hint = "correct ssh's configuration, or give another one with --ssh-config"
            errors.append(FleetError(str(settings), hint, host=host.name))
            continue
        alias = host.name if settings.needs_name else ""
        try:
            address = parse_host_address(settings.address)
            parse_user(settings.user)
        except ValueError as fault:
            errors.append(FleetError(str(fault), "correct HostName or User in ssh's configuration", host=host.name))
            continue
        found.append(FoundHost(host, address, settings.port, settings.user, settings.proxy, alias))
    raise_all(errors)
    return found


async def _find_settings(
    named: Sequence[NamedHost], config_file: Path | None
) -> list[openssh.NamedSettings | NoAnswerError]:
    async def find(host: NamedHost) -> openssh.NamedSettings | NoAnswerError:
        login = ["-p", str(host.port)] if host.port else []
        login += ["-o", f"User={host.user}"] if host.user else []
        try:
            return await openssh.find_settings(host.name, login, "root", config_file)
        except NoAnswerError as error:
            return error

    return await asyncio.gather(*map(find, named))


def refuse_duplicates(hosts: Sequence[FoundHost], fleet: plan.Plan | None, inventory: str | None = None) -> None:
    """Refuses hosts that are given twice or are in the fleet already.

    Args:
        hosts: the hosts.
        fleet: the fleet that they are added to; None: a new one.
        inventory: the file of the hosts with a label, as the user typed it.

    Raises:
        FleetError: it carries all of them.
    """
    statics = [(each.static, each.name) for each in (fleet.hosts if fleet else ()) if each.static]
    known = {(static.address, static.port): name for static, name in statics}
    errors: list[FleetError] = []
    seen: dict[Address, FoundHost] = {}
    for host in hosts:
        file, key = inventory if host.named.label else None, host.named.option
        at = host.address if host.port == 22 else f"{host.address} port {host.port}"
        other = seen.setdefault(host.at, host)
        if other is not host:
            names = list(dict.fromkeys((other.named.shown, host.named.shown)))
            text = f"{' and '.join(names)} are both {at}" if len(names) > 1 else f"{at} is given twice"
            errors.append(FleetError(text, "leave one out", file, key=key))
        elif host.at in known:
            name = f"{host.named.label} ({at})" if host.named.label else at
            text = f"{name} is already in the fleet, as {known[host.at]}"
            errors.append(FleetError(text, "leave it out", file, key=key))
    raise_all(errors)


def parse_fingerprints(texts: Sequence[str], hosts: Sequence[FoundHost]) -> dict[Address, str]:
    """Parses ``ADDRESS=SHA256:…`` or ``ADDRESS:PORT=SHA256:…``.

    Raises:
        FleetError: one has another form or matches no given host; it carries all of them.
    """
    errors: list[FleetError] = []
    known: dict[Address, str] = {}
    for text in texts:
        place, _, value = text.rpartition("=")
        matching = [host for host in hosts if place in host.spellings]
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


def scan_keys(hosts: Sequence[FoundHost], login: Login) -> tuple[list[tuple[FoundHost, str]], list[FleetError]]:
    """The host key that each host presents, not trusted yet; and the error of each host that presents none.

    Args:
        hosts: the hosts.
        login: the bastion to pass through, if there is one.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-fleet-ssh-") as scratch:
        proxies = {host.at: host.proxy for host in hosts if host.proxy}
        if login.bastion:
            hop = openssh.hop_of(login.bastion)
            name = ssh_routes.known_name(hop.address, hop.port)
            known = Path(scratch) / "known_hosts"
            known.write_text("".join(f"{name} {key}\n" for key in hop.host_keys), encoding="utf-8")
            route = ssh_routes.Route(known, "", login.key_file, login.config_file, hop)
            proxies = {host.at: route.proxy_command(host.address, host.port) for host in hosts}
        scanned = ssh_scan.scan_host_keys([host.at for host in hosts], proxies)
    keys: list[tuple[FoundHost, str]] = []
    errors: list[FleetError] = []
    for host in hosts:
        key = scanned[host.at]
        if isinstance(key, str):
            keys.append((host, key))
            continue
        way = f" through {login.bastion.address}" if login.bastion else ""
        text = f"cannot be reached{way} at port {host.port}: {key}"
        hint = "check that it runs and that its sshd can be reached from here"
        if isinstance(key, ssh_scan.UnknownNameError):
            hint = "correct the name, or give an address"
        elif login.bastion:
            hint = f"check that it runs, and that {login.bastion.address} reaches its sshd"
        errors.append(FleetError(text, hint, host=host.named.name))
    return keys, errors


def identify_hosts(
    hosts: Sequence[tuple[FoundHost, str]], login: Login, catalog: Catalog, said_class: SizedClass | None = None
) -> tuple[list[IdentifiedHost], list[FleetError]]:
    """Reads the facts of each host and finds its class. Only the confirmed key of each host is trusted.

    Args:
        hosts: the hosts with the host keys that the user has confirmed.
        login: how they are logged in to.
        catalog: the recipes.
        said_class: the class that the user says the GPU hosts have; None: what their GPUs say.

    Returns:
        The hosts that are identified; and the error of each host that does not answer or has no class.
    """
    targets = [
        Target(
            host.named.name,
            host.address,
            host.port,
            host.user,
            (key,),
            login.key_file,
            login.config_file,
            alias=host.alias,
            jump=login.bastion,
            keys_file="the key that was confirmed",
            become_password=login.become_password,
        )
        for host, key in hosts
    ]
    answers = probing.read_facts(targets)
    inside = _find_inside_addresses(
        [target for target, answer in zip(targets, answers, strict=True) if not isinstance(answer, str)]
    )
    errors: list[FleetError] = []
    identified: list[IdentifiedHost] = []
    for (host, key), answer in zip(hosts, answers, strict=True):
        if isinstance(answer, str):
            hint = "give the user in --host user@address and its key with --key"
            errors.append(FleetError(answer, hint, host=host.named.name))
            continue
        try:
            sized = None if host.named.gateway else _find_class(answer, catalog, said_class)
        except FleetError as error:
            error.host = host.named.name
            errors.append(error)
            continue
        says = ", ".join(_describe(answer, sized)) if sized else ""
        seen = inside.get(host.at, "")
        identified.append(
            IdentifiedHost(host.address, host.port, host.user, key, sized, says, host.alias, host.named.label, seen)
        )
    return identified, errors


def _find_inside_addresses(targets: Sequence[Target]) -> Mapping[Address, str]:
    """The IP addresses of hosts whose names only a bastion resolves: the address at which sshd there was reached.

    Args:
        targets: the hosts.

    Returns:
        Host -> its address, for the hosts that say one.
    """
    unknown = {
        name
        for name, found in resolve_names({t.address for t in targets if not parse_ip(t.address)}).items()
        if isinstance(found, str)
    }
    asked = [target for target in targets if target.address in unknown]

    async def ask_all() -> list[str | BaseException]:
        return await asyncio.gather(*(ssh.run_json(target, _SAY_ADDRESS) for target in asked), return_exceptions=True)

    addresses: dict[Address, str] = {}
    for target, answer in zip(asked, asyncio.run(ask_all()) if asked else (), strict=True):
        if isinstance(answer, str) and (match := _SAID_ADDRESS.fullmatch(answer.strip())):
            said = parse_ip(match[1])
            if said and not (said.is_loopback or said.is_link_local or said.is_unspecified or said.is_multicast):
                addresses[target.address, target.port] = str(said)
        elif isinstance(answer, BaseException) and not isinstance(answer, NoAnswerError):
            raise answer
    return addresses


def _find_class(facts: Mapping[str, Any], catalog: Catalog, said: SizedClass | None) -> SizedClass:
    """The class of a host by its GPUs; one whose GPUs nothing reports is what the user says.

    Raises:
        FleetError: its GPUs have no class, or they or its PCI bus have another one than the user says.
    """
    try:
        found = recognise(facts, catalog)
    except FleetError:
        if said is None or counted_gpus(facts):
            raise
        check_said_class(facts, said, catalog)
        return said
    if said and found.id != said.id:
        raise FleetError(f"is {found.id} by its GPUs, not {said.id}", "leave --host-class out", key="--host-class")
    return found


def login_of(fleet: plan.Plan) -> Login:
    """How the hosts of an existing fleet are logged in to.

    Raises:
        FleetError: its private key does not exist, or ssh refuses it.
    """
    access, files = fleet.access, []
    for own in (access.ssh_private_key_file, access.ssh_config_file):
        files.append(paths.absolute(fleet.directory / own) if own else None)
    key_file, config_file = files
    if key_file and (fault := private_key_fault(key_file)):
        raise fleet.document.error_about(("access", "ssh_private_key_file"), fault.error())
    if access.bastion is None:
        return Login(key_file, config_file)
    hop = ssh_routes.bastion_hop(access.bastion, access, fleet.document.file)
    target = Target(
        hop.name, hop.address, hop.port, hop.user, hop.host_keys, key_file, config_file, keys_file=hop.keys_file
    )
    return Login(key_file, config_file, target)


def bastion_target(host: FoundHost, key: str, login: Login) -> Target:
    """The bastion with its confirmed host key."""
    return Target("the bastion", host.address, host.port, host.user, (key,), login.key_file, login.config_file)


def access_record(login: Login) -> dict[str, Any]:
    """``access`` of a new ``fleet.yml``."""
    record: dict[str, Any] = {}
    if login.bastion:
        own = login.bastion
        record["bastion"] = {"address": own.address, **({"port": own.port} if own.port != 22 else {})}
        record["bastion"] |= {"user": own.user, "ssh_host_key": own.host_keys[0]}
    if login.key_file:
        record["ssh_private_key_file"] = str(login.key_file)
    if login.config_file:
        record["ssh_config_file"] = str(login.config_file)
    return record


def _describe(facts: Mapping[str, Any], sized: SizedClass) -> Iterator[str]:
    if gpus := counted_gpus(facts):
        yield describe_gpus(gpus)
    elif sized.family.vendor != "cpu" and facts.get("pci_gpus") is None:
        yield f"nothing reports a GPU: {sized.id} is what --host-class says"
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
        "ssh_alias": host.ssh_alias or None,
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
