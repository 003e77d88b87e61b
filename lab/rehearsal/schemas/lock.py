"""Reads the schemas of a provider's checkout and writes them as ``<cloud>.yml``, with file, line and commit."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pulumi import _types

from lab.rehearsal import sdk
from lab.rehearsal.schemas.go_source import Package, Property, properties

HERE = Path(__file__).parent


class Checkout:
    """A git repository of a provider; it may be bare."""

    def __init__(self, folder: Path, ref: str = "HEAD") -> None:
        self.folder, self.ref = folder, ref

    def git(self, *words: str) -> str:
        """What git says."""
        return subprocess.run(
            ["git", "-C", str(self.folder), *words], capture_output=True, text=True, check=True, timeout=120
        ).stdout

    @property
    def commit(self) -> str:
        """The commit, 40 hexadecimal digits."""
        return self.git("rev-parse", self.ref).strip()

    @property
    def version(self) -> str:
        """The newest release that is not younger than the commit; some providers release from branches."""
        date = int(self.git("show", "-s", "--format=%ct", self.ref))
        form = "--format=%(creatordate:unix) %(refname:short)"
        tags = self.git("for-each-ref", "--sort=-creatordate", form, "refs/tags")
        return next(name for when, name in (row.split() for row in tags.splitlines()) if int(when) <= date)

    def files(self, folder: str) -> dict[str, str]:
        """Path -> text of the Go files of a folder, without its tests."""
        names = self.git("ls-tree", "--name-only", self.ref, f"{folder}/").splitlines()
        kept = [name for name in names if name.endswith(".go") and not name.endswith("_test.go")]
        return {name: self.git("show", f"{self.ref}:{name}") for name in kept}


def sources() -> Mapping[str, Any]:
    """``sources.yml``."""
    data: Mapping[str, Any] = yaml.safe_load((HERE / "sources.yml").read_text(encoding="utf-8"))
    return data


def read(cloud: str, checkout: Checkout) -> dict[str, Any]:
    """The data of ``<cloud>.yml``.

    Args:
        cloud: a key of ``sources.yml``.
        checkout: the repository of its provider.

    Raises:
        GoSourceError: the source is of a form that is not read.
    """
    row = sources()[cloud]
    others = {name: Package(checkout.files(folder)) for name, folder in row["packages"].items()}
    packages: dict[str, Package] = {}
    found: dict[str, Any] = {}
    for token, place in row["resources"].items():
        file, function = place.split()
        folder = str(Path(file).parent)
        packages.setdefault(folder, Package(checkout.files(folder), others))
        known = properties(packages[folder], function)
        arguments = sdk.arguments(f"pulumi_{cloud}", token)
        rows = {wire: _row(item) for item in known if (wire := on_wire(arguments, item)) is not None}
        unread = sorted(path for path in inputs(arguments) if path not in rows)
        found[token] = {"file": file, "properties": rows, **({"unread": unread} if unread else {})}
    return {
        "provider": row["repository"],
        "version": checkout.version,
        "commit": checkout.commit,
        "sdk": sdk.sdk_version(cloud),
        "resources": found,
    }


def inputs(kind: Any, at: str = "") -> Iterator[str]:
    """The path of every input of a resource in the SDK."""
    kind = sdk.bare(kind)
    if get_origin(kind) is not None and get_args(kind):
        kind, at = sdk.bare(get_args(kind)[-1]), f"{at}.*"
    if _types.is_input_type(kind):
        for name, inner in sdk.shape(kind).types.items():
            path = f"{at}.{name}" if at else name
            yield path
            yield from inputs(inner, path)


def on_wire(arguments: type, item: Property) -> str | None:
    """The path of a property as Pulumi has it; None where it is no input there."""
    if not {"required", "optional"} & set(item.flags):
        return None
    kind: Any = arguments
    parts: list[str] = []
    for name in item.path.split(".*."):
        kind = sdk.bare(kind)
        if get_origin(kind) is not None and get_args(kind):
            parts.append("*")
            kind = sdk.bare(get_args(kind)[-1])
        if not _types.is_input_type(kind):
            return None
        types = sdk.shape(kind).types
        wire = next((word for word in _words(name) if word in types), None)
        if wire is None and name.startswith("*_"):
            wire = next((word for word in types if word.lower().endswith(name[2:].replace("_", ""))), None)
        if wire is None:
            return None
        parts.append(wire)
        kind = types[wire]
    return ".".join(parts)


def _words(name: str) -> Iterator[str]:
    """How Pulumi may write a name of Terraform: a list has a plural."""
    first, *rest = name.split("_")
    word = first + "".join(part.capitalize() for part in rest)
    yield from (word, f"{word}s", f"{word}es", re.sub("y$", "ies", word))


def _row(item: Property) -> dict[str, Any]:
    row: dict[str, Any] = {"line": item.line, "is": [flag.replace("_", "-") for flag in item.flags]}
    if item.file:
        row["file"] = item.file
    if item.default is not None:
        row["default"] = item.default
    if item.deprecated:
        row["deprecated"] = True
    if item.suppressed:
        row["suppressed"] = item.suppressed
    return row


def text(data: Mapping[str, Any]) -> str:
    """The file of a cloud: one line for each property, so that a new release is read as a diff."""
    lines = [
        "# Made by `python -m lab.rehearsal.schemas`: what the provider's source says, with the line that says it.",
        *(f"{key}: {data[key]}" for key in ("provider", "version", "commit", "sdk")),
        "resources:",
    ]
    for token, row in data["resources"].items():
        lines += [f"  {token}:", f"    file: {row['file']}"]
        if row.get("unread"):
            lines.append(f"    unread: [{', '.join(row['unread'])}]")
        lines.append("    properties:")
        for path, item in row["properties"].items():
            flow = yaml.safe_dump(item, default_flow_style=True, sort_keys=False, width=10_000).strip()
            lines.append(f"      {_key(path)}: {flow}")
    return "\n".join(lines) + "\n"


def _key(path: str) -> str:
    return f'"{path}"' if path.startswith("*") else path
