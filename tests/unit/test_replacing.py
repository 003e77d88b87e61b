"""A plan that would end a serving host: told, refused, and let go by name with the commands to run."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.fleet import plan, replacement

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"


def urn(kind: str, name: str) -> str:
    return f"urn:pulumi:demo::vllm-fleet::fleet:infra:Fleet$fleet:infra:AwsCloud$fleet:infra:AwsHost${kind}::{name}"


HOST, DISK = "aws:ec2/instance:Instance", "aws:ebs/volume:Volume"


def step(op: str, kind: str, name: str, why: tuple[str, ...] = (), protect: bool = True) -> dict[str, Any]:
    """One step as 'pulumi preview --json' prints it (read from the CLI's source, display/json.go, and its output)."""
    found: dict[str, Any] = {"op": op, "urn": urn(kind, name), "oldState": {"protect": protect}}
    return {**found, **({"replaceReasons": list(why)} if why else {})}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fleet ``demo`` with main-0, main-1 and gateway-0, all of them made."""
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-120b"},
        "pools": {
            "main": {
                "host_class": "h100-8",
                "cloud": "aws",
                "hosts": 2,
                "placement": {"region": "us-east-1", "zone": "us-east-1a"},
            }
        },
        "gateway": {"hosts": 1},
        "access": {"ssh_from": ["203.0.113.0/24"]},
    }
    at = tmp_path / "demo"
    at.mkdir()
    (at / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    made(at, "main-0", "main-1", "gateway-0")
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path))
    return at


def made(folder: Path, *names: str) -> None:
    host = {"id": "i", "user": "ubuntu", "ssh_host_key": KEY, "zone": "us-east-1a"}
    hosts = {name: {"address": f"203.0.113.{number}", **host} for number, name in enumerate(names, 1)}
    stack = {"version": 1, "fleet": "demo", "hosts": hosts}
    (folder / "stack.json").write_text(json.dumps(stack), encoding="utf-8")


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ``pulumi`` that prints what stands in a file; the real one: tests/infra/test_replacing_engine.py."""
    answer = tmp_path / "answer.json"
    program = tmp_path / "bin" / "pulumi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {answer}\n', encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return answer


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["plan", "--fleet", "demo", *words])


def drained(folder: Path, host: str) -> str:
    return f"ansible-playbook -i {folder}/fleet.yml playbooks/drain.yml -e fleet_drain_host={host}"


def answers(pulumi: Path, *steps: dict[str, Any]) -> None:
    pulumi.write_text(json.dumps({"steps": list(steps)}), encoding="utf-8")


