"""Text of a YAML file -> its data, the position of each key, and every error in it.

The parser is libyaml through PyYAML. It gives events one after the other, so that deep nesting and aliases that
multiply cost no more than the limits here allow. The alternatives, measured on ``recipes/`` (88 kB, 2026-11): these
events 24 ms, PyYAML's C loader 15 ms, its Python loader 131 ms, ruamel.yaml 238 ms. The C loader composes recursively:
100000 brackets end the process. ruamel.yaml reads ``0022`` as 22 and ``22:22`` as text, so a file would mean one thing
here and another in Ansible.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_scalars import AmbiguousNumberError, read_plain

Location = tuple[str | int, ...]

#: The records of fleet.yml and recipes/ are at most 7 deep; arguments of vLLM may add some.
MOST_LEVELS = 40
#: Values of a file, those that aliases repeat included.
MOST_VALUES = 500_000

_MERGE = "<<"
#: libyaml ends a line at the first three, editors do not; the others hide or turn text around on the screen.
_NOT_ALLOWED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]"
)
#: libyaml's words for what people do -> plain words, and what to do.
_PLAIN_WORDS = (
    ("cannot start any token", "this character cannot begin a value", "put the value in quotes"),
    ("mapping values are not allowed", "a second ': ' in one line", "put the value in quotes"),
    ("could not find expected ':'", "a line without ': ' among keys", "write 'key: value', or indent the line"),
    ("did not find expected key", "a key is expected here", "correct the indentation or the quotes of this value"),
    ("did not find expected ',' or", "a bracket or brace is not closed, or a comma is missing", "close it"),
    ("did not find expected '-' indicator", "an item of a list begins with '- '", "correct the indentation"),
    ("unexpected end of stream", "the file ends inside quotes", "close the quotes"),
    ("block sequence entries are not allowed", "a list cannot begin here", "begin it in the next line"),
    ("block mapping entries are not allowed", "a key cannot begin here", "begin it in the next line"),
    ("found undefined tag handle", "the tag is not supported", "remove the word that begins with '!'"),
    ("found unknown escape character", "a backslash in double quotes begins an escape", "use single quotes"),
    ("did not find expected <document start>", "a second value", "keep one mapping in the file"),
)


#: What the name of a secret ends in.
_SECRET_NAME = re.compile(r"(^|[_-])(token|(api|access|private)[_-]?key|secret|passw(or)?d)$", re.IGNORECASE)


@dataclass(frozen=True)
class Position:
    """Where a value of a file is.

    Attributes:
        line: of its key, or of an item of a list; from 1.
        column: the same.
        children: the positions of its keys or items.
    """

    line: int
    column: int
    children: Mapping[str | int, Position] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """What a file contains.

    Attributes:
        data: its values, without those that are wrong.
        position: where they are, the wrong ones too; None in an empty file.
        errors: every error.
        wrong: the key paths of values that are wrong.
    """

    data: Any
    position: Position | None
    errors: tuple[FleetError, ...]
    wrong: frozenset[Location]


@dataclass(frozen=True)
class _Value:
    """A value with its position, and how many values it has with those below it."""

    data: Any
    position: Position
    size: int


class _WrongValueError(Exception):
    """The value that was just read is wrong; its error is known already."""


def read_text(text: str, file: str, *, secret: bool = False) -> Content:
    """Reads the text of a YAML file.

    Args:
        text: of the file, without a byte order mark.
        file: its name, for errors.
        secret: errors have line and column and repeat no word of the file, a key neither.

    Raises:
        FleetError: the text is not YAML, is too large or too deep, or has several documents.
    """
    if unusable := _NOT_ALLOWED.search(text):
        raise _character_error(text, unusable.start(), file)
    loader = yaml.CSafeLoader(text)
    try:
        return _Reader(loader, text, file, secret=secret).read()
    except yaml.MarkedYAMLError as fault:
        raise _syntax_error(fault, text, file) from None
    except yaml.YAMLError as fault:
        raise FleetError(f"is not valid YAML: {fault}", file=file) from None
    finally:
        loader.dispose()


class _Reader:
    """Builds the data of one file from the parser's events."""

    def __init__(self, loader: yaml.CSafeLoader, text: str, file: str, *, secret: bool) -> None:
        self._loader = loader
        self._text = text
        self._file = file
        self._secret = secret
        self._anchors: dict[str, _Value | None] = {}
        self._errors: list[FleetError] = []
        self._wrong: set[Location] = set()
        self._values = 0

    def read(self) -> Content:
        """The whole file."""
        self._next()  # the start of the stream
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            return Content(None, None, (), frozenset())
        try:
            value = self._value(self._next(), (), 0)
        except _WrongValueError:
            raise self._all_errors() from None
        self._next()  # the end of the document
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise self._error(
                event, (), "a second document begins here", "keep one document: remove the line '---' or split the file"
            )
        return Content(value.data, value.position, tuple(self._errors), frozenset(self._wrong))

    def _next(self) -> Any:
        return self._loader.get_event()

    def _error(self, event: Any, at: Location, message: str, hint: str = "") -> FleetError:
        mark = event.start_mark
        key = None if self._secret else dotted(at) or None
        return FleetError(message, hint, self._file, mark.line + 1, key, column=mark.column + 1)

    def _all_errors(self) -> FleetError:
        first, *others = self._errors
        first.others = others
        return first

    def _refuse(self, event: Any, at: Location, message: str, hint: str) -> None:
        """Notes an error; the value at the key path is left out."""
        self._errors.append(self._error(event, at, message, hint))
        self._wrong.add(at)

    def _hides(self, at: Location) -> bool:
        """Whether no error may repeat the value at a key path."""
        return self._secret or (bool(at) and is_secret_name(str(at[-1])))

    def _count(self, event: Any, size: int) -> None:
        self._values += size
        if self._values > MOST_VALUES:
            raise self._error(
                event,
                (),
                f"has more than {MOST_VALUES} values, those that aliases repeat included",
                "remove aliases that contain aliases, or split the fleet",
            )

    def _value(self, event: Any, at: Location, level: int) -> _Value:
        """The value that begins with an event.

        Raises:
            _WrongValueError: it is wrong; what is below it has been read.
            FleetError: nothing after it can be read.
        """
        if level > MOST_LEVELS:
            raise self._error(event, (), f"is nested more than {MOST_LEVELS} levels deep", "remove levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, at)
        self._count(event, 1)
        if event.anchor:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, at)
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(event, at, level)
        else:
            value = self._sequence(event, at, level)
        if event.anchor:
            self._anchors[event.anchor] = value
        if event.tag:
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            tag = "a tag" if self._hides(at) else f"the tag {shown[:40]!r}"
            self._refuse(event, at, f"is not valid YAML here: {tag} is not supported", "remove it")
            raise _WrongValueError
        return value

    def _alias(self, event: Any, at: Location) -> _Value:
        name = event.anchor
        target = self._anchors.get(name)
        if target is None:
            if self._hides(at):
                self._refuse(event, at, "a word that begins with '*' names an anchor", "put the value in quotes")
                raise _WrongValueError
            known = name in self._anchors
            message = f"the anchor {name[:40]!r} contains itself, or is wrong" if known else f"no anchor {name[:40]!r}"
            self._refuse(event, at, message, "write the values out" if known else f"define &{name[:40]} before *")
            raise _WrongValueError
        self._count(event, target.size)
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        return _Value(_copied(target.data), Position(line, column, target.position.children), target.size)

    def _scalar(self, event: Any, at: Location) -> _Value:
        position = Position(event.start_mark.line + 1, event.start_mark.column + 1)
        if event.style:
            return _Value(event.value, position, 1)
        if "\xa0" in event.value:
            self._refuse(event, at, "contains a no-break space", "replace it by a space, or quote the text")
            self._errors[-1].column = position.column + event.value.index("\xa0")
            raise _WrongValueError
        try:
            return _Value(read_plain(event.value), position, 1)
        except AmbiguousNumberError as fault:
            if self._hides(at):
                self._refuse(event, at, "readers of YAML read this word in different ways", "put it in quotes")
            else:
                self._refuse(event, at, str(fault), fault.hint)
            raise _WrongValueError from None

    def _sequence(self, event: Any, at: Location, level: int) -> _Value:
        items: list[_Value] = []
        while not isinstance(item := self._next(), yaml.SequenceEndEvent):
            try:
                items.append(self._value(item, (*at, len(items)), level + 1))
            except _WrongValueError:
                self._wrong.add(at)
        position = Position(
            event.start_mark.line + 1,
            event.start_mark.column + 1,
            {number: item.position for number, item in enumerate(items)},
        )
        return _Value([item.data for item in items], position, 1 + sum(item.size for item in items))

    def _mapping(self, event: Any, at: Location, level: int) -> _Value:
        data: dict[Any, Any] = {}
        positions: dict[Any, Position] = {}
        merged: list[_Value] = []
        seen: set[Any] = set()
        size = 1
        while not isinstance(key_event := self._next(), yaml.MappingEndEvent):
            try:
                key = self._key(key_event, at, level)
            except _WrongValueError:
                self._skip(self._next(), level)
                continue
            value_event = self._next()
            place = (*at, key)
            if key in seen:
                kept = "keep one of them; to merge several, write '<<: [*a, *b]'" if key == _MERGE else "keep one"
                self._errors.append(self._error(key_event, place, "duplicate key", kept))
                self._skip(value_event, level)
                continue
            seen.add(key)
            position = Position(key_event.start_mark.line + 1, key_event.start_mark.column + 1)
            is_merge = key == _MERGE and not key_event.style
            if not is_merge:
                positions[key] = position
            try:
                value = self._value(value_event, place, level + 1)
            except _WrongValueError:
                continue
            size += value.size
            if is_merge:
                merged += self._merge_sources(value_event, value, place)
                continue
            data[key] = value.data
            positions[key] = Position(position.line, position.column, value.position.children)
        # As YAML's merge key: explicit keys win, then the first source; https://yaml.org/type/merge.html.
        whole: dict[Any, Any] = {}
        for source in reversed(merged):
            whole |= source.data
        for source in merged:
            positions = {**source.position.children, **positions}
        whole = {key: value for key, value in whole.items() if key in data or key not in seen} | data
        return _Value(whole, Position(event.start_mark.line + 1, event.start_mark.column + 1, positions), size)

    def _merge_sources(self, event: Any, value: _Value, at: Location) -> list[_Value]:
        """The mappings that a merge key names."""
        sources = [value]
        if isinstance(value.data, list):
            sources = [_Value(item, value.position.children[number], 1) for number, item in enumerate(value.data)]
        if not all(isinstance(source.data, dict) for source in sources):
            self._refuse(event, at, "'<<' merges mappings only", "name an anchor of a mapping, such as '<<: *name'")
            return []
        return sources

    def _key(self, event: Any, at: Location, level: int) -> Any:
        """A key of a mapping: one word.

        Raises:
            _WrongValueError: it is not.
        """
        if not isinstance(event, yaml.ScalarEvent):
            self._errors.append(self._error(event, at, "a list, a mapping or an alias cannot be a key", "use a word"))
            self._skip(event, level)
            raise _WrongValueError
        key = self._value(event, (*at, event.value), level).data
        if not isinstance(key, str | int) or isinstance(key, bool):
            meant = "nothing" if key is None else f"{key}".lower()
            self._errors.append(
                self._error(event, (*at, event.value), f"the key is read as {meant}, not as text", "put it in quotes")
            )
            self._wrong.add((*at, event.value))
            raise _WrongValueError
        return key

    def _skip(self, event: Any, level: int) -> None:
        """Passes over a value; its own errors are not of interest."""
        errors, wrong = list(self._errors), set(self._wrong)
        with contextlib.suppress(_WrongValueError):
            self._value(event, (), level + 1)
        self._errors, self._wrong = errors, wrong


