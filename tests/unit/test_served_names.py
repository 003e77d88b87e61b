"""Names of models, gateways' systems and the keys of a fleet that concern clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan
from vllm_fleet.inventory.gateway import gateway_systems
from vllm_fleet.schema.fleet import Gateway


def pool(model: str, *names: str) -> dict[str, Any]:
    more = {"served_model_names": list(names)} if names else {}
    placement = {"bridge": "vf-names", "subnet": "10.78.90.0/24"}
    return {"host_class": "cpu-2", "cloud": "lab", "placement": placement, "hosts": 1, "model": model, **more}


def load(tmp_path: Path, catalog: Catalog, gateway: dict[str, Any] | None = None, **pools: dict[str, Any]) -> plan.Plan:
    folder = tmp_path / "names"
    folder.mkdir()
    data = {"fleet": "names", "pools": pools, "gateway": {"hosts": 1, **(gateway or {})}}
    (folder / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return plan.load(folder, catalog)


LAB = "vllm-fleet/lab-gpt-oss"


def test_a_pool_has_the_name_of_its_model_or_its_own_names(tmp_path: Path, catalog: Catalog) -> None:
    found = load(tmp_path, catalog, a=pool(LAB), b=pool(LAB, "fast", "fast", "gpt:latest"))
    assert {host.pool: host.names for host in found.hosts if host.deployment} == {
        "a": (LAB,),
        "b": ("fast", "gpt:latest"),
    }


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (("x", "y"), ("x", "z"), "shares the name 'x' with the pool 'a', and not all of its names"),
        ((LAB, "y"), (), f"shares the name '{LAB}' with the pool 'a', and not all of its names"),
    ],
)
def test_names_that_pools_share_in_part_are_refused(
    tmp_path: Path, catalog: Catalog, first: tuple[str, ...], second: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(FleetError) as refused:
        load(tmp_path, catalog, a=pool(LAB, *first), b=pool(LAB, *second))
    assert reason in str(refused.value)


@pytest.mark.parametrize("name", ["two words", 'a"b', "", "$x", "-a", "a\nb"])
def test_a_name_that_would_break_the_rules_of_the_gateways_is_refused(
    tmp_path: Path, catalog: Catalog, name: str
) -> None:
    with pytest.raises(FleetError, match="served_model_names"):
        load(tmp_path, catalog, a=pool(LAB, name))


def test_affinity_by_prefix_is_refused_with_its_reason() -> None:
    with pytest.raises(ValidationError, match="which sent 45 % of the turns"):
        Gateway(hosts=1, affinity="prefix")  # type: ignore[arg-type]


@pytest.mark.parametrize("origin", ["chat.example.com", "https://a.b/c", "*", "https://a b", "null"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Gateway(hosts=1, cors_origins=[origin])


def test_the_responses_store_is_a_variable_of_every_instance(tmp_path: Path, catalog: Catalog) -> None:
    found = load(tmp_path, catalog, {"responses_store": True}, a=pool(LAB))
    environments = [host.deployment.env for host in found.hosts if host.deployment]
    assert [each["VLLM_ENABLE_RESPONSES_API_STORE"] for each in environments] == ["1"]


def test_every_release_reads_the_variable_of_the_store(catalog: Catalog) -> None:
    assert all("VLLM_ENABLE_RESPONSES_API_STORE" in catalog.names(engine).env for engine in catalog.engines.values())


def test_a_gateway_needs_a_haproxy_with_filters_in_lua(catalog: Catalog) -> None:
    systems = gateway_systems(catalog)["systems"]
    assert "ubuntu-22.04" not in systems
    assert {"debian-12", "debian-13", "ubuntu-24.04"} == set(systems)
