"""Which known issues concern a deployment, and which of them a line of text shows."""

from __future__ import annotations

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


def record(issue: KnownIssue) -> dict[str, Any]:
    """The issue as the JSON contract spells it."""
    return issue.model_dump(include={"id", "kind", "symptom", "symptom_inferred", "cause", "fix", "source"})
