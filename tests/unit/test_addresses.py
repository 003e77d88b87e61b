"""Addresses of hosts: what fleet.yml may say, and what names and families become."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import addresses
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import Network
from vllm_fleet.cli import app
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan, service_addresses, stack
from vllm_fleet.schema.recipe import Strict

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGEww12LWK28O7pjfTtapz2FPAxItRAyzYDc3krl7mM"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("203.0.113.5", "203.0.113.5"),
        ("100.100.1.5", "100.100.1.5"),
        ("fd00:1::5", "fd00:1::5"),
        ("[FD00:1:0::5]", "fd00:1::5"),
        ("[::1]", "::1"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("gpu-1.example.org", "gpu-1.example.org"),
        ("GPU-1.Example.org.", "gpu-1.example.org"),
        ("gpu1", "gpu1"),
        ("1and1.example", "1and1.example"),
        ("a" * 63, "a" * 63),
    ],
)
def test_addresses_have_one_form(written: str, meant: str) -> None:
    assert addresses.parse_host_address(written) == meant


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("10.0.0.999", "not an IPv4 address"),
        ("010.0.0.5", "without leading zeros"),
        ("10.5", "not an IPv4 address"),
        # getaddrinfo reads these three as 127.0.0.1.
        ("0x7f000001", "not an IPv4 address"),
        ("2130706433", "not an IPv4 address"),
        ("127.1", "not an IPv4 address"),
        ("ubuntu@10.0.0.5", "write '10.0.0.5', and 'user: ubuntu' beside it"),
        ("10.0.0.5:2222", "write '10.0.0.5', and 'port: 2222' beside it"),
        ("[fd00::1]:2222", "and 'port: 2222' beside it"),
        ("gpu-1:22", "and 'port: 22' beside it"),
        ("GPU_01.example.org", "no '_'"),
        ("-a.example", "neither an IP address nor a DNS name"),
        ("a..b", "neither an IP address nor a DNS name"),
        ("a" * 64, "neither an IP address nor a DNS name"),
        (".".join(["a" * 60] * 5), "at most 253 characters"),
        ("gpü.example", "xn--"),
        ("", "is empty"),
        (" 10.0.0.5", "blanks or control characters"),
        ("10.0.0.5\n", "blanks or control characters"),
        ("a\u2028b", "blanks or control characters"),
        ("a\x1b[2J", "blanks or control characters"),
        ("https://gpu-1", "give the address of the host alone"),
        ("10.0.0.0/24", "give the address of the host alone"),
        ("fe80::1%eth0", "zone"),
        ("fe80::1", "link-local"),
        ("169.254.169.254", "link-local"),
        ("10.0.0.5:\u0661\u0662", "not an IPv6 address"),
        ("0.0.0.0", "no single host"),  # noqa: S104 - nothing listens
        ("::", "no single host"),
        ("ff02::1", "no single host"),
        ("fd00::1::2", "not an IPv6 address"),
        ("[10.0.0.5]", "not an IPv6 address"),
    ],
)
def test_what_is_no_address_is_refused_with_what_to_write(written: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        addresses.parse_host_address(written)
    assert says in str(refused.value)


class _Networks(Strict):
    networks: list[Network]


@pytest.mark.parametrize("text", ["10.0.0.0/8", "10.0.0.5", "fd00::/64", "fd00::5", "0.0.0.0/0"])
def test_networks_of_both_families(text: str) -> None:
    assert _Networks(networks=[text]).networks == [text]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.5/24", "write '10.0.0.0/24'"),
        ("[fd00::5]/64", "such as"),
        ("[fd00::5]", "write 'fd00::5/128'"),
        ("10.0.0.999", "such as"),
        ("office.example", "such as"),
    ],
)
def test_a_network_that_is_none_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="is not a network in CIDR form") as refused:
        _Networks(networks=[text])
    assert says in str(refused.value)


def host(address: str, **more: Any) -> dict[str, Any]:
    return {"address": address, "ssh_host_key": KEY, **more}


def load(tmp_path: Path, gpus: Mapping[str, Any], gateways: Mapping[str, Any] | None = None, **more: Any) -> plan.Plan:
    folder = tmp_path / "inventories" / "rack"
    folder.mkdir(parents=True)
    pool = {"host_class": "h100-8", "cloud": "static", "model": "openai/gpt-oss-120b", "static": dict(gpus)}
    spec = {"fleet": "rack", "pools": {"h100": pool}, **more}
    if gateways:
        spec["gateway"] = {"static": dict(gateways), **spec.get("gateway", {})}
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


def answers(**known: str) -> service_addresses.Resolver:
    """A resolver: name -> its addresses, with blanks between them; a name without an answer does not exist."""

    def resolve(asked: Iterable[str]) -> Mapping[str, tuple[addresses.IpAddress, ...] | str]:
        return {
            name: tuple(map(ipaddress.ip_address, known[key].split()))
            if (key := name.replace("-", "_").partition(".")[0]) in known
            else "Name or service not known"
            for name in asked
        }

    return resolve


def test_check_names_file_line_and_key(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as refused:
        load(tmp_path, {"gpu-1": host("root@10.0.0.5"), "gpu-2": host("10.0.0.999")})
    first, second = refused.value, *refused.value.others
    assert (first.key, first.line) == ("pools.h100.static.gpu-1.address", 9)
    assert (second.key, second.line) == ("pools.h100.static.gpu-2.address", 12)


def test_check_asks_no_resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("check works without a network"))
    assert load(tmp_path, {"gpu-1": host("gpu-1.invalid")}).hosts


@pytest.mark.parametrize(
    ("gpu", "gateway", "key", "says"),
    [
        (host("127.0.0.1"), host("10.0.0.4"), "pools.h100.static.gpu-1.address", "loopback"),
        (host("::1"), host("fd00::4"), "pools.h100.static.gpu-1.address", "loopback"),
        (host("10.0.0.4", port=2222), host("10.0.0.4"), "gateway.static.gw-1.address", "both have the address"),
        (
            host("10.0.0.5"),
            host("fd00::4"),
            "gateway.static.gw-1.address",
            "no IPv4 address, the only kind that is known of gpu-1",
        ),
        (
            host("fd00::5"),
            host("10.0.0.4"),
            "gateway.static.gw-1.address",
            "no IPv6 address, the only kind that is known of gpu-1",
        ),
        (
            host("203.0.113.1", private_address="10.0.0.5"),
            host("203.0.113.2", private_address="10.0.0.5"),
            "gateway.static.gw-1.private_address",
            "both have the address 10.0.0.5",
        ),
    ],
)
def test_addresses_that_cannot_work_together_are_refused(
    tmp_path: Path, gpu: Any, gateway: Any, key: str, says: str
) -> None:
    with pytest.raises(FleetError) as refused:
        load(tmp_path, {"gpu-1": gpu}, {"gw-1": gateway}, gateway={"plain": True})
    assert refused.value.key == key
    assert says in refused.value.message
    assert refused.value.line


@pytest.mark.parametrize(
    ("gpu", "more", "key", "says"),
    [
        ({}, {"gateway": {"port": 22}}, "gateway.port", "is 22 for the API, and gw-1 has that port for SSH"),
        ({}, {"mirror": {"host": "gw-1", "port": 8080}}, "mirror.port", "gw-1 has that port for the API"),
        ({}, {"mirror": {"host": "gw-1", "port": 22}}, "mirror.port", "gw-1 has that port for SSH"),
        ({}, {"mirror": {"host": "gpu-1", "port": 8000}}, "mirror.port", "gpu-1 has that port for the instance 0"),
        ({}, {"mirror": {"host": "gpu-1", "port": 8100}}, "mirror.port", "for the readiness of the instance 0"),
        (
            {},
            {"mirror": {"host": "gw-1", "registry_port": 8080}},
            "mirror.registry_port",
            "is 8080 for the mirror's images",
        ),
        ({"port": 8000}, {}, "pools.h100.static.gpu-1.port", "is 8000 for SSH, and gpu-1 has that port for the ins"),
    ],
)
def test_two_services_of_a_host_have_two_ports(
    tmp_path: Path, gpu: dict[str, Any], more: dict[str, Any], key: str, says: str
) -> None:
    with pytest.raises(FleetError) as refused:
        load(tmp_path, {"gpu-1": host("10.0.0.5", **gpu)}, {"gw-1": host("10.0.0.4")}, **more)
    assert (refused.value.key, refused.value.others) == (key, [])
    assert says in refused.value.message
    assert refused.value.line


def test_services_of_two_hosts_and_ports_of_tunnels_may_be_the_same(tmp_path: Path) -> None:
    gateway = host("127.0.0.1", port=8080, private_address="10.0.0.4")
    mirror = {"host": "gpu-1", "port": 8080}
    assert load(tmp_path, {"gpu-1": host("10.0.0.5")}, {"gw-1": gateway}, mirror=mirror).hosts


@pytest.mark.parametrize(
    ("mirror", "key"),
    [
        ({"url": "http://127.0.0.1:8070"}, "mirror.url"),
        ({"url": "http://[::1]:8070"}, "mirror.url"),
        ({"url": "http://localhost:8070"}, "mirror.url"),
        ({"registry": "127.0.0.1:5000"}, "mirror.registry"),
        # Here the mirror alone asks the registry.
        ({"url": "http://10.0.0.9:8070", "registry": "127.0.0.1:5000", "registry_port": 5000}, None),
    ],
)
def test_several_hosts_have_no_mirror_at_a_loopback_address(
    tmp_path: Path, mirror: dict[str, Any], key: str | None
) -> None:
    hosts = {"gpu-1": host("10.0.0.5"), "gpu-2": host("10.0.0.6")}
    if key is None:
        assert load(tmp_path, hosts, mirror=mirror).hosts
        return
    with pytest.raises(FleetError, match="is a loopback address: each host would ask itself") as refused:
        load(tmp_path, hosts, mirror=mirror)
    assert (refused.value.key, refused.value.others) == (key, [])


def test_a_tunnel_is_an_address_for_ssh_alone(tmp_path: Path) -> None:
    gpu = host("127.0.0.1", port=2201, private_address="10.0.0.5")
    where = stack.locations(load(tmp_path, {"gpu-1": gpu}, {"gw-1": host("10.0.0.4")}), answers())
    assert (where["gpu-1"].address, where["gpu-1"].service_address) == ("127.0.0.1", "10.0.0.5")


@pytest.mark.parametrize(
    ("gpu", "gateway", "listen", "connect_from"),
    [
        ("10.0.0.5", "10.0.0.4", "10.0.0.5", ("10.0.0.4",)),
        ("fd00::5", "fd00::4", "fd00::5", ("fd00::4",)),
        # Both have both: IPv4. All addresses of the gateway are admitted.
        ("10.0.0.5 fd00::5", "10.0.0.4 fd00::4", "10.0.0.5", ("10.0.0.4", "fd00::4")),
        # One has IPv6 alone: the family that all have.
        ("10.0.0.5 fd00::5", "fd00::4", "fd00::5", ("fd00::4",)),
        ("fd00::5", "10.0.0.4 fd00::4", "fd00::5", ("10.0.0.4", "fd00::4")),
        # A gateway may have several of one family; a host listens on one.
        ("10.0.0.5", "10.0.0.3 10.0.0.4", "10.0.0.5", ("10.0.0.3", "10.0.0.4")),
        # Debian's hosts file has 127.0.1.1 for the machine itself.
        ("10.0.0.5 127.0.1.1", "10.0.0.4", "10.0.0.5", ("10.0.0.4",)),
        ("10.0.0.5 fe80::5", "10.0.0.4", "10.0.0.5", ("10.0.0.4",)),
    ],
)
def test_names_become_addresses_on_the_controller(
    tmp_path: Path, gpu: str, gateway: str, listen: str, connect_from: tuple[str, ...]
) -> None:
    fleet = load(tmp_path, {"gpu-1": host("gpu.example.org")}, {"gw-1": host("gw.example.org")})
    where = stack.locations(fleet, answers(gpu=gpu, gw=gateway))
    # SSH keeps the name: its configuration and the known host keys are by name.
    assert where["gpu-1"].address == "gpu.example.org"
    assert where["gpu-1"].service_address == listen
    assert where["gw-1"].connect_from == connect_from


@pytest.mark.parametrize(
    ("known", "key", "says"),
    [
        ({"gw": "10.0.0.4"}, "pools.h100.static.gpu-1.address", "does not resolve on this machine"),
        ({"gpu": "127.0.1.1", "gw": "10.0.0.4"}, "pools.h100.static.gpu-1.address", "resolves to 127.0.1.1 here"),
        ({"gpu": "10.0.0.5 10.0.0.6", "gw": "10.0.0.4"}, "pools.h100.static.gpu-1.address", "several addresses"),
        ({"gpu": "10.0.0.4", "gw": "10.0.0.4"}, "gateway.static.gw-1.address", "both have the address 10.0.0.4"),
        ({"gpu": "10.0.0.5", "gw": "fd00::4"}, "gateway.static.gw-1.address", "no IPv4 address"),
    ],
)
def test_a_name_without_a_usable_address_is_one_error(
    tmp_path: Path, known: Mapping[str, str], key: str, says: str
) -> None:
    fleet = load(tmp_path, {"gpu-1": host("gpu.example.org")}, {"gw-1": host("gw.example.org")})
    with pytest.raises(FleetError) as refused:
        stack.locations(fleet, answers(**known))
    assert refused.value.key == key
    assert says in refused.value.message
    assert not refused.value.others
    assert refused.value.line


def test_plan_names_the_host_that_does_not_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, {"gpu-1": host("gpu-1.invalid"), "gpu-2": host("gpu-2.invalid")})
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    monkeypatch.setattr(names, "resolve_names", answers())
    shown = CliRunner().invoke(app, ["plan", "--fleet", "rack"])
    refused = [line for line in shown.output.splitlines() if "site.yml will refuse" in line and "resolve" in line]
    assert len(refused) == 2
    assert "pools.h100.static.gpu-2.address" in refused[1]


def test_this_machine_resolves_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ipaddress.ip_address("127.0.0.1") in names.resolve_names(["localhost"])["localhost"]
    # RFC 6761: no resolver knows a name below 'invalid'.
    answer = names.resolve_names(["a.invalid"])["a.invalid"]
    assert isinstance(answer, str)
    assert answer
    several = [
        (2, 1, 6, "", ("10.0.0.9", 0)),
        (10, 1, 6, "", ("fe80::1%eth0", 0, 0, 2)),
        (2, 1, 6, "", ("10.0.0.8", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: several)
    assert list(map(str, names.resolve_names(["some.example"])["some.example"])) == ["10.0.0.8", "10.0.0.9", "fe80::1"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://10.0.0.5:8070", "http://10.0.0.5:8070"),
        ("https://Mirror.example.org", "https://mirror.example.org"),
        ("http://[FD00::5]:8070", "http://[fd00::5]:8070"),
        ("http://[fd00::5]", "http://[fd00::5]"),
    ],
)
def test_urls_of_servers(given: str, meant: str) -> None:
    assert addresses.parse_http_url(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        *("http://10.0.0.999:8070", "http://me@mirror:80", "http://a/b", "http://fd00::5:8070x", "ftp://a", "http://"),
        *("http://a:0", "http://a:99999", "http://a_b:80", "http://a:80:80", "mirror:80", "http://a b"),
        *("http://169.254.169.254", "http://a:\u0661\u0662"),
    ],
)
def test_other_urls_are_refused(given: str) -> None:
    with pytest.raises(ValueError):
        addresses.parse_http_url(given)


@pytest.mark.parametrize(
    "given", ["10.0.0.5", "10.0.0.5:0", "10.0.0.999:5000", "a:b", "fd00::5:5000", "me@a:5000", "a:\u0661"]
)
def test_a_registry_has_a_host_and_a_port(given: str) -> None:
    assert addresses.parse_host_port("[FD00::5]:5000") == "[fd00::5]:5000"
    with pytest.raises(ValueError):
        addresses.parse_host_port(given)
