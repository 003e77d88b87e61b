"""docs/conformance.md has the tables of tests/e2e/conformance_cells.py; --update-golden writes them."""

from __future__ import annotations

import pytest
from e2e import conformance_table
from e2e.api_clients import NODE
from e2e.conformance_cells import MATRIX_COLUMNS, MATRIX_ROWS, Refused, cases

from vllm_fleet.base import paths

PAGE = paths.root() / "docs" / "conformance.md"


def with_tables(page: str) -> str:
    for part, responses_store in (("with", True), ("without", False)):
        lines = "\n".join(conformance_table.tables(conformance_table.expected(responses_store)))
        before, _, rest = page.partition(f"<!-- {part} -->\n")
        page = f"{before}<!-- {part} -->\n{lines}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return page


def test_the_page_has_the_tables_of_the_cases(request: pytest.FixtureRequest) -> None:
    page = PAGE.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        PAGE.write_text(with_tables(page), encoding="utf-8")
        return
    assert page == with_tables(page), "make golden"


def test_every_case_has_a_title_of_its_own_and_every_cell_of_the_matrix_has_one() -> None:
    titles = [case.title for case in cases()]
    assert len(titles) == len(set(titles))
    assert {(row, column) for row in MATRIX_ROWS for column in MATRIX_COLUMNS} <= {
        (case.row, case.column) for case in cases()
    }


def test_every_refusal_gives_its_reason() -> None:
    for case in cases():
        for responses_store in (True, False):
            outcome = case.outcome(responses_store)
            assert not isinstance(outcome, Refused) or (outcome.reason and outcome.words), case.title


def test_the_tables_of_a_run_name_what_failed_and_the_clients_that_differ() -> None:
    found = conformance_table.expected(False)
    first = next(iter(found))
    seen = [(client, title, *word) for client in ("a", "b") for title, word in found.items()]
    lines = list(conformance_table.terminal_lines(seen))
    assert lines[0] == f"a, b: {len(found)} requests, 0 FAILED"
    seen[0] = ("a", first, conformance_table.FAILED, "")
    lines = list(conformance_table.terminal_lines(seen))
    assert [line for line in lines if line.startswith("FAILED")] == [f"FAILED: {first}"]
    assert [line for line in lines if line.endswith("0 FAILED")] == [f"b: {len(found)} requests, 0 FAILED"]


def test_the_lock_of_the_client_for_javascript_has_digests_and_names_no_registry() -> None:
    lock = (NODE / "package-lock.json").read_text(encoding="utf-8")
    assert '"integrity": "sha512-' in lock
    assert "resolved" not in lock
    assert "://" not in lock
