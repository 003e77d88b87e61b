"""Copies of models on the controller: the files that ``model.json`` lists, with their digests."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError


@dataclass(frozen=True)
class ModelFiles:
    """One revision of a model: its folder and the SHA-256 of each file."""

    directory: Path
    revision: str
    sha256: Mapping[str, str]


@cache
def model_files(directory: Path) -> ModelFiles:
    """Reads ``model.json`` of a folder; each host verifies the files after the copy.

    Raises:
        FleetError: the list is missing or wrong.
    """
    file = directory / "model.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        revision = str(data["revision"])
        digests = {str(name): str(entry["sha256"]) for name, entry in data["files"].items()}
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise FleetError(
            f"is not a list of a model's files: {fault!r}", "run 'make setup' to build it again", paths.display(file)
        ) from None
    bad = [name for name in digests if not re.fullmatch(r"[\w][\w.-]*", name)]
    if bad or not re.fullmatch(r"[\w][\w.-]*", revision):
        raise FleetError(f"names {bad or revision!r}, which is not a plain file name", "", paths.display(file))
    return ModelFiles(directory.resolve(), revision, digests)
