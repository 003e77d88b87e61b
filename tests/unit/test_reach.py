"""Hosts without a public address: who they are reached through, by asyncssh and by ``ssh`` itself, on real servers."""

from __future__ import annotations

import asyncio
import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from ssh_servers import ADDRESS, Loop

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import names, ssh, ssh_target
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError
from vllm_fleet.fleet import plan, ssh_routes, stack
from vllm_fleet.inventory import Site
from vllm_fleet.operate import drift

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKey"


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
    host = {"address": "10.60.0.9", "id": "i", "user": "ubuntu", "ssh_host_key": KEY, "zone": "us-east-1a"}
    made = {"version": 1, "fleet": "demo", "hosts": {each.name: host for each in found.hosts}}
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


def test_ssh_itself_comes_through_with_the_same_keys(servers: Loop, key_file: Path, tmp_path: Path) -> None:
    door, inner = servers.server(), servers.server()
    known = tmp_path / "known_hosts"
    known.write_text("".join(f"[{ADDRESS}]:{each.port} {each.key}\n" for each in (door, inner)), encoding="utf-8")
    arguments = ssh_routes.arguments(known, ("root", ADDRESS, door.port), key_file)
    words = ["ssh", "-F", "none", *shlex.split(arguments), "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
    words += ["-i", str(key_file), "-p", str(inner.port), f"root@{ADDRESS}", "echo through"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "through\n", done.stderr
    assert door.passed == [(ADDRESS, inner.port)]
    known.write_text(f"[{ADDRESS}]:{inner.port} {inner.key}\n", encoding="utf-8")
    refused = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "Host key verification failed" in refused.stderr
