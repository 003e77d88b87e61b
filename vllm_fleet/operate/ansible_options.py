"""Ansible's options for SSH -> the target that the probe reaches in the same way."""

from __future__ import annotations

import configparser
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.operate import drift


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
