"""The Pulumi program on the lab, by what it asks of the engine."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, get_args

import pulumi
import pytest
from host_keys import public_key
from recording import Recorder, make_args, make_host, make_plan

from infra import clouds
from infra.fleet import Fleet, FleetArgs
from infra.hosts import CloudArgs, CloudComponent, inventory_text
from lab.cloud import LabCloud, places
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import root
from vllm_fleet.catalogue.catalogue import load
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Stack, StaticHost
from vllm_fleet.schema.recipe import Cloud

PLACE_OF_BOXES = {"bridge": "vf-demo", "subnet": "10.70.0.0/24", "first": 41}
HOSTS = [make_host("lab-0"), make_host("lab-1", 1), make_host("gateway-0")]


def build(tmp_path: Path, hosts: list[HostPlan]) -> Fleet:
    return Fleet("demo", FleetArgs(make_plan(tmp_path / "demo", hosts)))


def finished(fleet: Fleet) -> pulumi.Output[Any]:
    """The inventory, when the whole program is through."""
    return fleet.inventory


@pulumi.runtime.test
def test_each_planned_host_is_one_resource(tmp_path: Path, recorder: Recorder) -> Any:
    def check(_: Any) -> None:
        assert {name: each["address"] for name, each in recorder.of("Host").items()} == {
            "lab-0": "10.70.0.11",
            "lab-1": "10.70.0.12",
            "gateway-0": "10.70.0.2",
        }

    return finished(build(tmp_path, HOSTS)).apply(check)


@pulumi.runtime.test
def test_a_host_gets_its_own_host_key_and_the_stack_s_deploy_key(tmp_path: Path, recorder: Recorder) -> Any:
    def check(_: Any) -> None:
        host = recorder.of("Host")["lab-1"]
        assert host["private_host_key"] == "PRIVATE lab-1-host-key"
        assert host["host_key"] == "ssh-ed25519 lab-1-host-key"
        assert host["authorised_key"] == "ssh-ed25519 demo-deploy-key"
        assert sorted(recorder.of("SshKeyPair")) == [
            "demo-deploy-key",
            "gateway-0-host-key",
            "lab-0-host-key",
            "lab-1-host-key",
        ]

    return finished(build(tmp_path, HOSTS)).apply(check)


@pulumi.runtime.test
def test_every_host_knows_all_names(tmp_path: Path, recorder: Recorder) -> Any:
    def check(_: Any) -> None:
        names = {"lab-0": "10.70.0.11", "lab-1": "10.70.0.12", "gateway-0": "10.70.0.2"}
        assert [each["peers"] for each in recorder.of("Host").values()] == [names] * 3

    return finished(build(tmp_path, HOSTS)).apply(check)


@pulumi.runtime.test
def test_a_pool_of_images_gets_hosts_that_run_containers(tmp_path: Path, recorder: Recorder) -> Any:
    asked = Question("cpu-2", "vllm-fleet/lab-gpt-oss", install="docker")
    hosts = [*HOSTS, make_host("box-0", placement=PLACE_OF_BOXES, deployment=resolve(load(), asked))]

    def check(_: Any) -> None:
        made = recorder.of("Host")
        assert [name for name, each in made.items() if each["containers"]] == ["box-0"]
        assert made["box-0"]["disk_gib"] > made["lab-0"]["disk_gib"]

    return finished(build(tmp_path, hosts)).apply(check)


@pulumi.runtime.test
def test_one_network_a_bridge_with_room_for_its_hosts(tmp_path: Path, recorder: Recorder) -> Any:
    elsewhere = {"bridge": "vf-other", "subnet": "10.71.0.0/24"}
    hosts = [*HOSTS, make_host("far-0", placement=elsewhere)]

    def check(_: Any) -> None:
        networks = recorder.of("Network")
        assert sorted(networks) == ["vf-demo", "vf-other"]
        assert networks["vf-demo"]["subnet"] == "10.70.0.0/24"
        assert networks["vf-demo"]["owner"] == str((tmp_path / "demo").resolve())
        assert networks["vf-demo"]["disk_gib"] == sum(
            each["disk_gib"] for each in recorder.of("Host").values() if each["bridge"] == "vf-demo"
        )
        assert recorder.of("Host")["far-0"]["peers"] == {"far-0": "10.71.0.11"}

    return finished(build(tmp_path, hosts)).apply(check)


@pulumi.runtime.test
def test_the_inventory_is_what_the_contract_says(tmp_path: Path, recorder: Recorder) -> Any:
    def check(inventory: dict[str, Any]) -> None:
        # The recorder's keys are names; the contract takes whole keys only.
        hosts = {name: {**host, "ssh_host_key": public_key("Key")} for name, host in inventory["hosts"].items()}
        stack = Stack.model_validate({**inventory, "hosts": hosts})
        assert (stack.version, stack.fleet, sorted(stack.hosts)) == (1, "demo", ["gateway-0", "lab-0", "lab-1"])
        assert inventory["hosts"]["lab-0"] == {
            "address": "10.70.0.11",
            "id": "id-of-lab-0",
            "user": "deploy",
            "ssh_host_key": "ssh-ed25519 lab-0-host-key",
            "zone": "vf-demo",
        }

    return finished(build(tmp_path, HOSTS)).apply(check)


def test_the_files_of_the_fleet_s_folder(tmp_path: Path, recorder: Recorder) -> None:
    @pulumi.runtime.test
    def program() -> Any:
        return finished(build(tmp_path, HOSTS))

    program()
    # Below the folder of the inventories: what another checkout has too.
    files = {each["path"].removeprefix("demo/"): each for each in recorder.of("TextFile").values()}
    assert {name: each["mode"] for name, each in files.items()} == {
        "stack.json": "0o644",
        "ssh/id_ed25519": "0o600",
        "api-key": "0o600",
        "api-keys.yml": "0o644",
    }
    assert files["ssh/id_ed25519"]["text"] == "PRIVATE demo-deploy-key"
    assert files["api-key"]["text"] == "KEY"
    assert files["api-keys.yml"]["text"] == f'keys:\n  demo: "sha256:{"0" * 64}"\n'
    text = files["stack.json"]["text"]
    assert text == inventory_text(json.loads(text))
    assert text.endswith("}\n")
    assert recorder.resources[-1].name == "demo-inventory", "stack.json is written last"


def test_owners_that_others_have_added_stay_in_the_file_of_api_keys(tmp_path: Path, recorder: Recorder) -> None:
    @pulumi.runtime.test
    def program() -> Any:
        return finished(build(tmp_path, HOSTS))

    own = f'  team-a: {{digest: "sha256:{"1" * 64}", in_flight: 3}}  # of Ann\n'
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "api-keys.yml").write_text(f'keys:\n  demo: "sha256:{"2" * 64}"\n{own}', encoding="utf-8")
    program()
    (written,) = (each for each in recorder.of("TextFile").values() if each["path"] == "demo/api-keys.yml")
    assert written["text"] == f'keys:\n  demo: "sha256:{"0" * 64}"\n{own}'


@pulumi.runtime.test
def test_static_hosts_make_nothing(tmp_path: Path, recorder: Recorder) -> Any:
    where = StaticHost(address="192.0.2.1", ssh_host_key=public_key("Key"))
    static = make_host("rack-0", cloud="static", placement={}, static=where)

    def check(inventory: dict[str, Any]) -> None:
        assert inventory["hosts"] == {}
        assert recorder.of("Host") == {}

    return finished(build(tmp_path, [static])).apply(check)


def test_every_known_cloud_has_a_component() -> None:
    assert set(clouds.registered_clouds()) == set(get_args(Cloud))
    made = [clouds.component(cloud) for cloud in get_args(Cloud)]
    assert all(issubclass(each, CloudComponent) for each in made)  # type: ignore[arg-type]


def test_the_environment_registers_what_pyproject_names() -> None:
    project = tomllib.loads((root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {name: entry.value for name, entry in clouds.registered_clouds().items()} == project["entry-points"][
        clouds.GROUP
    ]


def registering(monkeypatch: pytest.MonkeyPatch, *entries: EntryPoint) -> None:
    monkeypatch.setattr(clouds, "entry_points", lambda group: EntryPoints(e for e in entries if e.group == group))


def test_an_environment_of_another_release_is_told_from_an_unknown_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    registering(monkeypatch, EntryPoint("aws", "infra.clouds.aws:AwsCloud", clouds.GROUP))
    with pytest.raises(FleetError, match="environment does not register the cloud 'lab'") as fault:
        clouds.component("lab")
    assert "make venv" in fault.value.hint
    assert fault.value.exit_code == 2


def test_another_package_adds_a_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    registering(monkeypatch, EntryPoint("moon", "lab.cloud:LabCloud", clouds.GROUP))
    assert clouds.component("moon") is LabCloud


def test_two_packages_that_register_one_cloud_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [EntryPoint("lab", value, clouds.GROUP) for value in ("lab.cloud:LabCloud", "other:Cloud")]
    registering(monkeypatch, *twice)
    with pytest.raises(FleetError, match=r"two packages register the cloud 'lab': lab\.cloud:LabCloud and other:Cloud"):
        clouds.component("lab")


def test_an_unknown_cloud_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(FleetError, match="no hosts in the cloud 'moon'") as fault:
        clouds.component("moon")
    assert "lab" in fault.value.hint


def args_of(tmp_path: Path, hosts: list[HostPlan]) -> CloudArgs:
    return make_args(make_plan(tmp_path / "demo", hosts))


@pytest.mark.parametrize(
    ("hosts", "where", "says"),
    [
        (
            [
                make_host("lab-0"),
                make_host("lab-1", 1),
                make_host("gateway-0", placement={**HOSTS[0].placement, "first": 12}),
            ],
            ("gateway", "first", 8),
            "lab-1 and gateway-0 have the same address 10.70.0.12",
        ),
        (
            [make_host("lab-0"), make_host("b-0", placement={"bridge": "vf-demo", "subnet": "10.71.0.0/24"})],
            ("pools.b", "subnet", 2),
            "has the subnet 10.70.0.0/24 for lab-0",
        ),
        ([make_host("lab-0", placement={"bridg": "x"})], ("pools.lab", "bridg", 6), "unknown key"),
    ],
)
def test_a_wrong_placement_is_told_with_its_place(
    tmp_path: Path, hosts: list[HostPlan], where: tuple[str, str, int], says: str
) -> None:
    with pytest.raises(FleetError, match=says) as fault:
        places(args_of(tmp_path, hosts))
    pool, key, line = where
    assert (fault.value.key, fault.value.line) == (f"{pool}.placement.{key}", line)
    assert fault.value.file is not None
    assert fault.value.file.endswith("fleet.yml")
