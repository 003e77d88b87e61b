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
        env_unused: those that are declared and used by nothing.
        beside: environment variables that the libraries beside vLLM read, with the library.
        pass_config: the keys of ``compilation-config.pass_config``.
        nested: for each flag that takes a mapping whose keys are known, those keys.
        tool_call_parsers: what ``--tool-call-parser`` may name.
        mappings_as_text: whether a mapping must stand as JSON text in a file for ``--config``; a mapping is fatal
            there in releases before 0.32.
    """

    flags: Mapping[str, Mapping[str, Any]]
    env: Mapping[str, Any]
    env_unused: frozenset[str]
    beside: Mapping[str, Any]
    pass_config: frozenset[str]
    nested: Mapping[str, frozenset[str]]
    tool_call_parsers: frozenset[str]
    mappings_as_text: bool


@cache
def read_names(path: Path, fork: str | None = None) -> EngineNames:
    """Reads a generated names file and the reviewed list of the libraries beside it.

    Args:
        path: the names file of the release.
        fork: an entry of ``forks.yml`` whose variables are read too.

    Raises:
        FleetError: the file or the fork is missing, or the fork comes from another release.
    """
    if not path.is_file():
        raise FleetError("there is no such names file", "run 'make engines'", paths.display(path))
    data = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    beside = yaml.load((path.parent / "beside.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    env = {name: default for name, default in data["env"].items() if name not in data.get("env_unused", ())}
    if fork:
        forks = yaml.load((path.parent / "forks.yml").read_text(encoding="utf-8"), yaml.CSafeLoader)["forks"]
        if fork not in forks or forks[fork]["inherits"] != path.stem:
            raise FleetError(
                f"there is no fork {fork!r} of {path.stem}",
                "correct the name",
                paths.display(path.parent / "forks.yml"),
            )
        env |= dict.fromkeys(forks[fork]["env"])
    return EngineNames(
        flags=data["flags"],
        env=env,
        env_unused=frozenset(data.get("env_unused", ())) - frozenset(env),
        beside=beside["env"],
        pass_config=frozenset(data["pass_config"]),
        nested={
            flag: frozenset(data[flag.replace("-", "_")])
            for flag in ("compilation-config", "speculative-config", "quantization-config")
            if flag.replace("-", "_") in data
        },
        tool_call_parsers=frozenset(data["tool_call_parsers"]),
        mappings_as_text=data["config_file"]["mapping"] != "json",
    )
