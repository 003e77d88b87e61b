"""The pages of docs/extending, followed literally: their files in a copy of the project, their commands on it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.cli import app

ROOT = paths.root()


def test_the_engine_of_the_page_is_chosen_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, recipes = pages.page("extending/engine.md"), tmp_path / "recipes"
    shutil.copytree(ROOT / "recipes", recipes)
    # What 'make engines' would write from the wheel.
    names = (recipes / "engines" / "names" / "0.32.0.yml").read_text(encoding="utf-8")
    (recipes / "engines" / "names" / "0.99.0.yml").write_text(names.replace("0.32.0", "0.99.0"), encoding="utf-8")
    pages.add_data(page, tmp_path)
    catalog = catalogs.load(recipes)
    monkeypatch.setattr(catalogs, "load", lambda: catalog)
    outputs = {}
    for line in pages.commands(page):
        if line == "make engines":
            continue
        program, command, *_ = shlex.split(line)
        assert program == "vllm-fleet"
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        # upgrade-check reports by its code 3 that deployments change.
        assert result.exit_code in ((0, 3) if command == "upgrade-check" else (0,)), result.output
        outputs[command] = result.output
    assert f"{len(catalog.engines)} engines" in outputs["check"]
    assert "vllm-0.99.0-cuda" in outputs["recipe"]
    assert "sha256:1111" in outputs["recipe"]
    assert "vllm-0.99.0-cuda" in outputs["upgrade-check"]


def follow(name: str, tmp_path: Path) -> tuple[Path, dict[str, subprocess.CompletedProcess[str]]]:
    """A copy of the project that a page has changed, and what the commands of the page gave there."""
    page, tree = pages.page(f"extending/{name}.md"), pages.copy_project(tmp_path / "project")
    assert pages.change_files(page, tree)
    pages.register_entry_points(tree)
    return tree, {line: pages.run_in(tree, line) for line in pages.commands(page)}


def golden_items(tree: Path, host: str) -> list[dict[str, Any]]:
    """The items of a host's golden manifest."""
    file = tree / "tests" / "golden" / "copies" / "golden" / host / "manifest.yml"
    items: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))["items"]
    return items


def test_the_command_of_the_page_runs(tmp_path: Path) -> None:
    tree, done = follow("command", tmp_path)
    for line, result in done.items():
        assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    assert "hosts" in done["vllm-fleet --help"].stdout
    assert "gateway-0  gateway  gateway" in done["vllm-fleet hosts"].stdout
    hosts = json.loads(done["vllm-fleet hosts --fleet lab --json"].stdout)
    assert {"name": "lab-1", "pool": "lab", "host_class": "cpu-2"} in hosts
    refused = pages.run_in(tree, "vllm-fleet hosts --fleet nowhere")
    assert refused.returncode == 2
    assert "there is no fleet 'nowhere'" in refused.stderr


def test_the_role_of_the_page_holds_the_contract(tmp_path: Path) -> None:
    tree, done = follow("role", tmp_path)
    for line, result in done.items():
        assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    assert "journal_size_restart_enabled" in (tree / "roles/journal_size/README.md").read_text(encoding="utf-8")
    assert "journal_size" in {item["role"] for item in golden_items(tree, "lab-0")}
    assert "journal_size" not in {item["role"] for item in golden_items(tree, "gateway-0")}


def test_the_cloud_of_the_page_makes_hosts(tmp_path: Path) -> None:
    tree, done = follow("cloud", tmp_path)
    for line, result in done.items():
        assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    assert "3 passed" in done["python -m pytest -q tests/infra/test_acme.py"].stdout
    assert (tree / "infra/clouds/acme.py").is_file()


def test_the_kind_of_the_page_is_checked_on_a_host(tmp_path: Path) -> None:
    tree, done = follow("manifest-kind", tmp_path)
    for line, result in done.items():
        assert result.returncode == 0, f"{line}: {result.stdout}{result.stderr}"
    wanted = {"role": "host_baseline", "kind": "kernel_module", "name": "nf_conntrack"}
    assert wanted in golden_items(tree, "lab-0")
    # The kernel itself is in /sys/module on every host.
    manifest = {"items": [{**wanted, "name": "kernel"}, {**wanted, "name": "no_such_module"}]}
    start = f"import sys; sys.path.insert(0, {str(tree)!r}); from vllm_fleet.on_host import probe; probe.main()"
    probe = [sys.executable, "-IS", "-c", start]
    answer = subprocess.run(probe, input=json.dumps(manifest), capture_output=True, text=True, check=True).stdout
    (drift,) = json.loads(answer)["drift"]
    assert (drift["what"], drift["role"], drift["state"]) == ("no_such_module", "host_baseline", "missing")
    assert drift["why"] == "is missing"
