"""The known issues of the guides as data: whom they concern, what shows them, and which faults are caught."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
from pydantic import ValidationError
from test_issues_command import public_lines
from typer.testing import CliRunner

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve import known_issues
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.known_issue import Harmony, KnownIssue
from vllm_fleet.schema.recipe import When

LARGE = "openai/gpt-oss-120b"


def shown_by(issues: Iterable[KnownIssue], text: str) -> list[KnownIssue]:
    """Those of the issues whose symptom is in a line of a log or in an answer."""
    return [issue for issue in issues if issue.symptom is not None and re.search(issue.symptom, text)]


@pytest.mark.parametrize(
    ("line", "issue"),
    [
        ("AssertionError: Sinks must be of type float32", "sinks-dtype"),
        ("NameError: tl.language is not defined", "triton-conflict"),
        (
            'The link interface of target "torch::nvtoolsext" contains: CUDA::nvToolsExt but the target was not found.',
            "torch-without-cu128",
        ),
        (
            "openai_harmony.HarmonyError: error downloading or loading vocab file: failed to download or load vocab",
            "vocabulary-missing",
        ),
        (
            "openai_harmony.HarmonyError: Unexpected token 12606 while expecting start token 200006",
            "harmony-unexpected-token",
        ),
        ("Expected 2 output messages (reasoning and final), but got 7.", "harmony-unexpected-token"),
        (
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            "function-calling-flags",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "h100-tp1-memory"),
        ('"usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}', "usage-zeros"),
        ("RuntimeError: Error 802: system not yet initialized", "fabric-manager"),
        ("INFO: Application startup complete.", None),
        ('"finish_reason": "length", "tool_calls": [], "usage": {"prompt_tokens": 3, "total_tokens": 10}', None),
    ],
)
def test_a_symptom_shows_its_issue(catalog: Catalog, line: str, issue: str | None) -> None:
    shown = [found.id for found in shown_by(catalog.known_issues.issues, line)]
    assert issue in shown if issue else shown == []


@pytest.mark.parametrize(
    ("host_class", "engine", "more", "there", "absent"),
    [
        (
            "b200-8",
            "vllm-0.12.0-cuda",
            {},
            {"sinks-dtype", "cuda-home-mismatch", "mxfp8-accuracy", "usage-zeros", "vocabulary-missing"},
            {"h100-tp1-memory", "hopper-small-batch", "flashinfer-missing", "mec-firmware", "async-structured-output"},
        ),
        ("b200-8", "vllm-0.12.0-cuda", {"install": "docker"}, {"sinks-dtype"}, {"triton-conflict"}),
        ("b200-8", "vllm-0.32.0-cuda", {}, {"vocabulary-missing"}, {"sinks-dtype", "usage-zeros"}),
        ("h100-1", "vllm-0.12.0-cuda", {}, {"h100-tp1-memory", "hopper-small-batch"}, {"h100-tp2-memory"}),
        ("h100-2", "vllm-0.10.1-cuda", {}, {"h100-tp2-memory", "openai-parser-missing"}, {"h100-tp1-memory"}),
        ("mi300x-8", "vllm-0.14.1-rocm", {}, {"mec-firmware", "rocm-wheel-python"}, {"triton-conflict"}),
        ("b200-8", "vllm-0.12.0-cuda", {"features": ("eagle3",)}, {"speculative-structured-output"}, set()),
    ],
    ids=["b200", "image", "b200 with 0.32", "one h100", "two h100", "mi300x", "eagle3"],
)
def test_an_issue_concerns_whom_it_can_meet(
    catalog: Catalog, host_class: str, engine: str, more: dict[str, Any], there: set[str], absent: set[str]
) -> None:
    deployment = resolve(catalog, Question(host_class, LARGE, engine=engine, **more))
    found = {issue.id for issue in known_issues.concerning(catalog, deployment, more.get("features", ()))}
    assert there <= found
    assert not absent & found


def test_recipe_lists_what_concerns_it() -> None:
    asked = ["recipe", "--host-class", "b200-8", "--model", LARGE, "--engine", "vllm-0.12.0-cuda"]
    told = CliRunner().invoke(app, [*asked, "--json"])
    listed = {issue["id"]: issue for issue in json.loads(told.stdout)["known_issues"]}
    assert "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8" in listed["sinks-dtype"]["fix"]
    assert "cast the sinks to float32" in listed["sinks-dtype"]["cause"]
    text = CliRunner().invoke(app, [*asked, "--issues"]).stdout
    assert "# known issues" in text
    assert all(f"{issue}: " in text for issue in listed)
    assert "--issues prints them" not in text


def test_recipe_tells_what_is_about_just_this_deployment_and_counts_the_rest() -> None:
    """Over fifty concern every host of a vendor, and would bury the two that matter."""
    asked = ["recipe", "--host-class", "h100-1", "--model", LARGE, "--engine", "vllm-0.12.0-cuda"]
    text = CliRunner().invoke(app, asked).stdout.partition("# known issues\n")[2]
    *told, last = text.splitlines()
    assert [line.partition(":")[0] for line in told] == ["h100-tp1-memory", "hopper-small-batch", "flashinfer-unused"]
    assert re.fullmatch(r"\d\d more concern this vendor, release or model: --issues prints them", last)
    listed = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["known_issues"]
    assert len(listed) == len(told) + int(last.split()[0])


def test_the_known_issues_of_the_recipes_are_right(catalog: Catalog) -> None:
    assert list(recipe_check.known_issue_errors(catalog)) == []


def test_the_matrix_of_the_guides(catalog: Catalog) -> None:
    apis = catalog.known_issues.harmony.apis
    not_there = {(api, name) for api, answers in apis.items() for name, works in answers.items() if not works}
    assert not_there == {
        ("responses-streaming", "function-calling"),
        ("chat", "builtin-tools-demo"),
        ("chat", "builtin-tools-mcp"),
        ("chat-streaming", "builtin-tools-demo"),
        ("chat-streaming", "builtin-tools-mcp"),
    }


def test_a_matrix_with_a_hole_is_refused(catalog: Catalog) -> None:
    data = catalog.known_issues.harmony.model_dump()
    del data["apis"]["chat"]["text"]
    with pytest.raises(ValidationError, match=r"the matrix lacks chat\.text"):
        Harmony.model_validate(data)


def test_a_symptom_that_is_no_expression_is_refused() -> None:
    with pytest.raises(ValidationError, match="is not a regular expression"):
        KnownIssue(id="broken", symptom="(unclosed", cause="a cause of a test", fix="a fix of a test", source="test")


@pytest.mark.parametrize(
    ("change", "says", "key"),
    [
        ({"when": When(engine="0.12 or so")}, "is not a range of releases", "issues.1.when.engine"),
        ({"when": When(engine=">=9")}, "matches no class", "issues.1"),
        ({"when": When(arch=["sm_42"])}, "matches no class", "issues.1"),
        ({"id": "triton-conflict"}, "is listed twice", "issues.1.id"),
    ],
    ids=["no range", "no such release", "no such device", "twice"],
)
def test_a_mutated_issue_is_caught(catalog: Catalog, change: dict[str, Any], says: str, key: str) -> None:
    first, second, *others = catalog.known_issues.issues
    issues = [first, second.model_copy(update=change), *others]
    mutated = dataclasses.replace(catalog, known_issues=catalog.known_issues.model_copy(update={"issues": issues}))
    faults = list(recipe_check.known_issue_errors(mutated))
    assert [(fault.key, says in fault.message) for fault in faults] == [(key, True)]
    assert [(fault.file, bool(fault.line)) for fault in faults] == [("recipes/known_issues.yml", True)]


@pytest.mark.parametrize(("engine", "says"), [("new", "is not a range"), (">=9", "no engine lies in it")])
def test_a_mutated_matrix_is_caught(catalog: Catalog, engine: str, says: str) -> None:
    harmony = catalog.known_issues.harmony.model_copy(update={"engine": engine})
    changed = catalog.known_issues.model_copy(update={"harmony": harmony})
    faults = list(recipe_check.known_issue_errors(dataclasses.replace(catalog, known_issues=changed)))
    assert [says in fault.message for fault in faults] == [True]


QUOTED = {
    "torch-without-cu128",
    "vocabulary-missing",
    "harmony-unexpected-token",
    "sinks-dtype",
    "sinks-dtype-flags",
    "function-calling-flags",
    "vocabulary-invalid",
    # The texts of the release itself.
    "batched-tokens-below-sequences",
    "moe-backend-wrong",
    "moe-activation-unmet",
    "flashinfer-unused",
}


def test_a_symptom_that_no_source_quotes_says_so(catalog: Catalog) -> None:
    """These are written out in the guides, the release or a public log; of every other one a part was inferred."""
    with_symptom = {issue.id: issue.symptom_inferred for issue in catalog.known_issues.issues if issue.symptom}
    public = {what for what, _ in public_lines()}
    quoted = {name for name, inferred in with_symptom.items() if not inferred}
    assert quoted <= QUOTED | public
    assert quoted >= QUOTED
    told = CliRunner().invoke(app, ["recipe", "--host-class", "h100-1", "--model", LARGE, "--json"])
    listed = {issue["id"]: issue["symptom_inferred"] for issue in json.loads(told.stdout)["known_issues"]}
    assert (listed["h100-tp1-memory"], listed["vocabulary-missing"]) == (True, False)


def test_an_inferred_symptom_must_be_there() -> None:
    with pytest.raises(ValidationError, match="symptom_inferred needs a symptom"):
        KnownIssue(id="none", symptom_inferred=True, cause="a cause of a test", fix="a fix of a test", source="test")


@pytest.mark.parametrize(
    ("engine", "there", "absent"),
    [
        (
            "vllm-0.10.1-cuda",
            {"async-stability", "names-silently-unread", "responses-streaming-functions", "usage-zeros"},
            {"function-calling-flags"},
        ),
        (
            "vllm-0.12.0-cuda",
            {"tool-choice-auto", "streaming-item-ids", "no-annotations", "chat-no-builtin-tools", "usage-zeros"},
            {"async-stability", "openai-parser-missing"},
        ),
        (
            "vllm-0.32.0-cuda",
            {"no-annotations", "streaming-item-ids", "completions-untemplated", "mcp-instructions", "hopper-no-fusion"},
            {"usage-zeros", "tool-choice-auto", "streaming-tools-batched", "responses-incomplete", "streaming-errors"},
        ),
    ],
)
def test_a_limitation_goes_as_far_as_the_evidence(
    catalog: Catalog, engine: str, there: set[str], absent: set[str]
) -> None:
    found = {
        issue.id
        for issue in known_issues.concerning(catalog, resolve(catalog, Question("h200-8", LARGE, engine=engine)))
    }
    assert there <= found
    assert not absent & found


def test_what_goes_beyond_the_guides_says_what_is_not_proven(catalog: Catalog) -> None:
    for issue in catalog.known_issues.issues:
        if issue.id in {"tool-choice-auto", "streaming-item-ids", "hopper-no-fusion", "usage-zeros"}:
            assert "unverified" in issue.cause


def test_a_parser_fault_is_no_missing_vocabulary(catalog: Catalog) -> None:
    line = "openai_harmony.HarmonyError: Unexpected token 200002 while expecting start token 200006"
    assert [found.id for found in shown_by(catalog.known_issues.issues, line)] == ["harmony-unexpected-token"]
