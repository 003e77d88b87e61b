"""API keys without TLS: refused on the internet unless the fleet says so, a warning inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import addresses
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan, stack

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGEww12LWK28O7pjfTtapz2FPAxItRAyzYDc3krl7mM"
AWS = {"region": "us-east-1", "zone": "us-east-1a", "capacity": {"kind": "on-demand"}, "disk_gib": 300}


def load(tmp_path: Path, gateway: dict[str, Any], pool: dict[str, Any] | None = None, **access: Any) -> plan.Plan:
    folder = tmp_path / "inventories" / "rack"
    folder.mkdir(parents=True)
    gpu = {"address": "2001:db8::5", "private_address": "10.0.0.5", "ssh_host_key": KEY}
    static = {"cloud": "static", "static": {"gpu-1": gpu}}
    spec = {
        "fleet": "rack",
        "pools": {"h100": {"host_class": "h100-8", "model": "openai/gpt-oss-120b", **(pool or static)}},
        "gateway": gateway,
        "access": access,
    }
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


def at(address: str, **more: Any) -> dict[str, Any]:
    return {"gw-1": {"address": address, "ssh_host_key": KEY, **more}}


@pytest.mark.parametrize(
    "static",
    [
        at("198.51.100.4"),
        at("[2001:db8::4]", private_address="10.0.0.4"),
        at("10.0.0.9", private_address="192.0.2.4"),
    ],
)
def test_a_public_gateway_needs_tls_or_says_plain(tmp_path: Path, static: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="takes API keys without TLS at the public address") as refused:
        load(tmp_path / "refused", {"static": static})
    assert (refused.value.key, refused.value.exit_code) == ("gateway.static.gw-1", 2)
    assert refused.value.line
    static["gw-1"].setdefault("private_address", "10.0.0.4")
    assert load(tmp_path / "plain", {"static": static, "plain": True}).hosts
    assert load(tmp_path / "tls", {"static": static, "tls": {"certificate_file": "a.pem"}}).hosts
    with pytest.raises(FleetError, match="either with 'tls' or 'plain'"):
        load(tmp_path / "both", {"static": static, "plain": True, "tls": {"certificate_file": "a.pem"}})


@pytest.mark.parametrize("address", ["10.0.0.4", "172.16.0.4", "192.168.1.4", "100.64.0.4"])
def test_a_private_gateway_is_a_warning_of_the_plan(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tmp_path, {"static": at(address)})
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    shown = CliRunner().invoke(app, ["plan", "--fleet", "rack"])
    assert shown.exit_code == 0
    assert "warning: the gateways take API keys without TLS" in shown.stderr


def test_a_name_is_judged_when_it_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = load(tmp_path, {"static": at("api.example.org")})
    answer = addresses.parse_ip("198.51.100.4")
    assert answer
    monkeypatch.setattr(names, "resolve_names", lambda asked: dict.fromkeys(asked, (answer,)))
    with pytest.raises(FleetError, match=r"at the public address 198\.51\.100\.4"):
        stack.locations(fleet, names.resolve_names)
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    assert "site.yml will refuse" in CliRunner().invoke(app, ["plan", "--fleet", "rack"]).stdout


@pytest.mark.parametrize(
    ("api_from", "refused"),
    [
        (["198.51.100.0/24"], True),
        (["0.0.0.0/0"], True),
        (["10.0.0.0/8", "::/0"], True),
        (["10.0.0.0/8", "fd00::/8"], False),
        ([], False),
    ],
)
def test_a_rented_gateway_is_judged_by_who_may_reach_it(tmp_path: Path, api_from: list[str], refused: bool) -> None:
    pool = {"cloud": "aws", "hosts": 1, "placement": AWS}
    if refused:
        with pytest.raises(FleetError, match="takes API keys without TLS") as caught:
            load(tmp_path, {"hosts": 1}, pool, ssh_from=["203.0.113.0/24"], api_from=api_from)
        assert caught.value.key == "gateway"
    else:
        assert load(tmp_path, {"hosts": 1}, pool, ssh_from=["203.0.113.0/24"], api_from=api_from).hosts
