"""The schema of a resource as a provider's Go source writes it: one composite literal, read without compiling it.

The format is that of terraform-plugin-sdk v2 (``helper/schema/schema.go``): ``map[string]*schema.Schema{"name":
{Type: schema.TypeString, Optional: true, ForceNew: true}}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`|'(?:[^'\\]|\\.)+')
    |(?P<word>[A-Za-z_][\w.]*)
    |(?P<number>[0-9][\w.]*)
    |(?P<sign>:=|[{}()\[\]:,;&*]|[^\s\w])
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN = {"{": "}", "(": ")", "[": "]"}


class GoSourceError(ValueError):
    """The source is not of the form that this module reads."""


@dataclass(frozen=True)
class Token:
    """One token and the line that it is on, from 1."""

    text: str
    line: int


@dataclass(frozen=True)
class Literal:
    """A composite literal.

    Attributes:
        fields: key -> value: a literal, or the tokens of another expression, joined by spaces.
        lines: key -> the line of the key.
    """

    fields: Mapping[str, Literal | str]
    lines: Mapping[str, int]


@dataclass(frozen=True)
class Property:
    """One property of a resource.

    Attributes:
        path: as in Terraform, with ``*`` for the element of a list or a set, ``*_`` for a prefix that is a parameter.
        kind: ``String``, ``Bool``, ``Int``, ``Float``, ``List``, ``Set`` or ``Map``.
        flags: ``required``, ``optional``, ``computed``, ``force_new``, ``single`` (a list of at most one), ``set``.
        default: the default as written; None without one.
        deprecated: whether the provider calls it deprecated.
        suppressed: the name of the function that hides some differences; None without one.
        line: its line in the file.
        file: the file, where it is not that of the resource.
    """

    path: str
    kind: str
    flags: tuple[str, ...]
    default: str | None
    deprecated: bool
    suppressed: str | None
    line: int
    file: str = ""


def tokens(source: str) -> list[Token]:
    """The tokens of a Go file without space and comments."""
    found, line, at = [], 1, 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise GoSourceError(f"line {line}: cannot read {source[at : at + 20]!r}")
        if match.lastgroup != "space":
            found.append(Token(match.group(), line))
        line += match.group().count("\n")
        at = match.end()
    return found


@dataclass
class Package:
    """The files of one Go package.

    Attributes:
        files: path -> text.
        others: the packages that it uses, by their names in the source.
    """

    files: Mapping[str, str]
    others: Mapping[str, Package] = field(default_factory=dict)
    _tokens: dict[str, list[Token]] = field(default_factory=dict)

    def of(self, path: str) -> list[Token]:
        """The tokens of a file."""
        if path not in self._tokens:
            self._tokens[path] = tokens(self.files[path])
        return self._tokens[path]

    def function(self, name: str) -> tuple[str, int]:
        """The file of a function, and the index of the token behind ``func NAME``.

        Raises:
            GoSourceError: the package has no such function.
        """
        for path, text in self.files.items():
            if f"func {name}(" not in text:
                continue
            found = self.of(path)
            for index, token in enumerate(found[:-1]):
                if token.text == "func" and found[index + 1].text == name:
                    return path, index + 2
        raise GoSourceError(f"no function {name}")

    def returned(self, name: str) -> tuple[str, Literal]:
        """The file of a function and the literal that it returns, or that it gives its first variable."""
        path, index = self.function(name)
        found = self.of(path)
        while found[index].text != "{" or found[index - 1].text == "]":
            index += 1
        while found[index].text not in ("return", ":="):
            index += 1
        return path, _literal(found, index + 1)[0]


def _literal(found: list[Token], index: int) -> tuple[Literal, int]:
    """The literal at an index, and the index behind it."""
    while found[index].text != "{":
        if found[index].text in ("}", ";", "return"):
            raise GoSourceError(f"line {found[index].line}: no literal")
        index += 1
    end = _closing(found, index)
    fields: dict[str, Literal | str] = {}
    lines: dict[str, int] = {}
    at, count = index + 1, 0
    while at < end:
        stop = _next(found, at, end, ",")
        colon = _next(found, at, stop, ":")
        if colon < stop:
            key, line, start = _key(found[at:colon]), found[at].line, colon + 1
        else:
            key, line, start = str(count), found[at].line, at
        fields[key] = _value(found, start, stop)
        lines[key] = line
        at, count = stop + 1, count + 1
    return Literal(fields, lines), end + 1


def _key(found: list[Token]) -> str:
    """The key of a field; ``prefix + "addresses"`` is ``*_addresses``, because the prefix is the caller's."""
    text = found[-1].text.strip('"')
    return text if len(found) == 1 else f"*_{text}"


