"""How every command takes its common options, prints its result and fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

DRIFT_EXIT = 3
FleetOption = Annotated[str, typer.Option("--fleet", help="The fleet: a folder under inventories/.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# A table in a pipe or a file is not cut to the width of a terminal.
stdout = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 200)
stderr = Console(stderr=True, soft_wrap=True, highlight=False)


def fleet_directory(name: str) -> Path:
    """The folder of a fleet.

    Raises:
        FleetError: there is none.
    """
    folder = paths.inventories_dir() / name
    if not (folder / "fleet.yml").is_file():
        known = sorted(path.parent.name for path in paths.inventories_dir().glob("*/fleet.yml"))
        raise FleetError(
            f"there is no fleet {name!r}",
            f"fleets in {paths.display(paths.inventories_dir())}: {', '.join(known) or 'none'}",
        )
    return folder


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2) + "\n")


def run(app: Callable[[], Any]) -> None:
    """Runs the program; a fault goes to stderr, or with ``--json`` to stdout, and sets the exit code."""
    try:
        app()
    except FleetError as fault:
        errors = (fault, *fault.others)
        if "--json" in sys.argv:
            records = [error.record() for error in errors]
            print_json({"error": records[0], **({"errors": records} if len(records) > 1 else {})})
        else:
            for error in errors:
                stderr.print(f"error: {error}", markup=False)
        sys.exit(fault.exit_code)
    except BrokenPipeError:
        sys.exit(1)
