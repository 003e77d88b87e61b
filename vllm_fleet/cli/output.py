"""Common options, output and error handling of the commands."""

from __future__ import annotations

import json
import os
import sys
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
        FleetError: unknown fleet.
    """
    fleets = fleet_directories()
    folder = paths.inventories_dir() / name
    if folder not in fleets:
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        names = ", ".join(fleet.name for fleet in fleets) or "none"
        raise FleetError(f"there is no fleet {shown!r}", f"fleets in {paths.display(paths.inventories_dir())}: {names}")
    return folder


def fleet_directories() -> list[Path]:
    """The folders of all fleets, by name.

    Raises:
        FleetError: there is no folder of fleets.
    """
    folder = paths.inventories_dir()
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise FleetError(
            "there is no such folder of fleets", "correct the variable VLLM_FLEET_INVENTORIES", paths.display(folder)
        )
    return sorted(file.parent for file in folder.glob("*/fleet.yml"))


def print_text(text: str = "", *, end: str = "\n", bold: bool = False) -> None:
    """Text of the result on stdout."""
    typer.secho(text + end, nl=False, bold=bold or None)


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
