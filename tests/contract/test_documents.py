"""Documents that are made from other files say what those say."""

from __future__ import annotations

import re

from tools import docs
from vllm_fleet.base import paths
from vllm_fleet.facts import questions
from vllm_fleet.facts.host_answer import HostFacts
from vllm_fleet.facts.states import VetoCode


def test_the_support_matrix_is_generated_from_the_recipes() -> None:
    text = (paths.root() / "docs" / "matrix.md").read_text(encoding="utf-8")
    assert text == docs.support_matrix_page(), "the recipes say something else: make golden"


def test_the_page_of_the_memory_is_generated_from_the_recipes_and_the_public_starts() -> None:
    text = (paths.root() / "docs" / "memory.md").read_text(encoding="utf-8")
    assert text == docs.memory_page(), "the recipes say something else: make golden"


def test_the_table_of_clouds_is_generated_from_the_recipes() -> None:
    text = (paths.root() / "docs" / "clouds.md").read_text(encoding="utf-8")
    assert text == docs.clouds_page(), "the recipes say something else: make golden"


def test_the_table_of_kinds_is_generated_from_their_types() -> None:
    text = (paths.root() / "docs" / "manifest.md").read_text(encoding="utf-8")
    assert text == docs.manifest_page(), "the types say something else: make golden"


def test_the_page_of_facts_is_generated_and_has_every_fact() -> None:
    text = (paths.root() / "docs" / "facts.md").read_text(encoding="utf-8")
    assert text == questions.facts_page(), "the questions say something else: make golden"
    assert set(questions.QUESTIONS) == set(HostFacts.model_fields)
    codes = {
        code for question in questions.QUESTIONS.values() for code in re.findall(r"^`([a-z_]+)`", question.decides)
    }
    assert codes - set(HostFacts.model_fields) <= set(VetoCode)
