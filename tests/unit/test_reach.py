"""Hosts without a public address: who they are reached through, by asyncssh and by ``ssh`` itself, on real servers."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from hanging import HANGING_SECONDS
from host_keys import public_key
from ssh_servers import ADDRESS, Loop

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import names, ssh, ssh_target
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError
from vllm_fleet.fleet import plan, ssh_routes, stack
from vllm_fleet.inventory import Site
from vllm_fleet.operate import drift

FIXTURES = Path(__file__).parents[1] / "fixtures"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"


def write(tmp_path: Path, placement: dict[str, Any] | None = None, **more: Any) -> Path:
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-120b"},
        "pools": {
            "main": {
                "host_class": "h100-8",
                "cloud": "aws",
                "hosts": 2,
                "placement": {"region": "us-east-1", "zone": "us-east-1a", **(placement or {})},
            }
        },
        "gateway": {"hosts": 2},
        **more,
    }
    fleet["access"] = {"ssh_from": ["203.0.113.0/24"], **more.get("access", {})}
    folder = tmp_path / "demo"
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("placement", "more", "through"),
    [
        ({}, {}, "gateway-0"),
        ({"public_address": True}, {}, None),
        ({}, {"access": {"ssh_through": "direct"}}, None),
        ({}, {"gateway": {"hosts": 1, "placement": {"public_address": False}}}, None),
    ],
    ids=["private", "public", "a controller inside", "nothing is public"],
)
def test_a_private_host_is_reached_through_a_gateway(
    placement: dict[str, Any], more: dict[str, Any], through: str | None, tmp_path: Path
) -> None:
    found = plan.load(write(tmp_path, placement, **more))
    host = {"id": "i", "user": "ubuntu", "ssh_host_key": KEY, "zone": "us-east-1a"}
    hosts = {each.name: {**host, "address": f"10.60.0.{number}"} for number, each in enumerate(found.hosts, 9)}
    made = {"version": 1, "fleet": "demo", "hosts": hosts}
    (found.directory / "stack.json").write_text(json.dumps(made), encoding="utf-8")
    where = stack.locations(found, names.resolve_names)
    assert {where[name].jump for name in ("main-0", "main-1")} == {through}
    assert where["gateway-0"].jump is None


def test_a_private_host_without_a_gateway_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no public address, and aws us-east-1 has no gateway") as caught:
        plan.load(write(tmp_path, gateway={"hosts": 0}))
    assert (caught.value.key, caught.value.exit_code) == ("pools.main.placement", 2)
    assert "public_address: true" in caught.value.hint
    plan.load(write(tmp_path, {"public_address": True}, gateway={"hosts": 0}))
    plan.load(write(tmp_path, gateway={"hosts": 0}, access={"ssh_through": "direct"}))


def test_ansible_and_the_probe_take_the_same_way(golden_site: Site) -> None:
    behind = [
        replace(each, location=replace(each.location, jump="gateway-0")) if each.plan.kind == "serving" else each
        for each in golden_site.hosts
    ]
    found = replace(golden_site, hosts=tuple(behind))
    way = drift.host_target(found, found.hosts[0]).jump
    assert way is not None
    assert (way.name, way.jump) == ("gateway-0", None)
    words = shlex.split(found.ssh_arguments(found.hosts[0]))
    command = next(word for word in words if word.startswith("ProxyCommand="))
    assert command.endswith(f" {way.user}@{way.address}")
    assert f"UserKnownHostsFile={found.known_hosts_file}" in command
    assert "ProxyCommand" not in found.ssh_arguments(found.hosts[-1])


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "id"))
    (tmp_path / "id").chmod(0o600)
    return tmp_path / "id"


@pytest.fixture
def servers(key_file: Path) -> Iterator[Loop]:
    loop = Loop(asyncssh.read_private_key(str(key_file)))
    yield loop
    loop.stop()


def target(name: str, server: Any, key_file: Path, jump: ssh_target.Target | None = None) -> ssh_target.Target:
    return ssh_target.Target(name, ADDRESS, server.port, "root", (server.key,), key_file, jump=jump)


def test_many_hosts_share_one_connection_to_their_gateway(servers: Loop, key_file: Path) -> None:
    door, inner = servers.server(), servers.server()
    way = target("gateway-0", door, key_file)
    hosts = [target(f"main-{number}", inner, key_file, way) for number in range(5)]

    async def ask_all() -> list[str]:
        async with JumpHosts() as jump_hosts:
            return await asyncio.gather(*(ssh.run_json(each, "echo '{}'", jump_hosts=jump_hosts) for each in hosts))

    assert asyncio.run(ask_all()) == ["{}\n"] * 5
    assert len(door.logins) == 1
    assert door.passed == [(ADDRESS, inner.port)] * 5
    assert len(inner.logins) == 5


def test_a_host_behind_a_gateway_must_show_its_own_key(servers: Loop, key_file: Path) -> None:
    door, inner = servers.server(), servers.server()
    other = ssh_target.Target(
        "main-0", ADDRESS, inner.port, "root", (door.key,), key_file, jump=target("g", door, key_file)
    )
    with pytest.raises(NoAnswerError, match="shows another SSH host key"):
        asyncio.run(ssh.run_json(other, "echo '{}'"))


def test_a_gateway_that_is_not_itself_is_told_as_the_way(servers: Loop, key_file: Path) -> None:
    door, inner = servers.server(), servers.server()
    false = ssh_target.Target("gateway-0", ADDRESS, door.port, "root", (inner.key,), key_file)
    with pytest.raises(NoAnswerError, match=r"cannot be reached through gateway-0: .* shows another SSH host key"):
        asyncio.run(ssh.run_json(target("main-0", inner, key_file, false), "echo '{}'"))
    assert not inner.logins


def said(words: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """The exit status of ssh, its output and its errors. The ssh of a ProxyCommand may outlive it and keep a pipe."""
    errors = folder / "errors"
    with errors.open("w") as file:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
    return done.returncode, done.stdout, errors.read_text(encoding="utf-8")


def test_ssh_itself_comes_through_with_the_same_keys(servers: Loop, key_file: Path, tmp_path: Path) -> None:
    door, inner = servers.server(), servers.server()
    known = tmp_path / "known_hosts"
    known.write_text("".join(f"[{ADDRESS}]:{each.port} {each.key}\n" for each in (door, inner)), encoding="utf-8")
    hop = ssh_routes.Hop("gateway-0", "root", ADDRESS, door.port, (door.key,))
    route = ssh_routes.Route(known, ssh_routes.known_name(ADDRESS, inner.port), key_file, jump=hop)
    words = ["ssh", "-F", "none", *route.words(), "-o", "BatchMode=yes"]
    words += ["-i", str(key_file), "-p", str(inner.port), f"root@{ADDRESS}", "echo through"]
    _, through, errors = said(words, tmp_path)
    assert through == "through\n", errors
    assert door.passed == [(ADDRESS, inner.port)]
    known.write_text(f"[{ADDRESS}]:{inner.port} {inner.key}\n", encoding="utf-8")
    code, _, refused = said(words, tmp_path)
    assert code != 0
    assert "Host key verification failed" in refused


BASTION = {"address": "bastion.example.com", "port": 2222, "user": "ops", "ssh_host_key": public_key("Bastion")}


def rack(tmp_path: Path, access: dict[str, Any], **host: Any) -> Path:
    """A fleet of one host that exists."""
    static = {"address": "10.0.0.5", "ssh_host_key": KEY, **host}
    fleet = {
        "fleet": "rack",
        "pools": {
            "h100": {
                "host_class": "h100-8",
                "cloud": "static",
                "model": "openai/gpt-oss-120b",
                "static": {"h100-0": {name: value for name, value in static.items() if value is not None}},
            }
        },
        "access": access,
        "artifacts": {
            "models": {"openai/gpt-oss-120b": str(FIXTURES / "artifacts" / "gpt-oss-120b")},
            "encodings": str(FIXTURES / "artifacts" / "encodings"),
        },
    }
    folder = tmp_path / "rack"
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return folder


def test_every_host_is_reached_through_the_bastion_of_the_fleet(tmp_path: Path) -> None:
    found = inventory.load(rack(tmp_path, {"bastion": BASTION}))
    way = drift.host_target(found, found.hosts[0])
    assert way.jump is not None
    assert (way.jump.address, way.jump.port, way.jump.user) == ("bastion.example.com", 2222, "ops")
    assert way.jump.host_keys == (public_key("Bastion"),)
    words = shlex.split(found.ssh_arguments(found.hosts[0]))
    command = shlex.split(next(word for word in words if word.startswith("ProxyCommand=")))
    assert command[-3:] == ["-W", "[%h]:%p", "ops@bastion.example.com"]
    assert "HostKeyAlias=[bastion.example.com]:2222" in command
    assert "StrictHostKeyChecking=yes" in command
    assert f"[bastion.example.com]:2222 {public_key('Bastion')}\n" in found.known_hosts


def test_rented_hosts_are_reached_through_the_bastion_in_place_of_a_gateway(tmp_path: Path) -> None:
    access = {"bastion": {"address": "203.0.113.9", "ssh_host_key": KEY}}
    found = plan.load(write(tmp_path, gateway={"hosts": 0}, access=access))
    assert ssh_routes.jumps(found.hosts, found.access) == {}


def test_an_alias_is_what_ssh_is_called_with(tmp_path: Path) -> None:
    found = inventory.load(rack(tmp_path, {}, ssh_alias="gpu-1"))
    way = drift.host_target(found, found.hosts[0])
    assert (way.address, way.alias) == ("10.0.0.5", "gpu-1")
    assert "HostKeyAlias=10.0.0.5" in shlex.split(found.ssh_arguments(found.hosts[0]))


def test_an_authority_stands_in_for_the_keys_of_hosts(tmp_path: Path) -> None:
    access = {"ssh_host_authorities": [public_key("Authority")]}
    found = inventory.load(rack(tmp_path, access, ssh_host_key=None, port=2222))
    assert found.known_hosts == f"@cert-authority 10.0.0.5 {public_key('Authority')}\n"
    assert "HostKeyAlias=10.0.0.5" in shlex.split(found.ssh_arguments(found.hosts[0]))
    assert drift.host_target(found, found.hosts[0]).authorities == (public_key("Authority"),)


@pytest.mark.parametrize(
    ("access", "host", "key", "says"),
    [
        ({}, {"ssh_host_key": None}, "pools.h100.static.h100-0", "has no ssh_host_key"),
        ({"ssh_config_file": "nothing"}, {}, "access.ssh_config_file", "does not exist"),
        ({"ssh_config_file": "a file"}, {}, "access.ssh_config_file", "ssh cannot use the path"),
        ({"ssh_private_key_file": "100%"}, {}, "access.ssh_private_key_file", "Ansible cannot pass the path"),
        ({"bastion": {"address": "bastion"}}, {}, "access.bastion.ssh_host_key", "is missing"),
        (
            {"bastion": {**BASTION, "address": "-oProxyCommand=reboot"}},
            {},
            "access.bastion.address",
            "neither an IP address nor",
        ),
        ({"bastion": {**BASTION, "user": "ops;reboot"}}, {}, "access.bastion.user", "match"),
        ({"bastion": {**BASTION, "port": 0}}, {}, "access.bastion.port", "greater"),
        ({}, {"ssh_alias": "-F/tmp/x"}, "pools.h100.static.h100-0.ssh_alias", "match"),
    ],
)
def test_a_way_that_cannot_be_taken_is_refused_with_its_place(
    tmp_path: Path, access: dict[str, Any], host: dict[str, Any], key: str, says: str
) -> None:
    folder = rack(tmp_path, access, **host)
    (folder / "a file").write_text("")
    with pytest.raises(FleetError, match=says) as caught:
        plan.load(folder)
    assert (caught.value.key, caught.value.exit_code) == (key, 2)
    assert caught.value.line
