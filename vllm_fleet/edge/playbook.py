"""Runs a playbook of the project: with its output on the terminal, or in the background with its events."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths, processes
from vllm_fleet.base.errors import ErrorCode, FleetError


def run_playbook(name: str, inventory: Path, variables: Mapping[str, str], become_password: str | None = None) -> None:
    """Runs ``playbooks/NAME`` to its end; its output goes to standard error.

    Args:
        name: the file.
        inventory: the fleet.yml.
        variables: extra variables.
        become_password: the password for sudo on the hosts. Ansible gets it on standard input.

    Raises:
        FleetError: there is no ``ansible-playbook``, or it failed.
    """
    program = Path(sys.executable).with_name("ansible-playbook")
    words = [str(program), "-i", str(inventory), str(paths.root() / "playbooks" / name)]
    for key, value in sorted(variables.items()):
        words += ["-e", f"{key}={value}"]
    if become_password:
        words += ["--become-password-file", "-"]
    try:
        done = subprocess.run(
            words, cwd=paths.root(), check=False, stdout=sys.stderr, input=become_password, encoding="utf-8"
        )
    except FileNotFoundError:
        raise FleetError(f"{program} is missing", "run 'make venv'") from None
    if done.returncode:
        raise FleetError(
            f"playbooks/{name} ended with exit code {done.returncode}",
            "see its output above; run the same command again to continue",
            code=ErrorCode.WORK_FAILED,
        )


@dataclass
class BackgroundPlaybook:
    """A playbook that ansible-runner runs in a thread.

    Attributes:
        book: the file.
        inventory: the inventory, a file.
        arguments: more arguments of ``ansible-playbook``.
        become_password: the password for sudo on the hosts.
        folder: an empty folder of this user alone, for the files of ansible-runner.
        on_event: called in the thread for each event of Ansible.
    """

    book: Path
    inventory: Path
    arguments: Sequence[str]
    become_password: str | None
    folder: Path
    on_event: Callable[[Mapping[str, Any]], None]
    _killed: threading.Event = field(default_factory=threading.Event)
    _runner: Any = None
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts ``ansible-playbook`` in a session of its own: Ctrl-C at the terminal does not reach it."""
        from ansible_runner import interface  # not before: it takes longer to import than most commands run

        def keep(event: Mapping[str, Any]) -> bool:
            self.on_event(event)
            return False

        settings = self.folder / "env" / "settings"
        settings.parent.mkdir()
        settings.write_text(json.dumps({"pexpect_timeout": 1, "suppress_output_file": True}), encoding="utf-8")
        words = [*self.arguments, *(["--ask-become-pass"] if self.become_password else [])]
        self._thread, self._runner = interface.run_async(
            private_data_dir=str(self.folder),
            host_cwd=str(paths.root()),
            playbook=str(self.book),
            inventory=str(self.inventory),
            cmdline=shlex.join(words) or None,
            passwords={r"BECOME password.*:\s*?$": self.become_password} if self.become_password else None,
            # ansible-runner would turn it off.
            envvars={"ANSIBLE_HOST_KEY_CHECKING": "True"},
            suppress_env_files=True,
            quiet=True,
            event_handler=keep,
            cancel_callback=self._killed.is_set,
        )

    @property
    def is_running(self) -> bool:
        """Whether it works still."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def returncode(self) -> int:
        """The exit code of ``ansible-playbook``; 254 if it was killed."""
        return int(self._runner.rc) if self._runner and self._runner.rc is not None else 1

    def kill(self, pid: int) -> None:
        """Kills it and all that it has started.

        Args:
            pid: its process, as its events tell it; 0 before the first one. Its workers have sessions of their own, so
                ansible-runner alone would leave them.
        """
        for process in processes.find_descendants(pid) if pid else ():
            processes.kill_process(process)
        self._killed.set()

    def end(self, pid: int) -> None:
        """Kills it if it works still, as :meth:`kill` does, and waits for its end."""
        if self.is_running:
            self.kill(pid)
        if self._thread:
            self._thread.join()
