"""docs/ as one site, and what documents say about commands, files and versions."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tools import pictures
from vllm_fleet.base import paths
from vllm_fleet.cli import app

ROOT = paths.root()
DOCS = ROOT / "docs"
#: What a person reads; the READMEs of roles are generated from their specs.
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
FOLDERS = (
    *(
        "bench",
        "docs",
        "infra",
        "inventories/(?:lab|example-[a-z]+)",
        "lab",
        "playbooks",
        "plugins",
        "recipes",
        "roles",
    ),
    *("tests", "tools", "vllm_fleet"),
)
COMMAND = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def build(folder: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """mkdocs on a copy of the project's docs; quiet modes would hide the warnings that strict counts."""
    shutil.copy(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(into)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, folder / "docs")
    done = build(folder, folder / "site")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder / "site"


def test_every_page_is_built_and_in_the_menu(site: Path) -> None:
    def entries(nav: Any) -> Iterator[str]:
        for entry in nav if isinstance(nav, list) else nav.values():
            yield from [entry] if isinstance(entry, str) else entries(entry)

    menu = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert sorted(menu) == sorted(pages)
    assert all((site / page).with_suffix(".html").is_file() for page in pages)


@pytest.mark.slow  # a build of the site each
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](gone.md)", "'gone.md', but the target is not found"),
        ("[a](stacks.md#gone)", "does not contain an anchor '#gone'"),
        ("![a](pictures/gone.svg)", "'pictures/gone.svg', but the target is not found"),
    ],
)
def test_a_wrong_link_stops_the_build(tmp_path: Path, text: str, complaint: str) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    with (tmp_path / "docs" / "status.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    assert complaint in done.stderr


class Loaded(HTMLParser):
    """Collects what a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("img", "script", "iframe", "source") or (tag == "link" and values.get("rel") != "canonical"):
            self.addresses.append(values.get("src") or values.get("href") or "")


def test_a_page_fetches_nothing_from_other_servers(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses, page
        assert [address for address in loaded.addresses if "//" in address] == [], page
    for sheet in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?https?://", sheet.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("source", pictures.sources(), ids=lambda path: path.stem)
def test_a_picture_is_drawn_from_its_text(source: Path) -> None:
    assert source.with_suffix(".svg").read_text(encoding="utf-8") == pictures.svg(source), "make golden"


def test_every_picture_has_a_text_and_is_shown_with_one_in_its_place() -> None:
    drawn = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    assert drawn == {source.stem for source in pictures.sources()}
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    shown = dict(re.findall(r"!\[([^\]]{20,})\]\([\w/]*pictures/(\w+)\.svg\)", text))
    assert set(shown.values()) == drawn


@pytest.mark.parametrize(
    ("box", "complaint"),
    [
        ({"kind": "cloud", "title": "a"}, "unknown kind 'cloud'"),
        ({"kind": "file", "title": "a", "lines": list("abcde")}, "5 lines, at most 4 fit"),
        ({"kind": "file", "title": "a" * 40}, "is wider than the box"),
    ],
)
def test_a_box_that_cannot_be_read_is_refused(box: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pictures.draw({"title": "t", "boxes": {"a": {"at": [0, 0], **box}}, "arrows": []})


def test_the_picture_of_a_run_shows_its_playbooks_in_their_order() -> None:
    boxes = yaml.safe_load((DOCS / "pictures" / "run.yml").read_text(encoding="utf-8"))["boxes"].values()
    plays = yaml.safe_load((ROOT / "playbooks" / "site.yml").read_text(encoding="utf-8"))
    imported = [play["ansible.builtin.import_playbook"] for play in plays]
    assert [box["title"] for box in boxes if box["title"].endswith(".yml")] == imported


def boxes_overlap(source: Path) -> list[tuple[str, str]]:
    boxes = pictures.read_boxes(yaml.safe_load(source.read_text(encoding="utf-8")))
    return [
        (one, other)
        for one, a in boxes.items()
        for other, b in boxes.items()
        if one < other and abs(a.left - b.left) < pictures.BOX_WIDTH and abs(a.top - b.top) < pictures.BOX_HEIGHT
    ]


@pytest.mark.parametrize("source", pictures.sources(), ids=lambda path: path.stem)
def test_no_box_lies_on_another(source: Path) -> None:
    assert boxes_overlap(source) == []


# -- what documents say ------------------------------------------------------------------------------------------------


def lines_of_code(path: Path) -> Iterator[str]:
    """Command lines of a document: those of its console and bash blocks, and what it quotes."""
    text = path.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:console|bash)\n(.*?)```", text, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def words_of(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return line.split()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_commands_of_a_document_exist(path: Path) -> None:
    assert isinstance(COMMAND, typer.core.TyperGroup)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = str(path.relative_to(DOCS)) if path.is_relative_to(DOCS) else ""
    for line in lines_of_code(path):
        words = words_of(line.partition(" && ")[0])
        if words[:1] == ["make"] and len(words) > 1:
            assert {word for word in words[1:] if "=" not in word} <= targets, line
        if words[:1] == ["vllm-fleet"] and len(words) > 1 and words[1].islower() and words[1][0] != "-":
            if words[1] in re.findall(r"vllm_fleet/cli/(\w+)\.py", path.read_text("utf-8")) and "extending" in shown:
                continue  # the command that the page adds
            command = COMMAND.get_command(typer.Context(COMMAND), words[1])
            assert command is not None, line
            command = command.make_context(words[1], [], resilient_parsing=True).command
            if isinstance(command, typer.core.TyperGroup) and len(words) > 2:
                command = command.get_command(typer.Context(command), words[2])
                assert command is not None, line
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            used = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert used <= options, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_files_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # A page that adds files shows them as blocks that begin with their name.
    added = set(re.findall(r"```\w+\n# ([\w./-]+)", text))
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*@-]*)`", text):
        if name in added or any(file.startswith(name) for file in added):
            continue
        assert list(ROOT.glob(name.rstrip("/"))), f"{name_of(path)} names {name}"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if not path.is_relative_to(DOCS)], ids=name_of)
def test_the_links_of_a_document_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


#: Words that docs/style.md replaces, in documents and in code.
NOT_PLAIN = re.compile(
    r"\bthat which\b|\bin the place of\b|\bis none of\b|\bmay stand\b|\bbr(?:ing|ings|ought) about\b|\bas planned\b"
    r"|\bsays? of (?:it|them)self|\bsays? nothing of\b|\bwhom\b|\bmade again\b|\bwhat lets\b|\bstands (?:here|there)\b"
    r"|\b(?:where|if|when) there (?:is|are) none\b|: there is none\b|\bempty when none\b|\bcomes? to be\b"
    r"|\bha(?:s|ve) (?:not )?come about\b|\bgoes? on (?:where|from)\b|\bjust these\b|\bwhatever\b|\bwhoever\b"
    r"|\bnobody\b|\bsomebody\b|\bof one's own\b|\bnot so that\b|\ba person\b|\bby hand alone\b|\blets one\b"
)
#: Lists what is not plain, or is generated by programs that have tests of their own.
NOT_JUDGED = ("docs/style.md", "docs/matrix.md", "docs/performance.md", "docs/artifacts-performance.md")
#: Everything in these folders has messages, comments or docstrings, except locks and binary files.
CODE = sorted(
    path
    for folder in ("vllm_fleet", "infra", "lab", "tools", "plugins", "bench", "roles", "playbooks", "recipes")
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
    and path.suffix in ("", ".py", ".yml", ".j2", ".service", ".md")
    and "__pycache__" not in path.parts
)


#: Their digest is the key of the lab's trained model: every machine would train it again for a word.
TRAINED = {"lab/artifacts/model/questions.py", "lab/artifacts/model/questions.yml"}


def text_of(path: Path) -> str:
    """The text with its sentences whole: comments and string literals may break them over lines."""
    text = re.sub(r"[\"']\s*\n\s*f?[\"']", "", path.read_text(encoding="utf-8"))
    return re.sub(r"\s*\n\s*(?:#:? )?", " ", text)


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if name_of(path) not in NOT_JUDGED], ids=name_of)
def test_a_document_keeps_to_plain_words(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert NOT_PLAIN.findall(re.sub(r"\s+", " ", text)) == []


@pytest.mark.parametrize("folder", sorted({name_of(path).split("/")[0] for path in CODE}))
def test_code_keeps_to_plain_words(folder: str) -> None:
    judged = [path for path in CODE if name_of(path).startswith(f"{folder}/")]
    assert judged
    words = {name_of(path): NOT_PLAIN.findall(text_of(path)) for path in judged}
    assert {name: phrases for name, phrases in words.items() if phrases and name not in TRAINED} == {}


@pytest.mark.parametrize("text", ["# what lets\n# one go", '"made "\n    f"again"', "None where\n    there is none."])
def test_words_that_are_not_plain_are_found_across_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "module.py").write_text(text, encoding="utf-8")
    assert NOT_PLAIN.search(text_of(tmp_path / "module.py"))


def test_the_rooms_of_the_architecture_page_are_those_that_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract.get("containers") == ["vllm_fleet"]]
    _, _, section = (DOCS / "architecture.md").read_text("utf-8").partition("## The rooms of vllm_fleet")
    rows = re.findall(r"^\| (`[^|]*`) \|", section.partition("\n## ")[0], re.MULTILINE)
    shown = [" : ".join(re.findall(r"`(\w+)`", row)) for row in rows]
    assert shown == [layer for layer in layers if layer != "__main__"]


def test_the_readme_keeps_to_one_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 70
    assert sum(line.startswith("## Quick start") for line in lines) == 3


# -- the front door ----------------------------------------------------------------------------------------------------


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_license_is_the_whole_text_of_the_one_that_the_project_declares() -> None:
    assert project()["license"] == "Apache-2.0"
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_the_first_version_of_the_changelog_is_the_project_s() -> None:
    versions = re.findall(
        r"^## \[(.+)\] - (unreleased|\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert versions[0][0] == project()["version"]
    assert [date for _, date in versions[1:] if date == "unreleased"] == []


def test_pre_commit_runs_the_project_s_own_tools_only() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] in ("system", "pygrep")
        if hook["language"] == "system":
            program = hook["entry"].split()[0]
            assert program == "bash" or (Path(sys.prefix) / "bin" / Path(program).name).is_file(), program


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")) or ["none"], ids=str)
def test_an_issue_form_has_what_the_platform_requires(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
