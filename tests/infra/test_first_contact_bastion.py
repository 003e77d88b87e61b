"""The second quick start of the README behind a bastion that alone knows the hosts' names; one host has a docker-ce."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml
from bastion_lab import BASTION_ADDRESS, Bastion, bastion
from first_contact_lab import Rack, bare_hosts
from host_snapshot import docker_ce
from real_sshd import Sshds

from vllm_fleet.edge.ssh_scan import fingerprint

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.long]

BRIDGE, SUBNET = "vf-inner", "10.79.18"
NAMES = {"gpu-1.rack.internal": f"{SUBNET}.11", "lb-1.rack.internal": f"{SUBNET}.12"}
GPU, GATEWAY = NAMES
#: A container of somebody else, without an image from outside: the host's own programs.
CONTAINER = """\
set -e
libraries="usr/lib/x86_64-linux-gnu/libc.so.6 usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
tar -C / -c bin lib lib64 usr/bin/sleep usr/lib64 $libraries | docker import - shop:1 > /dev/null
docker run -d --name shop --restart always shop:1 sleep infinity > /dev/null
"""
STATE = (
    "docker inspect -f '{{.State.Running}} {{.State.StartedAt}}' shop; dpkg-query -W docker-ce;"
    "cat /etc/docker/daemon.json"
)


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rack, Bastion]]:
    servers = Sshds(tmp_path_factory.mktemp("bastion"))
    with bare_hosts(tmp_path_factory.mktemp("rack"), BRIDGE, SUBNET, containers=True) as rack:
        rack.on(NAMES[GPU], docker_ce() + CONTAINER)
        # The same key for the bastion and the hosts.
        key = subprocess.run(["ssh-keygen", "-y", "-f", rack.key], capture_output=True, text=True, check=True)
        (servers.folder / "authorized_keys").write_text(key.stdout)
        with bastion(BRIDGE, SUBNET, servers, NAMES) as door:
            yield replace(rack, within=door.on_controller), door


def test_hosts_behind_a_bastion_serve_and_keep_their_docker(rack: tuple[Rack, Bastion]) -> None:
    site, door = rack
    before = site.on(NAMES[GPU], STATE)
    assert before.startswith("true ")
    known = [f"--fingerprint={name}={fingerprint(site.host_keys[address])}" for name, address in NAMES.items()]
    code, out, told = site.fleet(
        "init",
        "rack",
        *("--host", f"deploy@{GPU}", "--gateway", f"deploy@{GATEWAY}", *known),
        *("--bastion", f"root@{BASTION_ADDRESS}", f"--fingerprint={BASTION_ADDRESS}={fingerprint(door.sshd.key)}"),
        *("--key", str(site.key), "--host-class", "cpu-2", "--model-from", "controller={cache}/lab-model/current"),
        *("--yes", "--api-key-file", str(site.api_key_file)),
    )
    assert code == 0, told
    written = yaml.safe_load((site.folder / "inventories/rack/fleet.yml").read_text())
    (host,) = written["pools"]["cpu"]["static"].values()
    assert (host["address"], host["private_address"]) == (GPU, NAMES[GPU])
    for command in ("check", "plan"):
        code, out, told = site.fleet(command, "--fleet", "rack", "--json")
        assert (code, json.loads(out)["site_refuses"]) == (0, []), told
    code, out, told = site.site()
    assert code == 0, (out + told)[-6000:]
    assert site.ask(NAMES[GATEWAY]) == "assistant"
    assert site.on(NAMES[GPU], STATE) == before
    code, out, told = site.fleet("drift", "--fleet", "rack", "--json")
    assert (code, json.loads(out)["drift"]) == (0, []), told
