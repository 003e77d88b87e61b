"""The shapes that the report is made of, and a section in its place."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def paragraph(words: str) -> list[str]:
    """A paragraph, wrapped."""
    return textwrap.wrap(words, 118, break_on_hyphens=False, break_long_words=False)


def markdown(lines: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    """A table, which reads well on a terminal too.

    Args:
        lines: the head and the rows.
        right: the columns that are aligned to the right.
    """
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(lines[0]))]
    rule = ["-" * (width - 1) + ":" if column in right else "-" * width for column, width in enumerate(widths)]
    cells = [
        [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]


def replace_section(document: str, blocks: Sequence[Sequence[str]]) -> str:
    """The document with a new section in place of the old one; without an old one it comes before the last.

    Args:
        document: the whole text; its sections begin with ``## ``.
        blocks: the section; the first line is its title.
    """
    own = "\n\n".join("\n".join(block) for block in blocks) + "\n\n"
    before, title, after = document.partition(f"{blocks[0][0]}\n")
    if not title:
        before, _, after = document.rpartition("## ")
        return f"{before}{own}## {after}"
    _, _, rest = after.partition("\n## ")
    return f"{before}{own}" + (f"## {rest}" if rest else "")
