"""The behaviour of each cloud for each type of resource, from ``tables/`` and from the documentation in its SDK."""

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

#: Name of the plugin -> name of the cloud, where they differ.
CLOUDS = {"azure-native": "azure"}
#: Two threads that import one package at once see it incomplete.
_LOADING = threading.Lock()
PLUGINS = ("aws", "gcp", "azure-native", "oci", "digitalocean")


@dataclass(frozen=True)
class Machine:
    """The paths of the properties of a host in its resource.

    Attributes:
        zone: the first of these that is set; ``>`` follows a reference.
        user_data: the user data, in Base64 where ``base64``.
        address: a reference to the resource with the host's address; None: the host itself.
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
    #: Lists of ids that the provider reads back as mappings: id -> what it is.
    mapped: tuple[str, ...] = ()

    def forces(self, path: str) -> bool:
        """Whether a change at a path replaces the resource."""
        return any(wire.matches(path, item) for item in self.replaces)


@dataclass(frozen=True)
class Table:
    """One cloud.

    Attributes:
        shapes: the known host types.
        errors: kind of error -> its message.
        account: kind of things that an account has without a stack -> the prefix of their ids.
        names: the property with the name of a resource, and its form.
        image: the result of an image lookup.
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
    """The version of a plugin's SDK, which is that of the plugin."""
    return version(f"pulumi-{plugin}")


@cache
def _data(cloud: str) -> Mapping[str, Any]:
    text = (Path(__file__).parent / "tables" / f"{cloud}.yml").read_text(encoding="utf-8")
    data: Mapping[str, Any] = yaml.safe_load(text)
    return data


def load(plugin: str) -> Table:
    """The table for a plugin's name, such as ``azure-native``; the first call imports its SDK."""
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
    """The host types: from the SDK where its list is complete, else from the recipes; and those of the table."""
    listed = data["shapes"]
    values = set(listed.get("list", ()))
    if name := listed.get("sdk"):
        module, _, enumeration = f"{data['package']}.{name}".rpartition(".")
        values |= {str(item.value) for item in getattr(import_module(module), enumeration)}
    if cloud != "aws":
        values |= set(load_catalog().clouds[cloud].shapes)
    return frozenset(values)


def _kind(token: str, row: Mapping[str, Any], data: Mapping[str, Any]) -> Kind:
    arguments = sdk.arguments(data["package"], token)
    machine = row.get("machine")
    if machine:
        lists = {key: tuple(item) for key, item in machine.items() if isinstance(item, list)}
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
        mapped=tuple(row.get("mapped", ())),
    )


def _documented(arguments: type, data: Mapping[str, Any]) -> list[str]:
    """The inputs whose documentation in the SDK says that a change replaces the resource."""
    texts = {name: " ".join(text.split()) for name, text in sdk.shape(arguments).documents.items()}
    if where := data.get("replaces_where"):
        return [name for name, text in texts.items() if re.search(where, text)]
    if unless := data.get("replaces_unless"):
        return [name for name, text in texts.items() if not re.search(unless, text)]
    return []


def _targets(written: str | list[str]) -> tuple[tuple[str, str], ...]:
    """The possible types of a reference, or ``account``, each with the output in the reference."""
    texts = written if isinstance(written, list) else [written]
    pairs = (text.partition(" ") for text in texts)
    return tuple((kind, output or "id") for kind, _, output in pairs)
