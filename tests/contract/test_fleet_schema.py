"""The JSON Schema of fleet.yml: it is the records' own, takes every fleet here, and flags what an editor must flag."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.cli import app
from vllm_fleet.schema import fleet_schema
from vllm_fleet.schema.cloud import PLACEMENTS
from vllm_fleet.schema.fleet import Fleet

EXAMPLES = sorted(paths.root().glob("inventories/*/fleet.yml"))
FLEETS = [*EXAMPLES, *sorted(paths.root().glob("tests/**/fleet.yml"))]


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    schema = fleet_schema.fleet_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def errors(validator: Draft7Validator, data: Any) -> list[tuple[str, str]]:
    """The place and the violated keyword of each error."""
    return [(".".join(map(str, error.absolute_path)), error.validator) for error in validator.iter_errors(data)]


def name_of(file: Path) -> str:
    return str(file.relative_to(paths.root()).parent)


def test_the_committed_schema_is_that_of_the_records() -> None:
    text = (paths.root() / fleet_schema.FILE).read_text(encoding="utf-8")
    assert text == fleet_schema.fleet_schema_text(), "the records have changed: make golden"


def test_the_command_prints_it() -> None:
    assert CliRunner().invoke(app, ["schema"]).stdout == fleet_schema.fleet_schema_text()


def test_each_key_has_a_description() -> None:
    schema = fleet_schema.fleet_schema()
    records = {"Fleet": schema, **schema["$defs"]}
    keys = [(name, key, entry) for name, record in records.items() for key, entry in record["properties"].items()]
    assert len(keys) > 100
    assert [f"{name}.{key}" for name, key, entry in keys if len(entry.get("description", "")) < 10] == []


def test_the_schema_has_each_key_of_the_records() -> None:
    schema = fleet_schema.fleet_schema()
    assert set(schema["properties"]) == set(Fleet.model_fields)
    for model in PLACEMENTS.values():
        assert set(schema["$defs"][model.__name__]["properties"]) == set(model.model_fields)


@pytest.mark.parametrize("file", FLEETS, ids=name_of)
def test_each_fleet_fits_the_schema(validator: Draft7Validator, file: Path) -> None:
    # The fleet of the image tests gets the digest of an image that they build.
    text = file.read_text(encoding="utf-8").replace('"DIGEST"', f"sha256:{'0' * 64}")
    assert errors(validator, yaml.safe_load(text)) == []


@pytest.mark.parametrize("file", EXAMPLES, ids=name_of)
def test_the_first_line_of_each_example_names_the_schema(file: Path) -> None:
    line = file.read_text(encoding="utf-8").splitlines(keepends=True)[0]
    assert line == fleet_schema.schema_line(file.parent)
    assert (file.parent / line.partition("$schema=")[2].strip()).resolve() == paths.root() / fleet_schema.FILE


@pytest.mark.parametrize(
    ("place", "key", "value", "error"),
    [
        ("", "gatway", {}, ("", "additionalProperties")),
        ("", "fleet", 7, ("fleet", "type")),
        ("", "fleet", "No Name", ("fleet", "pattern")),
        ("", "protect", "yes", ("protect", "type")),
        ("pools.h100", "host_clas", "h100-8", ("pools.h100", "additionalProperties")),
        ("pools.h100", "hosts", "2", ("pools.h100.hosts", "anyOf")),
        ("pools.h100", "cloud", "amazon", ("pools.h100.cloud", "enum")),
        ("pools.h100", "profile", "fast", ("pools.h100.profile", "anyOf")),
        ("pools", "No Name", {"host_class": "h100-8", "cloud": "aws"}, ("pools", "additionalProperties")),
        ("pools.h100.placement", "regoin", "us-east-1", ("pools.h100.placement", "additionalProperties")),
        ("pools.h100.placement", "project", "mine", ("pools.h100.placement", "additionalProperties")),
        ("pools.h100.placement", "disk_gib", "300", ("pools.h100.placement.disk_gib", "type")),
        ("pools.h100.placement", "disk_gib", 20, ("pools.h100.placement.disk_gib", "minimum")),
        ("pools.h100.placement", "capacity", {"kind": "rent"}, ("pools.h100.placement.capacity.kind", "enum")),
        ("gateway", "port", 0, ("gateway.port", "exclusiveMinimum")),
        ("gateway.placement", "disk_gib", "200", ("gateway.placement.disk_gib", "type")),
        ("access", "ssh_through", "vpn", ("access.ssh_through", "enum")),
        ("mirror", "hosts", "gateway-0", ("mirror", "additionalProperties")),
    ],
)
def test_a_wrong_key_type_or_choice_is_flagged_at_its_place(
    validator: Draft7Validator, place: str, key: str, value: Any, error: tuple[str, str]
) -> None:
    good = yaml.safe_load((paths.root() / "inventories" / "example-aws" / "fleet.yml").read_text(encoding="utf-8"))
    data = copy.deepcopy(good)
    section = data
    for part in filter(None, place.split(".")):
        section = section[part]
    section[key] = value
    assert errors(validator, good) == []
    assert errors(validator, data) == [error]


@pytest.mark.parametrize(("place", "key"), [("", "fleet"), ("pools.h100", "cloud"), ("pools.h100.placement", "region")])
def test_a_missing_key_is_flagged(validator: Draft7Validator, place: str, key: str) -> None:
    data = yaml.safe_load((paths.root() / "inventories" / "example-aws" / "fleet.yml").read_text(encoding="utf-8"))
    section = data
    for part in filter(None, place.split(".")):
        section = section[part]
    del section[key]
    assert errors(validator, data) == [(place, "required")]
