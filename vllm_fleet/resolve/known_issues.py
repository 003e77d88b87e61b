"""Which known issues concern a deployment, and which of them a line of text shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.resolve import Combination, Deployment, selects
from vllm_fleet.schema.known_issue import KnownIssue
from vllm_fleet.schema.recipe import Feature


def concerning(catalog: Catalog, deployment: Deployment, features: tuple[Feature, ...] = ()) -> list[KnownIssue]:
    """The known issues that can affect a deployment, in the order of the catalogue.

    Args:
        catalog: the recipes.
        deployment: what was resolved.
        features: the requested features.
    """
    combination = Combination(
        catalog.host_class(deployment.host_class),
        deployment.engine,
        deployment.install,
        deployment.model,
        deployment.profile,
        features,
        deployment.tensor_parallel_size,
        deployment.args,
        deployment.env,
    )
    return [issue for issue in catalog.known_issues.issues if selects(issue.when, combination)]


#: Selector -> how much it says that an issue is about just this deployment. An accelerator alone says nothing.
_CLOSENESS = {
    "feature": 8,
    "host_class": 6,
    "tensor_parallel": 6,
    "profile": 4,
    "arch": 4,
    "devices": 2,
    "engine": 2,
    "install": 1,
    "model": 1,
}
#: It shows in no text: no log will tell later.
_SILENT = 2
#: What an issue must reach to be told without being asked for: more than a release, or a form of installation.
_CLOSE = 4


def closest(issues: Sequence[KnownIssue], most: int = 3) -> list[KnownIssue]:
    """The issues that are about a deployment itself, and not about everything of its vendor; the closest first.

    Args:
        issues: those that concern the deployment.
        most: how many.
    """
    given = [(sum(_CLOSENESS.get(name, 0) for name in issue.when.model_fields_set), issue) for issue in issues]
    near = [(close + (_SILENT if issue.symptom is None else 0), issue) for close, issue in given if close >= _CLOSE]
    return [issue for _, issue in sorted(near, key=lambda pair: -pair[0])[:most]]


@dataclass(frozen=True)
class ShownIssue:
    """A known issue that a log shows.

    Attributes:
        issue: the issue.
        line: the number of the first line that shows it, from 1 on.
        text: that line, as it is in the log.
        count: how many lines show it.
    """

    issue: KnownIssue
    line: int
    text: str
    count: int


def find_shown(issues: Iterable[KnownIssue], lines: Iterable[str]) -> list[ShownIssue]:
    """The issues whose symptom a log shows, in the order in which they appear.

    Args:
        issues: the known issues.
        lines: the lines of the log.
    """
    symptoms = [(issue, re.compile(issue.symptom)) for issue in issues if issue.symptom]
    shown: dict[str, ShownIssue] = {}
    for number, line in enumerate(lines, 1):
        for issue, symptom in symptoms:
            if symptom.search(line):
                first = shown.get(issue.id, ShownIssue(issue, number, line, 0))
                shown[issue.id] = ShownIssue(issue, first.line, first.text, first.count + 1)
    return list(shown.values())


def record(issue: KnownIssue) -> dict[str, Any]:
    """The issue as the JSON contract spells it."""
    return issue.model_dump(include={"id", "kind", "symptom", "symptom_inferred", "cause", "fix", "source"})
