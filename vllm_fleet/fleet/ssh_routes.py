"""How the controller reaches each host: directly, through the fleet's bastion, or through one of its gateways."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import FleetError, InvariantError
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.private_networks import name_of
from vllm_fleet.schema.fleet import Access, Bastion

_PLAIN_PATH = re.compile(r"[\w./@:+,=-]+")


def is_private(host: HostPlan) -> bool:
    """Whether a host is rented without a public address."""
    return host.rented is not None and not host.rented.placement.public_address


def jumps(hosts: Sequence[HostPlan], access: Access) -> Mapping[str, str]:
    """Host -> the gateway that it is reached through; hosts that are reached directly are left out.

    A gateway of the host's own network, or any where networks are joined. Where none has a public address either, the
    controller must be inside, and reaches everything straight.
    """
    if access.ssh_through == "direct" or access.bastion:
        return {}
    doors: dict[str, str] = {}
    for host in hosts:
        if host.kind == "gateway" and not is_private(host):
            doors.setdefault(name_of(host), host.name)
    joined = next(iter(doors.values()), None) if access.joined_networks else None
    ways = {host.name: doors.get(name_of(host), joined) for host in hosts if is_private(host)}
    return {name: door for name, door in ways.items() if door}


def missing_keys(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """Static hosts whose host key nothing vouches for."""
    for host in hosts:
        if host.static and not host.static.ssh_host_key and not access.ssh_host_authorities:
            yield document.error(
                (*host.section, "static", host.name),
                "has no ssh_host_key, and access has no ssh_host_authorities",
                "add the key as 'ssh-keyscan' on the host itself prints it: 'type base64'",
            )


def missing_files(directory: Path, access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """A configuration of ``ssh`` that does not exist, and a private key whose path Ansible does not pass on."""
    if access.ssh_private_key_file:
        path = str(paths.absolute(directory / access.ssh_private_key_file))
        if '"' in path or "%" in path:
            yield document.error(
                ("access", "ssh_private_key_file"),
                f"Ansible cannot pass the path {path} to ssh",
                "use a path without quotation marks and percent signs",
            )
    if access.ssh_config_file:
        file = paths.absolute(directory / access.ssh_config_file)
        at = ("access", "ssh_config_file")
        if fault := paths.file_fault(file):
            hint = "correct the path, or remove the key to use your own ~/.ssh/config"
            yield document.error_about(at, fault.error(hint))
        elif not _PLAIN_PATH.fullmatch(str(file)):
            # Its own ProxyJump starts 'ssh -F FILE' without quotation marks.
            yield document.error(at, f"ssh cannot use the path {file}", "use a path without blanks and quotation marks")


def unreachable(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that have no public address and no gateway to come through: in their own network, or in a joined one."""
    gateways = {name_of(host) for host in hosts if host.kind == "gateway"}
    if access.ssh_through == "direct" or access.bastion or (access.joined_networks and gateways):
        return
    for pool in dict.fromkeys(host.pool for host in hosts if host.kind == "serving" and is_private(host)):
        network = next(name_of(host) for host in hosts if host.pool == pool)
        if network not in gateways:
            yield document.error(
                ("pools", pool, "placement"),
                f"gives its hosts no public address, and {network} has no gateway to reach them through",
                "set public_address: true there, or access.ssh_through: direct where the controller is inside",
            )


def apart(hosts: Sequence[HostPlan], access: Access, document: yaml_document.Document) -> Iterator[FleetError]:
    """Pools that the gateways do not reach: their requests would go over the internet, in plain text."""
    gateways = {name_of(host) for host in hosts if host.kind == "gateway"}
    if access.joined_networks or not gateways:
        return
    for pool in dict.fromkeys(host.pool for host in hosts if host.kind == "serving"):
        network = next(name_of(host) for host in hosts if host.pool == pool)
        if network not in gateways:
            yield document.error(
                ("pools", pool),
                f"is in {network}, and the gateway is in {', '.join(sorted(gateways))}",
                "put it in another fleet, or join the networks and set access.joined_networks",
            )


