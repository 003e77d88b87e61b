"""Programs decide by states and codes. Every text can be worded anew, and nothing but the texts changes."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from healthy_host import H100, HEALTHY
from plugin_modules import plugin_module

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.facts import states, vetoes
from vllm_fleet.facts.recognise import recognise
from vllm_fleet.facts.states import DriftState, VetoCode
from vllm_fleet.host import drivers
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.host.manifest_items import (
    directory_item,
    file_item,
    holds_item,
    image_item,
    link_item,
    package_item,
    store_item,
    sysctl_item,
    traffic_item,
    unit_item,
    user_item,
)
from vllm_fleet.inventory import Site
from vllm_fleet.on_host import certificate_facts, docker_engine, gpu_facts, host_tools, neighbours, probe
from vllm_fleet.operate import drift, probing

#: Where texts are made: a table for each area.
TABLES: tuple[dict[Any, str], ...] = (
    *(probe.TEXTS, probe.VETO_TEXTS, gpu_facts.TEXTS, vetoes.TEXTS),  # type: ignore[assignment]
    *(neighbours.TEXTS, docker_engine.TEXTS),
)
#: What is filled into a text: %s, %(tool)s, {floor:.1f}.
_PLACE = re.compile(r"%(?:\(\w+\))?[.\d]*[sdf]|\{[^}]*\}")
#: What nvidia-smi does on a host that shows no GPU; None: it is not there.
TOOLS = {
    "mismatch": "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
    "not-loaded": 'echo "NVIDIA-SMI has failed because it couldn\'t communicate with the NVIDIA driver."; exit 9',
    "no-devices": "echo 'No devices were found'; exit 6",
    "fails": "exit 7",
    "empty": "exit 0",
    "missing": None,
}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "healthy": {},
    "too-few": {"gpus": [H100] * 7},
    "too-many": {"gpus": [H100] * 9},
    "name": {"gpus": [{**H100, "name": "NVIDIA A100-SXM4-80GB"}] * 8},
    "arch": {"gpus": [{**H100, "arch": "sm_80"}] * 8},
    "memory": {"gpus": [{**H100, "memory_mib": 40000}] * 8},
    "memory-unknown": {"gpus": [{**H100, "memory_mib": None}] * 8},
    "vendor": {"vendor": "amd"},
    "old-driver": {"driver": "535.183.01", "fabric_manager": "535.183.01", "cuda": "12.2"},
    "new-driver": {"driver": "620.10", "fabric_manager": "620.10"},
    "no-version": {"driver": None, "fabric_manager": None, "cuda": None},
    "fabric": {"fabric_manager": "580.126.20"},
    "broken": {"ecc_uncorrected": 3, "xid": [79]},
}


def reworded(text: str, number: int) -> str:
    """Other words with the same values in them."""
    return " ".join([f"Formulation {number}:", *_PLACE.findall(text)])


@pytest.fixture
def reword(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A call that replaces every text of every table."""

    def replace_all() -> None:
        for table in TABLES:
            for number, (key, text) in enumerate(list(table.items())):
                monkeypatch.setitem(table, key, reworded(text, number))

    return replace_all


def without_texts(records: Any) -> Any:
    """JSON without what is for people."""
    if isinstance(records, Mapping):
        texts = ("why", "message", "hint")
        return {key: without_texts(value) for key, value in records.items() if key not in texts}
    return [without_texts(value) for value in records] if isinstance(records, list | tuple) else records


def texts_in(records: Any) -> Iterator[str]:
    """What is for people in JSON."""
    if isinstance(records, Mapping):
        yield from (records[key] for key in ("why", "message") if key in records)
        records = list(records.values())
    if isinstance(records, list | tuple):
        for value in records:
            yield from texts_in(value)


# -- The tables and the enumerations say the same -----------------------------------------------------------------


def test_the_probe_emits_just_the_states_of_the_enumeration() -> None:
    assert list(probe.TEXTS) == [state.value for state in DriftState]
    sources = inspect.getsource(probe) + inspect.getsource(certificate_facts)
    called = set(re.findall(r'differs\(\s*"(\w+)"', sources))
    assert called | set(probe.ACTIVE_STATES.values()) | {"in_transition"} == set(probe.TEXTS)


def test_every_veto_has_a_text_in_one_of_the_tables() -> None:
    of_docker = {docker_engine.CODES.get(cause, "unusable_docker") for cause in docker_engine.TEXTS}
    assert set(probe.VETO_TEXTS) | set(vetoes.TEXTS) | set(neighbours.TEXTS) | of_docker == set(VetoCode)
    assert set(neighbours.TEXTS) | of_docker == states.NEIGHBOURS
    assert not set(probe.VETO_TEXTS) & set(vetoes.TEXTS)
    assert set(gpu_facts.TEXTS) <= set(vetoes.TEXTS)
    assert {state for _, state in (*gpu_facts.NVIDIA_SAYS, *gpu_facts.AMD_SAYS)} <= set(gpu_facts.TEXTS)
    source = inspect.getsource(vetoes).split("@dataclass", 1)[1]
    raised = {VetoCode[name] for name in re.findall(r"VetoCode\.([A-Z_]+)", source)}
    assert raised | {VetoCode(state) for state in gpu_facts.TEXTS} == set(vetoes.TEXTS)


