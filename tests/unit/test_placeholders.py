"""Values that an example has in place of the user's own: ``check`` names each, and ``pulumi up`` refuses them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.cli import app
from vllm_fleet.fleet import placeholders, plan

EXAMPLES = sorted(folder.name for folder in (paths.root() / "inventories").glob("example-*"))


def copy(example: str, into: Path, *edits: tuple[str, str]) -> Path:
    """The copy ``prod`` of an example, as the README makes it."""
    folder = into / "prod"
    shutil.copytree(paths.root() / "inventories" / example, folder)
    text = (folder / "fleet.yml").read_text(encoding="utf-8")
    for old, new in ((f"fleet: {example}", "fleet: prod"), *edits):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "fleet.yml").write_text(text, encoding="utf-8")
    return folder


def check(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[int, list[dict[str, Any]]]:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(folder.parent))
    monkeypatch.setattr("sys.argv", ["vllm-fleet", "check", "--json"])
    done = CliRunner().invoke(app, ["check", "--fleet", folder.name, "--json"])
    error: Any = done.exception
    return (error.exit_code, [each.record() for each in (error, *error.others)]) if done.exit_code else (0, [])


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_value_of_an_example_that_is_not_the_user_s_has_its_line(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(example, tmp_path)
    code, errors = check(monkeypatch, folder)
    assert code == 2
    lines = (folder / "fleet.yml").read_text(encoding="utf-8").splitlines()
    for error in errors:
        at = int(error["file"].rpartition(":")[2])
        value = re.search(r"is still the example's: (\S+) is ", error["message"])
        assert value, error
        assert value[1] in lines[at - 1]
    told = {error["key"] for error in errors}
    if example == "example-company":
        assert {
            "account.aws",
            "pools.h100.placement.existing.vpc",
            "gateway.placement.existing.security_groups.0",
        } < told
    else:
        assert {"access.ssh_from.0", "access.api_from.0"} < told


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_itself_is_checked_without_them_and_no_host_is_made_of_it(example: str) -> None:
    found = plan.load(paths.root() / "inventories" / example)
    assert list(placeholders.find_placeholders(found)) == []
    assert list(placeholders.find_placeholders(found, in_examples=True))


def test_own_values_in_their_place_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [
        ("cr-0123456789abcdef0", "cr-0f1e2d3c4b5a69788"),
        ("203.0.113.0/24", "203.0.114.0/24"),
        ("198.51.100.0/24", "203.0.115.0/24"),
    ]
    assert check(monkeypatch, copy("example-aws", tmp_path, *own)) == (0, [])


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        *((text, True) for text in ("192.0.2.7", "2001:db8::/64", "3fff::1", "203.0.113.128/25", "example-project")),
        *((text, True) for text in ("ocid1.image.oc1..exampleexample", "example.com", "subnet-0123456789abcdef0")),
        *((text, False) for text in ("10.0.0.0/8", "0.0.0.0/0", "2001:db9::/64", "counterexample", "examples-team")),
        *((text, False) for text in ("ami-0a1b2c3d4e5f60718", "an example of ours")),
    ],
)
def test_what_counts_as_a_placeholder(value: str, is_one: bool, tmp_path: Path) -> None:
    folder = copy("example-aws", tmp_path, ("cr-0123456789abcdef0", "cr-0f1e2d3c4b5a69788"))
    data = yaml.safe_load((folder / "fleet.yml").read_text(encoding="utf-8"))
    data["access"] |= {"ssh_from": ["10.1.0.0/16"], "api_from": ["10.1.0.0/16"]}
    (folder / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    found = plan.load(folder)
    assert list(placeholders.find_placeholders(found)) == []
    found.document.data["pools"]["h100"]["placement"]["image"] = value
    assert [error.key for error in placeholders.find_placeholders(found)] == ["pools.h100.placement.image"] * is_one


def test_a_fleet_that_rents_nothing_is_not_judged() -> None:
    found = plan.load(paths.root() / "tests" / "fixtures" / "fleets" / "rack-names")
    assert "gpu-b.example.org" in Path(found.document.file).read_text(encoding="utf-8")
    assert list(placeholders.find_placeholders(found, in_examples=True)) == []


def test_they_are_told_in_one_run_with_the_other_errors_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first check after 'cp -r', before 'fleet:' has its new name."""
    folder = copy("example-aws", tmp_path, ("fleet: prod", "fleet: example-aws"))
    code, errors = check(monkeypatch, folder)
    assert code == 2
    assert {"fleet", "access.ssh_from.0", "access.api_from.0"} < {error["key"] for error in errors}
