"""The programs of Pulumi that the project runs, and the folder that holds all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

#: An older engine lacks what the program asks of it.
OLDEST = (3, 200, 0)
#: What has to be in one folder: engine, language host, and the scripts that start programs and providers.
PROGRAMS = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")


def parse_version(text: str) -> tuple[int, int, int]:
    """The first ``major.minor[.patch]`` in a text; zeros without a match."""
    version = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(version[1]), int(version[2]), int(version[3] or 0)) if version else (0, 0, 0)


def is_complete(folder: Path) -> bool:
    """Whether every program is in a folder."""
    return all(os.access(folder / program, os.X_OK) for program in PROGRAMS)


def printed_version(folder: Path) -> str:
    """What the ``pulumi`` of a folder prints as its version, such as ``v3.259.0``; empty where it fails."""
    done = subprocess.run(
        [folder / "pulumi", "version"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "1"},
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def find_installed() -> Path | None:
    """The folder of a Pulumi on PATH that is complete and recent enough, or None."""
    program = shutil.which("pulumi")
    folder = Path(program).resolve().parent if program else None
    if folder is None or not is_complete(folder):
        return None
    return folder if parse_version(printed_version(folder)) >= OLDEST else None
