"""Cases and their outcomes -> the tables of docs/conformance.md and of the end of a test run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from e2e.conformance_cells import MATRIX_COLUMNS, MATRIX_ROWS, Case, Different, Outcome, Refused, cases

#: The name of the property of a test's report: the client, the title of the case, the word and the reason.
PROPERTY = "conformance"
FAILED = "FAILED"
#: Titles of cases -> the word of each in the table, and its reason; empty where the word says all.
Words = Mapping[str, tuple[str, str]]


def shown(outcome: Outcome) -> tuple[str, str]:
    """An outcome as a word of the table, and its reason."""
    if isinstance(outcome, Refused):
        return f"refused, {outcome.status}", outcome.reason
    return ("differs", outcome.reason) if isinstance(outcome, Different) else ("right", "")


def expected(responses_store: bool) -> Words:
    """What each case must get from a fleet with or without a store of responses."""
    return {case.title: shown(case.outcome(responses_store)) for case in cases()}


def tables(words: Words) -> Iterator[str]:
    """The guide's matrix, the other requests, and the reasons; in Markdown.

    Args:
        words: the outcomes; a case that is missing was not asked.
    """
    notes: dict[str, int] = {}

    def cell(row: Iterable[Case]) -> str:
        found = dict.fromkeys(words.get(case.title, ("not asked", "")) for case in row)
        named = [f"{word} ({notes.setdefault(why, len(notes) + 1)})" if why else word for word, why in found]
        return "; ".join(named)

    matrix = [["API", *MATRIX_COLUMNS]]
    for row in MATRIX_ROWS:
        matrix.append([row, *(cell(_of(row, column)) for column in MATRIX_COLUMNS)])
    rest = [["API", "request", "answer"]]
    for case in cases():
        if case.row not in MATRIX_ROWS or case.column not in MATRIX_COLUMNS:
            rest.append([case.row, ": ".join(filter(None, (case.column, case.name))), cell([case])])
    yield from _aligned(matrix)
    yield ""
    yield from _aligned(rest)
    yield ""
    yield from (f"{number}. {why}" for why, number in notes.items())


def terminal_lines(outcomes: Sequence[tuple[str, str, str, str]]) -> Iterator[str]:
    """The tables of a test run: one for the clients that got the same.

    Args:
        outcomes: values of the property.
    """
    of_client: dict[str, dict[str, tuple[str, str]]] = {}
    for client, title, word, reason in outcomes:
        of_client.setdefault(client, {})[title] = (word, reason)
    groups: list[tuple[list[str], Words]] = []
    for client, words in of_client.items():
        same = next((names for names, others in groups if others == words), None)
        if same is None:
            groups.append(([client], words))
        else:
            same.append(client)
    for names, words in groups:
        failed = [title for title, (word, _) in words.items() if word == FAILED]
        yield f"{', '.join(names)}: {len(words)} requests, {len(failed)} {FAILED}"
        yield from tables(words)
        yield from (f"{FAILED}: {title}" for title in failed)
        yield ""


def _of(row: str, column: str) -> list[Case]:
    return [case for case in cases() if (case.row, case.column) == (row, column)]


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for number, row in enumerate(rows):
        yield f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        if number == 0:
            yield f"| {' | '.join('-' * width for width in widths)} |"