def _copied(data: Any) -> Any:
    """A copy: what an alias repeats is changed and written by itself."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(item) for item in data] if isinstance(data, list) else data


def is_secret_name(name: str) -> bool:
    """Whether the value of a key or of a variable is a secret by its name, such as HF_TOKEN."""
    return _SECRET_NAME.search(name) is not None


def dotted(at: Location) -> str:
    """A key path as text for a message: in one line, without what a terminal would obey, each part cut."""
    return ".".join(_shown(part) for part in at)


def _shown(part: object) -> str:
    text = str(part)
    cut = text if len(text) <= 60 else f"{text[:60]}..."
    return cut if cut.isprintable() else repr(cut)[1:-1]


def _character_error(text: str, offset: int, file: str) -> FleetError:
    line, column = text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
    code = ord(text[offset])
    name = unicodedata.name(text[offset], "control character").lower()
    return FleetError(
        f"is not valid YAML here: the invisible character U+{code:04X} ({name})",
        "remove it; in double quotes it can be written as an escape",
        file,
        line,
        column=column,
    )


def _syntax_error(fault: yaml.MarkedYAMLError, text: str, file: str) -> FleetError:
    mark = fault.problem_mark or fault.context_mark
    problem = str(fault.problem or fault.context or "")
    line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
    lines = text.split("\n")
    if conflict := next((number for number, one in enumerate(lines, 1) if one.startswith("<<<<<<< ")), None):
        return FleetError("is not valid YAML: a conflict of git begins here", "resolve it", file, conflict)
    here = lines[mark.line] if mark and mark.line < len(lines) else ""
    for number in {fault.context_mark.line if fault.context_mark else -1, mark.line if mark else -1}:
        if "\xa0" in "".join(lines[number : number + 1]):
            message, hint = "is not valid YAML: a no-break space", "replace it by a space"
            return FleetError(message, hint, file, number + 1, column=lines[number].index("\xa0") + 1)
    if mark and ("\t" in here[: len(here) - len(here.lstrip())] or here[mark.column : mark.column + 1] == "\t"):
        message, hint = "a tab, where YAML takes only spaces", "replace tabs by spaces"
    else:
        known = ((plain, what) for words, plain, what in _PLAIN_WORDS if words in problem)
        message, hint = next(known, (problem, "correct the syntax at this place"))
    began = fault.context_mark.line + 1 if fault.context_mark else line
    if began != line:
        message += f"; what is open begins in line {began}"
    return FleetError(f"is not valid YAML: {message}", hint, file, line, column=column)
