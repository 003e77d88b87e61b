"""``python -m lab.setup`` builds what the lab needs, side by side: Pulumi, Debian, the engine, the model."""

from __future__ import annotations

import sys
from collections.abc import Callable

from lab.progress import Board, Phase
from vllm_fleet.base.errors import FleetError

#: What is built -> the module that builds it, its arguments, and the seconds on two idle cores from nothing.
_PARTS = {
    "Pulumi": (("tools.pulumi.provide",), 300.0),
    "Debian for the hosts": (("lab", "tree"), 120.0),
    "Engine and model": (("lab.artifacts", "build"), 180.0),
}


def main() -> int:
    """Builds the parts that are missing; the exit code is 0, or that of the error."""
    try:
        with Board("setup") as board:
            board.do_together([(board.add(name, seconds), _build(*words)) for name, (words, seconds) in _PARTS.items()])
    except FleetError as fault:
        for error in (fault, *fault.others):
            print(f"error: {error}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("error: interrupted (run the same command again to continue)", file=sys.stderr)
        return 130
    return 0


def _build(*words: str) -> Callable[[Phase], None]:
    return lambda phase: phase.run(sys.executable, "-m", *words)


if __name__ == "__main__":
    sys.exit(main())
