"""``vllm-fleet matrix``: what each model can be served on."""

from __future__ import annotations

import typer

from vllm_fleet import catalog, matrix
from vllm_fleet.cli.output import JsonOption, print_json

EPILOG = "Examples: vllm-fleet matrix | vllm-fleet matrix --json. docs/matrix.md is this output."


def command(json: JsonOption = False) -> None:
    """Print in Markdown what can be served where, what the endpoints do with Harmony, and the known issues."""
    recipes = catalog.load()
    if json:
        known = recipes.known_issues
        print_json(
            {
                "rows": [row.record() for row in matrix.rows(recipes)],
                "harmony": matrix.harmony_record(known),
                "known_issues": matrix.issue_records(known),
            }
        )
    else:
        typer.echo(matrix.document(recipes), nl=False)
