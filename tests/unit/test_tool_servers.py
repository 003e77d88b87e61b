"""Built-in tools: engines that can use tool servers, and those that cannot."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Overrides

LARGE = "openai/gpt-oss-120b"


def ask(catalog: Catalog, engine: str, **more: Any) -> tuple[str, ...]:
    return resolve(catalog, Question("h200-8", LARGE, engine=engine, **more)).notes


def override(value: str) -> Overrides:
    return Overrides(args={"tool-server": value}, why="the tools of this test")


@pytest.mark.parametrize("engine", ["vllm-0.10.2-cuda", "vllm-0.12.0-cuda"])
@pytest.mark.parametrize("more", [{"features": ("builtin-tools",)}, {"overrides": override("tools-1:8001")}])
def test_a_lock_without_mcp_is_refused(catalog: Catalog, engine: str, more: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="has no mcp") as caught:
        ask(catalog, engine, install="wheel", **more)
    assert caught.value.code == ErrorCode.REFUSED


@pytest.mark.parametrize("engine", ["vllm-0.32.0-cuda", "vllm-0.33.0-cuda"])
def test_a_lock_with_mcp_is_taken(catalog: Catalog, engine: str) -> None:
    notes = ask(catalog, engine, install="wheel", features=("builtin-tools",), overrides=override("tools-1:8001"))
    assert any(note.startswith("set tool-server to the addresses") for note in notes)


def test_an_image_is_taken_with_a_note(catalog: Catalog) -> None:
    notes = ask(catalog, "vllm-0.12.0-cuda", install="docker", features=("builtin-tools",))
    assert any("the image was not looked into" in note for note in notes)


def test_tools_in_the_engine_are_refused(catalog: Catalog) -> None:
    with pytest.raises(FleetError, match="would be off, silently"):
        ask(catalog, "vllm-0.32.0-cuda", overrides=override("demo"))
