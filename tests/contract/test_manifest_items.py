"""The kinds of manifest items: each has a type, a check in the probe and the roles that own it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan
from vllm_fleet.host import container, drivers, manifest, model_disk
from vllm_fleet.host.acme import AcmeAccount, Certificate
from vllm_fleet.host.adopted_model import AdoptedModel
from vllm_fleet.host.manifest_items import KINDS, OWNERS, Item
from vllm_fleet.inventory import ALL_ROLES, Site
from vllm_fleet.mirror import host_as_mirror
from vllm_fleet.on_host import manifest_items, probe
from vllm_fleet.schema.acme import Acme


def driver_items(catalog: Catalog) -> Iterator[Item]:
    for sized in catalog.sized_classes():
        for mode in ("managed", "verified"):
            if driver := drivers.choose_driver(catalog, sized, drivers.DriverChoice(mode=mode)):
                yield from driver.items


def image_items(catalog: Catalog) -> Iterator[Item]:
    install = next(engine.docker for engine in catalog.engines.values() if engine.docker)
    for vendor in ("nvidia", "amd", "cpu"):
        yield from container.image_items(
            container.Image(install, "x86_64", vendor, container.Registry("r:5000", "PEM"))
        )


def certificate_items() -> Iterator[Item]:
    asked = Acme(email="me@example.com", names=["api.example.com"], accept_terms=True)
    yield from manifest.gateway_items("", "", "", Certificate(account=AcmeAccount(asked)))


@pytest.fixture
def gpu_site(fleets: Path, catalog: Catalog) -> Site:
    """A host with GPUs whose engine is a wheel, and a mirror that it fetches from."""
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    host = spec["pools"]["rack"]["static"]["rack-a"]
    spec["pools"] = {"rack": {"host_class": "h100-8", "cloud": "static", "static": {"rack-a": host}}}
    spec["defaults"]["model"] = "openai/gpt-oss-120b"
    spec["artifacts"]["models"] = {"openai/gpt-oss-120b": "../../artifacts/model"}
    spec["gateway"] = {"hosts": 0}
    spec["mirror"] = {"url": "http://192.0.2.9:8070"}
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    (file.parent / "stack.json").unlink()
    return inventory.build(plan.load(file.parent, catalog), catalog)


@pytest.fixture
def items(golden_site: Site, image_site: Site, gpu_site: Site, fleets: Path, catalog: Catalog) -> list[Item]:
    """The items of every kind of host: wheel, image, gateway, mirror, and every driver."""
    variables = {"mirror_files": [], "mirror_nginx_config": "n", "mirror_registry_config": "r"}
    hosts = [*golden_site.hosts, *gpu_site.hosts, *image_site.hosts]
    rented = plan.load(fleets / "two-clouds", catalog).hosts
    return [
        *(item for host in hosts for item in host.manifest.items),
        *driver_items(catalog),
        *image_items(catalog),
        *certificate_items(),
        *host_as_mirror.manifest_items(variables),
        *manifest.open_image_ports(golden_site.hosts[0].manifest).items,
        *AdoptedModel("a/b", "/data/b").items({"config.json": "0" * 64}),
        *(item for host in rented for item in model_disk.manifest_items(host)),
    ]


def is_of_type(value: Any, wanted: Any) -> bool:
    """Whether a value has a type as the types of the items spell them."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin is UnionType:
        return any(is_of_type(value, part) for part in arguments)
    if origin is list:
        return isinstance(value, list) and all(is_of_type(part, arguments[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            is_of_type(key, arguments[0]) and is_of_type(part, arguments[1]) for key, part in value.items()
        )
    return type(value) is wanted


def test_every_kind_has_a_check_that_takes_its_type() -> None:
    checks = probe.checks_by_kind({}, {})
    assert set(checks) == set(KINDS)
    for kind, item_type in KINDS.items():
        check = getattr(probe, f"check_{kind}")
        names = {**vars(probe), "items": manifest_items}
        assert get_type_hints(check, names)["item"] is item_type, kind


def test_every_item_has_just_the_keys_of_its_kind_with_values_of_their_types(items: list[Item]) -> None:
    for item in items:
        item_type = KINDS[item["kind"]]
        hints = get_type_hints(item_type)
        assert item_type.__required_keys__ <= set(item) <= set(hints), item
        for key, value in item.items():
            assert is_of_type(value, hints[key]), (item, key)


def test_the_owners_of_each_kind_are_the_roles_that_have_items_of_it(items: list[Item]) -> None:
    owners: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for item in items:
        owners[item["kind"]].add(item["role"])
    assert owners == {kind: set(roles) for kind, roles in OWNERS.items()}


def test_the_owners_are_in_the_order_in_which_roles_run() -> None:
    order = [*(role for role in ALL_ROLES if role != "mirror"), "mirror"]
    for kind, roles in OWNERS.items():
        assert list(roles) == sorted(roles, key=order.index), kind


def test_every_kind_has_a_row_in_the_documents() -> None:
    text = (paths.root() / "docs" / "manifest.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"\n| `{kind}` | " in text


def test_a_kind_that_the_probe_does_not_know_stops_it() -> None:
    manifest = {"items": [{"role": "r", "kind": "moon", "name": "m"}]}
    source = Path(probe.__file__).read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-IS", "-c", source], input=json.dumps(manifest), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "KeyError: 'moon'" in done.stderr
