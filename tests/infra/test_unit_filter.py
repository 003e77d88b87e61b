"""The IP filter of vLLM's units on a host with unified cgroups, where systemd can attach it.

The lab's hosts have the cgroups of their machine, often v1, on which systemd ignores IPAddressDeny. This host is booted
for the test with cgroups v2 alone, and may load the filter (bpf).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from lab import process
from lab.tree import ensure_tree
from vllm_fleet.base import paths
from vllm_fleet.host.firewall import Peers, unit_filter

pytestmark = pytest.mark.root
MACHINE = "vf-unit-filter"
PEERS = Peers(("100.100.1.5",), ("203.0.113.4", "2001:db8::4"), ("198.51.100.0/24",))
ALLOWED = ("127.0.0.1", "::1", "10.1.2.3", "100.100.1.5", "203.0.113.4", "2001:db8::4", "198.51.100.9")
DENIED = ("203.0.113.66", "2001:db8::66", "100.100.1.6")
#: In place of vLLM: it sends a packet to each address when it starts, and again when asked to.
PROBE = f"""
import signal, socket
def send(*_):
    for address in {(*ALLOWED, *DENIED)!r}:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.sendto(b"x", (address, 9))
            print(address, "sent", flush=True)
        except PermissionError:
            print(address, "filtered", flush=True)
    print("end", flush=True)
signal.signal(signal.SIGUSR1, send)
send()
while True:
    signal.pause()
"""
#: What keeps the unit from running without a release, and without its firewall.
REPLACED = """[Unit]
AssertPathExists=
[Service]
Type=exec
WatchdogSec=0
EnvironmentFile=
LoadCredential=
SupplementaryGroups=
ExecStartPre=
ExecStopPost=
ExecStart=
ExecStart=/usr/bin/python3 -u /probe.py
StandardOutput=append:/result-%p
"""
SCRIPT = """
set -e
for address in {v4}; do ip address add "$address/32" dev lo; done
for address in {v6}; do ip address add "$address/128" dev lo; done
for unit in vllm vllm-docker; do
  systemctl start "$unit@0.service"
  until [ "$(grep -c end "/result-$unit")" = 1 ]; do sleep 0.1; done
  mkdir -p "/etc/systemd/system/$unit@.service.d"
  cp /addresses.conf "/etc/systemd/system/$unit@.service.d/"
  systemctl daemon-reload
  systemctl kill --signal=USR1 "$unit@0.service"
  until [ "$(grep -c end "/result-$unit")" = 2 ]; do sleep 0.1; done
  systemctl stop "$unit@0.service"
done
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Unit -> what became of the packets before and after its drop-in was written, without a restart."""
    tree, folder = ensure_tree(), tmp_path_factory.mktemp("host")
    for part in ("upper", "work", "root"):
        (folder / part).mkdir(mode=0o755)
    root = folder / "root"
    options = f"lowerdir={tree},upperdir={folder / 'upper'},workdir={folder / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
    groups = [group / MACHINE for group in process.cgroup_roots()]
    try:
        _fill(root)
        for group in groups:
            group.mkdir(exist_ok=True)
        enter = f'for group in {" ".join(map(str, groups))}; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'
        nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", f"--directory={root}"]
        nspawn += [f"--machine={MACHINE}", "--private-network", "--resolv-conf=off", "--timezone=off"]
        nspawn += ["--link-journal=no", "--capability=all", "--system-call-filter=bpf", "--boot"]
        environment = {**os.environ, "UNIFIED_CGROUP_HIERARCHY": "1"}
        subprocess.run(
            ["/bin/sh", "-c", enter, "-", *nspawn],
            env=environment,
            stdin=subprocess.DEVNULL,
            timeout=HANGING_SECONDS,
            check=True,
        )
        yield {unit: _read(root / f"result-{unit}") for unit in ("vllm", "vllm-docker")}
    finally:
        subprocess.run(["umount", root], check=True)
        for group in groups:
            for part in sorted((*group.rglob("*/"), group), reverse=True):
                part.rmdir()


def _fill(root: Path) -> None:
    units, files = root / "etc/systemd/system", paths.root() / "roles/vllm_service/files"
    subprocess.run(["useradd", "--root", str(root), "--system", "vllm"], check=True)
    for name in ("vllm@.service", "vllm-docker@.service"):
        (units / name).write_bytes((files / name).read_bytes())
        (units / f"{name}.d").mkdir()
        (units / f"{name}.d" / "test.conf").write_text(REPLACED, encoding="utf-8")
    for name in ("vllm-container@.service", "vllm-container@.socket"):
        (units / name).write_bytes((files / name).read_bytes())
    (units / "vllm-firewall.service").write_text("[Service]\nType=oneshot\nExecStart=/bin/true\n", encoding="utf-8")
    (root / "var/lib/vllm").mkdir(parents=True)
    (root / "probe.py").write_text(PROBE, encoding="utf-8")
    (root / "addresses.conf").write_text(unit_filter(PEERS), encoding="utf-8")
    every = (*ALLOWED[2:], *DENIED)
    script = SCRIPT.format(
        v4=" ".join(each for each in every if ":" not in each), v6=" ".join(each for each in every if ":" in each)
    )
    (root / "try.sh").write_text(script, encoding="utf-8")
    (units / "try.service").write_text(
        "[Unit]\nAfter=network.target\n[Service]\nType=oneshot\nTimeoutStartSec=60\n"
        "ExecStart=/bin/sh -x /try.sh\nStandardError=file:/try.log\n"
        "ExecStopPost=/usr/bin/systemctl poweroff --force\n",
        encoding="utf-8",
    )
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "try.service").symlink_to("/etc/systemd/system/try.service")


def _read(file: Path) -> list[dict[str, str]]:
    parts = file.read_text(encoding="utf-8").split("end\n")[:-1]
    return [{line.split()[0]: line.split()[1] for line in part.splitlines()} for part in parts]


@pytest.mark.parametrize("unit", ["vllm", "vllm-docker"])
def test_the_filter_holds_the_addresses_of_the_fleet(results: dict[str, list[dict[str, str]]], unit: str) -> None:
    before, after = results[unit]
    # The unit alone: private networks.
    assert [address for address, what in before.items() if what == "sent"] == ["127.0.0.1", "::1", "10.1.2.3"]
    # With the addresses of the fleet, in a process that was not restarted.
    assert [address for address, what in after.items() if what == "sent"] == list(ALLOWED)
    assert [address for address, what in after.items() if what == "filtered"] == list(DENIED)
