from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_fleet.host.firewall import Peers, firewall_rules
from vllm_fleet.host.haproxy import ALLOWED_PATHS, API_KEYS, Backend, haproxy_config, key_digests_text
from vllm_fleet.schema.acme import Tls
from vllm_fleet.schema.fleet import Gateway

ONE = [Backend("h-0", "0", "192.0.2.1", 8000, "a/b"), Backend("h-1", "0", "192.0.2.2", 8000, "a/b")]
TWO = [*ONE, Backend("h-2", "1", "192.0.2.3", 8001, "c/d")]


def test_only_listed_paths_and_known_keys_pass() -> None:
    config = haproxy_config(Gateway(hosts=1), ONE)
    assert " unless { path " + " ".join(ALLOWED_PATHS) + " }\n" in config
    assert "return status 401" in config
    assert all(path.startswith("/v1/") for path in ALLOWED_PATHS)


def test_the_first_token_is_not_held_back() -> None:
    assert "option http-no-delay" in haproxy_config(Gateway(hosts=1), ONE)


def test_health_is_readiness_and_work_is_not_repeated() -> None:
    config = haproxy_config(Gateway(hosts=1), ONE)
    assert "uri /ready" in config
    assert "server h-0_0 192.0.2.1:8000 port 8100" in config
    assert "retry-on conn-failure empty-response 503\n" in config


def test_one_model_reads_no_body_and_two_models_do() -> None:
    assert "wait-for-body" not in haproxy_config(Gateway(hosts=1), ONE)
    config = haproxy_config(Gateway(hosts=1), TWO)
    assert "wait-for-body" in config
    assert config.count("\nbackend ") == 2


@pytest.mark.parametrize(
    ("gateway", "backends"),
    [
        (Gateway(hosts=1), ONE),
        (Gateway(hosts=1), TWO),
        (Gateway(hosts=1, affinity="prefix"), TWO),
        (Gateway(hosts=1), []),
    ],
    ids=["one model", "two models", "prefix", "no hosts"],
)
def test_haproxy_takes_the_config(tmp_path: Path, gateway: Gateway, backends: list[Backend]) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here; the e2e tests check the same config on the gateway host")
    keys = tmp_path / "keys"
    keys.write_text(key_digests_text({"a": "sha256:" + "1" * 64}), encoding="utf-8")
    config = tmp_path / "haproxy.cfg"
    text = haproxy_config(gateway, backends).replace(API_KEYS, str(keys)).replace("/run/haproxy", str(tmp_path))
    config.write_text(text, encoding="utf-8")
    done = subprocess.run(["haproxy", "-c", "-f", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tls_ends_at_the_gateway_when_asked() -> None:
    config = haproxy_config(Gateway(hosts=1, port=443, tls=Tls(certificate_file="x.pem")), ONE)
    assert "bind :443 ssl crt" in config
    assert "ssl-min-ver TLSv1.2" in config


def test_keys_are_digests_without_their_owners() -> None:
    text = key_digests_text({"b": "sha256:" + "2" * 64, "a": "sha256:" + "1" * 64, "c": "sha256:" + "1" * 64})
    assert text == "1" * 64 + "\n" + "2" * 64 + "\n"


def test_the_firewall_lets_only_gateways_in() -> None:
    rules = firewall_rules([8000, 8100], Peers((), ("192.0.2.9",)))
    assert "tcp dport { 8000, 8100 } ip saddr { 192.0.2.9 } accept" in rules
    assert "tcp dport { 8000, 8100 } drop" in rules


def test_without_gateways_nobody_gets_in() -> None:
    assert "saddr" not in firewall_rules([8000], Peers((), ()))
    assert "drop" in firewall_rules([8000], Peers((), ()))
