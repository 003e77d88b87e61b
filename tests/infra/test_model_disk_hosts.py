"""The disk for models on a real host with real block devices: formatted once, mounted, filled, and refused."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import engine_host
import pytest
from engine_host import EngineHost

from vllm_fleet.base import paths

pytestmark = pytest.mark.root
LINKS = "/dev/disk/by-id"
CAP_SYS_RESOURCE = 24
#: Stands in for udev, which does not run in a host of the lab: links by UUID for the devices of these tests.
UDEVADM = f"""\
#!/bin/sh
mkdir -p /dev/disk/by-uuid
for device in {LINKS}/*; do
  uuid=$(blkid --probe --output value --match-tag UUID "$device") && ln -sf "$device" "/dev/disk/by-uuid/$uuid"
done
exit 0
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with (paths.cache_dir() / "test-wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine_host.made(tmp_path_factory.mktemp("disks")) as made:
            on(made, f"cat > /usr/local/bin/udevadm <<'END'\n{UDEVADM}END\nchmod 755 /usr/local/bin/udevadm")
            # A store from before the disk, on the disk of the system.
            on(made, "mkdir -p /var/lib/vllm/models/a--b/r1; echo weights > /var/lib/vllm/models/a--b/r1/w")
            yield made


def on(host: EngineHost, command: str) -> str:
    done = host.on(f"set -e; {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@contextmanager
def attached(host: EngineHost, name: str) -> Iterator[str]:
    """A block device of 128 MiB that the host sees under a name, as an attached volume: its path on this machine."""
    file = host.folder / name
    with file.open("wb") as image:
        image.truncate(128 << 20)
    words = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    try:
        number = Path(device).stat().st_rdev
        on(host, f"mkdir -p {LINKS}; mknod {LINKS}/{name} b {os.major(number)} {os.minor(number)}")
        yield device
    finally:
        host.on(f"umount {LINKS}/{name}; rm -f {LINKS}/{name}")
        subprocess.run(["losetup", "--detach", device], check=True)


def asked(name: str) -> dict[str, Any]:
    disk = {"kind": "volume", "name": name, "links": [f"{LINKS}/{name}"]}
    return {"model_store_models": [], "model_store_disk": disk}


def run(host: EngineHost, name: str) -> tuple[int, int, str]:
    """Runs the role: exit code, changed tasks, and what was said."""
    code, (counts,), said = host.run(asked(name), roles=("model_store",))
    return code, counts["changed"], " ".join(said.split())


def test_a_volume_is_formatted_once_mounted_and_holds_the_store(host: EngineHost) -> None:
    with attached(host, "first"):
        code, changed, said = run(host, "first")
        assert code == 0, said
        assert changed
        assert on(host, "readlink /var/lib/vllm/models") == "/mnt/vllm-volume/vllm-models"
        assert on(host, "cat /var/lib/vllm/models/a--b/r1/w") == "weights"
        assert on(host, f"blkid --probe --output value --match-tag LABEL {LINKS}/first") == "vllm-volume"
        unit = on(host, "systemctl cat 'mnt-vllm\\x2dvolume.mount'")
        assert (
            f"What=/dev/disk/by-uuid/{on(host, f'blkid --probe --output value --match-tag UUID {LINKS}/first')}" in unit
        )
        assert on(host, "systemctl is-enabled 'mnt-vllm\\x2dvolume.mount'") == "enabled"

        assert run(host, "first")[:2] == (0, 0)

        # As after a start of the host without its mount: mounted again, and never formatted again.
        on(host, "systemctl stop 'mnt-vllm\\x2dvolume.mount'; ! mountpoint -q /mnt/vllm-volume")
        code, changed, said = run(host, "first")
        assert (code, changed) == (0, 1), said
        assert on(host, "cat /var/lib/vllm/models/a--b/r1/w") == "weights"

        on(host, "systemctl stop 'mnt-vllm\\x2dvolume.mount'")


def test_a_volume_that_was_enlarged_is_used_as_a_whole(host: EngineHost) -> None:
    effective = int(on(host, "sed -n 's/^CapEff:[^0-9a-f]*//p' /proc/self/status"), 16)
    if not effective >> CAP_SYS_RESOURCE & 1:
        pytest.skip("this machine lets no host of the lab enlarge a mounted file system (CAP_SYS_RESOURCE)")
    with attached(host, "larger") as device:
        assert run(host, "larger")[0] == 0
        before = int(on(host, "stat --file-system --format=%b /mnt/vllm-volume"))
        os.truncate(host.folder / "larger", 512 << 20)
        subprocess.run(["losetup", "--set-capacity", device], check=True)
        code, changed, said = run(host, "larger")
        assert (code, changed) == (0, 1), said
        assert int(on(host, "stat --file-system --format=%b /mnt/vllm-volume")) > 3 * before
        assert run(host, "larger")[:2] == (0, 0)
        on(host, "systemctl stop 'mnt-vllm\\x2dvolume.mount'")


def test_a_volume_with_something_else_on_it_is_refused_and_stays_as_it_is(host: EngineHost) -> None:
    with attached(host, "second") as device:
        subprocess.run(["mkfs.ext4", "-q", "-L", "payroll", device], check=True)
        before = (host.folder / "second").read_bytes()
        code, _, said = run(host, "second")
        assert code == 2
        assert "(the volume second) has ext4 'payroll' on it, which vllm-fleet did not make" in said
        assert "wipefs --all" in said
        assert (host.folder / "second").read_bytes() == before
        assert on(host, "mountpoint -q /mnt/vllm-volume || echo not mounted") == "not mounted"


def test_a_volume_that_is_not_attached_is_refused(host: EngineHost) -> None:
    code, _, said = run(host, "third")
    assert code == 2
    assert "the volume third is not attached" in said