def test_every_state_and_every_code_has_a_meaning() -> None:
    for member in (*DriftState, *VetoCode):
        assert member.meaning
        assert not member.meaning.endswith(".")


def test_no_driver_and_a_tool_that_failed_are_two_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_tools, "MORE_FOLDER", str(tmp_path))
    problems = {name: facts_with(tmp_path, body)["problems"]["nvidia"]["state"] for name, body in TOOLS.items()}
    assert problems == {
        "mismatch": "driver_mismatch",
        "not-loaded": "driver_not_loaded",
        "no-devices": "no_gpus",
        "fails": "tool_failed",
        "empty": "no_gpus",
        "missing": "no_driver",
    }


# -- Every text worded anew ---------------------------------------------------------------------------------------


def facts_with(folder: Path, body: str | None) -> dict[str, Any]:
    """The facts of this machine with such an nvidia-smi and no other tool."""
    tool = folder / "nvidia-smi"
    tool.unlink(missing_ok=True)
    if body is not None:
        tool.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        tool.chmod(0o755)
    return gpu_facts.read_facts("nvidia")


def drifted_items(folder: Path) -> list[Any]:
    """Items that differ in most ways that there are."""
    (folder / "file").write_text("x", encoding="utf-8")
    (folder / "file").chmod(0o600)
    (folder / "link").symlink_to("elsewhere")
    (folder / "store").mkdir()
    (folder / "store" / "stamp").write_text('{"weights": {"sha256": "a"}}', encoding="utf-8")
    file = str(folder / "file")
    return [
        file_item("r", str(folder / "nothing"), "0" * 64),
        file_item("r", str(folder), "0" * 64),
        file_item("r", file, "0" * 64),
        {"role": "r", "kind": "file", "path": file, "mode": "0644"},
        {"role": "r", "kind": "file", "path": file, "owner": "nobody-else"},
        {"role": "r", "kind": "file", "path": file, "group": "nobody-else"},
        directory_item("r", file, "0755"),
        link_item("r", str(folder / "link"), "target"),
        link_item("r", str(folder / "link"), "elsewhere"),
        store_item("r", str(folder), "stamp", {"weights": "a"}),
        store_item("r", str(folder / "store"), "stamp", {"weights": "b"}),
        store_item("r", str(folder / "store"), "stamp", {"weights": "a"}),
        image_item("r", "i@sha256:0", "i:deploy"),
        user_item("r", "no-such-user"),
        user_item("r", "root", home="/elsewhere"),
        user_item("r", "root", login_shell="/bin/other"),
        user_item("r", "root", groups=["no-such-group"]),
        sysctl_item("r", "kernel.ostype", "x"),
        *(unit_item("r", name, active=True, enabled=True) for name in UNITS),
        package_item("r", "absent"),
        package_item("r", "old", "2"),
        holds_item("r", ["old"]),
        traffic_item("r", str(folder / "no-socket")),
    ]


_RUNS = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
UNITS = {
    "unknown.service": {"LoadState": "not-found"},
    "changed.service": {**_RUNS, "NeedDaemonReload": "yes"},
    "inactive.service": {**_RUNS, "ActiveState": "inactive"},
    "failed.service": {**_RUNS, "ActiveState": "failed"},
    "starting.service": {**_RUNS, "ActiveState": "activating"},
    "disabled.service": {**_RUNS, "UnitFileState": "disabled"},
}


def test_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reword: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe, "unit_states", lambda _: UNITS)
    monkeypatch.setattr(probe, "installed_packages", lambda _: {"old": ("1", False)})
    facts = {"cpu_count_min": 9999, "cpu_flags": ["teleport"], "memory_gib_min": 1e6, "machine": "pdp11"}
    manifest = Manifest("a", tuple(drifted_items(tmp_path)), facts)

    def outcome() -> dict[str, Any]:
        answer = json.loads(json.dumps(probe.probe(json.loads(probing.probe_input(manifest)))))
        report = probing.parse_report("a", manifest, json.dumps(answer))
        errors = [{**error.record(), "exit": error.exit_code} for error in drift.blocking_errors({"a": report})]
        return {"answer": answer, "drift": [item.record() for item in report.drift], "errors": errors}

    before = outcome()
    reword()
    after = outcome()
    assert without_texts(after) == without_texts(before)
    assert len({item["state"] for item in before["drift"]}) >= 25
    assert len(before["drift"]) == len(manifest.items) - 1
    # Three facts, two files and an account that are somebody else's.
    assert len(before["errors"]) == 7
    assert all(text.startswith("Formulation ") for text in texts_in(after))


