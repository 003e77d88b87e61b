"""Drafts of speculative decoding: named by their target, counted in its memory, never served by themselves."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve import draft_memory
from vllm_fleet.resolve.resolve import Deployment, Question, resolve
from vllm_fleet.schema.fleet import Overrides

LARGE, SMALL = "openai/gpt-oss-120b", "openai/gpt-oss-20b"
DRAFT = "nvidia/gpt-oss-120b-Eagle3-v2"


def ask(catalog: Catalog, host_class: str = "h200-8", model: str = LARGE, **more: Any) -> Deployment:
    return resolve(catalog, Question(host_class, model, engine="vllm-0.12.0-cuda", **more))


def speculating(name: str | None, **more: Any) -> Overrides:
    config = {"method": "eagle3", "num_speculative_tokens": 3, **({"model": name} if name else {}), **more}
    return Overrides(why="a test wants it so", args={"speculative-config": config})


@pytest.mark.parametrize(
    ("host_class", "more", "copies"),
    [
        ("h200-1", {"features": ("eagle3",)}, 1),
        ("h200-8", {"features": ("eagle3",)}, 2),
        ("h200-8", {"overrides": speculating(DRAFT, draft_tensor_parallel_size=2)}, 1),
        ("h200-8", {"overrides": speculating(None, method="ngram")}, 0),
        ("h200-8", {}, 0),
    ],
    ids=["one device", "a copy on each of two", "spread over two", "a method without a draft", "no speculation"],
)
def test_the_fit_counts_the_drafts_weights(catalog: Catalog, host_class: str, more: Any, copies: int) -> None:
    found = ask(catalog, host_class, **more)
    plain = ask(catalog, host_class)
    each = catalog.drafts[DRAFT].weights_gib
    assert found.fit.weights_gib - plain.fit.weights_gib == pytest.approx(each if copies else 0)
    assert plain.fit.kv_cache_gib - found.fit.kv_cache_gib == pytest.approx(copies * each)
    assert any(f"counts {each} GiB" in note and "unverified" in note for note in found.notes) is bool(copies)


def test_a_draft_can_be_what_does_not_fit(catalog: Catalog) -> None:
    # One sequence needs 0.5 GiB; 4 x 40 x 0.9 - 60.8 - 12 leaves 71.2 GiB, and the draft of this test takes 72.
    large = catalog.drafts[DRAFT].model_copy(update={"weights_gib": 18.0})
    changed = dataclasses.replace(catalog, drafts={DRAFT: large})
    own = Overrides(why="a test wants it so", args={**speculating(DRAFT).args, "tensor-parallel-size": 4})
    with pytest.raises(FleetError, match="does not fit") as caught:
        ask(changed, "a100-40gb-4", overrides=own)
    assert caught.value.code == "refused"


@pytest.mark.parametrize(
    ("model", "name", "code", "says"),
    [
        (LARGE, "nvidia/gpt-oss-120b-Eagle9", "bad-input", "there is no draft 'nvidia/gpt-oss-120b-Eagle9'"),
        (LARGE, SMALL, "bad-input", f"there is no draft '{SMALL}'"),
        (SMALL, DRAFT, "refused", f"is a draft of {LARGE} and not of {SMALL}"),
    ],
    ids=["unknown", "a model that is no draft", "of another model"],
)
def test_a_draft_that_cannot_be(catalog: Catalog, model: str, name: str, code: str, says: str) -> None:
    with pytest.raises(FleetError) as caught:
        ask(catalog, model=model, overrides=speculating(name))
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.file == "fleet.yml"


@pytest.mark.parametrize("size", [0, "2", True])
def test_a_draft_is_spread_over_a_number_of_devices(catalog: Catalog, size: Any) -> None:
    with pytest.raises(FleetError, match="draft_tensor_parallel_size is"):
        ask(catalog, overrides=speculating(DRAFT, draft_tensor_parallel_size=size))


def test_a_draft_serves_nothing_by_itself() -> None:
    result = CliRunner().invoke(app, ["recipe", "--host-class", "h200-8", "--model", DRAFT])
    assert isinstance(result.exception, FleetError)
    assert result.exception.code == "refused"
    assert "serves nothing by itself" in result.exception.message
    assert result.exception.hint == f"serve {LARGE} with the feature eagle3"


def test_check_names_a_rule_whose_draft_is_not_there(catalog: Catalog) -> None:
    faults = list(recipe_check.recipe_errors(dataclasses.replace(catalog, drafts={})))
    assert faults
    named = {re.search(r"there is no draft '(\S+)'", fault.message) for fault in faults}
    assert {each and each[1] for each in named} == set(catalog.drafts)
    assert {(fault.file or "").partition(", rule ")[0] for fault in faults} == {
        "recipes/models/openai/gpt-oss-120b.yml",
        "recipes/models/openai/gpt-oss-20b.yml",
    }
    assert all("rule" in (fault.file or "") for fault in faults)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"draft_of": ["openai/gpt-oss-9b"]}, "there is no model 'openai/gpt-oss-9b'"), ({"name": LARGE}, "a model too")],
    ids=["of no model", "a model as well"],
)
def test_a_mutated_draft_is_caught(catalog: Catalog, change: dict[str, Any], says: str) -> None:
    mutated = dataclasses.replace(catalog, drafts={DRAFT: catalog.drafts[DRAFT].model_copy(update=change)})
    assert [says in fault.message for fault in draft_memory.draft_errors(mutated)] == [True]


@pytest.mark.parametrize("name", ["nvidia/gpt-oss-120b-Eagle3-v2"])
def test_a_draft_says_what_is_not_known_of_it(catalog: Catalog, name: str) -> None:
    draft = catalog.drafts[name]
    assert draft.status == "unverified"
    assert "estimated" in draft.evidence
    assert "revision not known" in draft.evidence
