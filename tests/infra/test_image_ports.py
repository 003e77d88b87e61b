"""The program of the role image_ports, with real iptables and the rules of Oracle's Ubuntu images in a namespace."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vllm_fleet.base import paths

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not shutil.which("iptables"), reason="iptables is not installed (apt install iptables)"),
]
PROGRAM = paths.root() / "roles/image_ports/files/vllm-image-ports"
RULES = Path(__file__).parents[1] / "fixtures/oracle_rules.v4"
REJECT = "-A INPUT -j REJECT --reject-with icmp-host-prohibited"


def rule(port: int) -> str:
    return f"-A INPUT -p tcp -m tcp --dport {port} -m comment --comment vllm-fleet -j ACCEPT"


class Host:
    """A network namespace with rules, and the program with its list of ports."""

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid, self.ports = pid, folder / "image-ports"
        self._program = folder / "program"
        text = PROGRAM.read_text(encoding="utf-8").replace("/etc/vllm/image-ports", str(self.ports))
        self._program.write_text(text, encoding="utf-8")

    def run(self, *words: str, text: str | None = None) -> str:
        inside = ["nsenter", f"--net=/proc/{self._pid}/ns/net", *words]
        return subprocess.run(inside, input=text, capture_output=True, text=True, check=True).stdout

    def open(self, *ports: int) -> None:
        self.ports.write_text("".join(f"{port}\n" for port in ports), encoding="utf-8")
        self.run("sh", str(self._program), "open")

    def close(self) -> None:
        self.run("sh", str(self._program), "close")

    def input(self) -> list[str]:
        return self.run("iptables", "--list-rules", "INPUT").splitlines()[1:]

    def others(self) -> list[str]:
        """Everything but the rules of the fleet, in its order."""
        return [line for line in self.run("iptables", "--list-rules").splitlines() if "vllm-fleet" not in line]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        holder.stdout.readline()
        found = Host(holder.pid, tmp_path)
        found.run("ip", "link", "set", "lo", "up")
        found.run("iptables-restore", text=RULES.read_text(encoding="utf-8"))
        yield found
        holder.kill()


def between(rules: Sequence[str]) -> list[str]:
    """The rules after the one for SSH, up to the one that rejects."""
    (ssh,) = (at for at, line in enumerate(rules) if "--dport 22 " in line)
    return list(rules[ssh + 1 : list(rules).index(REJECT)])


def test_the_ports_are_opened_before_the_rule_that_rejects_and_nothing_else_changes(host: Host) -> None:
    before = host.others()
    host.open(8000, 8100)
    assert sorted(between(host.input())) == sorted([rule(8000), rule(8100)])
    assert host.input()[-1] == REJECT
    assert host.others() == before


def test_a_second_run_changes_nothing_and_a_port_that_is_gone_is_closed(host: Host) -> None:
    host.open(8000, 8100)
    before = host.input()
    host.open(8000, 8100)
    assert host.input() == before
    host.open(8000, 443)
    assert sorted(between(host.input())) == sorted([rule(443), rule(8000)])
    host.close()
    assert between(host.input()) == []


def test_rules_that_came_behind_the_one_that_rejects_are_put_before_it(host: Host) -> None:
    host.open(8000)
    # The image's rules are loaded anew, and somebody has saved ours at their end.
    host.run(
        "iptables-restore", text=RULES.read_text(encoding="utf-8").replace(f"{REJECT}\n", f"{REJECT}\n{rule(8000)}\n")
    )
    host.open(8000)
    assert between(host.input()) == [rule(8000)]
    assert host.input()[-1] == REJECT


def test_rules_of_others_with_a_like_comment_stay(host: Host) -> None:
    own = ["-p", "tcp", "--dport", "9100", "-m", "comment", "--comment", "vllm-fleet-exporter", "-j", "ACCEPT"]
    host.run("iptables", "--insert", "INPUT", "1", *own)
    host.open(8000)
    host.close()
    assert any("vllm-fleet-exporter" in line for line in host.input())


def test_a_host_that_rejects_nothing_gets_no_rule(host: Host) -> None:
    host.run("iptables", "--flush", "INPUT")
    host.open(8000)
    assert host.input() == []


def test_a_connection_to_an_open_port_gets_through_and_another_does_not(host: Host) -> None:
    host.run("ip", "address", "add", "203.0.113.5/32", "dev", "lo")
    # Packets of a host to itself are on 'lo', which the image lets in: without that rule they are as those of others.
    host.run("iptables", "--delete", "INPUT", "-i", "lo", "-j", "ACCEPT")
    host.open(8000)
    code = (
        "import socket\n"
        "for port in (8000, 8001):\n"
        "    listening = socket.create_server(('203.0.113.5', port))\n"
        "    try:\n"
        "        socket.create_connection(('203.0.113.5', port), timeout=2).close(); print('open')\n"
        "    except OSError:\n"
        "        print('closed')\n"
    )
    assert host.run("python3", "-c", code).split() == ["open", "closed"]
