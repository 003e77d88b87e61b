"""The second quick start of the README on hosts that have IPv6 alone, and reach the internet through a proxy."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
import yaml
from first_contact_lab import Rack, bare_hosts
from forward_proxy import forward_proxy

from vllm_fleet.edge.ssh_scan import fingerprint

pytestmark = [pytest.mark.root, pytest.mark.network, pytest.mark.long]

BRIDGE, SUBNET, PREFIX = "vf-six", "10.79.17", "fd79:17:"
CONTROLLER = f"{PREFIX}:1"
#: The address that a host is made with -> the one that it keeps.
ADDRESSES = {f"{SUBNET}.11": f"{PREFIX}:11", f"{SUBNET}.12": f"{PREFIX}:12"}
GPU, GATEWAY = ADDRESSES.values()
#: The answer is sent before the address goes: the connection would end without it.
LEAVE_IPV4 = """\
set -e
ip -6 address add {six}/64 dev host0 nodad
cat >/etc/systemd/network/10-lab.network <<END
[Match]
Name=host0

[Network]
Address={six}/64
IPv6AcceptRA=no
END
(sleep 1; ip -4 address flush dev host0) >/dev/null 2>&1 </dev/null &
"""


@pytest.fixture(scope="module")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    with bare_hosts(tmp_path_factory.mktemp("rack"), BRIDGE, SUBNET) as rack:
        subprocess.run(["ip", "-6", "address", "add", f"{CONTROLLER}/64", "dev", BRIDGE, "nodad"], check=True)
        for address, six in ADDRESSES.items():
            rack.on(address, LEAVE_IPV4.format(six=six))
        yield rack


def test_hosts_with_ipv6_alone_serve_through_a_proxy(rack: Rack) -> None:
    known = [f"--fingerprint={six}={fingerprint(rack.host_keys[old])}" for old, six in ADDRESSES.items()]
    code, out, told = rack.fleet(
        "init",
        "rack",
        *("--host", f"deploy@[{GPU}]", "--gateway", f"deploy@[{GATEWAY}]", *known),
        *("--key", str(rack.key)),
        *("--host-class", "cpu-2", "--model-from", "controller={cache}/lab-model/current"),
        *("--yes", "--api-key-file", str(rack.api_key_file)),
    )
    assert code == 0, told
    file = rack.folder / "inventories/rack/fleet.yml"
    written = yaml.safe_load(file.read_text())
    with forward_proxy(CONTROLLER) as (url, asked):
        file.write_text(yaml.safe_dump({**written, "proxy": {"http": url, "https": url}}, sort_keys=False))
        for command in ("check", "plan"):
            code, out, told = rack.fleet(command, "--fleet", "rack", "--json")
            assert (code, json.loads(out)["site_refuses"]) == (0, []), told
        code, out, told = rack.site()
        assert code == 0, (out + told)[-6000:]
        assert rack.ask(f"[{GATEWAY}]") == "assistant"
        assert [each for each in asked if each.startswith("http://") and each.endswith(".deb")], asked
        code, out, told = rack.fleet("drift", "--fleet", "rack", "--json")
        assert (code, json.loads(out)["drift"]) == (0, []), told
