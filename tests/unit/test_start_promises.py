"""What the log of a start is judged by, and the module that judges it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.on_host import gates
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.resolve.start_promises import Promise, promises

LARGE = "openai/gpt-oss-120b"
FELL_BACK = (
    "WARNING [mxfp4.py:510] No Mxfp4 MoE backend supports activation=mxfp8 for the deployment configuration. Falling "
    "back to 'TRITON' with BF16 activations."
)


def promised(catalog: Catalog, host_class: str, engine: str, model: str = LARGE) -> list[Promise]:
    return list(promises(catalog, resolve(catalog, Question(host_class, model, engine=engine))))


def judged(catalog: Catalog, lines: list[str], *asked: str) -> list[bool]:
    return [kept for _, _, kept in gates.judge(lines, [each.record() for each in promised(catalog, *asked)])]


def test_a_start_on_another_kernel_than_the_recipe_s_is_found(catalog: Catalog) -> None:
    line = "INFO [mxfp4.py:709] Using 'MARLIN' Mxfp4 MoE backend."
    assert judged(catalog, ["INFO starting", line], "h100-1", "vllm-0.32.0-cuda") == [True]
    assert judged(catalog, [line], "h200-8", "vllm-0.32.0-cuda") == [False]
    assert judged(catalog, [line.replace("MARLIN", "TRITON")], "h200-8", "vllm-0.33.0-cuda") == [True]


def test_a_fall_back_is_found_whatever_it_falls_back_to(catalog: Catalog) -> None:
    chosen = "INFO Using 'FLASHINFER_TRTLLM_MXFP4_MXFP8' Mxfp4 MoE backend."
    assert judged(catalog, [chosen], "b200-8", "vllm-0.32.0-cuda") == [True]
    assert judged(catalog, [chosen, FELL_BACK], "b200-8", "vllm-0.32.0-cuda") == [True, False]
    disabled = "WARNING FlashInfer kernels are disabled: flashinfer-cubin is not installed and ninja is missing."
    assert judged(catalog, [disabled], "b200-8", "vllm-0.32.0-cuda") == [False]
    # Hopper serves without FlashInfer.
    assert judged(catalog, [disabled], "h200-8", "vllm-0.32.0-cuda") == []


def test_a_release_that_logs_otherwise_is_judged_by_nothing(catalog: Catalog) -> None:
    assert promised(catalog, "b200-8", "vllm-0.12.0-cuda") == []


def test_every_kernel_of_the_table_can_be_promised(catalog: Catalog) -> None:
    named = {kernel for choice in catalog.start_log.choices for kernel in choice.kernels}
    assert set(catalog.memory.kernels) | {"cpu"} == named
    for choice in catalog.start_log.choices:
        assert re.compile(choice.line).groups == 1


def test_the_lines_are_those_of_the_installed_release(catalog: Catalog) -> None:
    """The texts stand in the source of the release that the lab serves with."""
    from lab.artifacts.engine import engine_dir

    (oracle,) = Path(engine_dir()).glob("lib/python3.*/site-packages/vllm/model_executor/layers/fused_moe/oracle")
    source = (oracle / "mxfp4.py").read_text(encoding="utf-8")
    assert "f\"Using '{backend.value}' Mxfp4 MoE backend.\"" in source
    assert "No Mxfp4 MoE backend supports activation=%s" in source
    values = set(re.findall(r'^    [A-Z0-9_]+ = "([A-Z0-9_]+)"', source, re.MULTILINE))
    for choice in catalog.start_log.choices:
        assert {name for names in choice.kernels.values() for name in names} <= values
    assert "Unquantized MoE backend" in (oracle / "unquantized.py").read_text(encoding="utf-8")
    flashinfer = (oracle.parents[3] / "utils" / "flashinfer.py").read_text(encoding="utf-8")
    assert "FlashInfer kernels are disabled" in flashinfer


@pytest.mark.parametrize("line", ["", "Using something else", "Using 'CPU' Mxfp8 MoE backend."])
def test_other_lines_are_judged_by_nothing(catalog: Catalog, line: str) -> None:
    assert judged(catalog, [line], "b200-8", "vllm-0.32.0-cuda") == []
