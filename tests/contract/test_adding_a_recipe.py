"""The page on adding a recipe, done for real: its files and entries on a copy of the recipes, its commands on that."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Question, resolve

PAGE = paths.root() / "docs" / "adding-a-recipe.md"
LARGE = "openai/gpt-oss-120b"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in the order of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines()]


def follow(recipes: Path) -> None:
    """Does what the yaml blocks say: each names its file, and the list in it where it is an entry."""
    for block in blocks("yaml"):
        place, _, _ = block.partition("\n")
        file, _, key = place.removeprefix("# recipes/").partition(", in ")
        path = recipes / file
        if not key:
            assert not path.exists()
            path.write_text(block, encoding="utf-8")
            continue
        data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = yaml.safe_load(block)
        if isinstance(entries, dict):
            data[key] |= entries
        else:
            data[key] = [*entries, *data[key]] if key == "support" else [*data[key], *entries]
        path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    shutil.copytree(paths.root() / "recipes", tmp_path / "recipes")
    follow(tmp_path / "recipes")
    return tmp_path / "recipes"


@pytest.fixture
def changed(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The catalogue of the copy, which the commands read too."""
    found = catalogs.load(recipes)
    monkeypatch.setattr(catalogs, "load", lambda: found)
    return found


def test_the_page_has_a_class_its_driver_an_entry_and_a_rule() -> None:
    assert [block.splitlines()[0].partition(", in ")[2] for block in blocks("yaml")] == [
        "",
        "classes",
        "support",
        "rules",
    ]


def test_the_class_is_new_and_refused_before(catalog: Catalog) -> None:
    with pytest.raises(FleetError, match="there is no host class 'h20-8'"):
        resolve(catalog, Question("h20-8", LARGE))


def test_what_the_page_adds_is_right(changed: Catalog) -> None:
    assert [str(fault) for fault in recipe_check.recipe_errors(changed)] == []


def test_the_class_resolves_with_the_pages_rule(changed: Catalog) -> None:
    found = resolve(changed, Question("h20-8", LARGE))
    assert (found.engine.id, found.status) == ("vllm-0.32.0-cuda", "unverified")
    assert found.args["max-cudagraph-capture-size"] == 1024
    assert found.provenance["args.max-cudagraph-capture-size"].why.startswith("A smaller device")
    assert found.evidence.startswith("derived from the guide's commands for H200")


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("vllm-fleet ")])
def test_a_command_of_the_page_runs(changed: Catalog, line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    # upgrade-check tells by its code 3 that deployments change.
    assert result.exit_code == (3 if "upgrade-check" in line else 0), result.output


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_a_target_of_the_page_exists(line: str) -> None:
    makefile = (paths.root() / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{line.removeprefix('make ')}:", makefile, re.MULTILINE)


def test_every_command_of_the_page_is_run_or_looked_up() -> None:
    assert {line.split()[0] for line in commands()} == {"vllm-fleet", "make"}


def test_a_misspelled_flag_is_told_as_the_page_says(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipes / "models" / f"{LARGE}.yml"
    text = path.read_text(encoding="utf-8")
    rule = text.rindex("max-cudagraph-capture-size")
    path.write_text(
        text[:rule] + "cuda-graph-size" + text[rule + len("max-cudagraph-capture-size") :], encoding="utf-8"
    )
    monkeypatch.chdir(recipes.parent)
    (told,) = blocks("text")
    # The number of the rule moves with every rule that is added.
    found = {re.sub(r"rule \d+", "rule 52", str(fault)) for fault in recipe_check.recipe_errors(catalogs.load(recipes))}
    assert told.strip() in found


@pytest.mark.parametrize("mention", re.findall(r"`((?:recipes|tools|docs|tests)/[\w./-]+)`", PAGE.read_text("utf-8")))
def test_a_path_of_the_page_exists(mention: str) -> None:
    assert (paths.root() / mention).exists()
