"""YAML files with the line of every key, so that an error can name the line to edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError

Location = tuple[str | int, ...]
Record = TypeVar("Record", bound=BaseModel)


class _Loader(yaml.CSafeLoader):
    """The C parser with positions. Duplicate keys are errors (in YAML the last one wins)."""


@dataclass(frozen=True)
class Document:
    """A parsed file: its data and the line of each key path."""

    file: str
    data: Any
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int | None:
        """The line of a key path, or of its nearest parent in the file."""
        for length in range(len(location), -1, -1):
            if (line := self.lines.get(location[:length])) is not None:
                return line
        return None

    def error(
        self, location: Location, message: str, hint: str = "", code: ErrorCode = ErrorCode.BAD_INPUT
    ) -> FleetError:
        """An error at a key path of this file."""
        key = ".".join(str(part) for part in location) or None
        return FleetError(message, hint, self.file, self.line(location), key, code=code)


def read(path: Path) -> Document:
    """Reads one YAML file.

    Raises:
        FleetError: the file is missing, is not YAML, or has a duplicate key.
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
                raise FleetError("a list or a mapping cannot be a key", "use a word", file, line)
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
    """Validates the file's data, or a part of it, as a record.

    Args:
        document: the file.
        model: the record.
        at: the key path of the part.
        data: the part, where it is not the whole file.

    Raises:
        FleetError: the data does not match the schema; the first error carries the others.
    """
    content = document.data if data is None else data
    if not isinstance(content, dict):
        raise document.error(at, "must be a mapping", "see docs/ for the format of this file")
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        # A misspelt key is also a missing one: the spelling comes first.
        details = sorted(invalid.errors(), key=lambda detail: detail["type"] == "missing")
        errors = [_translate(document, detail, at) for detail in details]
        first = errors[0]
        first.others = errors[1:]
        raise first from None


def _translate(document: Document, detail: Any, at: Location) -> FleetError:
    location: Location = (*at, *(part for part in detail["loc"] if part != "[key]"))
    if detail["type"] == "extra_forbidden":
        return document.error(location, "unknown key", "check the spelling")
    if detail["type"] == "missing":
        return document.error(location, "is missing", "add the key")
    message = str(detail["msg"])
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    if not isinstance(detail["input"], dict | list) and "value_error" not in detail["type"]:
        message = f"{message}, not {detail['input']!r}"
    return document.error(location, message[:1].lower() + message[1:])
