"""What an engine release reads: flags, environment variables and keys, as generated from its wheel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vllm_fleet import paths
from vllm_fleet.errors import FleetError


@dataclass(frozen=True)
class EngineNames:
    """The names of one release.

    Attributes:
        flags: each flag of ``vllm serve`` without its leading dashes, with type, default and choices.
        env: each environment variable that the release reads, with its default where it is static; a variable that
            is declared and used by nothing does not count.
        beside: environment variables that the libraries beside vLLM read, with the library.
        pass_config: the keys of ``compilation-config.pass_config``.
    """

    flags: Mapping[str, Mapping[str, Any]]
    env: Mapping[str, Any]
    beside: Mapping[str, Any]
    pass_config: frozenset[str]


@cache
def read_names(path: Path) -> EngineNames:
    """Reads a generated names file and the reviewed list of the libraries beside it.

    Raises:
        FleetError: the file is missing.
    """
    if not path.is_file():
        raise FleetError("there is no such names file", "run 'make engines'", paths.display(path))
    data = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    beside = yaml.load((path.parent / "beside.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    return EngineNames(
        flags=data["flags"],
        env={name: default for name, default in data["env"].items() if name not in data.get("env_unused", ())},
        beside=beside["env"],
        pass_config=frozenset(data["pass_config"]),
    )
