"""The ports that gateways open to each other, and what a plan says where no stack opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.cli import app
from vllm_fleet.fleet import plan
from vllm_fleet.fleet.private_networks import name_of
from vllm_fleet.host.gateway_tables import peer_ports, unopened_ports_note
from vllm_fleet.host.haproxy import TABLES_PORT
from vllm_fleet.schema.acme import CHALLENGE_PORT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGEww12LWK28O7pjfTtapz2FPAxItRAyzYDc3krl7mM"
SHARED = {"affinity": "session"}
ACME = {"email": "me@example.com", "names": ["api.example.com"], "accept_terms": True}


def of_example(name: str, folder: Path, **gateway: Any) -> plan.Plan:
    """An example fleet with other keys of its gateways."""
    source = paths.root() / "inventories" / name / "fleet.yml"
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    data["gateway"] = {**data["gateway"], **gateway}
    return written(folder / "inventories" / name, data)


def own(folder: Path, count: int, **gateway: Any) -> plan.Plan:
    """A fleet of hosts that exist already."""
    gateways = {f"gw-{number}": {"address": f"10.0.0.{number + 5}", "ssh_host_key": KEY} for number in range(count)}
    pool = {
        "host_class": "h100-8",
        "model": "openai/gpt-oss-120b",
        "cloud": "static",
        "static": {"gpu-1": {"address": "10.0.0.4", "ssh_host_key": KEY}},
    }
    data = {
        "fleet": "rack",
        "pools": {"h100": pool},
        "gateway": {"static": gateways, **({} if "tls" in gateway else {"plain": True}), **gateway},
    }
    return written(folder / "inventories" / "rack", data)


def written(directory: Path, data: dict[str, Any]) -> plan.Plan:
    directory.mkdir(parents=True)
    (directory / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return plan.load(directory)


@pytest.mark.parametrize(
    ("count", "gateway", "ports"),
    [
        (2, SHARED, (TABLES_PORT,)),
        (2, {"responses_store": True}, (TABLES_PORT,)),
        (3, {"affinity": "conversation"}, (TABLES_PORT,)),
        (2, {"tls": {"acme": ACME}}, (CHALLENGE_PORT,)),
        (2, {**SHARED, "tls": {"acme": ACME}}, (CHALLENGE_PORT, TABLES_PORT)),
        (1, {"tls": {"acme": ACME}}, ()),
        (2, {}, ()),
        (1, {**SHARED, "responses_store": True}, ()),
    ],
)
def test_gateways_open_a_port_to_each_other_where_they_share_tables(
    count: int, gateway: dict[str, Any], ports: tuple[int, ...], tmp_path: Path
) -> None:
    found = own(tmp_path, count, **gateway)
    assert peer_ports(found) == ports
    assert (unopened_ports_note(found) is None) == (ports == ())


@pytest.mark.parametrize("name", ["example-aws", "example-gcp", "example-amd"])
def test_a_stack_opens_the_port_in_the_one_network_of_the_gateways(name: str, tmp_path: Path) -> None:
    found = of_example(name, tmp_path, hosts=3, **SHARED)
    gateways = [host for host in found.hosts if host.kind == "gateway"]
    assert (len(gateways), len({name_of(host) for host in gateways})) == (3, 1)
    assert peer_ports(found) == (TABLES_PORT,)
    assert unopened_ports_note(found) is None


def test_the_account_opens_the_port_where_its_own_rules_guard_the_gateways(tmp_path: Path) -> None:
    found = of_example("example-company", tmp_path, **SHARED)
    assert "firewall rules of your account: open TCP 10240" in str(unopened_ports_note(found))


def test_the_lab_has_no_firewall(tmp_path: Path) -> None:
    found = of_example("lab", tmp_path, hosts=2, **SHARED)
    assert peer_ports(found) == (TABLES_PORT,)
    assert unopened_ports_note(found) is None


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_plan_says_which_port_the_user_opens(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tmp_path, 2, **SHARED)
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    shown = CliRunner().invoke(app, ["plan", "--fleet", "rack", *options])
    assert shown.exit_code == 0
    said = "firewall: the stack makes no rule for your own gateways: open TCP 10240 (sessions and responses) from each"
    assert said in " ".join(shown.stderr.split())
