"""What a plan costs: known, unknown, paid at once, and prices by gpuhunt itself from a catalogue of the test."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.cli import app
from vllm_fleet.edge import prices
from vllm_fleet.fleet import cost, plan

PRICES = {
    "as_of": "2026-11-01",
    "source": "our contract",
    "usd_per_hour": {"p5.48xlarge": {"on-demand": 50.0}, "c7i.2xlarge": {"on-demand": 0.5}},
}
ORDER = {"offering_id": "cb-1", "duration_hours": 48, "accept_cost_usd": 3000.0}
HEAD = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot,disk_size,gpu_vendor,flags,cpu_arch"


def pool(**placement: Any) -> dict[str, Any]:
    where = {"region": "us-east-1", "zone": "us-east-1a", **placement}
    return {"host_class": "h100-8", "cloud": "aws", "placement": where, "hosts": 2}


def write(folder: Path, pools: dict[str, Any], **more: Any) -> plan.Plan:
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-120b"},
        "pools": pools,
        "gateway": {"hosts": 1},
        "access": {"ssh_from": ["203.0.113.0/24"]},
        **more,
    }
    (folder / "demo").mkdir(exist_ok=True)
    (folder / "demo" / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return plan.load(folder / "demo")


def bill(found: plan.Plan, *lists: cost.PriceList) -> cost.Bill:
    return cost.bill(found, catalogs.load(), *(lists or (cost.own(found),)))


def test_a_price_of_the_fleet_s_table_is_counted_for_every_host(tmp_path: Path) -> None:
    found = bill(write(tmp_path, {"main": pool()}, prices=PRICES))
    row = found.record()["pools"][0]
    assert (row["hosts"], row["gpus"], row["instance_type"]) == (2, 16, "p5.48xlarge")
    assert (row["usd_per_hour_each"], row["usd_per_hour"]) == (50.0, 100.0)
    assert row["price_source"] == "our contract, 2026-11-01"
    total = found.record()["total"]
    assert (total["usd_per_hour"], total["usd_per_month"], total["complete"]) == (100.5, 73365.0, True)
    assert found.summary().startswith("100.50 USD an hour, 73,365 USD a month of 730 h (")


def test_a_sum_with_an_unknown_price_says_that_it_is_not_the_whole(tmp_path: Path) -> None:
    found = bill(write(tmp_path, {"main": pool(), "spot": pool(capacity={"kind": "spot"})}, prices=PRICES))
    assert found.record()["pools"][1]["usd_per_hour"] is None
    assert found.record()["total"]["unknown"] == ["spot"]
    assert found.summary().startswith("at least 100.50 USD an hour")
    assert "unknown for spot" in found.summary()


def test_nothing_known_is_no_zero(tmp_path: Path) -> None:
    assert bill(write(tmp_path, {"main": pool()})).summary() == "unknown: no price of main, gateway is known"


def test_an_order_is_paid_at_once_and_not_by_the_hour(tmp_path: Path) -> None:
    ordered = pool(capacity={"kind": "capacity-block", "purchase": ORDER})
    found = bill(write(tmp_path, {"main": ordered}, prices=PRICES))
    total = found.record()["total"]
    assert (total["once_usd"], total["usd_per_hour"], total["complete"]) == (3000.0, 0.5, True)
    assert "up to 3,000.00 USD at once" in found.summary()


def test_hosts_of_one_s_own_cost_nothing_here(fleets: Path) -> None:
    found = bill(plan.load(fleets / "golden"))
    assert found.summary() == "nothing is rented"
    assert not found.unknown


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue on disk, which gpuhunt takes in place of the internet."""
    folder = tmp_path / "catalogue"
    folder.mkdir()
    offer = "p5.48xlarge,{0},{1},192,2048,8,H100,80,{2},,nvidia,,x86"
    rows = [("us-east-1", 98.3, False), ("us-east-1", 33.0, True), ("us-west-2", 1.0, False)]
    lines = [HEAD, *(offer.format(*row) for row in rows)]
    (folder / "aws.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(folder))
    return folder


def test_the_catalogue_s_price_is_that_of_region_and_market(tmp_path: Path, catalogue: Path) -> None:
    pools = {
        "main": pool(),
        "spot": pool(capacity={"kind": "spot"}),
        "kept": pool(capacity={"kind": "reservation", "id": "r"}),
    }
    found = bill(write(tmp_path, pools, prices=PRICES), prices.load(["aws"]))
    each = {row["pool"]: row["usd_per_hour_each"] for row in found.record()["pools"]}
    assert each == {"main": 98.3, "spot": 33.0, "kept": None, "gateway": None}


def test_the_fleet_s_table_stands_behind_the_catalogue(tmp_path: Path, catalogue: Path) -> None:
    found = write(tmp_path, {"main": pool()}, prices=PRICES)
    rows = bill(found, prices.load(["aws"]), cost.own(found)).record()["pools"]
    assert [row["usd_per_hour_each"] for row in rows] == [98.3, 0.5]


def test_a_cloud_that_the_catalogue_has_not_is_not_asked_for() -> None:
    assert callable(prices.load(["digitalocean", "lab"]))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(folder))
    return CliRunner().invoke(app, ["plan", "--fleet", "demo", *words])


def test_a_catalogue_that_cannot_be_had_is_one_line_and_the_plan_is_printed(
    tmp_path: Path, catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"main": pool()}, prices=PRICES)
    monkeypatch.setenv("GPUHUNT_CATALOG_DIR", str(tmp_path / "nowhere"))
    done = run(tmp_path, monkeypatch, "--prices", "gpuhunt", "--json")
    assert done.exit_code == 0
    # The second line warns of a gateway without TLS.
    line, _ = done.stderr.splitlines()
    assert line.startswith("prices: gpuhunt's catalogue cannot be read: ")
    assert json.loads(done.stdout)["cost"]["total"]["usd_per_hour"] == 100.5


def test_without_the_package_the_hint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    with pytest.raises(FleetError, match="needs the Python package gpuhunt") as caught:
        prices.load(["aws"])
    assert "pip install 'vllm-fleet[prices]'" in caught.value.hint
    assert caught.value.exit_code == 2


def test_plan_prints_the_price_and_what_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"main": pool(), "spot": pool(capacity={"kind": "spot"})}, prices=PRICES)
    done = run(tmp_path, monkeypatch)
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if "us-east-1a" in line}
    assert "100.00" in lines["main"]
    assert lines["spot"].count("unknown") == 2
    assert "cost: at least 100.50 USD an hour" in done.stdout
