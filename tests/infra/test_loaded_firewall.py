"""The table that the kernel has loaded against the rules of the plan: real nft in a network namespace of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge import ssh
from vllm_fleet.host.firewall import ACCOUNT, Peers, firewall_rules
from vllm_fleet.host.manifest_items import table_item

pytestmark = pytest.mark.root

PEERS = Peers(("10.0.0.5", "2001:db8::5"), ("10.0.0.2/32", "10.1.0.0/16", "2001:db8::2/128"), ("10.2.0.0/16",))
#: An account that each host has; here vllm may be missing.
ANYBODY = "nobody"


class Namespace:
    """A network namespace with a file of rules."""

    def __init__(self, pid: int, rules: Path) -> None:
        self.pid, self.rules = pid, rules

    def run(self, *words: str, text: str = "") -> str:
        """Runs a command in it."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", *words],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def load(self) -> None:
        """Loads the rules as the unit does."""
        self.run("/usr/sbin/nft", "-f", str(self.rules))

    def drift(self) -> list[tuple[str, str]]:
        """What the probe, as it is sent to hosts, reports about the table."""
        manifest = {"items": [table_item("vllm_firewall", "inet vllm_fleet", str(self.rules))]}
        (source,) = shlex.split(ssh.pack_program("probe", "docker_engine", "neighbours"))
        answer: dict[str, Any] = json.loads(self.run("python3", "-IS", "-c", source, text=json.dumps(manifest)))
        return [(item["what"], item["state"]) for item in answer["drift"]]


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    rules = tmp_path / "firewall.nft"
    rules.write_text(firewall_rules([8000, 8500], PEERS).replace(f'"{ACCOUNT}"', f'"{ANYBODY}"'), encoding="utf-8")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        holder.stdout.readline()
        yield Namespace(holder.pid, rules)
        holder.kill()


def test_the_loaded_rules_are_no_drift_also_after_a_second_load(namespace: Namespace) -> None:
    namespace.load()
    assert namespace.drift() == []
    namespace.load()
    assert namespace.drift() == []


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ("flush ruleset", "not_loaded"),
        ("delete table inet vllm_fleet", "not_loaded"),
        ("flush chain inet vllm_fleet input", "other_rules"),
        ("flush table inet vllm_fleet", "other_rules"),
        ("insert rule inet vllm_fleet input accept", "other_rules"),
        ("insert rule inet vllm_fleet output meta skuid 0 accept", "other_rules"),
        ("add table inet vllm_fleet { flags dormant; }", "other_rules"),
    ],
)
def test_rules_that_are_gone_or_changed_are_drift(namespace: Namespace, change: str, state: str) -> None:
    namespace.load()
    namespace.run("/usr/sbin/nft", "-f", "-", text=f"{change}\n")
    assert namespace.drift() == [("inet vllm_fleet", state)]
    namespace.load()
    assert namespace.drift() == []


def test_tables_of_others_are_no_drift(namespace: Namespace) -> None:
    namespace.load()
    namespace.run("/usr/sbin/nft", "add", "table", "inet", "other")
    assert namespace.drift() == []
