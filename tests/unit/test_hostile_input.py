"""Whatever text fleet.yml, stack.json or api-keys.yml have: a result, or errors that name file and line."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError, list_errors
from vllm_fleet.base.paths import root
from vllm_fleet.base.yaml_document import Location
from vllm_fleet.base.yaml_reader import Position, read_text
from vllm_fleet.catalogue import catalogue
from vllm_fleet.fleet import plan

FLEETS = root() / "tests" / "fixtures" / "fleets"
#: What is put into a file: forms of YAML and JSON, numbers, names, and what other programs would obey.
PIECES = st.sampled_from(
    [
        *"{}[],:#&*!|>'\"%@`?-~\\\t\n\r\0",
        "<<: *a", "&a ", "*a", "- ", ": ", "---\n", "...\n", "!!int ", "!!binary ", "!<x> ", "? ", "|\n  ",
        "0022", "22:22", "1e999", ".nan", "1_0", "0x10", "9" * 400, "-1", "2.0", "null", "yes", "2026-99-01",
        "\x85", "\u2028", "\ufeff", "\xa0", "\ud7ff", "\U0001f600", "\x1b[2J", "\\u0000",
        "-oProxyCommand=x", "{{ x }}", "../../etc", "a" * 5000, "[" * 500, "{a: " * 500, "&b [*b]",
        "hosts", "static", "pools", "gateway", "lab", "aws", "placement", "overrides", "args", "env",
        '"version"', '"hosts"', '"lab-0"', "NaN", "Infinity", "1e5",
    ]
)  # fmt: skip
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)


@st.composite
def changed(draw: st.DrawFn, text: str) -> str:
    """A text with up to five places changed: something put in, taken out, replaced or repeated."""
    for _ in range(draw(st.integers(1, 5))):
        begin = draw(st.integers(0, len(text)))
        end = min(len(text), begin + draw(st.sampled_from([0, 0, 1, 3, 12, 80])))
        piece = draw(PIECES | st.text(max_size=6) | st.just(text[begin:end] * 2))
        text = text[:begin] + piece + text[end:]
    return text


def text_of(name: str) -> str:
    return (FLEETS / name).read_text(encoding="utf-8")


def bytes_of(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")


@functools.cache
def recipes() -> catalogue.Catalog:
    return catalogue.load()


def judge(file: Path, text: str, load: Callable[[Path], object]) -> None:
    """Loads the folder of a file with another text; anything but errors with file and line is a failure."""
    file.write_bytes(bytes_of(text))
    try:
        load(file.parent)
    except FleetError as caught:
        errors, _ = list_errors(caught)
        for error in errors:
            assert error.exit_code == 2
            assert error.file is not None
            assert file.parent.name in error.file
            # That hosts are in one of two files only is an error of both.
            assert error.line is not None or "is in " in error.message, str(error)
            assert str(error).isprintable(), str(error)
            assert len(str(error)) < 3000


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(FLEETS.parent, tmp_path_factory.mktemp("hostile") / "fixtures")
    folder = Path(copy) / "fleets" / "golden"
    assert inventory.load(folder).hosts, "the files that the tests change are valid before"
    return folder


@pytest.mark.parametrize("name", ["golden", "two-clouds", "r9700-rack"])
@given(data=st.data())
@SETTINGS
def test_any_fleet_yml(name: str, data: st.DataObject, golden: Path) -> None:
    text = data.draw(changed(text_of(f"{name}/fleet.yml")))
    judge(golden.parent / name / "fleet.yml", text, lambda folder: plan.load(folder, recipes()))


@given(text=changed(text_of("golden/stack.json")) | st.text(max_size=40))
@SETTINGS
def test_any_stack_json(text: str, golden: Path) -> None:
    (golden / "fleet.yml").write_text(text_of("golden/fleet.yml"), encoding="utf-8")
    (golden / "api-keys.yml").write_text(text_of("golden/api-keys.yml"), encoding="utf-8")
    judge(golden / "stack.json", text, inventory.load)


@pytest.mark.slow
@given(text=changed(text_of("golden/api-keys.yml")) | st.text(max_size=40))
@SETTINGS
def test_any_api_keys_yml(text: str, golden: Path) -> None:
    for name in ("fleet.yml", "stack.json"):
        (golden / name).write_text(text_of(f"golden/{name}"), encoding="utf-8")
    judge(golden / "api-keys.yml", text, inventory.load)


@given(text=st.text(max_size=60) | st.lists(PIECES, max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_any_text_is_data_with_positions_or_an_error_with_a_line(text: str) -> None:
    try:
        content = read_text(text, "file.yml")
    except FleetError as error:
        assert error.line is not None
        assert error.column is not None
        return
    assert all(error.line and error.column for error in content.errors)
    if content.position:
        check_positions(content.data, content.position, ())


def check_positions(data: object, position: Position, at: Location) -> None:
    """Each key and item has a position."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        assert key in position.children, (*at, key)
        check_positions(value, position.children[key], (*at, key))