def test_a_fleet_as_its_stack_changes_nothing(folder: Path) -> None:
    done = run("--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["changes"] == []


def test_hosts_that_come_are_told_and_fine(folder: Path) -> None:
    made(folder, "main-0", "gateway-0")
    done = run()
    assert done.exit_code == 0
    assert "would create main-1" in done.stdout


def test_a_host_that_goes_is_refused_and_the_hint_lets_it_go(folder: Path) -> None:
    made(folder, "main-0", "main-1", "main-2", "gateway-0")
    done = run()
    assert done.exit_code == 2
    assert "would delete main-2 (not in fleet.yml)" in done.stdout
    assert "vllm-fleet plan --fleet demo --replace-serving main-2" in done.stderr


def test_the_refusal_is_in_the_json_with_the_plan(folder: Path) -> None:
    made(folder, "main-0", "main-1", "main-2", "gateway-0")
    done = run("--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 2
    assert found["error"]["code"] == "refused"
    assert found["changes"] == [{"host": "main-2", "what": "delete", "why": ["not in fleet.yml"]}]
    assert len(found["hosts"]) == 3


def test_a_fleet_that_protects_nothing_refuses_nothing(folder: Path) -> None:
    file = folder / "fleet.yml"
    file.write_text(file.read_text(encoding="utf-8") + "protect: false\n", encoding="utf-8")
    made(folder, "main-0", "main-1", "main-2", "gateway-0")
    done = run()
    assert done.exit_code == 0
    assert "would delete main-2" in done.stdout


def test_a_replacement_is_seen_by_pulumi_alone(folder: Path, pulumi: Path) -> None:
    answers(
        pulumi,
        step("same", HOST, "main-0"),
        step("create-replacement", HOST, "main-1", ("instanceType",)),
        step("replace", HOST, "main-1", ("instanceType",)),
        step("delete-replaced", HOST, "main-1"),
        step("update", "aws:ec2/securityGroup:SecurityGroup", "demo-us-east-1-serving"),
    )
    done = run("--preview", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["changes"] == [{"host": "main-1", "what": "replace", "why": ["instanceType"]}]
    asked = (pulumi.parent / "asked").read_text(encoding="utf-8")
    assert asked.split()[:3] == ["preview", "--json", "--ignore-protect"]


def test_the_command_for_a_replacement_names_just_the_allowed_host(folder: Path, pulumi: Path) -> None:
    answers(pulumi, step("replace", HOST, "main-1", ("instanceType",)))
    done = run("--replace-serving", "main-1", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["run"] == [
        drained(folder, "main-1"),
        "FLEET_REPLACE_SERVING=main-1 pulumi up --stack demo",
        f"ansible-playbook -i {folder}/fleet.yml site.yml",
    ]


def test_what_goes_is_let_go_in_the_state_with_its_disk(folder: Path, pulumi: Path) -> None:
    answers(
        pulumi,
        step("delete", HOST, "main-2"),
        step("delete", DISK, "main-2-models"),
        step("delete", "aws:ec2/volumeAttachment:VolumeAttachment", "main-2-models", protect=False),
        step("replace", HOST, "main-1", ("ami",)),
    )
    made(folder, "main-0", "main-1", "main-2", "gateway-0")
    done = run("--replace-serving", "main-1,main-2", "--json")
    assert done.exit_code == 0
    site = f"ansible-playbook -i {folder}/fleet.yml site.yml"
    assert json.loads(done.stdout)["run"] == [
        drained(folder, "main-2"),
        f"pulumi state unprotect --yes --stack demo '{urn(HOST, 'main-2')}'",
        f"pulumi state unprotect --yes --stack demo '{urn(DISK, 'main-2-models')}'",
        # Without the name, the run would be for main-1 too.
        "FLEET_REPLACE_SERVING=main-2 pulumi up --stack demo",
        site,
        drained(folder, "main-1"),
        "FLEET_REPLACE_SERVING=main-1 pulumi up --stack demo",
        site,
    ]


def test_all_that_would_go_without_a_name_is_refused(folder: Path, pulumi: Path) -> None:
    answers(pulumi, step("replace", HOST, "main-0", ("ami",)), step("replace", HOST, "main-1", ("ami",)))
    done = run("--preview")
    assert done.exit_code == 2
    assert "replace main-0 (ami)" in done.stderr
    assert "--replace-serving main-0,main-1" in done.stderr
    assert run("--replace-serving", "main-1").exit_code == 0, "a run for main-1 leaves main-0 as it is"


def test_a_host_that_leaves_must_be_named_beside_one_that_stays(folder: Path, pulumi: Path) -> None:
    answers(pulumi, step("replace", HOST, "main-0", ("ami",)), step("delete", HOST, "main-1"))
    done = run("--replace-serving", "main-0")
    assert done.exit_code == 2
    assert "would delete main-1" in done.stderr
    assert "--replace-serving main-0,main-1" in done.stderr


def test_a_change_in_place_that_stops_a_host_is_told_and_refused(folder: Path, pulumi: Path) -> None:
    stopped = step("update", HOST, "main-0", protect=True)
    stopped["oldState"]["inputs"] = {"instanceType": "p5.48xlarge", "tags": {"a": "b"}}
    stopped["newState"] = {"inputs": {"instanceType": "p5en.48xlarge", "tags": {"a": "c"}}}
    tagged = step("update", HOST, "main-1")
    tagged["oldState"]["inputs"], tagged["newState"] = {"tags": {"a": "b"}}, {"inputs": {"tags": {"a": "c"}}}
    answers(pulumi, stopped, tagged)
    done = run("--preview", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["changes"] == [
        {"host": "main-0", "what": "stop", "why": ["instanceType p5.48xlarge -> p5en.48xlarge"]},
        {"host": "main-1", "what": "update", "why": []},
    ]


def test_a_gateway_leaves_with_its_address(folder: Path, pulumi: Path) -> None:
    eip = "aws:ec2/eip:Eip"
    answers(pulumi, step("delete", HOST, "gateway-1"), step("delete", eip, "gateway-1"), step("delete", eip, "other"))
    made(folder, "main-0", "main-1", "gateway-0", "gateway-1")
    told = json.loads(run("--replace-serving", "gateway-1", "--json").stdout)["run"]
    assert [line.split("::")[-1] for line in told if "unprotect" in line] == ["gateway-1'", "gateway-1'"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("main-9", "which is not a host of demo"), ("main-0", "which this plan neither stops nor replaces nor deletes")],
)
def test_a_name_that_needs_no_leave_is_refused(folder: Path, name: str, says: str) -> None:
    found = plan.load(folder)
    changes = replacement.previewed({"steps": [step("replace", HOST, "main-1", ("ami",))]})
    with pytest.raises(FleetError, match=says) as caught:
        replacement.check(found, changes, [name])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("echo \"error: no stack named 'demo' found\" >&2; exit 255", 2, "pulumi stack init demo"),
        ('echo \'{"diagnostics": [{"severity": "error", "message": "no credentials"}]}\'; exit 1', 1, "no credentials"),
        ("echo 'error: PULUMI_CONFIG_PASSPHRASE is not set' >&2; exit 255", 1, "PASSPHRASE is not set"),
    ],
    ids=["no stack", "a diagnostic", "another failure"],
)
def test_a_preview_that_fails_is_one_error(folder: Path, pulumi: Path, script: str, code: int, says: str) -> None:
    (pulumi.parent / "bin" / "pulumi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    done = run("--preview")
    assert isinstance(done.exception, FleetError)
    assert done.exception.exit_code == code
    assert says in str(done.exception)


@pytest.mark.parametrize(
    ("kind", "name", "host"),
    [
        (HOST, "main-0", "main-0"),
        (DISK, "main-0-models", "main-0"),
        (DISK, "something-else", None),
        ("gcp:compute/disk:Disk", "a-models", "a"),
        ("azure-native:compute:VirtualMachine", "a", "a"),
        ("digitalocean:index/droplet:Droplet", "a", "a"),
        ("aws:ec2/eip:Eip", "main-0", None),
    ],
)
def test_the_host_that_a_resource_is(kind: str, name: str, host: str | None) -> None:
    assert replacement.host_of(urn(kind, name)) == host


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no name of a host between its commas"),
        (",,", "has no name of a host between its commas"),
        ("main-0,", "has no name of a host between its commas"),
        ("main-0,nope;x", "'nope;x' is not the name of a host"),
    ],
)
def test_words_that_name_no_host_are_refused_before_pulumi_is_asked(
    text: str, says: str, folder: Path, pulumi: Path
) -> None:
    done = CliRunner().invoke(app, ["plan", "--fleet", "demo", "--replace-serving", text])
    assert isinstance(done.exception, FleetError)
    assert (done.exception.exit_code, done.exception.key) == (2, "--replace-serving")
    assert says in done.exception.message
    assert not (pulumi.parent / "asked").exists()


def test_an_unknown_host_is_told_where_pulumi_cannot_answer(folder: Path, pulumi: Path) -> None:
    pulumi.write_text("no JSON", encoding="utf-8")
    done = CliRunner().invoke(app, ["plan", "--fleet", "demo", "--replace-serving", "main-0,nope"])
    assert isinstance(done.exception, FleetError)
    assert done.exception.exit_code == 2
    assert done.exception.message == "'nope' is neither a host of demo nor in its stack.json"
    assert ["pulumi preview" in each.message for each in done.exception.others] == [True]
