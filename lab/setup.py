"""``python -m lab.setup`` builds what the lab needs, side by side: Pulumi, Debian, the engine, the model."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lab.progress import Board, Phase, exit_code_of

#: What is built -> the module that builds it, its arguments, and the seconds on two idle cores from nothing.
_PARTS = {
    "Pulumi": (("tools.pulumi.provide",), 350.0),
    "Debian for the hosts": (("lab", "tree"), 140.0),
    "Engine and model": (("lab.artifacts", "build"), 60.0),
}


def main() -> int:
    """Builds the parts that are missing; the exit code is 0, or that of the error."""
    return exit_code_of(_build_parts)


def _build_parts() -> None:
    with Board("setup") as board:
        board.do_together([(board.add(name, seconds), _build(*words)) for name, (words, seconds) in _PARTS.items()])


def _build(*words: str) -> Callable[[Phase], None]:
    return lambda phase: phase.run(sys.executable, "-m", *words)


if __name__ == "__main__":
    sys.exit(main())
