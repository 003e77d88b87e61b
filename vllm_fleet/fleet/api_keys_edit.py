"""Text of ``api-keys.yml`` -> its text with other keys. Lines that are not of a changed entry stay as they are.

ruamel.yaml would lose the comments around an entry that goes or becomes a mapping, and would indent the others anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.yaml_reader import Position
from vllm_fleet.fleet.api_keys_file import block_text
from vllm_fleet.schema.api_keys import DatedDigest

#: The digest of one key; or a record, by the names of its keys.
Entry = str | Mapping[str, Any]


def with_key_of_stack(document: yaml_document.Document | None, owner: str, digest: str) -> str:
    """The file with the key that a stack has made; what it says of other owners, and the owner's limits, stay.

    Args:
        document: the file, which is valid; None: the fleet has no file yet.
        owner: who has the stack's key.
        digest: of the stack's key.
    """
    entry = document.data["keys"].get(owner) if document else None
    if document and digest in _texts(entry):
        return document.text
    limits = {name: value for name, value in entry.items() if name != "digests"} if isinstance(entry, dict) else {}
    return with_owner(document, owner, {**limits, "digest": digest} if limits else digest)


def with_owner(document: yaml_document.Document | None, owner: str, entry: Entry) -> str:
    """The file with the entry of an owner, who may be new.

    Args:
        document: the file, which is valid; None: the fleet has no file yet.
        owner: who has the keys.
        entry: what the file will say of the owner.
    """
    if document is None:
        return block_text({"keys": {owner: entry}})
    return _edited(document, {**document.data["keys"], owner: entry})


def without_owner(document: yaml_document.Document, owner: str) -> str:
    """The file without the keys of an owner.

    Args:
        document: the file, which is valid.
        owner: one of several.
    """
    return _edited(document, {name: entry for name, entry in document.data["keys"].items() if name != owner})


def digest_entries(digests: Sequence[DatedDigest]) -> list[Any]:
    """What ``digests`` of a record contains for digests, some with an end of their own."""
    return [{"digest": each.digest, "ends": each.ends} if each.ends else each.digest for each in digests]


def _texts(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    found = [entry.get("digest"), *(entry.get("digests") or ())] if isinstance(entry, dict) else []
    return [each["digest"] if isinstance(each, dict) else each for each in found if each]


def _edited(document: yaml_document.Document, keys: Mapping[str, Any]) -> str:
    """The text with these owners.

    Raises:
        FleetError: it is written so that no line of it can be replaced alone.
    """
    position = document.position.children["keys"] if document.position else None
    if position is None:
        raise document.error((), "has no keys")
    lines = _Lines(document.text.split("\n"))
    lines.replace_below(position, document.data["keys"], keys)
    text = lines.text()
    # A form of YAML that nothing here knows must not let another key in, or lock one out.
    try:
        is_right = yaml_document.from_text(text, document.file, secret=True).data == {**document.data, "keys": keys}
    except FleetError:
        is_right = False
    if not is_right:
        hint = "change it by hand: docs/api-keys.md has its keys"
        raise document.error(("keys",), "is written in a form that this command cannot edit", hint, ErrorCode.REFUSED)
    return text


@dataclass(frozen=True)
class _Edit:
    """Lines that are replaced: from the first on, counted from 0, up to the one before the last."""

    first: int
    last: int
    lines: Sequence[str]


class _Lines:
    """The lines of a file in block style, with the edits that they get."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._edits: list[_Edit] = []

    def text(self) -> str:
        """The text with all edits."""
        lines = list(self._lines)
        for edit in sorted(self._edits, key=lambda edit: edit.first, reverse=True):
            lines[edit.first : edit.last] = edit.lines
        return "\n".join(lines)

    def replace_below(self, position: Position, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Changes, removes and adds the keys of a mapping.

        Args:
            position: of the key whose value the mapping is.
            old: the mapping as it is.
            new: as it will be.
        """
        children = [position.children[name] for name in old]
        if self._value_in_line(position).startswith("{"):
            # In braces, keys and commas share lines: the whole mapping is written anew.
            self._replace(position, new)
            return
        for name, child in zip(old, children, strict=True):
            if name not in new:
                self._edits.append(_Edit(child.line - 1, self._end(child), ()))
            elif new[name] != old[name]:
                if isinstance(old[name], dict) and isinstance(new[name], Mapping):
                    self.replace_below(child, old[name], new[name])
                else:
                    self._replace(child, new[name])
        last = max(map(self._end, children))
        for name in new:
            if name not in old:
                indent = " " * (children[0].column - 1)
                self._edits.append(_Edit(last, last, _indented({name: new[name]}, indent)))

    def _replace(self, position: Position, value: Any) -> None:
        """Writes a value anew; its key and the comment behind it stay."""
        first = position.line - 1
        line = self._lines[first]
        indent = line[: position.column - 1]
        key, colon, _ = line[position.column - 1 :].partition(":")
        written = _indented({"x": value}, indent)
        begin = f"{indent}{key}{colon}{written[0].removeprefix(f'{indent}x:')}"
        # No value of the file contains this: neither digests nor dates nor numbers.
        comment = self._value_in_line(position).partition(" #")[2]
        head = f"{begin}  #{comment}" if comment else begin
        self._edits.append(_Edit(first, self._end(position), [head, *written[1:]]))

    def _value_in_line(self, position: Position) -> str:
        return self._lines[position.line - 1][position.column - 1 :].partition(":")[2].lstrip(" ")

    def _end(self, position: Position) -> int:
        """The line after the last one of a key's value, counted from 0."""
        end = position.line
        for number in range(position.line, len(self._lines)):
            line = self._lines[number]
            words = line.strip()
            if not words or words.startswith("#"):
                continue
            indent = len(line) - len(line.lstrip(" "))
            is_own = indent >= position.column or (indent == position.column - 1 and words[0] in "-}]")
            if not is_own or line.startswith(("---", "...")):
                break
            end = number + 1
        return end


def _indented(data: Mapping[str, Any], indent: str) -> list[str]:
    return [indent + line for line in block_text(data).splitlines()]
