"""Whatever stands in a file or an override: a record, or an error that names file and line; never anything else."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import root
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.host import instance_files
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.encoding import Encodings
from vllm_fleet.schema.fleet import Fleet, Overrides
from vllm_fleet.schema.known_issue import KnownIssues
from vllm_fleet.schema.recipe import Engine, HostClass, Model, Profiles
from vllm_fleet.schema.spelling import Spellings

FILES: list[tuple[str, type[BaseModel]]] = [
    ("recipes/host_classes/mi300x.yml", HostClass),
    ("recipes/engines/vllm-0.32.0-cpu.yml", Engine),
    ("recipes/engines/rocm-open-mi355.yml", Engine),
    ("recipes/models/openai/gpt-oss-120b.yml", Model),
    ("recipes/known_issues.yml", KnownIssues),
    ("recipes/spellings.yml", Spellings),
    ("recipes/profiles.yml", Profiles),
    ("recipes/encodings.yml", Encodings),
    ("tests/fixtures/fleets/golden/fleet.yml", Fleet),
]
#: Mappings whose keys are names that somebody chose: there any key may stand.
FREE = {
    "args",
    "env",
    "at_least",
    "placement",
    "static",
    "alias",
    "pools",
    "encodings",
    "files",
    "models",
    "shutdown",
    "replaces",
}

strange_keys = st.sampled_from(["no_such_key", "no-such-key", "", " ", "ключ", 1, 1.5, True, None])
strange_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=2) | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def few(count: int) -> Any:
    # Each example dumps and parses a file, on machines that do other work too: slow is no fault here. The folder and
    # the catalogue are shared by the examples, which change neither.
    ignored = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
    return settings(max_examples=count, deadline=None, suppress_health_check=ignored)


@functools.cache
def data_of(file: str) -> Any:
    return yaml.load((root() / file).read_text(encoding="utf-8"), yaml.CSafeLoader)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Each place in the data that has a key or an index."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((*at, key), *paths_in(item, (*at, key)))]


def parent(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def parsed(folder: Path, data: Any, kind: type[BaseModel]) -> BaseModel | FleetError:
    """The record, or the error; the error must say where, and be printable in both forms."""
    path = folder / "mutated.yml"
    path.write_text(yaml.dump(data, Dumper=yaml.CSafeDumper, allow_unicode=True), encoding="utf-8")
    try:
        return yaml_document.parse(yaml_document.read(path), kind)
    except FleetError as fault:
        for each in (fault, *fault.others):
            assert each.file is not None
            assert each.file.endswith("mutated.yml")
            assert each.line is not None
            assert f"mutated.yml:{each.line}" in str(each)
            assert each.record()["code"] == "bad-input"
        return fault


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mutated")


@pytest.mark.parametrize(("file", "kind"), FILES, ids=[file for file, _ in FILES])
def test_a_valid_file_survives_the_round_trip(folder: Path, file: str, kind: type[BaseModel]) -> None:
    record = parsed(folder, data_of(file), kind)
    assert isinstance(record, kind), record
    assert parsed(folder, record.model_dump(), kind) == record


@pytest.mark.parametrize(("file", "kind"), FILES, ids=[file for file, _ in FILES])
@given(draw=st.data(), key=strange_keys)
@few(25)
def test_a_strange_key_is_an_error(folder: Path, file: str, kind: type[BaseModel], draw: Any, key: Any) -> None:
    data = copy.deepcopy(data_of(file))
    path = draw.draw(st.sampled_from([path for path in paths_in(data) if isinstance(path[-1], str)]))
    assume(not FREE & set(path[:-1]))
    owner = parent(data, path)
    owner[key] = owner.pop(path[-1])
    assert isinstance(parsed(folder, data, kind), FleetError)


@pytest.mark.parametrize(("file", "kind"), FILES, ids=[file for file, _ in FILES])
@given(draw=st.data(), value=strange_values)
@few(40)
def test_a_strange_value_is_a_record_or_an_error(
    folder: Path, file: str, kind: type[BaseModel], draw: Any, value: Any
) -> None:
    data = copy.deepcopy(data_of(file))
    path = draw.draw(st.sampled_from(paths_in(data)))
    parent(data, path)[path[-1]] = value
    found = parsed(folder, data, kind)
    if isinstance(found, kind):
        # By text: nan is not equal to itself.
        assert repr(kind.model_validate(found.model_dump())) == repr(found)


@pytest.mark.parametrize(("file", "kind"), FILES, ids=[file for file, _ in FILES])
@given(draw=st.data())
@few(25)
def test_a_key_that_is_gone_is_a_record_or_an_error(folder: Path, file: str, kind: type[BaseModel], draw: Any) -> None:
    data = copy.deepcopy(data_of(file))
    path = draw.draw(st.sampled_from(paths_in(data)))
    del parent(data, path)[path[-1]]
    assert isinstance(parsed(folder, data, kind), kind | FleetError)


@pytest.mark.parametrize(
    "text", ["{[1]: 2}", "{{a: 1}: 2}", "? [a, b]\n: c", "!!set {a, b}", "- 1", "a: &x [*x]", "", "\t"]
)
def test_text_that_no_file_should_hold(folder: Path, text: str) -> None:
    path = folder / "mutated.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        yaml_document.parse(yaml_document.read(path), Profiles)
    assert "mutated.yml" in str(caught.value)


READ_BY_ARITHMETIC = [
    "args.gpu-memory-utilization",
    "args.kv-cache-dtype",
    "args.max-model-len",
    "args.max-num-seqs",
    "args.tensor-parallel-size",
    "env.VLLM_CPU_KVCACHE_SPACE",
    "args.compilation-config",
    "args.cuda-graph-sizes",
    "args.disable-log-requests",
]
#: What a mapping may hold where vLLM reads one.
nearly = st.dictionaries(st.sampled_from(["pass_config", "full_cuda_graph", "enable_noop"]), strange_values, max_size=2)


@pytest.mark.parametrize("name", READ_BY_ARITHMETIC)
@given(value=strange_values | nearly | st.integers(-2, 2) | st.floats(-2, 2), where=st.sampled_from(["cpu", "gpu"]))
@few(30)
def test_an_override_of_any_value_is_a_deployment_or_an_error(name: str, value: Any, where: str) -> None:
    group, _, key = name.partition(".")
    if group == "env":
        value = None if value is None else str(value)
    layer: dict[str, Any] = {group: {key: value}}
    asked = {
        "cpu": Question("cpu-2", "vllm-fleet/lab-gpt-oss", "max-throughput"),
        "gpu": Question("h100-8", "openai/gpt-oss-120b", "max-throughput", "vllm-0.12.0-cuda"),
    }[where]
    try:
        own = Overrides(why="a test wants it so", **layer)
        question = Question(asked.host_class, asked.model, asked.profile, asked.engine, overrides=own)
        found = resolve(catalogs.load(), question)
    except ValidationError as fault:
        assert "quote it" in str(fault)
    except FleetError as fault:
        assert fault.code in ("bad-input", "refused")
        assert fault.message
    else:
        assert isinstance(found, Deployment)
        assert found.instances >= 1
        assert found.fit.max_num_seqs >= 1
        assert json.loads(json.dumps(found.record(), allow_nan=False)) == found.record()
        assert yaml.safe_load(instance_files.config_text(found.args, mappings_as_text=found.mappings_as_text))
