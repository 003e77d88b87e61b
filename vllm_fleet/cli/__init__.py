"""``vllm-fleet``: one module a command; results to stdout, progress to stderr."""

from __future__ import annotations

import typer

from vllm_fleet.cli import check, drift, explain, init, matrix, mirror, plan, recipe, upgrade_check
from vllm_fleet.cli.output import run

app = typer.Typer(
    help="vLLM with gpt-oss on fleets of GPU hosts: recipes, plans and what has drifted from them.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for module in (init, check, plan, explain, recipe, matrix, upgrade_check, mirror, drift):
    app.command(name=module.__name__.rsplit(".", 1)[1].replace("_", "-"), epilog=module.EPILOG)(module.command)


def main() -> None:
    """The entry point: runs the command and turns a fault into one clear error and its exit code."""
    run(app)
