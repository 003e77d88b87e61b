"""``vllm-fleet matrix``: what each model can be served on."""

from __future__ import annotations

import typer

from vllm_fleet import catalog, matrix
from vllm_fleet.cli.output import JsonOption, print_json

EPILOG = "Examples: vllm-fleet matrix | vllm-fleet matrix --json. docs/matrix.md is this output."


def command(json: JsonOption = False) -> None:
    """Print the support matrix in Markdown: model, host class and engine, with the shape of each profile."""
    recipes = catalog.load()
    if json:
        print_json({"rows": [row.record() for row in matrix.rows(recipes)]})
    else:
        typer.echo(matrix.markdown(matrix.rows(recipes), recipes.profiles), nl=False)
