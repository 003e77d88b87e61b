"""What the log of a start must say, and must not say, if vLLM serves as its recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.catalogue import Catalog, in_range
from vllm_fleet.resolve.deployment import Deployment

#: The kernel of a class without a GPU, in ``recipes/start_log.yml``.
_CPU = "cpu"


@dataclass(frozen=True)
class Promise:
    """A line of the log.

    Attributes:
        line: a regular expression.
        names: what its first group may be; empty: no line may match.
        what: what the line tells of.
    """

    line: str
    names: tuple[str, ...]
    what: str

    def record(self) -> dict[str, Any]:
        """The promise as the role takes it."""
        return {"line": self.line, "names": list(self.names), "what": self.what}


def promises(catalog: Catalog, deployment: Deployment) -> Iterator[Promise]:
    """The lines that the start of a deployment is judged by; none of them has to be there.

    Args:
        catalog: the recipes.
        deployment: what is served.
    """
    release = deployment.engine.release
    memory = deployment.fit.device
    kernel = memory.kernel if memory else _CPU
    for choice in catalog.start_log.choices:
        if kernel in choice.kernels and in_range(release, choice.engine or ">=0"):
            yield Promise(
                choice.line, tuple(choice.kernels[kernel]), f"{choice.what}, which the recipe has as {kernel}"
            )
    arch = catalog.host_class(deployment.host_class).family.arch
    for fallback in catalog.start_log.fallbacks:
        if in_range(release, fallback.engine or ">=0") and (fallback.arch is None or arch in fallback.arch):
            yield Promise(fallback.line, (), fallback.what)
