"""Each command line and config of the two guides that deploys something, beside what the catalogue gives for it.

``guides.yml`` has one row for each: where it stands (``section``), what the guide writes (``guide``), what is asked of
the catalogue (``ask``), and the outcome: ``serve`` and ``docker``, or ``refused`` and ``why``. What the guide writes
comes out word for word, or ``differs`` says why it does not. --update-golden writes the outcomes again, nothing else.
``elsewhere`` has one row for each command line that deploys nothing: the file that stands for it and a text in it, or
why no file does.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import serve_command
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Overrides

TABLE = Path(__file__).parent / "guides.yml"
OUTCOME = ("serve", "docker", "refused", "why")
HEADER = (
    "# See test_guides.py. serve, docker, refused and why are written by --update-golden.\n"
    "# A word of a command line cannot be folded:\n"
    "# yamllint disable rule:line-length\n"
)


class _Dumper(yaml.SafeDumper):
    """Lists are indented, as the linter wants them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:  # noqa: ARG002 - the name of the base
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the name of the base
        return True


def write() -> None:
    """Writes the table, always in the same form."""
    text = yaml.dump(table(), Dumper=_Dumper, sort_keys=False, width=80, allow_unicode=True)
    TABLE.write_text(HEADER + text, encoding="utf-8")


@cache
def table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return found


def rows() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = table()["rows"]
    return found


def outcome(catalog: Catalog, ask: dict[str, Any]) -> dict[str, str]:
    """What comes out of a question, as the outcome columns spell it."""
    asked = dict(ask)
    own = asked.pop("overrides", None)
    asked["features"] = tuple(asked.get("features", ()))
    overrides = Overrides(why="the guide's own values", args=own) if own else None
    try:
        found = resolve(catalog, Question(**asked, overrides=overrides))
    except FleetError as fault:
        assert fault.code == "refused", fault
        return {"refused": fault.message, "why": fault.hint}
    lines = {"serve": serve_command.serve_line(found.model, found.args, found.env)}
    if found.install == "docker":
        assert found.engine.docker is not None
        lines["docker"] = "\n".join(serve_command.docker_lines(found.engine.docker, found.model, found.args, found.env))
    return lines


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in rows().items()])
def test_what_the_guide_writes_comes_out(catalog: Catalog, row: dict[str, Any], request: pytest.FixtureRequest) -> None:
    found = outcome(catalog, row["ask"])
    reviewed = {column: row.pop(column) for column in OUTCOME if column in row}
    row.update(found)
    if request.config.getoption("--update-golden") and reviewed != found:
        write()
        reviewed = found
    assert reviewed == found
    lines = f" {found.get('serve', '')} {found.get('docker', '')} "
    missing = {text for text in row["guide"] if f" {text} " not in lines and not (text[0] in '"{' and text in lines)}
    assert missing == set(row.get("differs", {})), "what the guide writes and the catalogue leaves out needs its reason"


def test_the_table_covers_both_guides_and_every_family_that_they_name(catalog: Catalog) -> None:
    asked = [row["ask"] for row in rows().values()]
    assert {row["section"].split(",")[0] for row in rows().values()} == {"guide 0.10", "guide 0.12"}
    families = {name for name, family in catalog.classes.items() if "guide" in f"{family.why} {family.source}"}
    assert {ask["host_class"].rpartition("-")[0] for ask in asked} == families
    assert {ask["engine"] for ask in asked} == {name for name in catalog.engines if not re.search(r"-0\.3\d\.", name)}


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in table()["elsewhere"].items()])
def test_what_deploys_nothing_stands_elsewhere_or_says_why_not(row: dict[str, str]) -> None:
    assert row["section"].split(",")[0] in {"guide 0.10", "guide 0.12", "both guides"}
    if "file" in row:
        assert row["holds"] in (paths.root() / row["file"]).read_text(encoding="utf-8")
    else:
        assert row["why"]
