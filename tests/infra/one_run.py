"""Several runs of roles as one run of Ansible: what is tested of each is the same, and its start is paid once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: With one worker the hosts take turns, each of them to its end.
ARGUMENTS = ("--forks", "1")


def play(roles: Mapping[str, Sequence[str]], become: bool = True) -> dict[str, Any]:
    """A play in which each host runs its roles, one host after the other; one that fails does not stop the next.

    Plays of their own would not do: a play whose last host has failed ends the whole run.

    Args:
        roles: the inventory's name of each host -> its roles, in the order of the inventory. Two names may stand for
            one machine.
        become: whether root runs them.
    """
    return {
        "name": "Run the roles of each host",
        "hosts": ",".join(roles),
        # Its actions for a whole batch need the plain one.
        "strategy": "host_pinned" if len(roles) > 1 else "linear",
        "become": become,
        "gather_facts": False,
        "vars": {"roles_of_host": {name: list(each) for name, each in roles.items()}},
        "tasks": [
            {
                "name": "Run a role",
                "ansible.builtin.include_role": {"name": "{{ item }}"},
                "loop": "{{ roles_of_host[inventory_hostname] }}",
            }
        ],
    }


def counts(output: str) -> dict[str, dict[str, int]]:
    """What Ansible's recap says of each host: ``changed``, ``failed`` and so on."""
    recap = output.rpartition("PLAY RECAP")[2]
    return {
        line.split()[0]: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line)}
        for line in recap.splitlines()
        if "ok=" in line
    }
