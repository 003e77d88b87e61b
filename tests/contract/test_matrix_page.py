"""The page of the support matrix: its data, and its filters in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import BROWSER, LEFT_OUT
from hanging import HANGING_SECONDS
from typer.testing import CliRunner

from tools import docs
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.reports import matrix_page, support_matrix


@pytest.fixture(scope="module")
def page(catalog: Catalog) -> str:
    return matrix_page.html(catalog)


def test_the_page_is_generated_from_the_recipes(page: str) -> None:
    assert (paths.root() / "docs" / "matrix-table.html").read_text(encoding="utf-8") == page, "make golden"
    assert docs.matrix_html() == page


def test_it_holds_every_row_and_issue_and_asks_no_other_machine(page: str, catalog: Catalog) -> None:
    block = re.search(r'<script type="application/json" id="data">\n(.*?)\n</script>', page, re.DOTALL)
    assert block
    data = json.loads(block[1])
    assert len(data["rows"]) == len(list(support_matrix.rows(catalog)))
    assert {row["host"] for row in data["rows"]} == {row.host_class for row in support_matrix.rows(catalog)}
    assert {issue["id"] for issue in data["issues"]} == {issue.id for issue in catalog.known_issues.issues}
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="', page)


def test_the_command_writes_it_and_names_a_place_where_it_cannot(page: str, tmp_path: Path) -> None:
    file = tmp_path / "table.html"
    assert CliRunner().invoke(app, ["matrix", "--html", str(file)]).exit_code == 0
    assert file.read_text(encoding="utf-8") == page
    for wrong in (tmp_path, tmp_path / "none" / "table.html"):
        fault = CliRunner().invoke(app, ["matrix", "--html", str(wrong)]).exception
        assert isinstance(fault, FleetError)
        assert (fault.exit_code, str(wrong) in fault.message) == (2, True)


class _Rows(HTMLParser):
    """The texts of the cells of the tables of a page, and of the elements with an id."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.texts = "", {"rows": list[list[str]](), "issues": list[list[str]]()}
        self.named: dict[str, str] = {}
        self._at = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id") or ""
        self._at = name if tag == "p" else "cell" if tag == "td" else ""
        if tag == "tbody":
            self.body = name
        elif tag == "tr" and self.body in self.texts:
            self.texts[self.body].append([])
        elif tag == "td":
            self.texts[self.body][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._at = ""
        if tag == "tbody":
            self.body = ""

    def handle_data(self, data: str) -> None:
        if self._at == "cell":
            self.texts[self.body][-1][-1] += data
        elif self._at:
            self.named[self._at] = data


@pytest.fixture(scope="module")
def file(page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "matrix.html"
    path.write_text(page, encoding="utf-8")
    return path


def opened(file: Path, chosen: str = "") -> _Rows:
    """What a browser shows of the page at an address."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed (on Debian: apt install chromium)")
    words = [BROWSER, "--headless=new", f"--user-data-dir={file.parent}", "--virtual-time-budget=5000"]
    words += [f"--{name}" for name in LEFT_OUT] + ["--no-sandbox"] * (os.geteuid() == 0)
    address = f"{file.as_uri()}{chosen and '#'}{chosen}"
    done = subprocess.run([*words, "--dump-dom", address], capture_output=True, text=True, timeout=HANGING_SECONDS)
    assert done.returncode == 0, done.stderr
    shown = _Rows()
    shown.feed(done.stdout)
    return shown


def test_a_browser_shows_every_row(file: Path, catalog: Catalog) -> None:
    shown = opened(file)
    count = len(list(support_matrix.rows(catalog)))
    assert len(shown.texts["rows"]) == count
    assert shown.named["count"] == f"{count} of {count} rows"
    assert len(shown.texts["issues"]) == len(catalog.known_issues.issues)
    assert {len(row) for row in shown.texts["rows"]} == {4 + len(catalog.profiles) + 1}


def test_the_address_filters(file: Path) -> None:
    shown = opened(file, "host=h100&model=openai%2Fgpt-oss-120b&engine=vllm-0.32.0-cuda")
    assert [row[:4] for row in shown.texts["rows"]] == [
        ["openai/gpt-oss-120b", "h100-8", "vllm-0.32.0-cuda", "unverified"]
    ]
    assert shown.texts["rows"][0][4:7] == ["4 x TP2", "4 x TP2", "1 x TP8"]
    refused = opened(file, "status=unsupported&q=gb10")
    assert {row[1] for row in refused.texts["rows"]} == {"gb10-1"}
    assert "vllm#43969" in refused.texts["rows"][0][-1]


def test_a_search_looks_into_the_issues_too_and_may_find_nothing(file: Path) -> None:
    shown = opened(file, "q=harmony+vocab")
    assert 0 < len(shown.texts["issues"]) < 20
    assert opened(file, "q=%3Cscript%3Ealert(1)%3C/script%3E").texts["rows"] == []
