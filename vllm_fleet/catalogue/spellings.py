"""A guide's spelling of a name -> the name that the release reads, or nothing if it has no such name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog, in_range
from vllm_fleet.schema.recipe import Engine
from vllm_fleet.schema.spelling import Spelling

FILE = "recipes/spellings.yml"


@dataclass(frozen=True)
class Spelled:
    """The entry of the map that gave a value its name. ``entry`` counts from 1."""

    entry: int
    spelling: Spelling
    #: The guide's name in its parts: a layer has it only where it has the second, so most layers are passed by fast.
    path: tuple[str, ...]

    def note(self, engine: str, place: str) -> str:
        """What becomes of the name, as a sentence for the user.

        Args:
            engine: the id of the engine.
            place: the file and rule that use the name.
        """
        name, new = self.spelling.name.partition(".")[2], self.spelling.to
        outcome = f"is {new.partition('.')[2]} with" if new else "is left out with"
        return f"{name} ({place}) {outcome} {engine}: {self.spelling.why}"

    def record(self) -> dict[str, Any]:
        """The mapping as the provenance of the JSON contract spells it."""
        entry = self.spelling
        return {"name": entry.name, "file": FILE, "entry": self.entry, "why": entry.why, "source": entry.source}


@dataclass(frozen=True)
class Translated:
    """A layer in the release's own names.

    Attributes:
        args: the arguments, nested as they were.
        env: the environment.
        renamed: for each new name (``args.`` or ``env.`` before it), the entry that made it.
        dropped: for each name that was left out, the entry and the value.
    """

    args: Mapping[str, Any]
    env: Mapping[str, Any]
    renamed: Mapping[str, Spelled]
    dropped: Mapping[str, tuple[Spelled, Any]]


def applying(catalog: Catalog, engine: Engine) -> dict[str, Spelled]:
    """The entries for an engine, by the guide's name.

    Raises:
        FleetError: an entry has an invalid range.
    """
    entries: dict[str, Spelled] = {}
    for number, spelling in enumerate(catalog.spellings.spellings, start=1):
        try:
            if applies(spelling, engine):
                entries[spelling.name] = Spelled(number, spelling, tuple(spelling.name.split(".")))
        except FleetError as fault:
            raise catalog.documents["spellings"].error(
                ("spellings", number - 1, "engine"), fault.message, fault.hint
            ) from None
    return entries


def replacements(catalog: Catalog, engine: Engine) -> dict[str, str]:
    """The engine's own name for each name that it spells differently, by the last part of the latter."""
    instructions: dict[str, str] = {}
    for name, spelled in applying(catalog, engine).items():
        instead = spelled.spelling.to.partition(".")[2] if spelled.spelling.to else "nothing"
        instructions[name.rpartition(".")[2]] = f"{instead}. {spelled.spelling.why}"
    return instructions


def applies(spelling: Spelling, engine: Engine) -> bool:
    """Whether an entry is for an engine.

    Raises:
        FleetError: its range is invalid.
    """
    return spelling.accelerator in (None, engine.accelerator) and in_range(engine.release, spelling.engine)


def translate(args: Mapping[str, Any], env: Mapping[str, Any], active: Mapping[str, Spelled]) -> Translated:
    """A layer with its names as the release reads them; a name without an entry stays as it is.

    Args:
        args: the layer's arguments, None removes one.
        env: the layer's environment.
        active: the entries for the engine.

    Raises:
        FleetError: the layer has a name under both spellings.
    """
    layer: dict[str, Any] = {"args": args, "env": env}
    renamed: dict[str, Spelled] = {}
    dropped: dict[str, tuple[Spelled, Any]] = {}
    spelled_names = [name for name, spelled in active.items() if spelled.path[1] in layer[spelled.path[0]]]
    spelled_names = [name for name in spelled_names if _has(layer, active[name].path)]
    if spelled_names:
        layer = deepcopy(layer)
    for name in spelled_names:
        spelled = active[name]
        value = _pop(layer, spelled.path)
        new = spelled.spelling.to
        if new is None:
            dropped[name] = (spelled, value)
        elif _has(layer, tuple(new.split("."))):
            raise FleetError(
                f"{name.partition('.')[2]!r} and {new.partition('.')[2]!r} are one name in this release",
                "keep one of them",
                key=name,
            )
        else:
            _put(layer, new.split("."), value)
            renamed[new] = spelled
    return Translated(layer["args"], layer["env"], renamed, dropped)


def _has(layer: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(layer, Mapping) or key not in layer:
            return False
        layer = layer[key]
    return True


def _pop(layer: Any, path: tuple[str, ...]) -> Any:
    """Takes a value out, and the mappings around it that it leaves empty: an empty one would say something else."""
    if len(path) == 1:
        return layer.pop(path[0])
    value = _pop(layer[path[0]], path[1:])
    if not layer[path[0]] and path[0] not in ("args", "env"):
        del layer[path[0]]
    return value


def _put(layer: Any, path: list[str], value: Any) -> None:
    for key in path[:-1]:
        layer = layer.setdefault(key, {})
    layer[path[-1]] = value
