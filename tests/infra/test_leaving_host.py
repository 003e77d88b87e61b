"""A gateway leaves its fleet on a real host: what it had before stays, and nothing of the toolkit is left."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import one_run
import pytest
from hanging import HANGING_SECONDS
from host_snapshot import SNAPSHOT

from lab import cleanup, host, network
from lab.spec import HostSpec, NetworkSpec
from lab.tree import tree_digest
from vllm_fleet.base import paths
from vllm_fleet.edge import ssh, ssh_target
from vllm_fleet.edge.keys import ssh_key_pair
from vllm_fleet.facts.states import VetoCode
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.operate import leave, probing

pytestmark = [pytest.mark.root, pytest.mark.network]

BRIDGE = f"vfl{os.getpid() % 1_000_000}"
ADDRESS = "10.79.67.11"


@dataclass(frozen=True)
class Box:
    """A host with a login for root."""

    folder: Path
    target: ssh_target.Target

    def ask(self, command: str, text: str) -> str:
        """What a program prints on the host."""
        answer = asyncio.run(ssh.run_json(self.target, command, text))
        # asyncio.run leaves the thread without a loop, and the mocks of Pulumi in the next module want one.
        asyncio.set_event_loop(asyncio.new_event_loop())
        return answer

    def vetoes(self, manifest: Manifest) -> list[VetoCode]:
        """Why the probe refuses the host for a fleet."""
        report = probing.probe_hosts([(self.target, manifest)])["box"]
        asyncio.set_event_loop(asyncio.new_event_loop())
        assert not report.error
        return [veto.code for veto in report.veto]

    def on(self, command: str) -> str:
        """What a command says that succeeds on the host."""
        done = subprocess.run(
            [*("ssh", "-F", "none", "-i", str(self.folder / "login"), "-o", "BatchMode=yes"), *self.options, "sh"],
            input=command,
            check=False,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def options(self) -> tuple[str, ...]:
        return ("-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}", f"root@{ADDRESS}")

    def snapshot(self) -> set[str]:
        return set(self.on(SNAPSHOT).splitlines())

    def leave(self, **options: bool) -> leave.Left:
        out = self.ask(leave.leave_command(), leave.leave_question(leave.Options(**options)))
        return leave.parse_left("box", out, "")

    def play(self, member: SiteHost) -> None:
        """Runs the roles of a gateway."""
        variables: dict[str, Any] = {
            **member.variables,
            "ansible_host": ADDRESS,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "login"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.folder / 'known_hosts'}",
            "fleet_ssh_host_keys": list(self.target.host_keys),
        }
        (self.folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"box": variables}}}))
        book = [one_run.play({"box": ("host_baseline", "gateway")}, become=False)]
        (self.folder / "play.yml").write_text(json.dumps(book))
        (self.folder / "hosts.json").rename(self.folder / "hosts.yml")
        words = ["ansible-playbook", "-i", self.folder / "hosts.yml", self.folder / "play.yml", *one_run.ARGUMENTS]
        done = subprocess.run(
            words, cwd=paths.root(), check=False, capture_output=True, text=True, timeout=HANGING_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("leaving")
    private, public = ssh_key_pair()
    own, host_key = ssh_key_pair()
    (folder / "login").touch(0o600)
    (folder / "login").write_text(private)
    (folder / "known_hosts").write_text(f"{ADDRESS} {host_key}\n")
    spec = HostSpec(
        *(BRIDGE, "box", ADDRESS, "10.79.67.0/24", "root", public, host_key, tree_digest(), {}), binds={}, disk_gib=1
    )
    try:
        network.create(NetworkSpec(BRIDGE, spec.subnet, str(folder), 1))
        host.create(spec, own)
        yield Box(folder, ssh_target.Target("box", ADDRESS, 22, "root", (host_key,), folder / "login"))
    finally:
        cleanup.down(BRIDGE)


def test_a_gateway_leaves_what_it_had(box: Box, golden_site: Site) -> None:
    member = next(member for member in golden_site.hosts if member.plan.kind == "gateway")
    box.on("echo 'net.ipv4.ip_forward = 1' > /etc/sysctl.d/99-shop.conf; useradd shop")
    before = box.snapshot()
    recorded = box.ask(leave.record_command(), leave.record_question(member.manifest, check=False))
    assert leave.parse_recorded("box", recorded, "").changed is True
    box.play(member)
    assert "account haproxy" in " ".join(box.snapshot() - before)

    assert VetoCode.OTHER_FLEET not in box.vetoes(member.manifest)
    assert VetoCode.OTHER_FLEET in box.vetoes(replace(member.manifest, fleet="other"))

    during = box.snapshot()
    check = box.leave(check=True, packages=True)
    assert box.snapshot() == during, "a check changes nothing"
    assert {"account vllm", "/etc/haproxy/haproxy.cfg", "/opt/vllm", "/etc/vllm-fleet"} <= set(check.removed)

    # A run that was interrupted half way is completed; a word about packages is needed.
    box.on("systemctl stop haproxy; rm -r /opt/vllm /etc/apt/apt.conf.d/60-vllm-fleet")
    left = box.leave()
    now = box.snapshot()
    assert before - now == set()
    assert not {line for line in now - before if "vllm" in line}
    assert [row["what"] for row in left.kept if "haproxy" in row["what"]]
    assert box.leave().removed == ()


def test_with_packages_nothing_is_left(box: Box, golden_site: Site) -> None:
    member = next(member for member in golden_site.hosts if member.plan.kind == "gateway")
    box.on("apt-get -qq -y purge haproxy > /dev/null 2>&1; apt-get -qq -y autoremove > /dev/null 2>&1")
    before = box.snapshot()
    box.ask(leave.record_command(), leave.record_question(member.manifest, check=False))
    box.play(member)
    box.leave(packages=True)
    now = box.snapshot()
    assert (now - before, before - now) == (set(), set())
