from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vllm_fleet.base.errors import FleetError
from vllm_fleet.host import instance_files, serve_command


def test_a_config_has_dashed_keys_and_typed_values() -> None:
    text = instance_files.config_text({"max-model-len": 8, "enforce-eager": True, "compilation-config": {"level": 3}})
    assert yaml.safe_load(text) == {"max-model-len": 8, "enforce-eager": True, "compilation-config": {"level": 3}}
    assert '"{' not in text


def test_false_is_written_in_the_form_that_vllm_reads() -> None:
    assert instance_files.config_text({"enable-prefix-caching": False}) == "no-enable-prefix-caching: true\n"


@pytest.mark.parametrize("args", [{"max_model_len": 8}, {"max-model-len": None}])
def test_what_vllm_would_drop_or_misread_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="cannot stand in a vLLM config"):
        instance_files.config_text(args)


@given(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_a_shell_reads_back_what_was_quoted(value: str) -> None:
    text = instance_files.env_text({"NAME": value})
    assert (
        shlex.split(text.strip()) == [f"NAME={value}"]
        or subprocess.run(["sh", "-c", text + 'printf %s "$NAME"'], capture_output=True, check=True).stdout.decode()
        == value
    )


def test_a_line_break_is_refused() -> None:
    with pytest.raises(FleetError, match="line break"):
        instance_files.env_text({"NAME": "a\nb"})


def test_a_release_is_named_by_its_content() -> None:
    first = instance_files.release_digest({"0.yaml": "a", "0.env": "b"})
    assert first == instance_files.release_digest({"0.env": "b", "0.yaml": "a"})
    assert first != instance_files.release_digest({"0.yaml": "b", "0.env": "a"})
    assert len(first) == 16


def test_the_line_by_hand() -> None:
    line = serve_command.serve_line(
        "m/n", {"a": True, "b": False, "c": {"d": 1}, "e": 2, "f": ["x", "y z"]}, {"HF_HOME": "/a b"}
    )
    assert line == "HF_HOME='/a b' vllm serve m/n --a --no-b --c '{\"d\": 1}' --e 2 --f x 'y z'"
