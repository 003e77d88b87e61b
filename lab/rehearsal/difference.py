"""What a provider calls a difference: between a resource as it was last read, and what the program gives now.

Terraform's providers, which Pulumi's aws, gcp, oci and digitalocean wrap, compare with the state: a property that the
cloud filled in and the program does not give differs, unless the provider computes it (``schemaMap.diff`` of
terraform-plugin-sdk v2, ``helper/schema/schema.go``). azure-native compares inputs with the inputs before
(``Diff`` in ``provider/pkg/provider/provider.go``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.rehearsal import wire
from lab.rehearsal.schemas.known import Rule, Schema

#: A provider's function that compares names of resources in any of the forms that Google has for them.
_LINKS = ("CompareSelfLink", "ComparePathOrName", "CompareCryptoKeyVersions")


@dataclass(frozen=True)
class Difference:
    """One property that differs.

    Attributes:
        path: its path on the wire, such as ``tags.pool`` or ``disks.0.size``.
        replaces: whether the provider makes another resource for it.
        given: whether the program gives it; else the cloud does.
    """

    path: str
    replaces: bool
    given: bool = True


def differences(
    schema: Schema, state: Mapping[str, Any], inputs: Mapping[str, Any], news: Mapping[str, Any]
) -> Iterator[Difference]:
    """Yields what differs.

    Args:
        schema: the resource's schema.
        state: its outputs, as the provider returned them last.
        inputs: its inputs, as the program gave them last.
        news: its inputs now.
    """
    if schema.by_inputs:
        for path in wire.changed(inputs, news):
            yield Difference(path, any("force-new" in rule.flags for rule in _rules_above(schema, path)))
    else:
        yield from _block(schema, "", "", state, news)


def refusal(schema: Schema, inputs: Mapping[str, Any], news: Mapping[str, Any]) -> str | None:
    """What the cloud answers to an update that it never makes; None where it makes it."""
    for path in wire.changed(inputs, news):
        if rule := next((rule for rule in _rules_above(schema, path) if "refused" in rule.flags), None):
            return f"{rule.error} ({path})"
    return None


def without(found: Iterable[Difference], ignored: Sequence[str]) -> list[Difference]:
    """The differences that the program does not ignore.

    Args:
        found: what differs.
        ignored: the paths of ``ignoreChanges``, as :func:`lab.rehearsal.wire.plain_path` has them.
    """
    return [item for item in found if not any(wire.matches(item.path, pattern) for pattern in ignored)]


def _rules_above(schema: Schema, path: str) -> list[Rule]:
    """The rules of a path and of everything that it is part of."""
    parts = wire.general(path).split(".")
    paths = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return [schema.properties[name] for name in paths if name in schema.properties]


def _block(
    schema: Schema, pattern: str, path: str, state: Mapping[str, Any], news: Mapping[str, Any]
) -> Iterator[Difference]:
    for name in sorted({*schema.parts(pattern), *news}):
        if not name.startswith("__"):
            below, here = (f"{at}.{name}" if at else name for at in (pattern, path))
            yield from _property(schema, below, here, state.get(name), news.get(name))


def _property(schema: Schema, pattern: str, path: str, old: Any, new: Any) -> Iterator[Difference]:
    rule = schema.rule(pattern)
    forces = "force-new" in rule.flags
    if new is None:
        yield from _left_out(rule, path, old)
    elif wire.is_unknown(new) and not isinstance(new, (dict, list)):
        yield Difference(path, forces)
    elif isinstance(new, dict) and schema.has_parts(pattern):
        found = list(_block(schema, pattern, path, old if isinstance(old, dict) else {}, new))
        # A block that was absent is new as a whole.
        yield from ([Difference(item.path, item.replaces or forces) for item in found] if old in (None, {}) else found)
    elif isinstance(new, list) and schema.has_parts(f"{pattern}.*"):
        yield from _items(schema, pattern, path, old if isinstance(old, list) else [], new)
    elif not _same(rule, old, new):
        yield Difference(path, forces)


def _left_out(rule: Rule, path: str, old: Any) -> Iterator[Difference]:
    """What the program does not give: the state may have it all the same."""
    absent = _text(old) == rule.default if rule.default is not None else old in (0, False)
    if "computed" in rule.flags or absent or old in (None, "", [], {}):
        return
    yield Difference(path, "force-new" in rule.flags, given=False)


def _items(schema: Schema, pattern: str, path: str, old: list[Any], new: list[Any]) -> Iterator[Difference]:
    rule = schema.rule(pattern)
    if "set" in rule.flags:
        # A set has no order: what both have is the same wherever it is.
        old, new = [item for item in old if item not in new], [item for item in new if item not in old]
    if len(old) != len(new):
        lost = schema.parts(f"{pattern}.*")
        parts = any("force-new" in schema.rule(f"{pattern}.*.{name}").flags for name in lost)
        yield Difference(path, "force-new" in rule.flags or parts)
        return
    for index, (before, after) in enumerate(zip(old, new, strict=True)):
        yield from _block(schema, f"{pattern}.*", f"{path}.{index}", before or {}, after or {})


def _same(rule: Rule, old: Any, new: Any) -> bool:
    if isinstance(new, list) and isinstance(old, list):
        texts = ([_text(item) for item in old], [_text(item) for item in new])
        return sorted(texts[0]) == sorted(texts[1]) if "set" in rule.flags else texts[0] == texts[1]
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _text(item) for key, item in old.items()} == {key: _text(item) for key, item in new.items()}
    if old is None:
        # The zero value of a type is what an absent property has.
        return new in ("", 0, False, [], {}) or _text(new) == rule.default
    if rule.suppressed and any(name in rule.suppressed for name in _LINKS):
        return _text(old).rsplit("/", 1)[-1] == _text(new).rsplit("/", 1)[-1]
    return _text(old) == _text(new)


def _text(value: Any) -> str:
    """A value as Terraform's state has it: text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
