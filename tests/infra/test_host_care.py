"""What happens beside the roles on a host: the first boot, upgrades that hold apt's lock, and those that restart."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from typing import Any

import driver_lab
import pytest
from driver_lab import DriverLab

from lab import cleanup, state
from vllm_fleet.base import paths
from vllm_fleet.mirror import apt_lists

pytestmark = [pytest.mark.root, pytest.mark.network]
FIRST_BOOT = paths.root() / "playbooks" / "first-boot.yml"
#: Stands in for cloud-init, whose datasource a lab host does not have. Exit codes and output of 'status --wait --long'
#: by cloud-init's documentation: 0 done, 1 an error, 2 done with recoverable errors.
CLOUD_INIT = """\
#!/bin/sh
[ "$*" = 'status --wait --long' ] || exit 64
while [ ! -e /run/cloud-init/code ]; do sleep 0.1; done
cat /run/cloud-init/out
exit "$(cat /run/cloud-init/code)"
"""
#: Holds the lock that dpkg's front ends take, as unattended-upgrades does, until apt waits for it.
HOLDER = """\
import fcntl, os, time
def waits():
    for name in os.listdir("/proc"):
        try:
            words = open(f"/proc/{name}/cmdline", "rb").read().split(b"\\0")
        except OSError:
            continue
        if name.isdigit() and words[0].endswith(b"apt-get") and b"install" in words:
            return True
    return False
lock = open("/var/lib/dpkg/lock-frontend", "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
open("/run/held", "w").close()
while not waits():
    time.sleep(0.1)
time.sleep(2)
open("/run/waited", "w").close()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    with (paths.cache_dir() / "test-drivers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if driver_lab.BRIDGE in state.labs():
            cleanup.down(driver_lab.BRIDGE)
        try:
            yield driver_lab.start(tmp_path_factory.mktemp("care"))
        finally:
            cleanup.down(driver_lab.BRIDGE)


def baseline(lab: DriverLab, **variables: Any) -> None:
    config = apt_lists.host_apt_config(None)
    lab.variables["gpu-0"] = {"host_baseline_apt_config": config, "host_baseline_apt_sources": "", **variables}


def first_boot(lab: DriverLab, code: int | None, out: str, seconds: int = 100) -> tuple[int, str]:
    """The exit code and the output of the wait, on a host whose cloud-init ends so; None: it does not end."""
    lab.on("gpu-0", "mkdir -p /run/cloud-init; rm -f /run/cloud-init/code")
    lab.on("gpu-0", f"cat > /usr/bin/cloud-init <<'END'\n{CLOUD_INIT}END\nchmod 755 /usr/bin/cloud-init")
    lab.on("gpu-0", f"cat > /run/cloud-init/out <<'END'\n{out}\nEND\n")
    if code is not None:
        lab.on("gpu-0", f"echo {code} > /run/cloud-init/code")
    baseline(lab, host_baseline_first_boot_seconds=seconds)
    done = lab.playbook(FIRST_BOOT, {"needs_any": ("gpu-0",)})
    return done.returncode, " ".join(done.stdout.split())


def test_a_host_is_not_touched_before_its_first_boot_is_complete(lab: DriverLab) -> None:
    assert first_boot(lab, 0, "status: done")[0] == 0
    assert first_boot(lab, 2, "status: done\nextended_status: degraded done")[0] == 0
    code, said = first_boot(lab, 1, "status: error\ndetail:\n- ('scripts_user', RuntimeError('exit 1'))")
    assert code == 2
    assert "gpu-0 is not changed: cloud-init has failed (status: error, detail:, - ('scripts_user'" in said
    assert "/var/log/cloud-init-output.log" in said
    code, said = first_boot(lab, None, "status: running", seconds=1)
    assert code == 2
    assert "gpu-0 is not changed: cloud-init has not finished within 1 s" in said
    lab.on("gpu-0", "rm -r /usr/bin/cloud-init /run/cloud-init")
    assert lab.playbook(FIRST_BOOT, {"needs_any": ("gpu-0",)}).returncode == 0, "a host without cloud-init"


def test_a_role_waits_for_the_lock_of_apt(lab: DriverLab) -> None:
    baseline(lab)
    lab.on("gpu-0", "apt-get update -q; apt-get install -q -y python3-apt; apt-get purge -q -y nftables")
    lab.on("gpu-0", f"cat > /root/holder.py <<'END'\n{HOLDER}END\nrm -f /run/held /run/waited")
    lab.on("gpu-0", "systemd-run --unit=holder python3 /root/holder.py; until [ -e /run/held ]; do sleep 0.1; done")
    done = lab.play("gpu-0", "host_baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lab.on("gpu-0", "ls /run/waited; dpkg-query -W -f='${Status}' nftables").split()[1:] == [
        *("install", "ok", "installed")
    ]


def wait_for_end(lab: DriverLab, unit: str) -> None:
    """Waits until a unit of the host has ended, also while the host takes no connections."""
    for _ in range(240):
        try:
            if lab.on("gpu-0", f"systemctl show -P ActiveState {unit}").strip() in ("inactive", "failed"):
                return
        except AssertionError as fault:
            print(f"gpu-0 takes no connection now: {fault}")
        time.sleep(0.5)
    pytest.fail(f"{unit} did not end")


def test_needrestart_restarts_nothing_that_serves(lab: DriverLab) -> None:
    """The real one, in the mode of Ubuntu 24.04, after an upgrade of a library that both services have open."""
    other = "[Service]\nExecStart=/usr/bin/python3 -c 'import zlib, time; time.sleep(99999)'\n"
    lab.on("gpu-0", f"cat > /etc/systemd/system/other.service <<'END'\n{other}END\nsystemctl daemon-reload")
    lab.on("gpu-0", "DEBIAN_FRONTEND=noninteractive apt-get install -q -y needrestart; systemctl start other vllm@0")

    quiet = "DEBIAN_FRONTEND=noninteractive"

    def restarted() -> dict[str, bool]:
        """Which of the two services needrestart restarts after an upgrade of zlib."""
        units = ("vllm@0", "other")
        ids = {unit: lab.on("gpu-0", f"systemctl show -P InvocationID {unit}") for unit in units}
        library = "/usr/lib/x86_64-linux-gnu/$(readlink /usr/lib/x86_64-linux-gnu/libz.so.1)"
        lab.on("gpu-0", f"cp -p {library} /root/libz; cp -p /root/libz {library}.new; mv {library}.new {library}")
        # It restarts sshd and the network too: a connection that waits for it may break.
        lab.on("gpu-0", f"systemd-run -q --collect --unit=upgraded -E {quiet} needrestart -q -r a")
        wait_for_end(lab, "upgraded")
        return {unit: lab.on("gpu-0", f"systemctl show -P InvocationID {unit}") != ids[unit] for unit in units}

    lab.on("gpu-0", "rm -f /etc/needrestart/conf.d/60-vllm-fleet.conf")
    assert restarted() == {"vllm@0": True, "other": True}, "what the file is for"
    baseline(lab)
    done = lab.play("gpu-0", "host_baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert restarted() == {"vllm@0": False, "other": True}
    blacklist = lab.on("gpu-0", "apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"^haproxy$"' in blacklist
