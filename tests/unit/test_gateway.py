from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from gateway_on_loopback import DEFAULT_KEYS, key_lines, local

from vllm_fleet.host.firewall import Peers, firewall_rules
from vllm_fleet.host.gateway_routes import Backend, routes
from vllm_fleet.host.haproxy import POSTED_PATHS, haproxy_config
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.schema.acme import Tls
from vllm_fleet.schema.fleet import Gateway

ONE = [Backend("h-0", "0", "192.0.2.1", 8000, "a/b"), Backend("h-1", "0", "192.0.2.2", 8000, "a/b")]
TWO = [*ONE, Backend("h-2", "1", "192.0.2.3", 8001, "c/d", seats=64)]


def test_only_paths_of_the_api_pass() -> None:
    config = haproxy_config(Gateway(hosts=1), ONE)
    assert f"acl is_posted path {' '.join(POSTED_PATHS)}\n" in config
    assert all(path.startswith("/v1/") for path in POSTED_PATHS)


def test_the_first_token_is_not_held_back() -> None:
    assert "option http-no-delay" in haproxy_config(Gateway(hosts=1), ONE)


def test_health_is_readiness() -> None:
    config = haproxy_config(Gateway(hosts=1), ONE)
    assert "uri /ready/a/b\n" in config
    assert f"server h-0_0 192.0.2.1:8000 id {ONE[0].number} port 8100\n" in config


def test_a_server_gets_no_more_requests_than_it_works_on() -> None:
    config = haproxy_config(Gateway(hosts=1), TWO)
    assert "port 8101 maxconn 64 maxqueue 16\n" in config


def test_no_answer_goes_over_more_than_one_thread() -> None:
    for config in (haproxy_config(Gateway(hosts=1), ONE), reader_config(Gateway(hosts=1), ONE)):
        assert "  nbthread 1\n" in config


@pytest.mark.parametrize("affinity", ["none", "session", "conversation"])
@pytest.mark.parametrize("responses_store", [False, True])
@pytest.mark.parametrize("backends", [ONE, TWO, []], ids=["one model", "two models", "no hosts"])
def test_haproxy_takes_the_config(
    tmp_path: Path, affinity: Any, responses_store: bool, backends: list[Backend]
) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here; the e2e tests check the same config on the gateway host")
    (tmp_path / "keys").write_text(key_lines(DEFAULT_KEYS), encoding="utf-8")
    gateway = Gateway(hosts=1, affinity=affinity, responses_store=responses_store)
    for text in (haproxy_config(gateway, backends), reader_config(gateway, backends)):
        config = tmp_path / "haproxy.cfg"
        config.write_text(local(text, tmp_path), encoding="utf-8")
        done = subprocess.run(["haproxy", "-c", "-f", str(config)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr


def test_names_of_pools_lead_to_their_servers() -> None:
    fast = Backend("h-3", "0", "192.0.2.4", 8000, "a/b", names=("fast", "a/b-fast"))
    found = {route.names: [server.host for server in route.servers] for route in routes([*TWO, fast])}
    assert found == {("a/b",): ["h-0", "h-1"], ("c/d",): ["h-2"], ("fast", "a/b-fast"): ["h-3"]}


def test_names_that_differ_in_a_sign_have_backends_of_their_own() -> None:
    same = [Backend("h-0", "0", "192.0.2.1", 8000, "a/b"), Backend("h-1", "0", "192.0.2.1", 8001, "a-b")]
    assert len({route.backend for route in routes(same)}) == 2


def test_tls_ends_at_the_gateway_when_asked() -> None:
    config = haproxy_config(Gateway(hosts=1, port=443, tls=Tls(certificate_file="x.pem")), ONE)
    assert "bind :443 ssl crt" in config
    assert "ssl-min-ver TLSv1.2" in config


def test_the_firewall_lets_only_gateways_in() -> None:
    rules = firewall_rules([8000, 8100], Peers((), ("192.0.2.9",)))
    assert "tcp dport { 8000, 8100 } ip saddr { 192.0.2.9 } accept" in rules
    assert "tcp dport { 8000, 8100 } drop" in rules


def test_without_gateways_nobody_gets_in() -> None:
    assert "saddr" not in firewall_rules([8000], Peers((), ()))
    assert "drop" in firewall_rules([8000], Peers((), ()))
