"""docs/gates.md against recipes/gates.yml."""

from __future__ import annotations

import re

from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.schema.gates import GATES

PAGE = (paths.root() / "docs" / "gates.md").read_text(encoding="utf-8")


def test_the_page_has_every_gate_in_its_order() -> None:
    assert re.findall(r"^\| `([a-z]+)` \|", PAGE, re.MULTILINE) == list(GATES)


def test_the_page_has_the_limits_of_the_recipes(catalog: Catalog) -> None:
    gates = catalog.gates
    for name, limits in (("the same build", gates.numerics.same), ("another build", gates.numerics.other)):
        assert f"| {name} | {limits.mean} | {limits.median} |" in PAGE
    assert f"{gates.share:.0%}".replace("%", " %") in PAGE
    text = " ".join(PAGE.split())
    speed = gates.speed
    assert f"{speed.prompt_tokens} tokens in and {speed.tokens} tokens out each" in text
    assert f"more than {speed.noise * 100:.0f} % apart" in text
    budget = (
        f"{speed.budget.tokens_per_second * 100:.0f} % of the tokens per second and {speed.budget.ttft * 100:.0f} %"
    )
    assert budget in text
    assert (speed.streams, speed.rounds) == (4, 3), "the page writes them as words"
