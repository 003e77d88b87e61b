"""What an engine release reads: flags, environment variables and keys, as generated from its wheel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

_NESTED = ("compilation-config", "speculative-config", "quantization-config")


@dataclass(frozen=True)
class EngineNames:
    """The names of one release.

    Attributes:
        flags: each flag of ``vllm serve`` without its leading dashes, with type, default and choices.
        env: each environment variable that the release reads, with its default where it is static; a variable that
            is declared and used by nothing does not count.
        env_unused: those that are declared and used by nothing.
        env_dead_ends: those that are read into a name that nothing reads further, with that name.
        beside: environment variables that the libraries beside vLLM read, with the library.
        pass_config: the keys of ``compilation-config.pass_config``.
        nested: for each flag that takes a mapping whose keys are known, those keys.
        deprecated: flags, and dotted keys below them, that the release still reads and announces to go.
        tool_call_parsers: what ``--tool-call-parser`` may name.
        mappings_as_text: whether a mapping must be JSON text in a file for ``--config``; a mapping is fatal
            there in releases before 0.32.
    """

    flags: Mapping[str, Mapping[str, Any]]
    env: Mapping[str, Any]
    env_unused: frozenset[str]
    env_dead_ends: Mapping[str, str]
    beside: Mapping[str, Any]
    pass_config: frozenset[str]
    nested: Mapping[str, frozenset[str]]
    deprecated: frozenset[str]
    tool_call_parsers: frozenset[str]
    mappings_as_text: bool

    def reads(self, key: str, accelerator: str) -> bool:
        """Whether the release reads a name.

        Args:
            key: ``env.`` with a variable, or ``args.`` with a flag and the keys below it, dotted.
            accelerator: that of the engine; the libraries beside it are not the same for all.
        """
        group, _, name = key.partition(".")
        if group == "env":
            beside = self.beside.get(name)
            there = beside is not None and accelerator in beside.get("accelerators", [accelerator])
            return name in self.env or there
        flag, _, rest = name.partition(".")
        first, _, second = rest.partition(".")
        if flag == "compilation-config" and first == "pass_config" and second:
            return flag in self.flags and second.split(".")[0] in self.pass_config
        return flag in self.flags and (not first or first in self.nested.get(flag, {first}))

    def variables(self, accelerator: str) -> Iterator[str]:
        """Each environment variable that something reads.

        Args:
            accelerator: that of the engine.
        """
        yield from self.env
        yield from (name for name in self.beside if self.reads(f"env.{name}", accelerator))

    def why_unread(self, variable: str) -> str:
        """Why a variable that :meth:`reads` does not know has no effect."""
        if end := self.env_dead_ends.get(variable):
            return f"declared, and it goes no further than {end}, which nothing reads"
        return "declared, and used by nothing" if variable in self.env_unused else "not read"

    def deprecates(self, key: str) -> bool:
        """Whether the release reads a name, as :meth:`reads` takes it, and announces its removal."""
        return key.startswith("args.") and key.removeprefix("args.") in self.deprecated


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
        raise FleetError("names file not found", "run 'make engines'", paths.display(path))
    data = _read(path)
    beside = _read(path.parent / "beside.yml")
    without_effect = {*data.get("env_unused", ()), *data.get("env_dead_ends", {})}
    env = {name: default for name, default in data["env"].items() if name not in without_effect}
    if fork:
        forks = _read(path.parent / "forks.yml")["forks"]
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
        env_dead_ends={name: end for name, end in data.get("env_dead_ends", {}).items() if name not in env},
        beside=beside["env"],
        pass_config=frozenset(data["pass_config"]),
        nested={flag: frozenset(data[flag.replace("-", "_")]) for flag in _NESTED if flag.replace("-", "_") in data},
        deprecated=frozenset(_deprecated(data)),
        tool_call_parsers=frozenset(data["tool_call_parsers"]),
        mappings_as_text=data["config_file"]["mapping"] != "json",
    )


@cache
def _read(path: Path) -> Any:
    """A generated file, once: the engines of one release share it. Callers do not change the result."""
    return yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)


def _deprecated(data: Mapping[str, Any]) -> Iterator[str]:
    yield from (flag for flag, entry in data["flags"].items() if entry.get("deprecated"))
    for flag in _NESTED:
        yield from (f"{flag}.{key}" for key in data.get(f"{flag.replace('-', '_')}_deprecated", ()))
    yield from (f"compilation-config.pass_config.{key}" for key in data.get("pass_config_deprecated", ()))
