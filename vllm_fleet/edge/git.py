"""What git would take into a commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vllm_fleet.base import paths

#: git reads its configuration and the ignore files alone.
_SECONDS = 10


def would_commit(file: Path) -> bool:
    """Whether a file, which need not exist, is inside a checkout that does not ignore it. False where git cannot say.

    Args:
        file: the file.
    """
    at = paths.absolute(file)
    folder = next(above for above in at.parents if above.is_dir())
    try:
        done = subprocess.run(
            ["git", "check-ignore", "--quiet", "--no-index", "--", str(at)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # 0: it is ignored; 128: it is in no checkout.
    return done.returncode == 1