@pytest.mark.parametrize("mode", ["managed", "verified"])
def test_vetoes_and_repairs(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reword: Any, mode: drivers.DriverMode
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_tools, "MORE_FOLDER", str(tmp_path))
    driver = drivers.choose_driver(catalog, catalog.host_class("h100-8"), drivers.DriverChoice(mode=mode))
    assert driver
    manifest = Manifest("a", (), {**wanted_facts(catalog.host_class("h100-8")), **driver.facts})

    def outcome() -> dict[str, Any]:
        answers: dict[str, Any] = {name: facts_with(tmp_path, body) for name, body in TOOLS.items()}
        answers |= {name: {**HEALTHY, **changes} for name, changes in CHANGES.items()}
        result: dict[str, Any] = {}
        for name, facts in answers.items():
            report = probing.parse_report("a", manifest, json.dumps({"drift": [], "veto": [], "facts": facts}))
            result[name] = {
                "drift": [item.record() for item in report.drift],
                "roles": sorted(report.roles),
                "veto": [{"code": veto.code.value, "why": veto.text} for veto in report.veto],
                "errors": [
                    {**error.record(), "exit": error.exit_code} for error in drift.blocking_errors({"a": report})
                ],
            }
        return result

    before = outcome()
    reword()
    after = outcome()
    assert without_texts(after) == without_texts(before)
    assert before != after
    assert all(text.startswith("Formulation ") for text in texts_in(after))
    assert before["healthy"] == {"drift": [], "roles": [], "veto": [], "errors": []}
    # A missing driver is installed where a role may, and holds the host back where none may.
    held = mode == "verified"
    assert ([veto["code"] for veto in before["missing"]["veto"]] == ["no_driver"]) is held
    assert (before["missing"]["roles"] == ["nvidia_driver"]) is not held


def test_the_class_of_a_host_that_shows_no_gpu(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reword: Any
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host_tools, "MORE_FOLDER", str(tmp_path))

    def outcome() -> dict[str, Any]:
        with pytest.raises(FleetError) as caught:
            recognise(facts_with(tmp_path, TOOLS["fails"]), catalog)
        return {**caught.value.record(), "exit": caught.value.exit_code}

    before = outcome()
    reword()
    after = outcome()
    assert without_texts(after) == without_texts(before)
    assert before["message"] != after["message"]


def groups(site: Site) -> dict[str, list[str]]:
    """The groups of the inventory plugin, as a run has them after the probe."""
    module = plugin_module("inventory/fleet.py")
    data = InventoryData()
    module.InventoryModule().parse(data, DataLoader(), str(site.plan.directory / "fleet.yml"))
    return {name: sorted(map(str, group.hosts)) for name, group in data.groups.items()}


@pytest.mark.parametrize("unit_state", list(UNITS))
def test_groups_and_exit_codes_of_a_run(
    fleets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reword: Any,
    tmp_path: Path,
    unit_state: str,
) -> None:
    monkeypatch.setattr(drift, "_file", lambda _: tmp_path / "drift.json")
    monkeypatch.setattr(probe, "installed_packages", lambda _: {})
    site = drift.load_site_of_run(fleets / "golden")
    key = fleets / "golden" / "ssh" / "id_ed25519"
    key.parent.mkdir()
    key.touch(0o600)
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\n", encoding="utf-8")

    def answer(manifest: Manifest) -> dict[str, Any]:
        monkeypatch.setattr(probe, "unit_states", lambda names: dict.fromkeys(names, UNITS[unit_state]))
        manifest_in_json = json.loads(probing.probe_input(manifest))
        return probe.probe({**manifest_in_json, "items": [i for i in manifest_in_json["items"] if i["kind"] == "unit"]})

    def answers(targets: Any, *_: Any) -> dict[str, probing.Report]:
        reports = [
            probing.parse_report(target.name, manifest, json.dumps(answer(manifest))) for target, manifest in targets
        ]
        return {report.host: report for report in reports}

    monkeypatch.setattr(probing, "probe_hosts", answers)

    def outcome() -> dict[str, Any]:
        targets = {host.plan.name: drift.host_target(site, host) for host in site.hosts}
        drift.save_drift("golden", drift.probe_site(site, targets), os.getpid())
        code = app(["drift", "--fleet", "golden", "--json"], standalone_mode=False)
        return {"groups": groups(site), "exit": code, "json": json.loads(capsys.readouterr().out)}

    before = outcome()
    reword()
    after = outcome()
    assert without_texts(after) == without_texts(before)
    assert all(text.startswith("Formulation ") for text in texts_in(after["json"]["drift"]))
    stopped = unit_state in ("unknown.service", "inactive.service", "failed.service")
    assert before["groups"]["idle"] == (["lab-0", "lab-1", "rack-a"] if stopped else [])
    assert before["groups"]["needs_vllm_service"] == ["lab-0", "lab-1", "rack-a"]
    assert before["exit"] == 3
    assert {item["state"] for item in before["json"]["drift"]} <= set(DriftState)


