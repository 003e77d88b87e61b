"""What spreads an instance over more processes, GPUs or hosts than the plan counts is refused, by name and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_yaml_as_written import errors_of, from_fixture

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import root
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.parallelism import DEVICE_VARIABLES, SPREADING_FLAGS, SPREADING_VARIABLES
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.fleet import Overrides

RELEASES = sorted((root() / "recipes" / "engines" / "names").glob("0.*.yml"))
#: Names that look as if they spread an instance, and that do not change the number of its processes or GPUs.
HARMLESS = {
    "tensor-parallel-size": "is counted",
    "decode-context-parallel-size": "uses the GPUs of the tensor parallelism; judged by its divisor",
    "distributed-executor-backend": "judged by its value",
    "api-server-count": "judged by its value",
    "enable-expert-parallel": "spreads experts over the same GPUs",
    "enable-multimodal-encoder-data-parallel": "uses the GPUs of the tensor parallelism",
    "max-parallel-loading-workers": "threads that load weights",
    "ray-workers-use-nsight": "profiling of workers that Ray starts",
    "renderer-num-workers": "threads of the API process",
    "worker-cls": "the class of a worker",
    "worker-extension-cls": "the class of a worker",
    "numa-bind-nodes": "NUMA nodes of one host",
}
SPREADING = re.compile(
    r"parallel|nnodes|node-rank|master-|headless|executor|device-ids|elastic|api-server-count|worker|numa-bind-nodes"
)
SPREADING_ENV = re.compile(r"^(VLLM_DP_|(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$|.*_VISIBLE_DEVICES$)")


def overridden(catalog: Catalog, args: dict[str, Any], env: dict[str, str] | None = None) -> Deployment:
    own = Overrides(args=args, env=dict(env or {}), why="a test wants it so")
    return resolve(catalog, Question("h100-8", "openai/gpt-oss-120b", engine="vllm-0.32.0-cuda", overrides=own))


def test_the_overrides_of_public_reports_are_refused_with_their_lines(tmp_path: Path) -> None:
    errors = errors_of(from_fixture(tmp_path, "parallelism"))
    assert [(error.line, error.key) for error in errors] == [
        (11, "pools.replicas.overrides.args.data-parallel-size"),
        (17, "pools.stages.overrides.args.pipeline-parallel-size"),
        (23, "pools.twice.overrides.args.pipeline-parallel-size"),
        (23, "pools.twice.overrides.args.nnodes"),
    ]
    for error in errors:
        assert "this project serves within one host, with tensor parallelism" in error.message
        assert (error.code, error.exit_code) == ("refused", 2)


@pytest.mark.parametrize("file", RELEASES, ids=lambda file: file.stem)
def test_every_argument_of_a_release_that_spreads_an_instance_is_judged(file: Path) -> None:
    names = yaml.safe_load(file.read_text(encoding="utf-8"))
    flags = {flag for flag in names["flags"] if SPREADING.search(flag)}
    assert flags - set(SPREADING_FLAGS) - set(HARMLESS) == set()
    variables = {name for name in names["env"] if SPREADING_ENV.search(name)}
    assert variables - SPREADING_VARIABLES - DEVICE_VARIABLES == set()


def test_every_refused_name_is_one_that_a_release_reads() -> None:
    flags: set[str] = set()
    env: set[str] = set(yaml.safe_load((RELEASES[0].parent / "beside.yml").read_text(encoding="utf-8"))["env"])
    for file in RELEASES:
        names = yaml.safe_load(file.read_text(encoding="utf-8"))
        flags |= set(names["flags"])
        env |= set(names["env"])
    assert set(SPREADING_FLAGS) - flags == set()
    assert (SPREADING_VARIABLES | DEVICE_VARIABLES) - env == set()


@pytest.mark.parametrize("flag", SPREADING_FLAGS)
def test_each_flag_is_refused_with_another_value_than_its_default(flag: str, catalog: Catalog) -> None:
    names = catalog.names(catalog.engine("vllm-0.32.0-cuda")).flags[flag]
    other: Any = {"int": 2, "bool": True, "str": "x"}[names["type"]]
    with pytest.raises(FleetError, match=f": {flag} ") as caught:
        overridden(catalog, {flag: other})
    assert caught.value.key == f"args.{flag}"
    if names["default"] is not None and names["type"] != "bool":
        assert overridden(catalog, {flag: names["default"]}).args[flag] == names["default"]


@pytest.mark.parametrize("name", sorted(SPREADING_VARIABLES | (DEVICE_VARIABLES - {"ROCR_VISIBLE_DEVICES"})))
def test_each_variable_is_refused(name: str, catalog: Catalog) -> None:
    with pytest.raises(FleetError, match=f": {name} ") as caught:
        overridden(catalog, {}, {name: "1"})
    assert (caught.value.key, caught.value.code) == (f"env.{name}", "refused")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"distributed-executor-backend": "ray"}, "starts processes elsewhere"),
        ({"distributed-executor-backend": "external_launcher"}, "starts processes elsewhere"),
        ({"api-server-count": 4}, "one API process"),
        ({"tensor-parallel-size": 4, "decode-context-parallel-size": 8}, "does not divide the tensor-parallel-size, 4"),
        ({"tensor-parallel-size": 4, "decode-context-parallel-size": 0}, "does not divide the tensor-parallel-size, 4"),
    ],
)
def test_a_value_that_spreads_an_instance_is_refused(args: dict[str, Any], says: str, catalog: Catalog) -> None:
    with pytest.raises(FleetError, match=says):
        overridden(catalog, args)


@pytest.mark.parametrize(
    "args",
    [
        {"distributed-executor-backend": "mp"},
        {"api-server-count": 1},
        {"tensor-parallel-size": 4, "decode-context-parallel-size": 2},
        {"enable-expert-parallel": True},
    ],
)
def test_what_stays_within_the_planned_gpus_is_served(args: dict[str, Any], catalog: Catalog) -> None:
    deployment = overridden(catalog, args)
    assert deployment.instances * deployment.tensor_parallel_size == 8
