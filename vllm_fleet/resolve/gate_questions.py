"""What the gates of a rollout ask an engine."""

from __future__ import annotations

from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.gates import GATES


def gate_questions(catalog: Catalog, deployment: Deployment) -> dict[str, Any]:
    """The texts, prompts, questions and limits for a deployment, as the role takes them.

    Args:
        catalog: the recipes.
        deployment: what is served. One whose engine calls no functions on chats is not asked for any.
    """
    gates = catalog.gates
    own = gates.models.get(deployment.model)
    calls = bool(deployment.args.get("enable-auto-tool-choice"))
    return {
        "asked": [gate for gate in GATES if calls or gate != "tools"],
        "vocabulary": [text.model_dump() for text in gates.vocabulary.texts],
        "prompts": list(own.prompts if own else gates.numerics.prompts),
        "numerics": gates.numerics.model_dump(include={"same", "other"}),
        "speed": gates.speed.model_dump(),
        "questions": [
            question.model_dump(exclude_defaults=True)
            for question in (own.questions if own else gates.questions)
            if calls or not question.call
        ],
        "share": gates.share,
    }
