"""The behaviour of each cloud for each type of resource, from ``tables/``, ``schemas/`` and its SDK."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from lab.rehearsal import sdk
from lab.rehearsal.schemas import known as schemas
from lab.rehearsal.schemas.known import Schema
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
        block: the range of its private addresses, the first of these that is set, as for the zone.
    """

    shape: str
    zone: tuple[str, ...]
    user_data: str
    base64: bool = False
    private: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    address: str | None = None
    block: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What a change does that the schema alone does not say.

    Attributes:
        replaced_by_less: a smaller value makes another resource.
        grows: a smaller value is refused at the update.
        stops: a change stops the host and starts it again.
        stops_if: the input that permits such a stop; None: the provider stops without asking.
    """

    replaced_by_less: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    stops_if: str | None = None


@dataclass(frozen=True)
class ReadBack:
    """One property that the provider reads although the program may not give it; the keys are in ``tables/aws.yml``."""

    path: str
    source: str
    value: Any = None
    item: Mapping[str, Any] = field(default_factory=dict)
    each: str | None = None
    any: str | None = None
    bundled: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)
    forgotten: bool = False


@dataclass(frozen=True)
class Kind:
    """One type of resource of a cloud; the keys are explained in ``tables/aws.yml``."""

    token: str
    id: str
    arguments: type
    needs: tuple[str, ...]
    schema: Schema
    refers: Mapping[str, tuple[tuple[str, str], ...]]
    unique: tuple[str, ...]
    conflicts: tuple[tuple[str, str], ...]
    computed: Mapping[str, str]
    machine: Machine | None
    address: Mapping[str, Any]
    account: str | None
    changes: Changes
    read_back: tuple[ReadBack, ...]
    #: Lists of ids that the provider reads back as mappings: id -> what it is.
    mapped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """One cloud.

    Attributes:
        shapes: the known host types.
        errors: kind of error -> its message.
        account: kind of things that an account has without a stack -> the prefix of their ids.
        names: the property with the name of a resource, and its form.
        image: the result of an image lookup.
        images: the names of public images that every account has.
        places: region -> its zones; None: they are not known.
        bundled: host type -> number and GiB of the disks that come with it.
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
    images: frozenset[str]
    places: Mapping[str, list[str] | None]
    bundled: Mapping[str, tuple[int, int]]
    open_lists: tuple[str, ...]


@cache
def _data(cloud: str) -> Mapping[str, Any]:
    text = (Path(__file__).parent / "tables" / f"{cloud}.yml").read_text(encoding="utf-8")
    data: Mapping[str, Any] = yaml.safe_load(text)
    return {"cloud": cloud, **data}


def load(plugin: str) -> Table:
    """The table for a plugin's name, such as ``azure-native``; the first call imports its SDK."""
    with _LOADING:
        return _load(plugin)


@cache
def _load(plugin: str) -> Table:
    cloud = CLOUDS.get(plugin, plugin)
    data, recipe = _data(cloud), load_catalog().clouds[cloud]
    images = [*recipe.images.values(), *(shape.image for shape in recipe.shapes.values() if shape.image)]
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
        images=frozenset(image.name for image in images),
        places=recipe.regions.zones,
        bundled={shape: (count, size) for shape, (count, size) in data.get("bundled", {}).items()},
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
        schema=schemas.load(data["cloud"])[token],
        refers={path: _targets(target) for path, target in row.get("refers", {}).items()},
        unique=tuple(row.get("unique", ())),
        conflicts=tuple((first, second) for first, second in row.get("conflicts", ())),
        computed=row.get("computed", {}),
        machine=machine,
        address=row.get("address", {}),
        account=row.get("account"),
        changes=Changes(**{key: _several(item) for key, item in row.get("changes", {}).items()}),
        read_back=tuple(ReadBack(**item) for item in row.get("read_back", ())),
        mapped=tuple(row.get("mapped", ())),
    )


def _several(written: Any) -> Any:
    return tuple(written) if isinstance(written, list) else written


def _targets(written: str | list[str]) -> tuple[tuple[str, str], ...]:
    """The possible types of a reference, or ``account``, each with the output in the reference."""
    texts = written if isinstance(written, list) else [written]
    pairs = (text.partition(" ") for text in texts)
    return tuple((kind, output or "id") for kind, _, output in pairs)
