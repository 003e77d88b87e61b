"""What ``check`` and the plan of a fleet catch in models, engines, rules and host classes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.recipe import HostClass, Rule, When

LARGE, SMALL = "openai/gpt-oss-120b", "openai/gpt-oss-20b"


def ask(catalog: Catalog, host_class: str, engine: str | None, profile: Any = "balanced", **more: Any) -> Deployment:
    return resolve(catalog, Question(host_class, more.pop("model", LARGE), profile, engine, **more))


def test_nothing_unverified_calls_itself_verified(catalog: Catalog) -> None:
    for name in (LARGE, SMALL):
        assert {entry.status for entry in catalog.models[name].support} == {"unverified", "unsupported"}
        assert set(catalog.models[name].scores) == {"gpqa", "aime25"}


def test_a_fleet_with_an_engine_that_is_not_locked_is_refused(catalog: Catalog, fleets: Any) -> None:
    path = fleets / "golden" / "fleet.yml"
    text = path.read_text(encoding="utf-8")
    for host_class, model, says in (
        ("gb200-4", LARGE, "is not locked for aarch64"),
        ("mi300x-8", LARGE, "on an index of its own"),
        ("r9700-1", SMALL, "has no digest yet"),
    ):
        spec = yaml.safe_load(text)
        for pool in spec["pools"].values():
            pool |= {"host_class": host_class, "model": model}
            for key in ("engine", "overrides", "profile"):
                pool.pop(key, None)
            if host_class != "mi300x-8":
                pool["engine"] = "vllm-0.12.0-cuda" if host_class == "gb200-4" else "rocm-open-r9700"
        path.write_text(yaml.safe_dump(spec), encoding="utf-8")
        planned = plan.load(path.parent, catalog)
        with pytest.raises(FleetError) as caught:
            inventory.build(planned, catalog)
        assert caught.value.code == "refused"
        assert says in caught.value.message


def test_what_is_not_locked_says_so(catalog: Catalog) -> None:
    assert "no lock or digest yet" in ask(catalog, "mi300x-8", None, install="wheel").notes[-1]
    assert resolve(catalog, Question("cpu-2", "vllm-fleet/lab-gpt-oss")).notes == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rules_of": "openai/gpt-oss-9b"}, "is not a model with its own rules"),
        ({"rules_of": SMALL}, "is not a model with its own rules"),
        ({"scores_source": None}, "has no scores_source"),
        ({"encodings": ["p50k_base.tiktoken"]}, "is not in recipes/encodings.yml"),
    ],
    ids=["rules of no model", "rules of a model that borrows", "scores of nobody", "no such encoding"],
)
def test_a_mutated_model_is_caught(catalog: Catalog, change: dict[str, Any], says: str) -> None:
    changed = catalog.models[SMALL].model_copy(update=change)
    mutated = dataclasses.replace(catalog, models={**catalog.models, SMALL: changed})
    assert any(says in fault.message for fault in recipe_check.recipe_errors(mutated))


def test_an_engine_of_no_fork_is_caught(catalog: Catalog) -> None:
    changed = catalog.engines["rocm-open-mi300"].model_copy(update={"fork": "rocm/vllm-dev:none"})
    mutated = dataclasses.replace(catalog, engines={**catalog.engines, changed.id: changed})
    fault = next(fault for fault in recipe_check.recipe_errors(mutated))
    assert "there is no fork 'rocm/vllm-dev:none' of 0.10.1" in fault.message
    assert fault.file == "recipes/engines/rocm-open-mi300.yml"


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"args": {"dtype": "half"}, "refuse": "refused by a test"},
        {"args": {"dtype": "half"}, "when": When(at_least={"max-num-seqs": 2})},
        {"args": {"tensor-parallel-size": 2}, "when": When(tensor_parallel=[2])},
    ],
)
def test_a_rule_that_contradicts_itself_is_no_rule(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rule(why="a rule of a test", source="test", **rule)


@pytest.mark.parametrize("family", catalogs.load().classes)
def test_a_class_says_what_its_hardware_is_and_who_says_so(catalog: Catalog, family: str) -> None:
    found = catalog.classes[family]
    if found.vendor == "cpu":
        assert (found.interconnect, found.facts.driver_min) == ("none", None)
        return
    assert found.interconnect in {"nvidia": ("nvswitch", "nvlink", "pcie"), "amd": ("xgmi", "pcie")}[found.vendor] or (
        (found.interconnect, found.counts) == ("none", [1])
    )
    assert found.facts.driver_min is not None
    assert {"interconnect", "driver", "unverified"} <= set(re.findall(r"\w+", found.hardware_source))
    # CUDA 12.8 came with driver 570.26; a driver says which CUDA it supports at most.
    assert (found.facts.driver_min == "570.26") is (found.facts.cuda_min == "12.8")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"interconnect": "infiniband"}, "interconnect"),
        ({"interconnect": None}, "interconnect"),
        ({"facts": {"driver_min": "570"}}, "facts.driver_min"),
        ({"facts": {"driver_min": 570.26}}, "facts.driver_min"),
        ({"facts": {"mec_firmware_threshold": 177}}, "facts.mec_firmware_threshold"),
        ({"hardware_source": "guess"}, "hardware_source"),
    ],
    ids=["no such link", "no link", "no version", "a number", "a fact of the rules", "no source"],
)
def test_a_class_that_says_it_wrong_is_none(catalog: Catalog, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        HostClass.model_validate({**catalog.classes["b200"].model_dump(), **change})
    assert {".".join(map(str, fault["loc"])) for fault in caught.value.errors()} == {says}
