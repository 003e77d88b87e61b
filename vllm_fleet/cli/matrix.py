"""``vllm-fleet matrix``: which model runs on which host class with which engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import JsonOption, print_json, print_text
from vllm_fleet.reports import matrix_page, support_matrix

EPILOG = """\b
Examples:
  vllm-fleet matrix
  vllm-fleet matrix --json
  vllm-fleet matrix --html matrix.html
docs/matrix.md and docs/matrix-table.html are this output."""


def command(
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page to this file, whose rows can be filtered.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the support matrix in Markdown.

    Shows what can be served on which host class, how each endpoint handles Harmony, and the known issues.
    """
    recipes = catalogue.load()
    if html:
        if html.is_dir() or not html.parent.is_dir():
            raise FleetError(f"--html: {html} is not a file in a folder that exists", "name one", key="--html")
        write_atomically(html, matrix_page.html(recipes))
        print_text(f"written: {html}")
    elif json:
        known = recipes.known_issues
        print_json(
            {
                "rows": [row.record() for row in support_matrix.rows(recipes)],
                "harmony": support_matrix.harmony_record(known),
                "known_issues": support_matrix.issue_records(known),
            }
        )
    else:
        typer.echo(support_matrix.document(recipes), nl=False)
