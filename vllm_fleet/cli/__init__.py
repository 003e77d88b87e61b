"""``vllm-fleet``: one module for each command, imported when it runs; results to stdout, progress to stderr."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError, interruption

#: Each command with the first line of its help. The list is printed without importing the commands: they take ten times
#: as long to import as the list takes to print.
COMMANDS = {
    "init": "Write a fleet.yml for hosts that exist already.",
    "check": "Validate the recipes and the fleets.",
    "plan": "Show the hosts, cost and pending changes of a fleet.",
    "explain": "Show where each value of a host comes from.",
    "issues": "Show which known issues a log contains.",
    "recipe": "Show what a host class would run, without a fleet.",
    "matrix": "Print the support matrix in Markdown.",
    "schema": "Print the JSON Schema of fleet.yml, for editors.",
    "upgrade-check": "Show what another engine changes in each deployment.",
    "lock": "Ask the hub for the digests of models once, and keep them.",
    "mirror": "Fetch, verify, copy and serve what the hosts download.",
    "rollout": "Bring the hosts to the plan, batch by batch.",
    "rollback": "Switch hosts back to the release before.",
    "rollout-report": "Write the report of a rollout as a page.",
    "key": "Add, list, rotate and revoke the API keys of the gateways.",
    "drift": "Compare the hosts with the plan.",
    "leave": "Remove from a host what the toolkit has made.",
}
#: As shells have it.
_SIGTERM_EXIT = 128 + signal.SIGTERM
EPILOG = """\b
Examples:
  vllm-fleet recipe --host-class h100-8 --model openai/gpt-oss-120b
  vllm-fleet check --fleet prod
  vllm-fleet plan --fleet prod
'vllm-fleet COMMAND --help' shows the options and examples of a command."""


class LazyCommand(TyperCommand):
    """A command whose module is imported when the command is parsed, not when it is listed."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which click parses and invokes in place of this one."""
        assert self.name is not None  # noqa: S101 - narrows a type; LazyGroup names each command
        return load_command(self.name).make_context(info_name, args, parent, **extra)


class LazyGroup(TyperGroup):
    """The commands of :data:`COMMANDS`, by name and first line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line in COMMANDS.items():
            self.add_command(LazyCommand(name, help=line))

    def invoke(self, ctx: Any) -> Any:
        """Runs a command; Ctrl-C, and the end of the input at a question, end it with an error as any other.

        typer itself would print nothing, or "Aborted" with the exit code of work that failed.
        """
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, typer.Abort):
            raise interruption() from None


def load_command(name: str) -> Any:
    """Imports a command.

    Args:
        name: a key of :data:`COMMANDS`.

    Returns:
        The click command that typer makes of the module's function ``command``, or of its ``group`` of commands.
    """
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    if hasattr(module, "group"):
        return typer.main.get_command(module.group)
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    single.command(name=name, epilog=module.EPILOG)(module.command)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _program() -> None:
    """Run vLLM with gpt-oss on fleets of GPU hosts: recipes, plans and drift."""


def main() -> None:
    """The entry point: runs the command and turns an error into one clear message and its exit code."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller; the next file that is opened would take its number
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for the whole run
    try:
        with _ended_by_sigterm():
            code = _run()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        code = 1  # the reader has ended, and knows why
    except OSError as fault:
        _discard_output()
        print(f"error: the output cannot be written: {fault.strerror}", file=sys.stderr)
        code = 1
    sys.exit(code)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that its folders below /tmp go; by itself it would leave them."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(_: int, __: object) -> None:
        raise SystemExit(_SIGTERM_EXIT)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run() -> int | str | None:
    """Runs the command; returns its exit code."""
    try:
        # In JSON a wrong option is an error as any other; else the program prints the usage.
        code = app(standalone_mode="--json" not in sys.argv)
    except SystemExit as end:
        code = end.code
    except FleetError as error:
        return _report(error)
    except OSError as fault:
        if fault.filename is None:
            raise
        return _report(_file_error(fault))
    except Exception as fault:
        if not hasattr(fault, "format_message"):
            raise
        context = getattr(fault, "ctx", None)
        command = context.command_path if context else "vllm-fleet"
        return _report(FleetError(fault.format_message(), f"'{command} --help' shows the options"))
    if code == _SIGTERM_EXIT:
        _report(interruption("ended by SIGTERM"))
    elif code == interruption().exit_code:  # typer's own, from where LazyGroup does not see it
        _report(interruption())
    return code if code is not None else 0


def _file_error(fault: OSError) -> FleetError:
    """The error for a file or folder that the program cannot use."""
    where = os.fsdecode(fault.filename) if isinstance(fault.filename, str | bytes | os.PathLike) else None
    hint = {
        errno.EROFS: "it is read-only: work in a copy that you may write to",
        errno.EACCES: paths.ALLOW,
        errno.ENOSPC: "free space on its disk",
    }.get(fault.errno or 0, "correct the path")
    return FleetError(f"cannot be used: {fault.strerror}", hint, where, code=ErrorCode.WORK_FAILED)


def _report(error: FleetError) -> int:
    from vllm_fleet.cli import output  # not before: "vllm-fleet --help" works without it

    return output.report(error)


def _discard_output() -> None:
    """Python writes what is left in its buffers when it ends, and would report the same error again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
