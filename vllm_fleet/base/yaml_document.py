"""YAML and JSON files with the line of every key, so that an error can name the line to edit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from vllm_fleet.base import did_you_mean, paths, text_files, yaml_reader
from vllm_fleet.base.errors import ErrorCode, FleetError, UnusableFileError, raise_all
from vllm_fleet.base.yaml_reader import Location, Position, dotted, is_secret_name

Record = TypeVar("Record", bound=BaseModel)
#: Values are left out and the rest is validated again so often, to report what is wrong beyond the schema too.
_ATTEMPTS = 4
_SPELLING = "check the spelling"
#: With more errors of the schema, the rest is not looked at.
_MOST_ERRORS = 1000
#: Letters of a message, which may repeat a value of any size.
_MOST_LETTERS = 600
#: pydantic's types of errors -> plain words.
_PLAIN_WORDS = {
    "dict_type": "must be a mapping of keys and values",
    "list_type": "must be a list",
    "model_type": "must be a mapping of keys and values",
    "too_short": "must have at least one entry",
}


@dataclass(frozen=True)
class Document:
    """A parsed file: its data and the position of each key path.

    Attributes:
        file: its name, as the user would type it.
        data: its values, without those that are wrong in themselves.
        position: where they are; None in an empty file.
        errors: what is wrong with the values themselves, for any schema.
        wrong: the key paths of these values.
        secret: its errors have line and column and repeat no word of it, a key neither.
        text: of a YAML file, with its comments.
    """

    file: str
    data: Any
    position: Position | None = None
    errors: tuple[FleetError, ...] = ()
    wrong: frozenset[Location] = frozenset()
    secret: bool = False
    text: str = field(default="", repr=False)

    def line(self, location: Location) -> int | None:
        """The line of a key path, or of its nearest parent in the file."""
        position = self._nearest(location)
        return position.line if position else None

    def _nearest(self, location: Location) -> Position | None:
        position = self.position
        for part in location:
            below = position.children.get(part) if position else None
            if below is None:
                break
            position = below
        return position

    def error(
        self, location: Location, message: str, hint: str = "", code: ErrorCode = ErrorCode.BAD_INPUT
    ) -> FleetError:
        """An error at a key path of this file."""
        short = message if len(message) <= _MOST_LETTERS else f"{message[:_MOST_LETTERS]}..."
        if self.secret and (position := self._nearest(location)):
            return FleetError(short, hint, self.file, position.line, code=code, column=position.column)
        return FleetError(short, hint, self.file, self.line(location), dotted(location) or None, code=code)

    def error_about(self, location: Location, fault: FleetError) -> FleetError:
        """An error of another file, at the key path of this one that names the file."""
        kind = UnusableFileError if isinstance(fault, UnusableFileError) else FleetError
        own = self.error(location, f"{fault.where} {fault.message}", fault.hint, fault.code)
        return kind(own.message, own.hint, own.file, own.line, own.key, code=own.code, column=own.column)


class Places:
    """Key paths, asked for what is above or below one of them."""

    def __init__(self, places: Iterable[Location]) -> None:
        self.all = frozenset(places)
        self._with_parents = frozenset(place[:length] for place in self.all for length in range(len(place) + 1))

    def concern(self, location: Location) -> bool:
        """Whether a key path is one of these, or above or below one."""
        return location in self._with_parents or any(location[:length] in self.all for length in range(len(location)))

    def concern_key(self, key: str) -> bool:
        """The same for a key path as an error has it, with dots."""
        return any(
            f"{key}.".startswith(f"{wrong}.") or f"{wrong}.".startswith(f"{key}.") for wrong in map(dotted, self.all)
        )


@dataclass(frozen=True)
class _Hints:
    """What to do about keys that a record does not have.

    Attributes:
        model: the record.
        own: the hint of who reads the file; None: the nearest key is proposed.
    """

    model: type[BaseModel]
    own: Callable[[Location], str | None] = lambda _: None

    def of(self, place: Location) -> str:
        """The hint for a key path."""
        return self.own(place) or did_you_mean.hint(str(place[-1]), keys_at(self.model, place[:-1]), _SPELLING)


def keys_at(kind: Any, place: Location) -> frozenset[str]:
    """The keys that a record has at a key path; empty where it may have any, or none.

    Args:
        kind: the record, or the type of a part of one.
        place: the key path.
    """
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if not place:
            return frozenset(kind.model_fields)
        field = kind.model_fields.get(str(place[0]))
        return keys_at(field.annotation, place[1:]) if field else frozenset()
    parts = get_args(kind)
    if get_origin(kind) in (list, dict):
        return keys_at(parts[-1], place[1:]) if place and parts else frozenset()
    return frozenset().union(*(keys_at(part, place) for part in parts))


@dataclass(frozen=True)
class Parsed(Generic[Record]):
    """A file's data as a record, as far as it is valid.

    Attributes:
        record: made from the valid part; None where too little of it is.
        errors: every error of the data.
        wrong: the key paths that the record is made without.
    """

    record: Record | None
    errors: tuple[FleetError, ...]
    wrong: Places


def read(path: Path, *, secret: bool = False) -> Document:
    """Reads one YAML file.

    Args:
        path: the file.
        secret: no error repeats a word of it: by mistake it may contain a secret, or be another file.

    Raises:
        FleetError: the file is missing or is not YAML, or values are wrong in themselves: it carries all of them.
    """
    document = read_with_errors(path, secret=secret)
    raise_all(document.errors)
    return document


def read_with_errors(path: Path, *, secret: bool = False) -> Document:
    """Reads one YAML file; what is wrong with single values is in the document, for :func:`parse` to report.

    Args:
        path: the file.
        secret: as for :func:`read`.

    Raises:
        FleetError: the file is missing or is not YAML.
    """
    return from_text(text_files.read_text(path), paths.display(path), secret=secret)


def from_text(text: str, file: str, *, secret: bool = False) -> Document:
    """Reads the text of a YAML file; what is wrong with single values is in the document.

    Args:
        text: of the file.
        file: its name, for errors.
        secret: as for :func:`read`.

    Raises:
        FleetError: the text is not YAML.
    """
    content = yaml_reader.read_text(text, file, secret=secret)
    # An error in an empty file names its first line.
    position = content.position or Position(1, 1)
    return Document(file, content.data, position, content.errors, content.wrong, secret, text)


def read_json(path: Path) -> Document:
    """Reads one JSON file.

    Raises:
        FleetError: the file is missing or is not JSON.
    """
    file = paths.display(path)
    text = text_files.read_text(path)
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        message = f"is not JSON: {fault.msg[:1].lower()}{fault.msg[1:]}"
        raise FleetError(message, file=file, line=fault.lineno, column=fault.colno) from None
    except ValueError as fault:
        raise FleetError(f"is not JSON: {fault}", file=file, line=1) from None
    except RecursionError:
        raise FleetError("is not JSON: it is nested too deeply", file=file, line=1) from None
    try:
        # JSON is YAML but for corner cases, in which errors name the first line.
        position = yaml_reader.read_text(text, file).position
    except FleetError:
        position = None
    return Document(file, data, position or Position(1, 1))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"duplicate key {twice[:60]!r}")
    return result


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is not a number of JSON")


def parse(
    document: Document,
    model: type[Record],
    at: Location = (),
    data: Any = None,
    unknown: Callable[[Location], str | None] = lambda _: None,
) -> Record:
    """Validates the file's data, or a part of it, as a record.

    Args:
        document: the file.
        model: the record.
        at: the key path of the part.
        data: the part, where it is not the whole file.
        unknown: the hint for a key that the record does not have, by its key path below ``at``; None: the nearest
            key that it has.

    Raises:
        FleetError: the data does not match the schema, or values are wrong in themselves; the first error carries the
            others.
    """
    # A part is validated beside others, so the errors of the whole file are not its own.
    own = document.errors if data is None else ()
    content = document.data if data is None else data
    if not isinstance(content, dict):
        raise_all([*own, _no_mapping(document, at)])
    try:
        record = model.model_validate(content)
    except ValidationError as invalid:
        raise_all([*own, *_own_errors(document, invalid, content, at, _Hints(model, unknown))])
        # What is left is a result of values that are wrong in themselves, which the whole file reports.
        raise document.error(at, "has a value that cannot be read") from None
    raise_all(own)
    return record


def parse_valid_part(
    document: Document, model: type[Record], fill: Callable[[dict[str, Any], Places], None], page: str = "docs/"
) -> Parsed[Record]:
    """Validates the file's data as a record; where it is wrong, what is wrong is left out.

    So a caller can check the rest too, and report everything at once.

    Args:
        document: the file.
        model: the record.
        fill: puts values in for keys that are left out and that the record cannot be made without. It gets the data,
            which it changes, and the key paths that are left out.
        page: the documentation with the format of the file.

    Raises:
        FleetError: the file is not a mapping.
    """
    data = document.data
    errors, wrong = list(document.errors), set(document.wrong)
    if not isinstance(data, dict):
        raise_all([*errors, _no_mapping(document, (), page)])
    fill(data, Places(wrong))
    for _ in range(_ATTEMPTS):
        try:
            return Parsed(model.model_validate(data), tuple(errors), Places(wrong))
        except ValidationError as invalid:
            known = Places(wrong)
            found = _translate(document, invalid, data, (), _Hints(model))
            errors += [error for error, place in found if not known.concern(place)]
            places = {place for _, place in found}
            if len(errors) > _MOST_ERRORS or () in places:
                break
            wrong |= places
            data = _without(data, places)
            fill(data, Places(wrong))
    return Parsed(None, tuple(errors), Places(wrong))


def _no_mapping(document: Document, at: Location, page: str = "docs/") -> FleetError:
    message = "is empty, and must be a mapping" if document.data is None else "must be a mapping"
    return document.error(at, message, f"see {page} for the format of this file")


def _own_errors(
    document: Document, invalid: ValidationError, data: Any, at: Location, hints: _Hints
) -> list[FleetError]:
    """The errors of a record that do not follow from values that are wrong in themselves."""
    wrong = Places(document.wrong)
    found = _translate(document, invalid, data, at, hints)
    return [error for error, place in found if not wrong.concern((*at, *place))]


def _translate(
    document: Document, invalid: ValidationError, data: Any, at: Location, hints: _Hints
) -> list[tuple[FleetError, Location]]:
    """Each error of a record, once for each place, with the place below ``at``."""
    details = invalid.errors(include_url=False, include_context=False)
    # A misspelt key is also a missing one: the spelling comes first.
    details.sort(key=lambda detail: detail["type"] == "missing")
    found: dict[Location, FleetError] = {}
    for detail in details:
        place = _place(detail, data)
        if place not in found:
            is_unknown = detail["type"] == "extra_forbidden"
            hint = hints.of(place) if is_unknown and not document.secret else _SPELLING
            found[place] = _error(document, detail, (*at, *place), hint)
    return [(error, place) for place, error in found.items()]


def _place(detail: Any, data: Any) -> Location:
    """The key path of an error in the data, without pydantic's own words for keys and for alternatives."""
    place: list[str | int] = []
    last = len(detail["loc"]) - 1
    for number, part in enumerate(detail["loc"]):
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and part in range(len(data))):
            place.append(part)
            data = data[part]
        elif detail["type"] == "missing" and number == last:
            place.append(part)
    return tuple(place)


