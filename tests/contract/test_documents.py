"""Documents that are made from other files say what those say."""

from __future__ import annotations

from tools import docs
from vllm_fleet.base import paths


def test_the_support_matrix_is_generated_from_the_recipes() -> None:
    text = (paths.root() / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert text == docs.support_matrix_page(), "the recipes say something else: make golden"


def test_the_table_of_clouds_is_generated_from_the_recipes() -> None:
    text = (paths.root() / "docs" / "clouds.md").read_text(encoding="utf-8")
    assert text == docs.clouds_page(), "the recipes say something else: make golden"