@dataclass(frozen=True)
class Hop:
    """A bastion or a gateway that SSH passes through.

    Attributes:
        name: for messages.
        user: who logs in there.
        address: as the controller reaches it.
        port: of its sshd.
        host_keys: the keys that it may show.
        keys_file: the file that contains them, for messages.
    """

    name: str
    user: str
    address: str
    port: int
    host_keys: tuple[str, ...]
    keys_file: str = ""


@dataclass(frozen=True)
class Route:
    """How the program ``ssh`` reaches a host, besides its address, port and user.

    Attributes:
        known_hosts: the file with the keys of the fleet's hosts, the only ones that are accepted.
        known_name: the name of the host in that file.
        key_file: the private key, for the jump too; None uses ssh's configuration and agent.
        config_file: the configuration of ``ssh``, for the jump too; None uses that of the user and the system.
        jump: the bastion or gateway to pass through.
    """

    known_hosts: Path
    known_name: str
    key_file: Path | None = None
    config_file: Path | None = None
    jump: Hop | None = None

    def words(self) -> list[str]:
        """All options of ``ssh``."""
        return [*self.way_words(), *self.strict_words(self.known_name)]

    def way_words(self) -> list[str]:
        """The options for the way to the host: the configuration and the jump."""
        # ssh replaces %h and %p, and makes %% one %.
        jump = ["-o", f"ProxyCommand={self._proxy('[%h]:%p', '%%')}"] if self.jump else []
        return [*self._config_words(), *jump]

    def _config_words(self) -> list[str]:
        return ["-F", str(self.config_file)] if self.config_file else []

    def strict_words(self, name: str) -> list[str]:
        """The options that accept only the keys of the fleet, also against the user's own configuration.

        Args:
            name: the name in the ``known_hosts`` file.
        """
        options = {
            "HostKeyAlias": name,
            "StrictHostKeyChecking": "yes",
            "NoHostAuthenticationForLocalhost": "no",
            "GlobalKnownHostsFile": "/dev/null",
            "UserKnownHostsFile": option_value(self.known_hosts),
        }
        return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]

    def proxy_command(self, address: str, port: int) -> str:
        """The shell command whose input and output are a connection through the jump.

        Args:
            address: the host behind it; the jump resolves a name.
            port: the port there.
        """
        return self._proxy(f"[{address}]:{port}", "%")

    def _proxy(self, destination: str, percent: str) -> str:
        if self.jump is None:
            raise InvariantError("a proxy needs a jump")
        # Not -J: the ssh that it starts would read neither this known_hosts nor this key.
        words = ["ssh", *self._config_words()]
        words += self.strict_words(known_name(self.jump.address, self.jump.port))
        words += ["-o", "BatchMode=yes", "-p", str(self.jump.port)]
        words += ["-o", f"IdentityFile={option_value(self.key_file)}"] if self.key_file else []
        at = f"{self.jump.user}@{self.jump.address}"
        return f"{shlex.join(words).replace('%', percent)} -W {shlex.quote(destination)} {shlex.quote(at)}"


def bastion_hop(bastion: Bastion, access: Access, file: str) -> Hop:
    """The bastion of a fleet.

    Args:
        bastion: as ``fleet.yml`` has it.
        access: its ``access``.
        file: the ``fleet.yml``, as a user types it.
    """
    user = bastion.user or access.ssh_user or "root"
    return Hop("the bastion", user, bastion.address, bastion.port, (bastion.ssh_host_key,), file)


def known_name(address: str, port: int) -> str:
    """The name of a host in a ``known_hosts`` file."""
    return address if port == 22 else f"[{address}]:{port}"


def option_value(path: Path) -> str:
    """A path as the value of an option of ``ssh``, which splits at blanks and replaces ``%`` and ``~``."""
    text = str(path).replace("%", "%%")
    if not any(character in text for character in " \t\"'\\#"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
