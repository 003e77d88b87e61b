"""The support matrix: what it says of each model, class and engine."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import support_matrix
from vllm_fleet.reports.support_matrix import Row
from vllm_fleet.schema.recipe import Support

LARGE, SMALL, LAB = "openai/gpt-oss-120b", "openai/gpt-oss-20b", "vllm-fleet/lab-gpt-oss"


@pytest.fixture(scope="module")
def rows(catalog: Catalog) -> list[Row]:
    return list(support_matrix.rows(catalog))


def row(rows: list[Row], model: str, host_class: str, engine: str | None) -> Row:
    (found,) = [r for r in rows if (r.model, r.host_class, r.engine) == (model, host_class, engine)]
    return found


@pytest.mark.parametrize(
    ("model", "host_class", "engine", "status", "shapes"),
    [
        (LARGE, "b200-8", "vllm-0.12.0-cuda", "unverified", [(8, 1), (4, 2), (1, 8)]),
        (LARGE, "gb200-4", "vllm-0.32.0-cuda", "unverified", [(4, 1), (2, 2), (1, 4)]),
        (LARGE, "mi300x-8", "vllm-0.14.1-rocm", "unverified", [(1, 8), (1, 8), (1, 8)]),
        (LAB, "cpu-8", "vllm-0.32.0-cpu", "verified", [(1, 1), (1, 1), (1, 1)]),
        (LAB, "b200-8", "vllm-0.32.0-cuda", "no recipe", []),
        (LARGE, "rtx5090-4", "vllm-0.32.0-cuda", "unsupported", []),
        (SMALL, "gb10-1", None, "unsupported", []),
    ],
    ids=["of eight", "the largest", "one size only", "verified", "no recipe", "unsupported", "an unsupported class"],
)
def test_a_row(rows: list[Row], model: str, host_class: str, engine: str | None, status: str, shapes: Any) -> None:
    found = row(rows, model, host_class, engine)
    assert found.status == status
    assert [(shape.instances, shape.tensor_parallel_size) for shape in found.shapes.values()] == shapes


def test_every_model_stands_with_every_family(rows: list[Row], catalog: Catalog) -> None:
    there = {(r.model, r.host_class.rpartition("-")[0]) for r in rows}
    assert there == {(model, family) for model in catalog.models for family in catalog.classes}


def test_an_engine_stands_only_with_devices_that_it_is_built_for(rows: list[Row]) -> None:
    engines = {r.engine for r in rows if r.host_class == "r9700-8"}
    assert engines == {"rocm-open-r9700", "vllm-0.32.0-rocm", "vllm-0.33.0-rocm"}


def test_what_does_not_fit_is_refused_with_its_reason(rows: list[Row], catalog: Catalog) -> None:
    found = row(rows, LARGE, "l40s-8", "vllm-0.32.0-cuda")
    assert [shape.refused for shape in found.shapes.values()] == [None] * 3
    shapes = {name: dataclasses.replace(shape, refused=f"does not fit: {name}") for name, shape in found.shapes.items()}
    shapes["min-latency"] = found.shapes["min-latency"]
    text = support_matrix.markdown([dataclasses.replace(found, shapes=shapes)], catalog.profiles)
    assert "| refused (1) | refused (2) | 1 x TP8 |" in text
    assert "\n1. does not fit: max-throughput" in text
    assert "\n2. does not fit: balanced" in text


def test_engines_that_differ_in_nothing_share_a_line(rows: list[Row], catalog: Catalog) -> None:
    text = support_matrix.markdown(
        [r for r in rows if (r.model, r.host_class) == (LARGE, "mi300x-8")], catalog.profiles
    )
    assert text.count("| `mi300x-8` |") == 3
    assert "| `vllm-0.32.0-rocm`, `vllm-0.33.0-rocm` | unverified | 8 x TP1 |" in text


def test_an_unsupported_entry_gives_its_evidence(catalog: Catalog) -> None:
    entry = Support(host_class=["b200"], engine=">=0.32", status="unsupported", evidence="a test says that it breaks")
    changed = catalog.models[LARGE].model_copy(update={"support": [entry, *catalog.models[LARGE].support]})
    mutated = dataclasses.replace(catalog, models={LARGE: changed})
    found = row(list(support_matrix.rows(mutated)), LARGE, "b200-8", "vllm-0.32.0-cuda")
    assert (found.status, found.evidence, found.shapes) == ("unsupported", "a test says that it breaks", {})


def test_the_command_prints_the_document_and_json(rows: list[Row], catalog: Catalog) -> None:
    printed = CliRunner().invoke(app, ["matrix"])
    assert (printed.exit_code, printed.stdout) == (0, support_matrix.document(catalog))
    data = json.loads(CliRunner().invoke(app, ["matrix", "--json"]).stdout)
    assert data["rows"] == [r.record() for r in rows]
    first = next(found for found in data["rows"] if found["model"] == LARGE)
    assert first["profiles"]["balanced"] == {"instances": 2, "tensor_parallel_size": 4}
    assert data["harmony"]["apis"]["chat"]["builtin-tools-mcp"] is False
    assert [issue["id"] for issue in data["known_issues"]] == [i.id for i in catalog.known_issues.issues]


def test_the_document_has_the_harmony_table_of_the_guides(catalog: Catalog) -> None:
    text = support_matrix.document(catalog)
    head = "| endpoint | text | structured-output | builtin-tools-demo | builtin-tools-mcp | function-calling |"
    assert head in text
    assert "| `responses-streaming` | yes | yes | yes | yes | no |" in text
    assert "| `chat` | yes | yes | no | no | yes |" in text
    assert f"- {catalog.known_issues.harmony.notes[0]}" in text


def test_the_document_has_every_known_issue_with_its_selectors(catalog: Catalog) -> None:
    lines = support_matrix.document(catalog).splitlines()
    for issue in catalog.known_issues.issues:
        (line,) = [line for line in lines if line.startswith(f"| `{issue.id}` |")]
        assert issue.fix.replace("|", "\\|") in line
    assert any("| accelerator cuda; install wheel |" in line for line in lines)
    assert any("| everywhere |" in line for line in lines)
