"""The address that gateways share: what is refused, what keepalived gets, and the check that it runs."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import https_files
import pytest
import yaml
from typer.testing import CliRunner

from vllm_fleet.base import addresses, paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.fleet import plan, stack
from vllm_fleet.host import keepalived
from vllm_fleet.schema.fleet import Gateway, Tls
from vllm_fleet.schema.virtual_address import VirtualAddress

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGEww12LWK28O7pjfTtapz2FPAxItRAyzYDc3krl7mM"
SHARED = {"address": "10.0.0.9", "interface": "eth0"}
AWS = {"region": "us-east-1", "zone": "us-east-1a", "capacity": {"kind": "on-demand"}, "disk_gib": 300}


def at(*given: str, **more: Any) -> dict[str, Any]:
    """Gateways of one's own at these addresses."""
    return {f"gw-{number}": {"address": text, "ssh_host_key": KEY, **more} for number, text in enumerate(given)}


def load(tmp_path: Path, gateway: Mapping[str, Any], name: str = "rack", **more: Any) -> plan.Plan:
    folder = tmp_path / "inventories" / name
    folder.mkdir(parents=True)
    gpu = {"gpu-1": {"address": "10.0.0.5", "ssh_host_key": KEY}}
    spec = {
        "fleet": name,
        "pools": {
            "h100": {"host_class": "h100-8", "model": "openai/gpt-oss-120b", "cloud": "static", "static": gpu},
        },
        "gateway": {"static": at("10.0.0.2", "10.0.0.3"), "virtual_address": SHARED, **gateway},
        **more,
    }
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("10.0.0.9", "10.0.0.9"),
        ("10.0.0.9/24", "10.0.0.9/24"),
        ("FD00:0::9", "fd00::9"),
        ("[fd00::9]/64", "fd00::9/64"),
        ("10.0.0.8/31", "10.0.0.8/31"),
    ],
)
def test_an_address_has_one_form(given: str, kept: str) -> None:
    assert VirtualAddress(address=given, interface="eth0").address == kept


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("address", "api.example.org", "is a DNS name"),
        ("address", "10.0.0.9/33", "has no prefix length from 1 to 32"),
        ("address", "10.0.0.9/", "has no prefix length from 1 to 32"),
        ("address", "10.0.0.0/24", "is the address of a whole network"),
        ("address", "10.0.0.255/24", "is the address of a whole network"),
        ("address", "fd00::/64", "is the address of a whole network"),
        ("address", "127.0.0.1", "is no address that a gateway can have"),
        ("address", "224.0.0.18", "is the address of no single host"),
        ("address", "ff02::12", "is the address of no single host"),
        ("address", "fe80::9", "is a link-local address"),
        ("interface", "eth 0", "is not the name of a network interface"),
        ("interface", "eth0\n}", "is not the name of a network interface"),
        ("interface", "a-name-of-sixteen", "is not the name of a network interface"),
        ("interfaces", {"gw-0": "eth/0"}, "is not the name of a network interface"),
        ("router_id", 0, "greater than or equal to 1"),
        ("router_id", 256, "less than or equal to 255"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, key: str, value: Any, says: str) -> None:
    with pytest.raises(FleetError, match=says) as refused:
        load(tmp_path, {"virtual_address": {**SHARED, key: value}})
    assert (refused.value.key or "").startswith(f"gateway.virtual_address.{key}")
    assert (refused.value.exit_code, bool(refused.value.line)) == (2, True)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "one gateway": ({"static": at("10.0.0.2")}, "is for two gateways or more, and the fleet has 1", ""),
    "gateways of a cloud": (
        {"static": {}, "hosts": 2, "cloud": "aws", "placement": AWS},
        "gateway-0 is one of 'aws': the network of a cloud gives an address to no other host",
        "",
    ),
    "the address of a gateway": ({"static": at("10.0.0.2", "10.0.0.9")}, "is the address of gw-1", "address"),
    "a private address": (
        {
            "static": at("10.0.0.2")
            | {"gw-1": {"address": "10.1.0.2", "private_address": "10.0.0.9", "ssh_host_key": KEY}}
        },
        "is the address of gw-1",
        "address",
    ),
    "the address of a host": (
        {"virtual_address": {**SHARED, "address": "10.0.0.5"}},
        "is the address of gpu-1",
        "address",
    ),
    "another family": (
        {"virtual_address": {**SHARED, "address": "fd00::9"}},
        "is an IPv6 address, and gw-0 has none of that family",
        "address",
    ),
    "an unknown gateway": (
        {"virtual_address": {**SHARED, "interfaces": {"gw-7": "eth1"}}},
        "is no gateway of the fleet",
        "interfaces.gw-7",
    ),
    "the loopback": (
        {"virtual_address": {**SHARED, "interface": "lo"}},
        "is the loopback interface",
        "interface",
    ),
    "a gateway's loopback": (
        {"virtual_address": {**SHARED, "interfaces": {"gw-1": "lo"}}},
        "is the loopback interface",
        "interfaces.gw-1",
    ),
    "a network that the address brings": (
        {"static": at("10.7.0.2", "10.7.0.3"), "virtual_address": {**SHARED, "address": "10.0.0.9/24"}},
        "brings the network 10.0.0.0/24, in which gpu-1 is and gw-0 is not",
        "address",
    ),
    "a public address without TLS": (
        {"virtual_address": {**SHARED, "address": "198.51.100.9"}},
        "a public address at which API keys would be taken without TLS",
        "address",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fleet_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    gateway, says, key = REFUSED[case]
    with pytest.raises(FleetError, match=says) as refused:
        load(tmp_path, gateway, access={"ssh_from": ["10.0.0.0/8"]})
    assert refused.value.key == ".".join(["gateway.virtual_address", *([key] if key else [])])
    assert (refused.value.exit_code, bool(refused.value.line), bool(refused.value.hint)) == (2, True, True)


@pytest.mark.parametrize(
    ("more", "owner"),
    [
        ({"mirror": {"url": "http://10.0.0.9:8070"}}, "mirror.url"),
        ({"proxy": {"http": "http://10.0.0.9:3128"}}, "proxy.http"),
        ({"access": {"bastion": {"address": "10.0.0.9", "ssh_host_key": KEY}}}, "access.bastion"),
    ],
)
def test_the_address_of_another_service_is_refused(tmp_path: Path, more: dict[str, Any], owner: str) -> None:
    with pytest.raises(FleetError, match=f"is the address of {owner}"):
        load(tmp_path, {}, **more)


def test_dns_names_are_judged_when_they_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(tmp_path, {"static": at("a.example.org", "b.example.org")})
    known = {"a.example.org": ("10.0.0.2",), "b.example.org": ("10.0.0.9",)}

    def resolve(asked: Any) -> dict[str, Any]:
        return {name: tuple(map(addresses.parse_ip, known[name])) for name in asked}

    (error,) = stack.address_errors(found, resolve)
    assert "is the address of gw-1" in str(error)
    known["b.example.org"] = ("10.0.0.3",)
    assert stack.address_errors(found, resolve) == ()
    known["a.example.org"] = ("10.0.0.2", "fd00::2")
    spec = {"static": at("a.example.org", "b.example.org"), "virtual_address": {**SHARED, "address": "fd00::9"}}
    (error,) = stack.address_errors(load(tmp_path / "other", spec), resolve)
    assert "is an IPv6 address, and gw-1 has none of that family" in str(error)


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        ({}, "is the virtual address of the fleet 'first' too"),
        ({"address": "10.0.0.10"}, "router_id is 51, and so is that of the fleet 'first' in the same network"),
        ({"address": "10.0.0.10", "router_id": 51}, "is 51, and so is that of the fleet 'first'"),
        ({"address": "10.0.0.10", "router_id": 52}, ""),
        ({"address": "10.0.1.10"}, ""),
    ],
)
def test_two_fleets_of_one_network_have_two_addresses_and_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, Any], says: str
) -> None:
    load(tmp_path, {}, "first")
    load(tmp_path, {"name": "edge", "virtual_address": {**SHARED, **theirs}}, "second")
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    done = CliRunner().invoke(app, ["check"])
    errors = [done.exception, *done.exception.others] if isinstance(done.exception, FleetError) else []
    assert [error.exit_code for error in errors] == ([2] if says else []), done.output
    assert all(says in str(error) and error.line for error in errors)