def _error(document: Document, detail: Any, location: Location, unknown: str) -> FleetError:
    if detail["type"] == "extra_forbidden":
        return document.error(location, "unknown key", unknown)
    if detail["type"] == "missing":
        text = f"the key {detail['loc'][-1]!r} is missing" if document.secret else "is missing"
        return document.error(location, text, "add the key")
    message = _PLAIN_WORDS.get(detail["type"], str(detail["msg"]))
    for prefix in ("Value error, ", "Assertion failed, "):
        message = message.removeprefix(prefix)
    if message.startswith("Input should be "):
        message = f"must be {message.removeprefix('Input should be ')}"
    is_hidden = document.secret or any(is_secret_name(str(part)) for part in location)
    if not is_hidden and not isinstance(detail["input"], dict | list) and "value_error" not in detail["type"]:
        value = detail["input"]
        shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
        message = f"{message}, not {shown if len(shown) <= 120 else f'{shown[:120]}...'}"
    hint = "write it without quotes" if _is_quoted_number(detail) else ""
    if isinstance(detail["input"], bool) and detail["type"] in ("string_type", "literal_error"):
        hint = "put it in quotes: YAML reads yes, no, on and off as true and false"
    return document.error(location, message[:1].lower() + message[1:], hint)


def _is_quoted_number(detail: Any) -> bool:
    return (
        detail["type"] in ("int_type", "float_type")
        and isinstance(detail["input"], str)
        and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", detail["input"]) is not None
    )


def _without(data: Any, places: Collection[Location]) -> Any:
    """A copy of the data without some places; a list that has one is left out whole, so that no index moves."""
    first = {place[0] for place in places if len(place) == 1 or isinstance(place[1], int)}
    below: dict[Any, set[Location]] = {}
    for place in places:
        if len(place) > 1:
            below.setdefault(place[0], set()).add(place[1:])
    result = {}
    for key, value in data.items():
        if key in first:
            continue
        if key not in below:
            result[key] = value
        elif isinstance(value, dict) and not any(len(rest) == 1 and rest[0] not in value for rest in below[key]):
            result[key] = _without(value, below[key])
        # Else: a key is missing in it, so it is left out.
    return result
