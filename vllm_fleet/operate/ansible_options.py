"""Ansible's options for SSH -> the target that the probe reaches in the same way."""

from __future__ import annotations

import configparser
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.operate import become_password, drift

#: The public host keys of a host that is in no fleet.yml: a list of 'type base64'.
_HOST_KEYS = "fleet_ssh_host_keys"
#: Ansible's own reader of its configuration, ``ansible.constants.config.get_config_value``: the core knows no Ansible.
ReadConfig = Callable[..., Any]


def hosts_by_fleet(names: Iterable[str], hostvars: Mapping[str, Any]) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Each fleet of a play with the variables of its hosts; one run may have several fleets.

    Args:
        names: the hosts of the play.
        hostvars: Ansible's variables of all hosts.
    """
    folders: dict[str, dict[str, Any]] = {}
    for name in names:
        own = hostvars[name]
        folders.setdefault(str(own["inventory_dir"]), {})[name] = own
    for folder, variables in folders.items():
        yield drift.load_site_of_run(Path(folder).resolve()), variables


def targets_of_fleet(
    site: Site, variables: Mapping[str, Any], read_config: ReadConfig, asked: str | None
) -> dict[str, Target]:
    """The hosts of a fleet as Ansible reaches them.

    Args:
        site: the fleet.
        variables: host name -> its variables in Ansible; others are left out.
        read_config: reads the options of Ansible's connection plugin.
        asked: the password for sudo that the user has given Ansible.

    Raises:
        FleetError: the arguments for ssh have an open quotation mark.
    """
    members = {host.plan.name: host for host in site.hosts}
    return {
        name: replace(
            target_of_run(site, members[name], _options_of(own, read_config)),
            become_password=become_password.find_password(own, asked),
        )
        for name, own in variables.items()
        if name in members
    }


def targets_of_run(
    names: Iterable[str],
    hostvars: Mapping[str, Any],
    read_config: ReadConfig,
    asked: str | None,
) -> dict[str, Target]:
    """Hosts as Ansible reaches them, those of fleets and those that only an inventory has, with their host keys.

    Args:
        names: the hosts.
        hostvars: Ansible's variables of all hosts.
        read_config: as in :func:`targets_of_fleet`.
        asked: as in :func:`targets_of_fleet`.

    Raises:
        FleetError: a fleet cannot be read, or the arguments for ssh have an open quotation mark.
    """
    chosen = list(names)
    plain = [name for name in chosen if hostvars[name].get(_HOST_KEYS)]
    found = {name: _plain_target(name, hostvars[name], read_config, asked) for name in plain}
    for site, variables in hosts_by_fleet([name for name in chosen if name not in plain], hostvars):
        found |= targets_of_fleet(site, variables, read_config, asked)
    return found


def _options_of(own: Mapping[str, Any], read_config: ReadConfig) -> Callable[[str], Any]:
    """Reads the options with which Ansible's own connection plugin would reach the host of these variables."""
    return partial(read_config, plugin_type="connection", plugin_name="ssh", variables=own)


def _plain_target(name: str, own: Mapping[str, Any], read_config: ReadConfig, asked: str | None) -> Target:
    read = _options_of(own, read_config)
    key = read("private_key_file")
    return Target(
        name,
        str(read("host") or name),
        int(read("port") or 22),
        str(read("remote_user") or "root"),
        tuple(map(str, own[_HOST_KEYS])),
        paths.expand_user(str(key)) if key else None,
        keys_file=f"the variable {_HOST_KEYS}",
        become_password=become_password.find_password(own, asked),
    )


def target_of_run(site: Site, host: SiteHost, read_option: Callable[[str], Any]) -> Target:
    """A host as Ansible reaches it: its variables, environment and options override the fleet's own files.

    Args:
        site: the fleet.
        host: one of its hosts.
        read_option: returns an option of Ansible's connection plugin ``ssh`` for this host, by name.

    Raises:
        FleetError: the arguments for ssh have an open quotation mark.
    """
    own = drift.host_target(site, host)
    common = str(read_option("ssh_common_args") or "")
    is_own_way = common == site.ssh_arguments(host)
    texts = [read_option("ssh_args"), "" if is_own_way else common, read_option("ssh_extra_args")]
    key = read_option("private_key_file")
    name = str(read_option("host") or own.alias or own.address)
    target = replace(
        own,
        port=int(read_option("port") or own.port),
        user=str(read_option("remote_user") or own.user),
        key_file=paths.expand_user(str(key)) if key else own.key_file,
        arguments=_split(own.name, *texts),
        program=str(read_option("ssh_executable") or own.program),
    )
    if name != (own.alias or own.address):
        target = replace(target, address=name, alias="")
    # Other common arguments replace those of the fleet, its bastion too.
    return target if is_own_way else replace(target, config_file=None, jump=None)


def with_environment(target: Target) -> Target:
    """A target with the arguments for ssh of Ansible's environment and of the project's ``ansible.cfg``.

    Raises:
        FleetError: they have an open quotation mark.
    """
    file = configparser.ConfigParser(interpolation=None)
    file.read(os.environ.get("ANSIBLE_CONFIG") or paths.root() / "ansible.cfg", encoding="utf-8")
    texts = [
        os.environ.get(f"ANSIBLE_{name.upper()}") or str(file.get("ssh_connection", name, fallback=""))
        for name in ("ssh_args", "ssh_extra_args")
    ]
    return replace(target, arguments=_split(target.name, *texts))


def _split(host: str, *texts: Any) -> tuple[str, ...]:
    try:
        return tuple(word for text in texts for word in shlex.split(str(text or "")))
    except ValueError as error:
        raise FleetError(
            f"the arguments for ssh cannot be split: {error}",
            "correct the quotation marks in ansible_ssh_args, ansible_ssh_common_args or ansible_ssh_extra_args",
            host=host,
        ) from None