def test_the_plan_prints_the_url_of_the_shared_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path, {}, "one")
    load(tmp_path, {"virtual_address": {**SHARED, "address": "10.0.0.9/24"}, "port": 443}, "prefix")
    load(tmp_path, {"virtual_address": None}, "none")
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    runner = CliRunner()
    assert "\nAPI: http://10.0.0.9:8080/v1\n" in runner.invoke(app, ["plan", "--fleet", "one"]).stdout
    assert json.loads(runner.invoke(app, ["plan", "--fleet", "prefix", "--json"]).stdout)["api"] == [
        "http://10.0.0.9:443/v1"
    ]
    assert json.loads(runner.invoke(app, ["plan", "--fleet", "none", "--json"]).stdout)["api"] == [
        f"http://10.0.0.{number}:8080/v1" for number in (2, 3)
    ]


MEMBERS = tuple(keepalived.Member(f"gw-{number}", f"10.0.0.{number + 2}", f"eth{number}") for number in range(3))


def test_each_gateway_speaks_to_each_other_one() -> None:
    shared = VirtualAddress(**SHARED, router_id=7)
    texts = [keepalived.keepalived_config(Gateway(), shared, MEMBERS, each.name) for each in MEMBERS]
    for number, text in enumerate(texts):
        others = [each.address for each in MEMBERS if each.name != f"gw-{number}"]
        lines = [line.strip() for line in text.splitlines()]
        assert f"unicast_src_ip 10.0.0.{number + 2}" in lines
        assert [line.split()[0] for line in lines if "max_ttl" in line] == others
        assert f"priority {200 - number}" in lines
        assert f"interface eth{number}" in lines
        assert {"nopreempt", "state BACKUP", "virtual_router_id 7", "10.0.0.9/32"} <= set(lines)
        assert f"healthy {' '.join(f'http://{each}:8080' for each in others)}" in text
        assert "auth" not in text
    many = [keepalived.Member(f"gw-{number}", f"10.0.1.{number}", "eth0") for number in range(64)]
    last = keepalived.keepalived_config(Gateway(), shared, many, "gw-63")
    assert "priority 137" in last


