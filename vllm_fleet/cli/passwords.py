"""The options with which commands take the password for sudo on the hosts, as Ansible's commands do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate import become_password

AskOption = Annotated[bool, typer.Option("--ask-become-pass", "-K", help="Ask for the password for sudo on the hosts.")]
FileOption = Annotated[
    Path | None,
    typer.Option(envvar="ANSIBLE_BECOME_PASSWORD_FILE", help="The file with the password for sudo on the hosts."),
]


def take_password(ask: bool, file: Path | None) -> str | None:
    """The password for sudo; None without an option for it.

    Raises:
        FleetError: there is no terminal to ask at, or the file has no password.
    """
    if not ask:
        return become_password.read_file(file) if file else None
    if not sys.stdin.isatty():
        raise FleetError(
            "there is no terminal to ask for the password", "give --become-password-file", key="--ask-become-pass"
        )
    return str(typer.prompt("BECOME password", hide_input=True, err=True))
