"""The page on adding a recipe, done for real: its files and entries on a copy of the recipes, its commands on that."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pages
import pytest
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Question, resolve

PAGE = pages.page("adding-a-recipe.md")
LARGE = "openai/gpt-oss-120b"


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    for folder in ("recipes", "lab/gpu"):
        shutil.copytree(paths.root() / folder, tmp_path / folder)
    pages.add_data(PAGE, tmp_path)
    return tmp_path / "recipes"


@pytest.fixture
def changed(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The catalogue of the copy, which the commands read too."""
    found = catalogs.load(recipes)
    monkeypatch.setattr(catalogs, "load", lambda: found)
    return found


def test_the_page_has_a_class_its_tools_its_driver_an_entry_and_a_rule() -> None:
    assert [block.splitlines()[0].partition(", in ")[2] for block in pages.blocks(PAGE, "yaml")] == [
        "",
        "nvidia",
        "classes",
        "support",
        "rules",
    ]


def test_the_class_is_new_and_refused_before(catalog: Catalog) -> None:
    with pytest.raises(FleetError, match="there is no host class 'h800-8'"):
        resolve(catalog, Question("h800-8", LARGE))


def test_what_the_page_adds_is_right(changed: Catalog) -> None:
    assert [str(fault) for fault in recipe_check.recipe_errors(changed)] == []


def test_the_class_resolves_with_the_pages_rule(changed: Catalog) -> None:
    found = resolve(changed, Question("h800-8", LARGE))
    assert (found.engine.id, found.status) == ("vllm-0.32.0-cuda", "unverified")
    assert found.args["max-cudagraph-capture-size"] == 1024
    assert found.provenance["args.max-cudagraph-capture-size"].why.startswith("Slower links")
    assert found.evidence.startswith("derived from the guide's commands for H100")


@pytest.mark.parametrize("line", [line for line in pages.commands(PAGE) if line.startswith("vllm-fleet ")])
def test_a_command_of_the_page_runs(changed: Catalog, line: str) -> None:
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    # upgrade-check tells by its code 3 that deployments change.
    assert result.exit_code == (3 if "upgrade-check" in line else 0), result.output


@pytest.mark.parametrize("line", [line for line in pages.commands(PAGE) if line.startswith("make ")])
def test_a_target_of_the_page_exists(line: str) -> None:
    makefile = (paths.root() / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{line.removeprefix('make ')}:", makefile, re.MULTILINE)


def test_every_command_of_the_page_is_run_or_looked_up() -> None:
    assert {line.split()[0] for line in pages.commands(PAGE)} == {"vllm-fleet", "make"}


def test_a_misspelled_flag_is_told_as_the_page_says(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipes / "models" / f"{LARGE}.yml"
    text = path.read_text(encoding="utf-8")
    rule = text.rindex("max-cudagraph-capture-size")
    path.write_text(
        text[:rule] + "cuda-graph-size" + text[rule + len("max-cudagraph-capture-size") :], encoding="utf-8"
    )
    monkeypatch.chdir(recipes.parent)
    (told,) = pages.blocks(PAGE, "text")
    # The number of the rule moves with every rule that is added.
    found = {re.sub(r"rule \d+", "rule 52", str(fault)) for fault in recipe_check.recipe_errors(catalogs.load(recipes))}
    assert told.strip() in found


@pytest.mark.parametrize("mention", re.findall(r"`((?:recipes|tools|docs|tests)/[\w./-]+)`", PAGE.read_text("utf-8")))
def test_a_path_of_the_page_exists(mention: str) -> None:
    assert (paths.root() / mention).exists()
