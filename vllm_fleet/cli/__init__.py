"""``vllm-fleet``: one module for each command, imported when it runs; results to stdout, progress to stderr."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from vllm_fleet.base.errors import FleetError

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
    "mirror": "Fetch, verify, copy and serve what the hosts download.",
    "drift": "Compare the hosts with the plan.",
}
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


def load_command(name: str) -> Any:
    """Imports a command.

    Args:
        name: a key of :data:`COMMANDS`.

    Returns:
        The click command that typer makes of the module's function ``command``.
    """
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
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
    try:
        app()
    except FleetError as error:
        from vllm_fleet.cli import output  # not before: "vllm-fleet --help" works without it

        output.fail(error)
    except BrokenPipeError:
        raise SystemExit(1) from None
