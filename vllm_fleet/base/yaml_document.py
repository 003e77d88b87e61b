"""YAML files with the line of every key, so that an error can name the place that a user must edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

Location = tuple[str | int, ...]
Record = TypeVar("Record", bound=BaseModel)


class _Loader(yaml.CSafeLoader):
    """The C parser with positions and without duplicate keys (YAML lets the last one win, silently)."""


@dataclass(frozen=True)
class Document:
    """A parsed file: its data and the line of each key path."""

    file: str
    data: Any
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int | None:
        """The line of a key path, or of its nearest parent in the file."""
        for length in range(len(location), -1, -1):
            if (found := self.lines.get(location[:length])) is not None:
                return found
        return None

    def error(self, location: Location, message: str, hint: str = "", code: str = "bad-input") -> FleetError:
        """An error at a key path of this file."""
        key = ".".join(str(part) for part in location) or None
        return FleetError(message, hint, self.file, self.line(location), key, code=code)


def read(path: Path) -> Document:
    """Reads one YAML file.

    Raises:
        FleetError: the file is missing, is not YAML, or has a key twice.
    """
    file = paths.display(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FleetError("file not found", file=file) from None
    except (OSError, UnicodeDecodeError) as fault:
        raise FleetError(f"cannot be read: {fault}", file=file) from fault
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        data = _build(loader, node, (), lines, file) if node is not None else None
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else None
        raise FleetError(f"is not valid YAML: {fault.problem}", file=file, line=line) from None
    except RecursionError:
        raise FleetError("an anchor contains itself, or the file is nested too deeply", "write it out", file) from None
    finally:
        loader.dispose()
    return Document(file, data, lines)


def _build(loader: Any, node: yaml.Node, at: Location, lines: dict[Location, int], file: str) -> Any:
    lines.setdefault(at, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and not node.tag.startswith(
        ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
    ):
        line = node.start_mark.line + 1
        raise FleetError(f"is not valid YAML: unknown tag {node.tag!r}", "remove it", file, line)
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise FleetError("a list or a mapping cannot be a key", "write a word", file, line)
            key = loader.construct_object(key_node, deep=True)
            if key in result:
                raise FleetError(
                    "duplicate key",
                    "keep one of them",
                    file,
                    line,
                    ".".join(str(part) for part in (*at, key)),
                )
            lines[(*at, key)] = line
            result[key] = _build(loader, value_node, (*at, key), lines, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*at, index), lines, file) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def parse(document: Document, model: type[Record], at: Location = (), data: Any = None) -> Record:
    """The file's data, or a part of it, as a strict record.

    Args:
        document: the file.
        model: the record.
        at: the key path of the part.
        data: the part, where it is not the whole file.

    Raises:
        FleetError: with every fault that the schema finds; the first one carries the others.
    """
    given = document.data if data is None else data
    if not isinstance(given, dict):
        raise document.error(at, "must be a mapping", "see docs/ for the format of this file")
    try:
        return model.model_validate(given)
    except ValidationError as faults:
        # A misspelt key is also a missing one: the spelling comes first.
        found = sorted(faults.errors(), key=lambda fault: fault["type"] == "missing")
        errors = [_translate(document, fault, at) for fault in found]
        first = errors[0]
        first.others = errors[1:]
        raise first from None


def _translate(document: Document, fault: Any, at: Location) -> FleetError:
    location: Location = (*at, *(part for part in fault["loc"] if part != "[key]"))
    if fault["type"] == "extra_forbidden":
        return document.error(location, "unknown key", "check the spelling")
    if fault["type"] == "missing":
        return document.error(location, "is missing", "add the key")
    message = str(fault["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    if not isinstance(fault["input"], dict | list) and "value_error" not in fault["type"]:
        message = f"{message}, not {fault['input']!r}"
    return document.error(location, message[:1].lower() + message[1:])
