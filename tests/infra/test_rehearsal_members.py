"""Members of a fleet that change one by one, while the rest stay as they are: the real engine, an emulated cloud."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rehearsing import QUIET, Rehearsal, aws_fleet, rehearse

from lab.rehearsal.cloud import Fault

# The engine is built from a package registry.
pytestmark = pytest.mark.network

INSTANCE = "aws:ec2/instance:Instance"
FILES = {"stack.json", "api-key", "api-keys.yml", "ssh"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    """main-0, main-1 and main-2, each with a disk for models, and two gateways."""
    fleet = aws_fleet(main={"host_class": "h100-1", "hosts": 3, "placement": {"model_disk_gib": 100}})
    fleet["gateway"]["hosts"] = 2
    with rehearse(tmp_path_factory.mktemp("members"), fleet) as found:
        found.up()
        found.keep("whole")
        yield found


@pytest.fixture
def whole(stack: Rehearsal) -> Rehearsal:
    stack.put_back("whole")
    stack.cloud.log.clear()
    return stack


def hosts(*names: str) -> Any:
    def change(fleet: Any) -> None:
        fleet["pools"]["main"]["hosts"] = list(names)

    return change


def host_class(name: str) -> Any:
    def change(fleet: Any) -> None:
        fleet["pools"]["main"]["host_class"] = name

    return change


def run(found: Rehearsal, *lines: str) -> str:
    """Runs the commands that 'plan' prints, as a shell would; those of Ansible need hosts that answer."""
    said = ""
    for line in lines:
        if line.startswith("ansible-playbook"):
            continue
        more = ("--yes", "--skip-preview", "--non-interactive") if " up " in f"{line} " else ()
        done = subprocess.run(
            ["sh", "-c", f"{line} {' '.join(more)}"],
            cwd=found.stage.project,
            env=dict(found.stage.environment),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said += done.stdout + done.stderr
    return said


def told_by(found: Rehearsal, command: str) -> tuple[int, str]:
    """Exit code and output of a command of the project, on the fleet of this stage."""
    done = subprocess.run(
        [sys.executable, "-m", "vllm_fleet", command, "--fleet", found.stage.fleet],
        cwd=found.stage.project,
        env={**os.environ, **found.stage.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def touched(found: Rehearsal) -> set[str]:
    """The names in what the cloud was asked to change."""
    return {line.split()[2] for line in found.cloud.log if len(line.split()) > 2}


def folder(found: Rehearsal) -> dict[str, str]:
    return {
        str(path.relative_to(found.stage.folder)): path.read_text(encoding="utf-8")
        for path in sorted(found.stage.folder.rglob("*"))
        if path.is_file()
    }


def test_a_pool_goes_from_a_number_to_names_without_a_difference(whole: Rehearsal) -> None:
    whole.fleet(hosts("main-0", "main-1", "main-2"))
    assert "unchanged" in whole.stage.pulumi("preview", "--expect-no-changes")
    assert touched(whole) == set()


def test_one_is_added_in_the_middle(whole: Rehearsal) -> None:
    before = whole.ids()
    whole.fleet(hosts("main-0", "extra", "main-1", "main-2"))
    whole.up()
    assert touched(whole) == {"extra", "extra-models"}
    assert before.items() <= whole.ids().items()
    assert whole.stack()["extra"]["id"] == whole.ids()["extra"]


def test_one_in_the_middle_is_retired_by_the_printed_commands(whole: Rehearsal) -> None:
    before, files = whole.ids(), folder(whole)
    whole.fleet(hosts("main-0", "main-2"))
    said = whole.stage.pulumi("preview", check=False)
    assert "main-1 lives and is not in fleet.yml: this run would delete it" in said
    assert "--replace-serving main-1" in said
    said = whole.up(check=False)
    assert "main-1 lives and is not in fleet.yml" in said
    assert (touched(whole), folder(whole)["stack.json"]) == (set(), files["stack.json"]), "nothing was touched"
    code, told = whole.plan()
    assert (code, told["error"]["code"]) == (2, "refused")
    code, told = whole.plan("--replace-serving", "main-1")
    assert code == 0
    assert [line.split()[0:3] for line in told["run"]] == [
        ["ansible-playbook", "-i", told["run"][0].split()[2]],
        *[["pulumi", "state", "unprotect"]] * 3,
        ["pulumi", "up", "--stack"],
        ["ansible-playbook", "-i", told["run"][0].split()[2]],
    ]
    assert "playbooks/drain.yml -e fleet_drain_host=main-1" in told["run"][0]
    run(whole, *told["run"])
    assert touched(whole) == {"main-1", "main-1-models"}
    del before["main-1"]
    assert whole.ids() == before
    assert set(whole.stack()) == set(before)
    assert "main-1" not in json.loads(folder(whole)["zones.json"])
    assert "unchanged" in whole.stage.pulumi("preview", "--expect-no-changes", "--diff")
    assert whole.plan()[0] == 0


def test_a_gateway_is_retired_with_its_address(whole: Rehearsal) -> None:
    def one(fleet: Any) -> None:
        fleet["gateway"]["hosts"] = ["gateway-1"]

    whole.fleet(one)
    code, told = whole.plan("--replace-serving", "gateway-0")
    assert code == 0
    run(whole, *told["run"])
    assert {each.name for each in whole.cloud.records_of(":Eip")} >= {"gateway-1"}
    assert "gateway-0" not in {each.name for each in whole.cloud.records_of(":Eip")}
    assert set(whole.stack()) == {"gateway-1", "main-0", "main-1", "main-2"}


def test_a_host_whose_deletion_fails_stays_in_the_inventory_of_everybody(whole: Rehearsal, tmp_path: Path) -> None:
    whole.fleet(hosts("main-0", "main-2"))
    _, told = whole.plan("--replace-serving", "main-1")
    run(whole, *(line for line in told["run"] if "unprotect" in line))
    whole.cloud.faults = [Fault("delete", INSTANCE, "main-1", says="InternalError: try again")]
    said = whole.up(check=False)
    assert "InternalError: try again" in said
    assert "main-1" in whole.ids()
    assert set(whole.stack()) == {"gateway-0", "gateway-1", "main-0", "main-1", "main-2"}
    assert "would delete main-1" in json.dumps(whole.plan()[1]) or whole.plan()[1]["changes"]
    other = checkout(whole, tmp_path)
    other.up(check=False)
    assert "main-1" in other.stack(), "also in a checkout that has never seen it"
    whole.cloud.faults = []
    whole.up()
    assert set(whole.stack()) == set(whole.ids())
    assert "main-1" not in whole.stack()
    other.up()
    assert other.stack() == whole.stack()


def test_a_change_that_stops_hosts_is_refused_and_made_one_host_at_a_time(whole: Rehearsal) -> None:
    before = whole.ids()
    whole.fleet(host_class("h200-8"))
    for said in (whole.stage.pulumi("preview", check=False), whole.up(check=False)):
        assert re.search(r"main-\d would be stopped and started again \(instanceType p5.4xlarge -> p5en", said), said
        assert re.search(r"vllm-fleet plan --fleet demo --replace-serving main-\d", said)
    assert touched(whole) == set()
    code, told = whole.plan("--preview")
    assert code == 2
    assert {(each["host"], each["what"]) for each in told["changes"]} == {(f"main-{n}", "stop") for n in range(3)}
    code, told = whole.plan("--replace-serving", "main-1,main-0")
    assert code == 0
    ups = [line for line in told["run"] if "pulumi up" in line]
    assert ups == [f"FLEET_REPLACE_SERVING={name} pulumi up --stack demo" for name in ("main-1", "main-0")]
    drains = [line.rpartition("=")[2] for line in told["run"] if "drain.yml" in line]
    assert drains == ["main-1", "main-0"]
    said = whole.up(check=False, FLEET_REPLACE_SERVING="main-0,main-1")
    assert "names main-0 and main-1, which would stop at the same time: both serve openai/gpt-oss-20b" in said
    assert touched(whole) == set()
    run(whole, ups[0])
    assert touched(whole) == {"main-1"}
    assert [whole.cloud.named(INSTANCE, f"main-{n}").inputs["instanceType"][:4] for n in range(3)] == [
        "p5.4",
        "p5en",
        "p5.4",
    ]
    run(whole, ups[1], "FLEET_REPLACE_SERVING=main-2 pulumi up --stack demo")
    assert whole.ids() == before
    assert "unchanged" in whole.stage.pulumi("preview", "--expect-no-changes")


def test_one_is_replaced_while_the_rest_keep_their_image(whole: Rehearsal) -> None:
    from test_rehearsal import newer_images

    def latest(fleet: Any) -> None:
        fleet["pools"]["main"]["placement"]["image"] = "latest"

    before = whole.ids()
    newer_images(whole)
    whole.fleet(latest)
    code, told = whole.plan("--replace-serving", "main-1")
    assert code == 0
    run(whole, *told["run"])
    after = whole.ids()
    assert {name for name in before if before[name] != after[name]} == {"main-1"}
    assert touched(whole) == {"main-1", "main-1-models"}
    assert whole.stack()["main-1"]["id"] == after["main-1"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("network", "10.61.0.0/16", "is 10.61.0.0/16, but aws us-east-1 has 10.60.0.0/16, and "),
        ("zones", ["us-east-1b"], "has no us-east-1a, where main-0 stands: a host cannot move"),
    ],
)
def test_what_hosts_that_stand_cannot_follow_is_refused(
    key: str, value: Any, says: str, whole: Rehearsal, tmp_path: Path
) -> None:
    def change(fleet: Any) -> None:
        fleet["pools"]["main"]["placement"][key] = value

    files = folder(whole)
    whole.fleet(change)
    file = whole.stage.folder / "fleet.yml"
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:"))
    for found in (whole, checkout(whole, tmp_path)):
        said = found.stage.pulumi("preview", check=False) + found.up(check=False)
        assert says in said, said
        assert f"fleet.yml:{line}: pools.main.placement.{key}: " in said
    assert touched(whole) == set()
    code, said = told_by(whole, "check")
    assert (code, says in said) == (2, True), said
    code, said = told_by(whole, "plan")
    assert (code, says in said) == (2, True), said
    assert {**folder(whole), "fleet.yml": ""} == {**files, "fleet.yml": ""}


def test_a_fleet_that_moves_to_another_region_is_refused(whole: Rehearsal) -> None:
    def change(fleet: Any) -> None:
        fleet["pools"]["main"]["placement"] = {"region": "us-west-2", "zones": ["us-west-2a"]}

    whole.fleet(change)
    assert "is us-west-2, but main-0 stands in aws us-east-1" in whole.stage.pulumi("preview", check=False)
    code, said = told_by(whole, "plan")
    assert (code, "stands in aws us-east-1" in said) == (2, True), said


def checkout(found: Rehearsal, parent: Path) -> Rehearsal:
    """Another checkout of the same stack: it has fleet.yml alone, as git does."""
    project = parent / "other"
    fleet_folder = project / "inventories" / found.stage.fleet
    fleet_folder.mkdir(parents=True)
    shutil.copy(found.stage.folder / "fleet.yml", fleet_folder)
    shutil.copy(found.stage.project / "Pulumi.yaml", project)
    for name in ("Pulumi.demo.yaml",):
        if (found.stage.project / name).exists():
            shutil.copy(found.stage.project / name, project)
    (project / "infra").symlink_to((found.stage.project / "infra").resolve())
    environment = {**found.stage.environment, "VLLM_FLEET_INVENTORIES": str(project / "inventories")}
    return Rehearsal(replace(found.stage, project=project, environment=environment), found.cloud)


def test_another_checkout_writes_what_it_lacks_and_changes_nothing_else(whole: Rehearsal, tmp_path: Path) -> None:
    before = folder(whole)
    other = checkout(whole, tmp_path)
    said = other.stage.pulumi("preview")
    assert "~ 4 to update" in said
    other.up()
    made = folder(other)
    assert {name for name in made if name.split("/")[0] in FILES} == {
        *(FILES - {"ssh"}),
        "ssh/id_ed25519",
    }
    assert {name: before[name] for name in made if name != "zones.json"} == {
        name: text for name, text in made.items() if name != "zones.json"
    }
    assert folder(whole) == before, "the files of the first checkout stay"
    assert ((other.stage.folder / "ssh" / "id_ed25519").stat().st_mode & 0o777) == 0o600
    for found in (whole, other):
        assert "unchanged" in found.stage.pulumi("preview", "--expect-no-changes")
        found.stage.pulumi("refresh", *QUIET)
        assert "unchanged" in found.stage.pulumi("preview", "--expect-no-changes")
    assert touched(whole) == set()


def test_a_fresh_clone_in_the_same_place_gets_its_files(whole: Rehearsal) -> None:
    before = folder(whole)
    for path in whole.stage.folder.iterdir():
        if path.name != "fleet.yml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    whole.up()
    after = folder(whole)
    assert {name: text for name, text in before.items() if name != "zones.json"} == after


def test_a_state_with_the_paths_of_one_checkout_is_taken_over_and_deletes_no_file(
    whole: Rehearsal, tmp_path: Path
) -> None:
    exported = json.loads(whole.stage.pulumi("stack", "export", "--show-secrets"))
    for row in exported["deployment"]["resources"]:
        if row["type"].endswith(":TextFile"):
            at = str(whole.stage.project / "inventories" / row["outputs"]["path"])
            row["id"] = row["outputs"]["path"] = row["inputs"]["path"] = at
            row["inputs"].pop("meanwhile", None)
    file = tmp_path / "state.json"
    file.write_text(json.dumps(exported), encoding="utf-8")
    whole.stage.pulumi("stack", "import", "--file", str(file))
    before = folder(whole)
    other = checkout(whole, tmp_path)
    other.up()
    assert folder(whole) == before
    assert "unchanged" in whole.stage.pulumi("preview", "--expect-no-changes")


def test_destroy_removes_the_files_of_its_own_checkout_alone(whole: Rehearsal, tmp_path: Path) -> None:
    whole.fleet(lambda fleet: fleet.update(protect=False))
    whole.up()
    other = checkout(whole, tmp_path)
    other.up()
    before = folder(whole)
    other.stage.pulumi("destroy", *QUIET[:2])
    assert folder(whole) == before
    assert {path.name for path in other.stage.folder.iterdir()} <= {"fleet.yml", "zones.json"}


def test_a_key_of_the_stack_is_not_deleted_while_hosts_take_no_other(whole: Rehearsal) -> None:
    whole.fleet(lambda fleet: fleet["access"].update(ssh_authorised_keys=["ssh-ed25519 AAAA"]))
    said = whole.stage.pulumi("preview", check=False)
    assert "would delete the key that the stack made, and main-0 takes no other" in said
