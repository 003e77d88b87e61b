"""What one release reads and another does not, and the flags of both that have another default."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from vllm_fleet.catalogue.engine_names import EngineNames

#: Stands for a default that the release makes at run time, so that no names file can give it.
AT_RUN_TIME = "made at run time"


@dataclass(frozen=True)
class Gone:
    """A name in use that only the old engine reads; ``instead``: its replacement."""

    kind: str
    name: str
    used_by: tuple[str, ...]
    why: str
    instead: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Default:
    """A flag with another default; ``used`` where a deployment or rule sets it anyway."""

    flag: str
    before: Any
    after: Any
    used: bool


@dataclass(frozen=True)
class NewRelease:
    """The engine that an upgrade leads to.

    Attributes:
        engine: its id, for the reason.
        names: what it reads.
        notes: what its rules say to users; those that mention a name are reported with that name.
        replaced: a removed name -> the name that its rules give in its place.
    """

    engine: str
    names: EngineNames
    notes: Iterable[str]
    replaced: Mapping[str, str]


def gone(used: Mapping[tuple[str, str], Iterable[str]], old: EngineNames, new: NewRelease) -> Iterator[Gone]:
    """The names in use that the old release reads and the new one does not.

    Args:
        used: the places that mention a name, by group (``args`` or ``env``) and dotted key.
        old: what the old release reads.
        new: the new release.
    """
    users_by_name: dict[tuple[str, str, str], dict[str, None]] = {}
    for (group, key), places in sorted(used.items()):
        if missing := (_missing_env if group == "env" else _missing_arg)(key, old, new.names):
            users_by_name.setdefault(missing, {}).update(dict.fromkeys(places))
    for (kind, name, why), users in users_by_name.items():
        notes = tuple(note for note in new.notes if _speaks_of(note, name))
        instead = new.replaced.get(name.rsplit(".", 1)[-1])
        yield Gone(kind, name, tuple(users), f"{new.engine}: {why}", instead, notes)


def _missing_env(name: str, old: EngineNames, new: EngineNames) -> tuple[str, str, str] | None:
    if name not in old.env or name in new.env or name in new.beside:
        return None
    without_effect = name in new.env_unused or name in new.env_dead_ends
    return "environment variable", name, new.why_unread(name) if without_effect else "no longer read"


def _missing_arg(key: str, old: EngineNames, new: EngineNames) -> tuple[str, str, str] | None:
    flag, _, rest = key.partition(".")
    if flag not in old.flags:
        return None
    if flag not in new.flags:
        alias = next((name for name, entry in new.flags.items() if f"--{flag}" in entry.get("aliases", ())), None)
        return "flag", flag, f"another spelling of --{alias}" if alias else "no such flag"
    if not rest:
        return None
    first, _, second = rest.partition(".")
    if flag == "compilation-config" and first == "pass_config" and second:
        name = second.split(".")[0]
        return None if name in new.pass_config else ("key", f"{flag}.pass_config.{name}", "no such key of pass_config")
    return None if first in new.nested.get(flag, {first}) else ("key", f"{flag}.{first}", f"no such key of {flag}")


def _speaks_of(note: str, name: str) -> bool:
    """Whether a note names it; a note may end a family of names with an asterisk."""
    return any(fnmatchcase(name.rsplit(".", 1)[-1], word) for word in re.findall(r"[A-Za-z][\w-]+\*?", note))


def defaults(old: EngineNames, new: EngineNames, used: set[str]) -> Iterator[Default]:
    """The flags of both releases that have another default; a change of type (``false`` to null) is one too."""
    for flag in sorted(old.flags.keys() & new.flags.keys()):
        before, after = (names.flags[flag].get("default", AT_RUN_TIME) for names in (old, new))
        if before != after or type(before) is not type(after):
            yield Default(flag, before, after, flag in used)
