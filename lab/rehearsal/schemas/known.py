"""The locked schemas: what a provider says of each property of a resource."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Rule:
    """What the provider says of one property.

    Attributes:
        flags: ``required``, ``optional``, ``computed``, ``force-new``, ``single``, ``set``; at Azure ``force-new``,
            ``refused``, ``restricted``.
        default: what the provider takes where nothing is given; None without a default.
        error: what the cloud answers to a change that it refuses.
        suppressed: the provider's function that hides some differences; None without one.
        deprecated: whether the provider says so.
    """

    flags: frozenset[str]
    default: str | None = None
    error: str = ""
    suppressed: str | None = None
    deprecated: bool = False


#: A property whose rule could not be read: every change of it makes another resource.
UNREAD = Rule(frozenset({"optional", "force-new"}))


@dataclass(frozen=True)
class Schema:
    """One resource.

    Attributes:
        properties: path on the wire, ``*`` for the item of a list -> its rule.
        unread: the inputs of the SDK that the source does not have in a form that is read.
        by_inputs: whether the provider compares inputs with inputs (azure-native), and not with what it read.
    """

    properties: Mapping[str, Rule]
    unread: frozenset[str]
    by_inputs: bool

    def rule(self, path: str) -> Rule:
        """The rule of a property; the strict one where none was read.

        Args:
            path: its path, with ``*`` for the index of a list.
        """
        return self.properties.get(path, UNREAD)

    def has_parts(self, path: str) -> bool:
        """Whether a property is a block, whose parts have rules of their own."""
        return any(name.startswith(f"{path}.") for name in self.properties)

    def parts(self, path: str) -> list[str]:
        """The names of the properties of a block, or of the resource where the path is empty."""
        start = f"{path}." if path else ""
        inside = [name.removeprefix(start) for name in self.properties if name.startswith(start)]
        return [name for name in inside if "." not in name]


@cache
def load(cloud: str) -> Mapping[str, Schema]:
    """Type on the wire -> its schema.

    Args:
        cloud: ``aws``, ``azure``, ``digitalocean``, ``gcp`` or ``oci``.
    """
    data: Mapping[str, Any] = yaml.safe_load((HERE / f"{cloud}.yml").read_text(encoding="utf-8"))
    by_inputs = data["provider"] == "pulumi/pulumi-azure-native"
    return {
        token: Schema(
            properties={path: _rule(item) for path, item in row["properties"].items()},
            unread=frozenset(row.get("unread", ())),
            by_inputs=by_inputs,
        )
        for token, row in data["resources"].items()
    }


def _rule(row: Mapping[str, Any]) -> Rule:
    default = row.get("default")
    return Rule(
        flags=frozenset(row["is"]),
        default=None if default is None else str(default),
        error=str(row.get("error", "")),
        suppressed=row.get("suppressed"),
        deprecated=bool(row.get("deprecated")),
    )
