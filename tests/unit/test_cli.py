"""The command line: a command is imported when it runs, and the list of commands matches their modules."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from vllm_fleet import cli
from vllm_fleet.cli import COMMANDS, app, load_command

#: Modules of the package that are no commands.
_SHARED = {"init_questions", "passwords", "output", "plan_tables", "rollout_table"}
_LOADED = "import sys; from typer.testing import CliRunner; from vllm_fleet.cli import app; {run}; print(*sys.modules)"


def _modules_after(arguments: list[str]) -> set[str]:
    """The modules that Python has imported after a command line has run."""
    code = _LOADED.format(run=f"assert CliRunner().invoke(app, {arguments!r}).exit_code == 0")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_each_command_is_listed_with_the_first_line_of_its_help() -> None:
    modules = {module.name for module in pkgutil.iter_modules(cli.__path__)} - _SHARED
    assert {name.replace("-", "_") for name in COMMANDS} == modules
    assert {name: load_command(name).help.splitlines()[0] for name in COMMANDS} == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_has_examples(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert COMMANDS[name] in shown.stdout
    assert f"Examples:\n    vllm-fleet {name}" in shown.stdout


def test_the_list_shows_each_line_whole() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).stdout
    for name, line in COMMANDS.items():
        assert any(row.split() == [name, *line.split()] for row in shown.splitlines())


def test_the_help_imports_no_command() -> None:
    loaded = _modules_after(["--help"])
    assert not {f"vllm_fleet.cli.{name.replace('-', '_')}" for name in COMMANDS} & loaded
    assert not {"asyncssh", "pydantic", "rich", "ruamel.yaml", "yaml", "vllm_fleet.catalogue"} & loaded


def test_a_recipe_imports_neither_connections_nor_the_writer_of_yaml() -> None:
    loaded = _modules_after(["recipe", "--host-class", "h100-8", "--model", "openai/gpt-oss-120b"])
    assert "vllm_fleet.resolve.resolve" in loaded
    assert not {"asyncssh", "httpx", "rich.console", "ruamel.yaml", "vllm_fleet.edge", "vllm_fleet.operate"} & loaded


def test_an_unknown_command_is_an_error_with_the_nearest_name() -> None:
    shown = CliRunner().invoke(app, ["plam"])
    assert shown.exit_code == 2
    assert "No such command 'plam'. Did you mean 'plan'?" in shown.output


def test_an_unknown_option_names_the_command() -> None:
    shown = CliRunner().invoke(app, ["recipe", "--fleet", "lab"])
    assert shown.exit_code == 2
    assert "recipe --help" in shown.output


def test_completion_lists_the_commands() -> None:
    group = typer.main.get_command(app)
    context = group.make_context("vllm-fleet", [], resilient_parsing=True)
    assert [item.value for item in group.shell_complete(context, "")][: len(COMMANDS)] == list(COMMANDS)
