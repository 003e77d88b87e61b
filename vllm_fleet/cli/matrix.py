"""``vllm-fleet matrix``: which model runs on which host class with which engine."""

from __future__ import annotations

import typer

from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import JsonOption, print_json
from vllm_fleet.reports import support_matrix

EPILOG = """\b
Examples:
  vllm-fleet matrix
  vllm-fleet matrix --json
docs/matrix.md is this output."""


def command(json: JsonOption = False) -> None:
    """Print the support matrix in Markdown.

    Shows what can be served on which host class, how each endpoint handles Harmony, and the known issues.
    """
    recipes = catalogue.load()
    if json:
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