# -- No program reads a text --------------------------------------------------------------------------------------

#: Names of what is for people.
_TEXTS = {"why", "message", "hint", "msg", "said", "stderr", "text"}
_SEARCHES = {"startswith", "endswith", "find", "search", "match", "fullmatch", "findall", "finditer"}
#: What only a text of a foreign tool tells: file -> the expressions that read it.
FOREIGN = {
    "roles/vllm_engine/files/prove.py": {"'Failed to infer device type' in done.stderr"},
    "roles/vllm_service/files/vllm-container-root": {"b'annot connect' not in done.stderr"},
    "vllm_fleet/edge/pulumi_cli.py": {"f\"no stack named '{stack}' found\" in done.stderr"},
    "vllm_fleet/on_host/gpu_facts.py": {
        "_INVALID_FIELD.search(rows.text)",
        "part in answer.text",
    },
    "vllm_fleet/on_host/machine_facts.py": {"'already enrolled' in answer.out + answer.text"},
    "vllm_fleet/on_host/probe.py": {
        "DOCKER_DOWN in done.stderr",
        "item['name'] in done.stderr",
        "item['tag'] in done.stderr",
    },
}


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a text for people, by its name."""
    match node:
        case ast.Attribute(attr=name) | ast.Subscript(slice=ast.Constant(value=name)):
            return name in _TEXTS
        case ast.BinOp(left=left, right=right):
            return is_text(left) or is_text(right)
        case ast.Call(func=ast.Attribute(value=value, attr="strip" | "lower" | "splitlines")):
            return is_text(value)
        case ast.Call(func=ast.Name(id="str"), args=[ast.Name(id="fault" | "error" | "exception")]):
            return True
    return False


def reads_of_texts(tree: ast.Module) -> Iterator[str]:
    """Comparisons with texts and searches in them."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, ops=operators, comparators=others):
                pairs = zip(operators, [left, *others], others, strict=False)
                if any(
                    is_text(right) or (isinstance(operator, ast.Eq | ast.NotEq) and is_text(before))
                    for operator, before, right in pairs
                    if isinstance(operator, ast.In | ast.NotIn | ast.Eq | ast.NotEq)
                ):
                    yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments) if name in _SEARCHES:
                if is_text(value) or any(map(is_text, arguments)):
                    yield ast.unparse(node)


def test_no_program_branches_on_a_text() -> None:
    reads: dict[str, set[str]] = {}
    folders = ("vllm_fleet", "plugins", "infra", "roles")
    for path in sorted(path for folder in folders for path in (paths.root() / folder).rglob("*") if path.is_file()):
        content = path.read_bytes()
        is_python = path.suffix == ".py" or (content.startswith(b"#!") and b"python" in content.split(b"\n", 1)[0])
        if is_python and (lines := set(reads_of_texts(ast.parse(content)))):
            reads[str(path.relative_to(paths.root()))] = lines
    assert reads == FOREIGN


def test_no_task_of_a_role_branches_on_a_text_of_its_own() -> None:
    """What only a foreign tool's text tells is a variable of the role, with the reason beside it."""
    words_in = r"""(?:'[^']* [^']*'|"[^"]* [^"]*") (?:not )?in """
    text_in_condition = re.compile(rf"{words_in}|is (?:not )?(?:search|match|regex)")
    folders = (paths.root() / "roles", paths.root() / "playbooks")
    for path in sorted(path for folder in folders for path in folder.rglob("*.yml") if "tasks" in path.parts):
        for task in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
            for key in ("when", "failed_when", "changed_when", "until"):
                assert not text_in_condition.search(str(task.get(key, ""))), (path, task["name"])


def test_the_search_sees_what_it_is_for() -> None:
    seen = ["drift.why == 'x'", "'x' in report['why']", "fault.message.startswith('x')", "'x' in str(fault)"]
    seen += ["re.search('x', done.stderr)", "'x' in (done.out + done.stderr).lower()"]
    for line in (*seen, "'x' != fault.message"):
        assert list(reads_of_texts(ast.parse(line))), line
    assert not list(reads_of_texts(ast.parse("state in states and fault.code == 'x' and why == ''")))


def test_the_states_of_a_unit_that_does_not_run_are_states() -> None:
    assert set(DriftState) >= states.NOT_RUNNING
