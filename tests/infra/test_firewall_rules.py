"""The firewall of a serving host in a real kernel: a network namespace for it, and one for everyone else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from vllm_fleet.host.firewall import ACCOUNT, Peers, firewall_rules

pytestmark = pytest.mark.root
#: In place of the account of vLLM, which this machine does not have.
PERSON = "nobody"
HOST, OUTSIDE = "vf-fw-host", "vf-fw-outside"
PORT, READY, WORKER, OTHER = 8000, 8100, 45001, 9000
ADDRESSES = {4: ("203.0.113.5", "203.0.113.4", "203.0.113.66"), 6: ("2001:db8::5", "2001:db8::4", "2001:db8::66")}
TOOL_SERVER = {4: "203.0.113.77", 6: "2001:db8::77"}

LISTEN = """
import socket, sys, threading
for port in map(int, sys.argv[1:]):
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port)); sock.listen()
    def serve(sock=sock):
        while True:
            sock.accept()[0].sendall(b"here")
    threading.Thread(target=serve, daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
"""
CONNECT = """
import json, socket, sys
result = []
for source, target, port in json.loads(sys.argv[1]):
    try:
        with socket.create_connection((target, port), timeout=1, source_address=(source, 0)) as sock:
            result.append(sock.recv(4) == b"here")
    except TimeoutError:
        result.append("silence")
    except OSError as error:
        result.append("refused")
print(json.dumps(result))
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def inside(namespace: str, person: str, code: str, *arguments: str) -> list[str]:
    drop = ["setpriv", f"--reuid={person}", "--clear-groups", "--"]
    return ["ip", "netns", "exec", namespace, *drop, sys.executable, "-c", code, *arguments]


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Both namespaces, with servers of the account and of root on the host, and of root outside."""
    servers = []
    try:
        for namespace in (HOST, OUTSIDE):
            ip("netns", "add", namespace)
            ip("-n", namespace, "link", "set", "lo", "up")
        ip("link", "add", "vf-fw-a", "netns", HOST, "type", "veth", "peer", "name", "vf-fw-b", "netns", OUTSIDE)
        for namespace, link, places in ((HOST, "vf-fw-a", (0,)), (OUTSIDE, "vf-fw-b", (1, 2))):
            for version, bits in ((4, "24"), (6, "64")):
                wanted = [ADDRESSES[version][place] for place in places]
                for address in [*wanted, *([TOOL_SERVER[version]] if namespace == OUTSIDE else [])]:
                    more = ["nodad"] if version == 6 else []
                    ip("-n", namespace, "address", "add", f"{address}/{bits}", "dev", link, *more)
            ip("-n", namespace, "link", "set", link, "up")
        for namespace, person, ports in (
            (HOST, PERSON, (PORT, READY, WORKER)),
            (HOST, "root", (OTHER,)),
            (OUTSIDE, "root", (OTHER,)),
        ):
            command = inside(namespace, person, LISTEN, *map(str, ports))
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            servers.append(server)
            assert server.stdout and server.stdout.readline() == "listening\n"
        yield
    finally:
        for server in servers:
            server.kill()
            server.communicate()
        for namespace in (HOST, OUTSIDE):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


def load(peers: Peers) -> None:
    rules = firewall_rules([PORT, READY], peers).replace(f'"{ACCOUNT}"', f'"{PERSON}"')
    subprocess.run(["ip", "netns", "exec", HOST, "nft", "-f", "-"], input=rules, text=True, check=True)


def connect(namespace: str, person: str, *attempts: tuple[str, str, int]) -> list[object]:
    done = subprocess.run(
        inside(namespace, person, CONNECT, json.dumps(attempts)), capture_output=True, text=True, check=True
    )
    results: list[object] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("version", [4, 6])
def test_only_the_gateways_and_the_host_reach_vllm(network: None, version: int) -> None:
    host, gateway, stranger = ADDRESSES[version]
    load(Peers((host,), (gateway,)))
    attempts = [(gateway, host, PORT), (gateway, host, READY), (stranger, host, PORT), (stranger, host, READY)]
    assert connect(OUTSIDE, "root", *attempts) == [True, True, "silence", "silence"]
    # A port of a worker, which differs at each start: no answer leaves the host.
    assert connect(OUTSIDE, "root", (stranger, host, WORKER)) == ["silence"]
    # Services of others on the host are none of its business.
    assert connect(OUTSIDE, "root", (stranger, host, OTHER)) == [True]
    loopback = "127.0.0.1" if version == 4 else "::1"
    assert connect(HOST, PERSON, (host, host, PORT), (loopback, loopback, WORKER)) == [True, True]


@pytest.mark.parametrize("version", [4, 6])
def test_vllm_connects_to_nobody_but_the_fleet(network: None, version: int) -> None:
    host, gateway, stranger = ADDRESSES[version]
    tools = TOOL_SERVER[version]
    attempts = [(host, gateway, OTHER), (host, stranger, OTHER), (host, tools, OTHER)]
    load(Peers((host,), (gateway,)))
    # At once, and not after a timeout.
    assert connect(HOST, PERSON, *attempts) == [True, "refused", "refused"]
    assert connect(HOST, "root", *attempts) == [True, True, True]
    load(Peers((host,), (gateway,), (f"{tools}/{32 if version == 4 else 128}",)))
    assert connect(HOST, PERSON, *attempts) == [True, "refused", True]


@pytest.mark.parametrize(
    "peers",
    [
        Peers((), ()),
        Peers((), ("192.0.2.1",)),
        Peers((), ("2001:db8::1", "2001:db8::2")),
        Peers((), ("192.0.2.1", "2001:db8::1"), ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "192.0.2.0/24")),
        Peers((), ("192.0.2.1",), ("0.0.0.0/0", "::/0")),
    ],
)
def test_nft_takes_the_rules_of_every_fleet(network: None, peers: Peers) -> None:
    load(peers)
    load(peers)
