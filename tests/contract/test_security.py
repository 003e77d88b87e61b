"""The threat model names tests that exist, and no secret of a fleet can get into the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from vllm_fleet.base import paths

PAGE = paths.root() / "docs" / "security.md"
POSITIONS = (
    "hostile host that answers the probe",
    "hostile model repository",
    "tampered mirror",
    "client of the gateway",
    "user on a GPU host",
    "account `vllm`",
    "logs and process lists",
    "leaked checkout",
    "in the middle on SSH",
)
_ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| A")]
_ROWS += [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| The account")]
_NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))))


def names_of_tests(file: Path) -> set[str]:
    """The names of all test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), _NAMED)
def test_each_named_test_exists(file: str, name: str) -> None:
    assert name in names_of_tests(paths.root() / file)


@pytest.mark.parametrize("row", _ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_row_says_what_stops_it_and_names_a_test(row: str) -> None:
    position, reached, stopped, named = (cell.strip() for cell in row.strip("|").split("|"))
    assert position and reached and stopped
    assert re.findall(r"`tests/[\w/]+\.py::\w+`", named)


@pytest.mark.parametrize("position", POSITIONS)
def test_each_position_has_a_row(position: str) -> None:
    assert sum(position in row.split("|")[1] for row in _ROWS) == 1


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/index.md"])
def test_the_page_is_linked(page: str) -> None:
    assert "security.md)" in (paths.root() / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    [
        ".pulumi/stacks/vllm-fleet/prod.json",
        ".fleet/prod/facts/h100-a.json",
        "inventories/prod/ssh/id_ed25519",
        "inventories/prod/api-key",
        "inventories/prod/stack.json",
    ],
)
def test_secrets_of_a_fleet_are_in_ignored_files(path: str) -> None:
    done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", path], cwd=paths.root(), check=False)
    assert done.returncode == 0


def test_no_tracked_file_holds_a_private_key() -> None:
    words = ["git", "grep", "--name-only", "--extended-regexp", "BEGIN [A-Z ]*PRIVATE KEY-----$"]
    done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False)
    assert set(done.stdout.splitlines()) <= {".pre-commit-config.yaml", "tests/contract/test_security.py"}
