from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.schema.recipe import Strict


class Inner(Strict):
    count: int
    names: list[str] = []


class Outer(Strict):
    inner: Inner
    why: str = Field(default="because it is so", min_length=5)


def write(tmp_path: Path, text: str) -> yaml_document.Document:
    path = tmp_path / "file.yml"
    path.write_text(text, encoding="utf-8")
    return yaml_document.read(path)


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    document = write(tmp_path, "inner:\n  count: 1\n  names:\n    - a\n    - b\nwhy: no reason\n")
    assert document.line(("inner", "count")) == 2
    assert document.line(("inner", "names", 1)) == 5
    assert document.line(("why",)) == 6


def test_a_key_that_is_not_there_has_the_line_of_its_parent(tmp_path: Path) -> None:
    document = write(tmp_path, "\ninner:\n  count: 1\n")
    assert document.line(("inner", "other", "deeper")) == 2


def test_a_file_becomes_a_record(tmp_path: Path) -> None:
    document = write(tmp_path, "inner: {count: 3, names: [x]}\n")
    assert yaml_document.parse(document, Outer) == Outer(inner=Inner(count=3, names=["x"]))


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("inner: {count: 1}\ninnner: 2\n", 2, "innner", "unknown key"),
        ("inner:\n  cuont: 1\n  count: 1\n", 2, "inner.cuont", "unknown key"),
        ("why: long enough\n", 1, "inner", "is missing"),
        ("inner:\n  count: '1'\n", 2, "inner.count", "valid integer, not '1'"),
        ("inner:\n  count: yes\n", 2, "inner.count", "valid integer, not true"),
        ("inner: {count: 1}\nwhy: no\n", 2, "why", "valid string, not false"),
        ("inner: {count: 1}\nwhy: abc\n", 2, "why", "at least 5 characters"),
    ],
)
def test_a_fault_names_line_and_key(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    with pytest.raises(FleetError) as caught:
        yaml_document.parse(write(tmp_path, text), Outer)
    fault = caught.value
    assert (fault.line, fault.key, fault.exit_code) == (line, key, 2)
    assert says in fault.message
    assert fault.file is not None
    assert fault.file.endswith("file.yml")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        yaml_document.parse(write(tmp_path, "inner: {count: x, extra: 1}\nmore: 2\n"), Outer)
    assert len([caught.value, *caught.value.others]) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "duplicate key"),
        ("a: [1\n", "is not valid YAML"),
        ("a: !!python/object:os.system {}\n", "is not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        write(tmp_path, text)
    assert caught.value.line is not None


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(FleetError, match="must be a mapping"):
        yaml_document.parse(write(tmp_path, text), Outer)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="does not exist"):
        yaml_document.read(tmp_path / "none.yml")
