"""What hosts say of themselves reaches their plan: on the site, in the run that asks them, and in the next one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import host_facts, plan
from vllm_fleet.inventory import Site
from vllm_fleet.operate import drift, probing
from vllm_fleet.operate.probing import Report

ENGINE, RECLAIM = "vllm-0.14.1-rocm", "HSA_NO_SCRATCH_RECLAIM"


@pytest.fixture
def folder(fleets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A rack of two MI300X hosts."""
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / fleet)
    spec = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text(encoding="utf-8"))
    key = spec["pools"]["rack"]["static"]["rack-a"]["ssh_host_key"]
    static = {name: {"address": f"198.51.100.{at}", "ssh_host_key": key} for at, name in ((7, "old"), (8, "new"))}
    spec["pools"] = {
        "rack": {"host_class": "mi300x-8", "cloud": "static", "static": static, "engine": ENGINE, "install": "wheel"}
    }
    spec["defaults"]["model"] = "openai/gpt-oss-120b"
    spec["gateway"] = {"hosts": 0}
    spec["artifacts"]["models"] = {"openai/gpt-oss-120b": "../../artifacts/model"}
    (fleets / "golden" / "fleet.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    (fleets / "golden" / "stack.json").unlink()
    return fleets / "golden"


@pytest.fixture
def locked(catalog: Catalog) -> Catalog:
    """The catalogue with a lock for the engine: which one matters to no plan."""
    engine = catalog.engines[ENGINE]
    cpu = catalog.engines["vllm-0.32.0-cpu"].wheel
    assert engine.wheel and cpu
    wheel = engine.wheel.model_copy(update={"locks": cpu.locks, "unlocked": {}})
    return dataclasses.replace(catalog, engines={**catalog.engines, ENGINE: engine.model_copy(update={"wheel": wheel})})


def environments(of: Site) -> dict[str, str]:
    """Host -> the environment of its first instance."""
    return {
        host.plan.name: next(
            file["content"] for file in host.variables["vllm_service_files"] if file["name"] == "0.env"
        )
        for host in of.hosts
    }


def test_a_host_gets_what_its_own_firmware_needs(folder: Path, locked: Catalog) -> None:
    planned = plan.load(folder, locked)
    asked = environments(inventory.build(planned, locked))
    assert all(RECLAIM in text for text in asked.values())
    known = environments(inventory.build(planned, locked, {"old": {"mec_firmware": 176}, "new": {"mec_firmware": 177}}))
    assert RECLAIM in known["old"]
    assert RECLAIM not in known["new"]


def test_a_run_probes_a_host_for_the_plan_that_its_facts_give(
    folder: Path, locked: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        drift, "load_site", lambda at: inventory.build(plan.load(at, locked), locked, host_facts.load(at.name))
    )
    asked: list[dict[str, Any]] = []

    def answer(targets: Any, on_report: Any = None) -> dict[str, Report]:
        asked.append({target.name: manifest for target, manifest in targets})
        firmware = {"old": 176, "new": 185}
        return {name: Report(name, facts={"mec_firmware": firmware[name], "cpu_count": 8}) for name in asked[-1]}

    monkeypatch.setattr(probing, "probe_hosts", answer)
    before = drift.load_site_of_run(folder)
    assert before.private_key_file
    before.private_key_file.parent.mkdir()
    before.private_key_file.touch(0o600)
    before.private_key_file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n", encoding="utf-8")
    reports = drift.probe_site(before, {host.plan.name: drift.host_target(before, host) for host in before.hosts})
    assert set(reports) == {"old", "new"}
    assert [set(each) for each in asked] == [{"old", "new"}, {"new"}]
    after = drift.load_site_of_run(folder)
    assert asked[1]["new"] == next(host.manifest for host in after.hosts if host.plan.name == "new")
    assert RECLAIM not in environments(after)["new"]
    drift.probe_site(after, {host.plan.name: drift.host_target(after, host) for host in after.hosts})
    assert len(asked) == 3, "what is known already needs no second probe"
    assert host_facts.load("golden") == {"old": {"mec_firmware": 176}, "new": {"mec_firmware": 185}}


def test_facts_that_are_no_json_are_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / fleet)
    assert host_facts.load("golden") == {}
    assert host_facts.keep("golden", {"one": {"mec_firmware": 180}}) is True
    assert host_facts.keep("golden", {"one": {"mec_firmware": 180}, "two": {"mec_firmware": None}}) is False
    (tmp_path / "golden" / "facts.json").write_text("{", encoding="utf-8")
    assert host_facts.load("golden") == {}
