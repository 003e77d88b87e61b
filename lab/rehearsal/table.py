"""What each cloud does with each kind of resource, read from ``tables/`` and from the words of its SDK."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lab.rehearsal import sdk, wire
from vllm_fleet.catalogue.catalogue import load as load_catalog

#: The plugin's name -> the cloud's, for those that differ.
CLOUDS = {"azure-native": "azure"}
#: Two threads that import one package see it half made.
_LOADING = threading.Lock()
PLUGINS = ("aws", "gcp", "azure-native", "oci", "digitalocean")


@dataclass(frozen=True)
class Machine:
    """Where a resource that is a host keeps what makes it one; all are paths.

    Attributes:
        zone: the first of these that is there; ``>`` follows a reference.
        user_data: what cloud-init reads, as Base64 where ``base64``.
        address: a reference to what has the host's address; None: the host has it itself.
    """

    shape: str
    zone: tuple[str, ...]
    user_data: str
    base64: bool = False
    private: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    address: str | None = None


@dataclass(frozen=True)
class Kind:
    """One type of resource of a cloud; the keys are explained in ``tables/aws.yml``."""

    token: str
    id: str
    arguments: type
    needs: tuple[str, ...]
    replaces: tuple[str, ...]
    refers: Mapping[str, tuple[tuple[str, str], ...]]
    unique: tuple[str, ...]
    conflicts: tuple[tuple[str, str], ...]
    computed: Mapping[str, str]
    machine: Machine | None
    address: Mapping[str, Any]
    account: str | None

    def forces(self, path: str) -> bool:
        """Whether a change at a path makes another resource."""
        return any(wire.matches(path, each) for each in self.replaces)


@dataclass(frozen=True)
class Table:
    """One cloud.

    Attributes:
        shapes: the types of hosts that it knows.
        errors: its words, by what is wrong.
        account: what an account may have that no stack makes -> how the ids of it begin.
        names: the property that every resource's name stands in, and its form.
        image: what a look-up of an image answers.
    """

    cloud: str
    plugin: str
    package: str
    kinds: Mapping[str, Kind]
    shapes: frozenset[str]
    errors: Mapping[str, str]
    account: Mapping[str, str]
    names: Mapping[str, str]
    image: Mapping[str, Any]
    open_lists: tuple[str, ...]


def sdk_version(plugin: str) -> str:
    """The version of a plugin's SDK: that of a plugin that fits."""
    return version(f"pulumi-{plugin}")


@cache
def _data(cloud: str) -> Mapping[str, Any]:
    text = (Path(__file__).parent / "tables" / f"{cloud}.yml").read_text(encoding="utf-8")
    data: Mapping[str, Any] = yaml.safe_load(text)
    return data


def load(plugin: str) -> Table:
    """The table behind a plugin's name, such as ``azure-native``; its SDK is imported by the first to ask."""
    with _LOADING:
        return _load(plugin)


@cache
def _load(plugin: str) -> Table:
    cloud = CLOUDS.get(plugin, plugin)
    data = _data(cloud)
    return Table(
        cloud=cloud,
        plugin=plugin,
        package=data["package"],
        kinds={token: _kind(token, row or {}, data) for token, row in data["types"].items()},
        shapes=_shapes(cloud, data),
        errors=data["errors"],
        account=data["account"],
        names=data.get("names", {}),
        image=data.get("image", {}),
        open_lists=tuple(data.get("open_lists", ())),
    )


def _shapes(cloud: str, data: Mapping[str, Any]) -> frozenset[str]:
    """The SDK's own list where it is complete, else that of the recipes; and what the table adds."""
    listed = data["shapes"]
    found = set(listed.get("list", ()))
    if name := listed.get("sdk"):
        module, _, enumeration = f"{data['package']}.{name}".rpartition(".")
        found |= {str(each.value) for each in getattr(import_module(module), enumeration)}
    if cloud != "aws":
        found |= set(load_catalog().clouds[cloud].shapes)
    return frozenset(found)


def _kind(token: str, row: Mapping[str, Any], data: Mapping[str, Any]) -> Kind:
    arguments = sdk.arguments(data["package"], token)
    machine = row.get("machine")
    if machine:
        lists = {key: tuple(each) for key, each in machine.items() if isinstance(each, list)}
        machine = Machine(**{**machine, **lists})
    return Kind(
        token=token,
        id=row["id"],
        arguments=arguments,
        needs=tuple(row.get("needs", ())),
        replaces=(*row.get("replaces", ()), *_documented(arguments, data)),
        refers={path: _targets(target) for path, target in row.get("refers", {}).items()},
        unique=tuple(row.get("unique", ())),
        conflicts=tuple((first, second) for first, second in row.get("conflicts", ())),
        computed=row.get("computed", {}),
        machine=machine,
        address=row.get("address", {}),
        account=row.get("account"),
    )


def _documented(arguments: type, data: Mapping[str, Any]) -> list[str]:
    """The inputs of which the SDK's text says that a change makes another resource."""
    texts = {name: " ".join(text.split()) for name, text in sdk.shape(arguments).documents.items()}
    if where := data.get("replaces_where"):
        return [name for name, text in texts.items() if re.search(where, text)]
    if unless := data.get("replaces_unless"):
        return [name for name, text in texts.items() if not re.search(unless, text)]
    return []


def _targets(written: str | list[str]) -> tuple[tuple[str, str], ...]:
    """Each type that a reference may be of, or ``account``, with the output that the reference holds."""
    texts = written if isinstance(written, list) else [written]
    pairs = (text.partition(" ") for text in texts)
    return tuple((kind, output or "id") for kind, _, output in pairs)
