"""AMD's own checkpoint of the 120b model, and the published scores: where they hold and where not."""

from __future__ import annotations

import pytest

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.resolve import Question, resolve

AMD, LARGE, SMALL = "amd/gpt-oss-120b-w-mxfp4-a-fp8", "openai/gpt-oss-120b", "openai/gpt-oss-20b"


@pytest.mark.parametrize("host_class", ["mi350x-8", "mi355x-8", "mi355x-1"])
def test_amds_checkpoint_takes_the_rules_of_the_model_it_was_made_from(catalog: Catalog, host_class: str) -> None:
    found = resolve(catalog, Question(host_class, AMD))
    assert (found.engine.id, found.status) == ("vllm-0.33.0-rocm", "unverified")
    assert found.env["VLLM_ROCM_USE_AITER"] == "1"
    assert found.provenance["env.VLLM_ROCM_USE_AITER"].file == "recipes/models/openai/gpt-oss-120b.yml"
    assert any("published scores are those of openai/gpt-oss-120b" in note for note in found.notes)
    assert catalog.models[AMD].scores == {}


@pytest.mark.parametrize(
    ("host_class", "engine", "says"),
    [
        ("mi355x-8", "vllm-0.14.1-rocm", "before 0.17.0"),
        ("mi355x-8", "rocm-open-mi355", "before 0.17.0"),
        ("mi300x-8", None, "MI355X (gfx950) only"),
        ("mi325x-8", "vllm-0.32.0-rocm", "MI355X (gfx950) only"),
        ("r9700-8", None, "MI355X (gfx950) only"),
        ("b200-8", None, "for its own devices"),
        ("h100-8", "vllm-0.32.0-cuda", "for its own devices"),
        ("a100-80gb-8", None, "for its own devices"),
        ("cpu-8", None, "for its own devices"),
    ],
)
def test_amds_checkpoint_is_refused_with_its_reason(
    catalog: Catalog, host_class: str, engine: str | None, says: str
) -> None:
    with pytest.raises(FleetError) as caught:
        resolve(catalog, Question(host_class, AMD, engine=engine))
    assert caught.value.code == "refused"
    assert says in caught.value.message


def test_an_unsupported_release_is_no_hint(catalog: Catalog) -> None:
    with pytest.raises(FleetError) as caught:
        resolve(catalog, Question("mi355x-8", AMD, engine="vllm-0.14.1-rocm"))
    assert caught.value.hint == "there are recipes with vllm-0.32.0-rocm, vllm-0.33.0-rocm"


@pytest.mark.parametrize(
    ("model", "benchmark", "low", "medium", "high"),
    [
        (LARGE, "gpqa", 65.3, 72.4, 79.4),
        (LARGE, "aime25", 51.2, 79.6, 93.0),
        (SMALL, "gpqa", 56.8, 67.5, 70.9),
        (SMALL, "aime25", 38.8, 75.0, 85.8),
    ],
)
def test_the_published_scores(
    catalog: Catalog, model: str, benchmark: str, low: float, medium: float, high: float
) -> None:
    scores = {name: found.model_dump() for name, found in catalog.models[model].scores.items()}[benchmark]
    assert scores == {"low": low, "medium": medium, "high": high}