def test_the_check_asks_others_by_tls_where_the_gateways_speak_it() -> None:
    shared = VirtualAddress(address="fd00::9", interface="eth0")
    members = (keepalived.Member("a", "fd00::2", "eth0"), keepalived.Member("b", "fd00::3", "eth0"))
    gateway = Gateway(port=443, tls=Tls(certificate_file="a.pem"))
    text = keepalived.keepalived_config(gateway, shared, members, "a")
    assert "healthy https://[fd00::3]:443" in text
    assert "fd00::9/128 preferred_lft 0" in text


@pytest.mark.parametrize(
    ("address", "members", "wrong", "code"),
    [
        ("10.0.0.9", ("10.0.0.2", "10.0.0.3", "10.0.0.4"), ("", ""), 0),
        ("10.0.0.9/24", ("10.0.0.2", "10.0.0.3"), ("", ""), 0),
        ("fd00::9", ("fd00::2", "fd00::3"), ("", ""), 0),
        ("10.0.0.9", ("10.0.0.2", "10.0.0.3"), ("nopreempt", "nopreemt"), 5),
        ("10.0.0.9", ("10.0.0.2", "10.0.0.3"), ("/gateway healthy", "/missing healthy"), 5),
    ],
)
def test_keepalived_takes_the_configuration(
    tmp_path: Path, address: str, members: tuple[str, ...], wrong: tuple[str, str], code: int
) -> None:
    """By the command with which the role validates the file, which tells right from wrong with 2.2.7 too."""
    if shutil.which("keepalived") is None or os.geteuid() != 0:
        pytest.skip("keepalived is not installed here, or this is not root; the lab validates it on the gateways")
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout)
    interface = next((link["ifname"] for link in links if link["ifname"] != "lo"), None)
    if interface is None:
        pytest.skip("this machine has no network interface; the lab validates it on the gateways")
    group = [keepalived.Member(f"gw-{number}", text, interface) for number, text in enumerate(members)]
    shared = VirtualAddress(address=address, interface=interface)
    text = keepalived.keepalived_config(Gateway(), shared, group, "gw-1")
    # A path in which others may write is refused, and the folders of tests are such ones for a stranger.
    text = text.replace("/usr/local/libexec/vllm-gateway healthy", "/gateway healthy").replace(*wrong)
    text = text.replace('"/gateway healthy', '"/usr/bin/true healthy').replace("vllm vllm", "nobody nogroup")
    file = tmp_path / "keepalived.conf"
    file.write_text(text, encoding="utf-8")
    tasks = yaml.safe_load((paths.root() / "roles/gateway/tasks/virtual_address.yml").read_text(encoding="utf-8"))
    (validate,) = [task["ansible.builtin.copy"]["validate"] for task in tasks if "ansible.builtin.copy" in task]
    done = subprocess.run((validate % file).split(), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program of gateways, which asks this test in place of HAProxy."""
    path = str(paths.root() / "roles" / "gateway" / "files" / "vllm-gateway")
    loader = importlib.machinery.SourceFileLoader("vllm_gateway", path)
    spec = importlib.util.spec_from_loader("vllm_gateway", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    loader.exec_module(module)
    return module


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The URL of a gateway whose /healthz has a status."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Prints nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


#: Nothing listens on port 1.
DEAD = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("own", "peers", "code"),
    [
        (200, [], 0),
        (200, [200], 0),
        (503, [], 0),
        (503, [503], 0),
        (503, [None], 0),
        (503, [503, 200], 1),
        (503, [None, 200], 1),
        (404, [], 1),
        (500, [503], 1),
        (None, [], 1),
        (None, [503], 1),
    ],
)
def test_a_gateway_is_healthy_unless_another_one_is_better(
    program: ModuleType, own: int | None, peers: list[int | None], code: int
) -> None:

    with ExitStack() as servers:
        urls = [DEAD if status is None else servers.enter_context(answering(status)) for status in (own, *peers)]
        program.HEALTH = urls[0]  # type: ignore[attr-defined]
        assert program.main(["healthy", *urls[1:]]) == code


@pytest.mark.parametrize(("name", "code"), [("healthz", 1), ("other", 0)])
def test_the_check_speaks_tls_with_another_gateway_whatever_its_certificate_is_for(
    program: ModuleType, tmp_path: Path, name: str, code: int
) -> None:
    folder, secrets = tmp_path / "files", tmp_path / "secrets"
    for each in (folder, secrets):
        each.mkdir()
    (folder / name).write_text("ok", encoding="utf-8")
    with answering(503) as own, https_files.serving(folder, "127.0.0.1", secrets) as (url, _):
        program.HEALTH = own  # type: ignore[attr-defined]
        assert program.main(["healthy", url.rstrip("/")]) == code


def test_a_gateway_that_hangs_is_not_healthy_before_keepalived_gives_up(program: ModuleType) -> None:

    with socket.create_server(("127.0.0.1", 0)) as hanging, answering(503) as own:
        url = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        program.HEALTH = url  # type: ignore[attr-defined]
        begin = time.monotonic()
        assert program.main(["healthy"]) == 1
        program.HEALTH = own  # type: ignore[attr-defined]
        assert program.main(["healthy", *[url] * 63]) == 0
        seconds = time.monotonic() - begin
        timeout = int(
            keepalived.keepalived_config(Gateway(), VirtualAddress(**SHARED), MEMBERS, "gw-0")
            .split("timeout ")[1]
            .split()[0]
        )
        assert seconds < timeout