def _value(found: list[Token], start: int, stop: int) -> Literal | str:
    """A literal where the expression is nothing but one, else the text of the expression."""
    at = start
    while (at < stop and found[at].text in ("&", "*", "[", "]", "map", "string")) or (
        at < stop and re.fullmatch(r"[A-Za-z_][\w.]*", found[at].text) and found[at].text != "func"
    ):
        at += 1
    if at < stop and found[at].text == "{" and _closing(found, at) == stop - 1:
        return _literal(found, at)[0]
    return " ".join(token.text for token in found[start:stop])


def _closing(found: list[Token], index: int) -> int:
    depth, opened, closed = 0, set(_OPEN), set(_OPEN.values())
    for at in range(index, len(found)):
        depth += (found[at].text in opened) - (found[at].text in closed)
        if depth == 0:
            return at
    raise GoSourceError(f"line {found[index].line}: {found[index].text} is not closed")


def _next(found: list[Token], start: int, stop: int, sign: str) -> int:
    """The index of a sign outside of brackets; ``stop`` without one."""
    at = start
    while at < stop:
        if found[at].text == sign:
            return at
        at = _closing(found, at) + 1 if found[at].text in _OPEN else at + 1
    return stop


def properties(package: Package, function: str) -> list[Property]:
    """All properties of the resource that a function returns, in the order of the source.

    Args:
        package: the files of its package.
        function: such as ``ResourceComputeInstance``.

    Raises:
        GoSourceError: the source is of another form.
    """
    path, resource = package.returned(function)
    return list(_of(package, path, resource.fields.get("Schema") or resource.fields.get("SchemaFunc"), "", path))


def _of(package: Package, path: str, schema: Literal | str | None, at: str, home: str) -> Iterator[Property]:
    if isinstance(schema, str):
        package, path, schema = _called(package, schema)
    if schema is None:
        raise GoSourceError(f"{path}: {at or 'the resource'} has no schema")
    for name, written in schema.fields.items():
        inside, where, place, line = package, path, written, schema.lines[name]
        if isinstance(place, str):
            inside, where, place = _called(package, place)
        here = f"{at}.{name}" if at else name
        yield _property(here, place, line, "" if path == home else path)
        inner = place.fields.get("Elem")
        if isinstance(inner, Literal) and "Schema" in inner.fields:
            yield from _of(inside, where, inner.fields["Schema"], f"{here}.*", home)
        elif isinstance(inner, str) and re.match(r"\w+ \(", inner):
            inside, where, inner = _called(inside, inner)
            yield from _of(inside, where, inner.fields["Schema"], f"{here}.*", home)


def _called(package: Package, text: str) -> tuple[Package, str, Literal]:
    """The literal that a function returns, with its package and its file."""
    match = re.fullmatch(r"(?:(\w+)\.)?(\w+) \( .*\)", text)
    home = package if match is None or match[1] is None else package.others.get(match[1])
    if match is None or home is None:
        raise GoSourceError(f"not read: {text[:80]}")
    return home, *home.returned(match[2])


def _property(path: str, written: Literal, line: int, file: str) -> Property:
    given = written.fields
    flags = [
        flag
        for flag, key in (
            ("required", "Required"),
            ("optional", "Optional"),
            ("computed", "Computed"),
            ("force_new", "ForceNew"),
        )
        if given.get(key) == "true"
    ]
    if given.get("MaxItems") == "1":
        flags.append("single")
    elif given.get("Type") == "schema.TypeSet":
        flags.append("set")
    default, suppressed = given.get("Default"), given.get("DiffSuppressFunc")
    return Property(
        path=path,
        kind=str(given.get("Type", "")).removeprefix("schema.Type"),
        flags=tuple(flags),
        default=default.strip('"') if isinstance(default, str) else None,
        deprecated="Deprecated" in given,
        suppressed=suppressed.split(" ")[0] if isinstance(suppressed, str) else None,
        line=line,
        file=file,
    )
