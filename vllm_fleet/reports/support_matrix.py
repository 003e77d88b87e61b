"""The support matrix, the Harmony format at each endpoint, and the known issues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from packaging.version import Version

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.resolve.resolve import Question, builds_for, resolve, supports
from vllm_fleet.schema.known_issue import KnownIssues
from vllm_fleet.schema.recipe import Engine, HostClass, Model, Profile, When

#: The size that the matrix shows, where a family has it; the largest otherwise.
SHOWN_COUNT = 8
_HEAD = """# Support matrix

Each model on each family of hosts, with each engine that is a build for its devices. `verified`: this project serves it
in its tests. `unverified`: there is a recipe with a source, not run on such hardware by this project. `unsupported` and
`no recipe`: refused. The three profiles show instances x tensor parallelism for the size in the first column.
"""
_TAIL = "Made from `recipes/` by `make golden`; `vllm-fleet matrix` prints it.\n"


@dataclass(frozen=True)
class Shape:
    """The instances of a profile on one host; ``refused`` is the reason of a refusal."""

    instances: int = 0
    tensor_parallel_size: int = 0
    refused: str | None = None

    def record(self) -> dict[str, Any]:
        """The shape as the JSON contract spells it."""
        if self.refused:
            return {"refused": self.refused}
        return {"instances": self.instances, "tensor_parallel_size": self.tensor_parallel_size}


@dataclass(frozen=True)
class Row:
    """One line of the matrix. ``engine`` is None for a family that no engine may serve."""

    model: str
    host_class: str
    engine: str | None
    status: str
    evidence: str
    shapes: Mapping[Profile, Shape]

    def record(self) -> dict[str, Any]:
        """The row as the JSON contract spells it."""
        return {
            "model": self.model,
            "host_class": self.host_class,
            "engine": self.engine,
            "status": self.status,
            "evidence": self.evidence,
            "profiles": {profile: shape.record() for profile, shape in self.shapes.items()},
        }


def rows(catalog: Catalog) -> Iterator[Row]:
    """Every row: by model, then family, then release."""
    for _, model in sorted(catalog.models.items()):
        for _, family in sorted(catalog.classes.items()):
            host = _shown(family)
            if family.status == "unsupported":
                yield Row(model.name, host.id, None, "unsupported", family.why, {})
                continue
            built = [engine for engine in catalog.engines.values() if builds_for(engine, host)]
            for engine in sorted(built, key=lambda engine: (Version(engine.release), engine.id)):
                yield _row(catalog, model, host, engine)


def _shown(family: HostClass) -> SizedClass:
    count = SHOWN_COUNT if SHOWN_COUNT in family.counts else max(family.counts)
    return SizedClass(f"{family.name}-{count}", family, count)


def _row(catalog: Catalog, model: Model, host: SizedClass, engine: Engine) -> Row:
    support = supports(model, host, engine)
    if support is None or support.status == "unsupported":
        status, evidence = ("unsupported", support.evidence) if support else ("no recipe", "")
        return Row(model.name, host.id, engine.id, status, evidence, {})
    shapes = {
        profile: _shape(catalog, Question(host.id, model.name, profile, engine.id)) for profile in catalog.profiles
    }
    return Row(model.name, host.id, engine.id, support.status, support.evidence, shapes)


def _shape(catalog: Catalog, question: Question) -> Shape:
    """The shape of a deployment, or the reason of its refusal.

    Raises:
        FleetError: the recipes are wrong; ``vllm-fleet check`` prints every error.
    """
    try:
        deployment = resolve(catalog, question)
    except FleetError as fault:
        if fault.code != ErrorCode.REFUSED:
            raise
        return Shape(refused=fault.message)
    return Shape(deployment.instances, deployment.tensor_parallel_size)


def harmony_record(known: KnownIssues) -> dict[str, Any]:
    """What each endpoint does with the Harmony format, as the JSON contract spells it."""
    return known.harmony.model_dump()


def issue_records(known: KnownIssues) -> list[dict[str, Any]]:
    """The known issues as the JSON contract spells them, with the selectors that are given."""
    return [issue.model_dump(exclude_none=True) for issue in known.issues]


def document(catalog: Catalog) -> str:
    """The text of docs/matrix.md: support, Harmony and known issues."""
    known = catalog.known_issues
    parts = [markdown(rows(catalog), catalog.profiles), _harmony(known), _issues(known), _TAIL]
    return "\n".join(parts)


def _harmony(known: KnownIssues) -> str:
    harmony = known.harmony
    capabilities = list(next(iter(harmony.apis.values())))
    lines = ["# Harmony format", "", f"What each endpoint does with it, for engines {harmony.engine}.", ""]
    lines += [_line(("endpoint", *capabilities)), "|" + "---|" * (len(capabilities) + 1)]
    for api, answers in harmony.apis.items():
        lines.append(_line((f"`{api}`", *("yes" if answers[name] else "no" for name in capabilities))))
    lines += [
        "",
        *(f"- {note}" for note in harmony.notes),
        *[""] * bool(harmony.notes),
        f"Source: {harmony.source}.",
        "",
    ]
    return "\n".join(lines)


def _issues(known: KnownIssues) -> str:
    lines = [
        "# Known issues",
        "",
        "`vllm-fleet recipe` prints those that are closest to its deployment, and all with `--issues`.",
        "",
    ]
    lines += [_line(("issue", "kind", "where", "cause", "fix", "source")), "|" + "---|" * 6]
    for issue in known.issues:
        lines.append(_line((f"`{issue.id}`", issue.kind, where(issue.when), issue.cause, issue.fix, issue.source)))
    return "\n".join([*lines, ""])


def where(when: When) -> str:
    """The selectors of a known issue in words."""
    given = when.model_dump(exclude_none=True)
    return "; ".join(f"{key} {_plain(value)}" for key, value in given.items()) or "everywhere"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def markdown(rows: Iterable[Row], profiles: Iterable[Profile]) -> str:
    """The rows as the first part of the document: a table for each model, the reasons of refusals under it."""
    shown = tuple(profiles)
    titles = ("host class", "engine", "status", *shown, "evidence")
    lines = [_HEAD]
    for model, group in groupby(rows, key=lambda row: row.model):
        reasons: list[str] = []
        lines += [f"## {model}", "", _line(titles), "|" + "---|" * len(titles)]
        printed = [(row, [_cell(row.shapes.get(profile), reasons) for profile in shown]) for row in group]
        # Neighbours that differ only in their engine share a line.
        for (name, status, cells, evidence), same in groupby(
            printed, key=lambda entry: (entry[0].host_class, entry[0].status, entry[1], entry[0].evidence)
        ):
            engines = ", ".join(f"`{row.engine}`" if row.engine else "any" for row, _ in same)
            lines.append(_line((f"`{name}`", engines, status, *cells, evidence or "-")))
        lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)), *[""] * bool(reasons)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(shape: Shape | None, reasons: list[str]) -> str:
    """One shape; the reason of a refusal is added to those of the table and named by its number."""
    if shape is None:
        return "-"
    if not shape.refused:
        return f"{shape.instances} x TP{shape.tensor_parallel_size}"
    if shape.refused not in reasons:
        reasons.append(shape.refused)
    return f"refused ({reasons.index(shape.refused) + 1})"
