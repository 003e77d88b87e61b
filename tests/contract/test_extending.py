"""The pages of docs/extending fit the code; tests/extending follows them to the end."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

FOLDER = pages.page("extending")
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")


def test_every_page_is_in_the_table_of_the_first_one() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([\w-]+)\.md\) \|", index)) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_changes_is_in_the_code_as_it_shows_it(name: str, tmp_path: Path) -> None:
    assert pages.change_files(FOLDER / f"{name}.md", pages.copy_project(tmp_path))
