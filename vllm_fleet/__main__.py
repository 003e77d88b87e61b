"""The program ``vllm-fleet``, also as ``python -m vllm_fleet``."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point. Imports take most of the time of a short command, and Ctrl-C during them is no traceback."""
    try:
        from vllm_fleet.cli import main as run  # not before: nothing would catch the interruption

        run()
    except KeyboardInterrupt:
        import json

        from vllm_fleet.base.errors import interruption

        error = interruption()
        if "--json" in sys.argv:
            print(json.dumps({"error": error.record()}, indent=2))
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
