"""Common options, output and error handling of the commands."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError, list_errors

if TYPE_CHECKING:
    from rich.table import Table

DRIFT_EXIT = 3
FleetOption = Annotated[str, typer.Option("--fleet", help="The fleet: a folder under inventories/.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def fleet_directory(name: str) -> Path:
    """The folder of a fleet.

    Raises:
        FleetError: unknown fleet, or one that cannot be read.
    """
    fleets, unread = fleet_directories()
    folder = paths.inventories_dir() / name
    if folder in unread:
        raise unread[folder]
    if folder not in fleets:
        raise _no_fleet(name, folder, fleets)
    return folder


def _no_fleet(name: str, folder: Path, fleets: Sequence[Path]) -> FleetError:
    if name not in ("", ".", "..") and os.sep not in name and os.path.isdir(folder):  # noqa: PTH112 - as below
        other = folder / "fleet.yaml"
        hint = f"rename {paths.display(other)}" if paths.is_there(other) else "write it: docs/fleets.md has its format"
        return FleetError("has no fleet.yml", hint, paths.display(folder))
    shown = name if len(name) <= 60 else f"{name[:60]}..."
    path = Path(name).parent if Path(name).name == "fleet.yml" else Path(name)
    for fleet in fleets:
        if paths.absolute(path) == paths.absolute(fleet):
            hint = f"give the name of its folder: --fleet {shlex.quote(fleet.name)}"
            return FleetError(f"there is no fleet {shown!r}", hint)
    names = ", ".join(fleet.name for fleet in fleets) or "none"
    return FleetError(f"there is no fleet {shown!r}", f"fleets in {paths.display(paths.inventories_dir())}: {names}")


def fleet_directories() -> tuple[list[Path], dict[Path, FleetError]]:
    """The folders of all fleets, by name.

    Returns:
        Those with a ``fleet.yml``; and each folder that may be a fleet's and cannot be looked into, with its error.

    Raises:
        FleetError: there is no folder of fleets, or it cannot be listed.
    """
    folder = paths.inventories_dir()
    _warn_of_other_checkout()
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise FleetError(
            "there is no such folder of fleets", "correct the variable VLLM_FLEET_INVENTORIES", paths.display(folder)
        )
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - Path.glob leaves out what it may not look at
    except OSError as fault:
        raise FleetError(f"cannot be listed: {fault.strerror}", paths.ALLOW, paths.display(folder)) from None
    fleets: list[Path] = []
    unread: dict[Path, FleetError] = {}
    for name in names:
        own = folder / name
        try:
            # A link in its place is a fleet too, whose error says where it leads.
            (own / "fleet.yml").lstat()
            fleets.append(own)
        except (FileNotFoundError, NotADirectoryError):
            if own.is_symlink() and not os.path.exists(own):  # noqa: PTH110 - Path.exists raises where it may not look
                unread[own] = FleetError("is a link to nothing", "correct or remove the link", paths.display(own))
        except OSError as fault:
            text = f"cannot be looked into, so it was not checked: {fault.strerror}"
            unread[own] = FleetError(text, paths.ALLOW, paths.display(own))
    return fleets, unread


def print_text(text: str = "", *, end: str = "\n", bold: bool = False) -> None:
    """Text of the result on stdout."""
    typer.secho(text + end, nl=False, bold=bold or None)


@cache
def _warn_of_other_checkout() -> None:
    """One of the fleets here may have the name of one there, and be another."""
    if not os.environ.get("VLLM_FLEET_INVENTORIES") and (other := paths.other_checkout()):
        print_note(
            f"warning: this is the vllm-fleet of {paths.root()}, with the fleets there (run '. ./activate' in {other})"
        )


def print_note(text: str, *, end: str = "\n") -> None:
    """Progress, a question or an error on stderr."""
    typer.echo(text + end, nl=False, err=True)


def print_table(table: Table) -> None:
    """A table on stdout. In a pipe or a file it is not cut to the width of a terminal."""
    from rich.console import Console  # not before: most commands print no table

    Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def report(error: FleetError) -> int:
    """Prints an error and those found with it.

    Text goes to stderr. With ``--json`` one document goes to stdout.

    Returns:
        The error's exit code.
    """
    errors, more = list_errors(error)
    if "--json" in sys.argv:
        records = [reported.record() for reported in errors]
        several = {"errors": records, **({"errors_left_out": more} if more else {})}
        print_json({"error": records[0], **(several if len(records) > 1 else {})})
    else:
        for reported in errors:
            print_note(f"error: {reported}")
        if more:
            print_note(f"and {more} more errors")
    return error.exit_code
