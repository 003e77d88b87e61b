"""The driver roles on real hosts with an apt repository of stand-ins: versions, holds, kernels, restarts, traffic."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import driver_lab
import pytest
from driver_lab import DriverLab, Streams

from lab import apt, cleanup, gpu, state
from lab.gpu import packages
from lab.rootfs import File, write_files
from vllm_fleet import catalog as catalogs
from vllm_fleet import paths
from vllm_fleet.catalog import Catalog
from vllm_fleet.driver_schema import DriverMode, RepositoryMirror
from vllm_fleet.drivers import HostDriver, for_host
from vllm_fleet.manifest import wanted_facts

pytestmark = [pytest.mark.root, pytest.mark.network]
#: What the recipes have, one that is newer, and one whose module wants another kernel.
NOW, NEWER, GREEDY = "580.159.03", "580.178.04", "580.200.01"
AMD_NOW, AMD_OLD = ("6.14.14", "7.0.2"), ("6.12.12", "6.4.3")
KERNEL = "linux-image-6.1.0-1-amd64"
SERVING = ("gpu-0", "gpu-1")


def with_nvidia(version: str) -> Catalog:
    """The recipes with another version of NVIDIA's driver."""
    found = catalogs.load()
    release = found.drivers.releases["nvidia-580"]
    assert release.fabric_manager
    manager = release.fabric_manager.model_copy(
        update={"packages": dict.fromkeys(release.fabric_manager.packages, f"{version}-*")}
    )
    changes = {
        "version": version,
        "packages": dict.fromkeys(release.packages, f"{version}-*"),
        "fabric_manager": manager,
    }
    return _with(found, "nvidia-580", changes)


def with_amd(version: str, rocm: str) -> Catalog:
    """The recipes with another version of AMD's driver and ROCm."""
    found = catalogs.load()
    driver_count, rocm_count = ("30100200", "70002") if version == AMD_NOW[0] else ("30100000", "60403")
    release = found.drivers.releases["amdgpu-30.10.2"]
    patterns = {
        name: pattern.replace(AMD_NOW[0], version).replace("30100200", driver_count).replace("70002", rocm_count)
        for name, pattern in release.packages.items()
    }
    return _with(found, "amdgpu-30.10.2", {"version": version, "rocm": rocm, "packages": patterns})


def _with(found: Catalog, name: str, changes: dict[str, Any]) -> Catalog:
    releases = {**found.drivers.releases, name: found.drivers.releases[name].model_copy(update=changes)}
    return replace(found, drivers=found.drivers.model_copy(update={"releases": releases}))


def stand_ins() -> Iterator[apt.Package]:
    """Everything that the repository has."""
    for version in (NOW, NEWER, GREEDY):
        release = with_nvidia(version).drivers.releases["nvidia-580"]
        assert release.fabric_manager
        names = {**release.packages, **release.fabric_manager.packages}
        for package in packages.nvidia(gpu.gpus("h100-8"), version, names):
            wants = version == GREEDY and package.name.startswith("nvidia-dkms")
            relations = {"Depends": "linux-image-6.2.0-1-amd64"} if wants else {}
            yield replace(package, relations=relations)
    for version, rocm in (AMD_NOW, AMD_OLD):
        release = with_amd(version, rocm).drivers.releases["amdgpu-30.10.2"]
        yield from packages.amd(gpu.gpus("mi300x-8"), version, rocm, release.packages)
    yield from (apt.Package(KERNEL, version) for version in ("6.1.1-1", "6.1.2-1"))
    yield apt.Package("linux-image-6.2.0-1-amd64", "6.2.1-1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    if os.geteuid() != 0:
        pytest.skip("systemd-nspawn hosts need root")
    with (paths.cache_dir() / "test-drivers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if driver_lab.BRIDGE in state.labs():
            cleanup.down(driver_lab.BRIDGE)
        try:
            found = driver_lab.start(tmp_path_factory.mktemp("drivers"))
            apt.build(found.repository, stand_ins())
            done = found.play("gateway-0", "gateway")
            assert done.returncode == 0, done.stdout + done.stderr
            yield found
        finally:
            cleanup.down(driver_lab.BRIDGE)


def driver(
    lab: DriverLab, name: str, sized: str, recipes: Catalog, mode: DriverMode = "managed"
) -> tuple[HostDriver, dict[str, Any]]:
    """The driver that a host of a class gets, as the inventory would say it, and the facts that it must have."""
    mirror = RepositoryMirror(uri=f"file:{driver_lab.REPOSITORY}", signing_key_file="key.asc")
    mirrors = dict.fromkeys(recipes.drivers.repositories, (mirror, lab.repository / "key.asc"))
    host_class = recipes.host_class(sized)
    found = for_host(recipes, host_class, mode, mirrors=mirrors, lab=True)
    assert found
    lab.variables[name] = dict(found.variables)
    return found, {**wanted_facts(host_class), **found.facts}


def expect_clean(lab: DriverLab, name: str, found: HostDriver, facts: dict[str, Any]) -> None:
    report = lab.probe(name, found.items, facts)
    assert (report.error, report.veto, [str(item) for item in report.drift]) == ("", (), [])


def changed(output: str) -> int:
    return sum(int(count) for count in re.findall(r"changed=(\d+)", output))


def installed(lab: DriverLab, name: str) -> str:
    return lab.on(name, "dpkg-query -W -f='${Package} ${Version} ${Status}\\n'; systemctl show -P UserspaceTimestamp")


def test_a_bare_host_gets_its_driver_and_keeps_its_kernel(lab: DriverLab) -> None:
    source = f"deb [signed-by={driver_lab.REPOSITORY}/key.asc] file:{driver_lab.REPOSITORY} /"
    lab.on("gpu-0", f"echo '{source}' > /etc/apt/sources.list.d/kernel.list; apt-get update -q")
    lab.on("gpu-0", f"apt-get install -q -y {KERNEL}=6.1.1-1")

    without, _ = driver(lab, "gpu-0", "h100-1", with_nvidia(NOW))
    assert "nvidia-fabricmanager-580" not in str(without.items)
    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW))
    bare = lab.probe("gpu-0", found.items, facts)
    assert bare.veto == ()
    assert bare.roles == {"nvidia_driver"}
    assert "nvidia-smi not found: install the driver" in str(bare.drift[-1])

    before = installed(lab, "gpu-0")
    checked = lab.play("gpu-0", "nvidia_driver", arguments=("--check", "--diff"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert installed(lab, "gpu-0") == before

    driver(lab, "gpu-0", "h100-1", with_nvidia(NOW))
    done = lab.play("gpu-0", "nvidia_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fabricmanager" not in installed(lab, "gpu-0")

    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW))
    done = lab.play("gpu-0", "nvidia_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    expect_clean(lab, "gpu-0", found, facts)
    again = lab.play("gpu-0", "nvidia_driver")
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout

    after = installed(lab, "gpu-0")
    assert before.splitlines()[-1] == after.splitlines()[-1], "nothing was loaded before, so nothing is restarted"
    assert f"{KERNEL} 6.1.1-1 hold ok installed" in after
    assert f"nvidia-fabricmanager-580 {NOW}-1ubuntu1 hold ok installed" in after
    moves = re.findall(r"^Inst (\S+)", lab.on("gpu-0", "apt-get -s dist-upgrade"), re.MULTILINE)
    assert not [name for name in moves if name.startswith(("nvidia", "libnvidia", "linux-"))]
    blacklist = lab.on("gpu-0", "apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"^nvidia-.*$"' in blacklist
    assert '"^linux-image-.*$"' in blacklist
    assert "--persistence-mode" in lab.on("gpu-0", "systemctl show -P ExecStart nvidia-persistenced")


def test_a_restart_needs_permission_and_loses_no_request(lab: DriverLab) -> None:
    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NEWER))
    report = lab.probe("gpu-0", found.items, facts)
    assert f"its driver is {NOW}, planned is {NEWER}" in str(report.drift[-1])
    before = installed(lab, "gpu-0")
    refused = lab.play("gpu-0", "nvidia_driver", "gateway_traffic")
    assert refused.returncode != 0
    assert "gpu-0 must be restarted for NVIDIA's driver" in refused.stdout
    assert "fleet_reboot=true" in refused.stdout
    assert installed(lab, "gpu-0") == before, "nothing is touched without permission"

    with Streams() as streams:
        done = lab.play("gpu-0", "nvidia_driver", "gateway_traffic", arguments=("-e", "fleet_reboot=true"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (streams.count["cut"], streams.count["failed"]) == (0, 0)
    assert streams.count["whole"] > 8
    assert installed(lab, "gpu-0").splitlines()[-1] != before.splitlines()[-1]
    expect_clean(lab, "gpu-0", found, facts)
    again = lab.play("gpu-0", "nvidia_driver", "gateway_traffic", arguments=("-e", "fleet_reboot=true"))
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout


def test_a_driver_that_brings_a_kernel_fails_by_name(lab: DriverLab) -> None:
    driver(lab, "gpu-0", "h100-8", with_nvidia(GREEDY))
    done = lab.play("gpu-0", "nvidia_driver", arguments=("-e", "fleet_reboot=true"))
    assert done.returncode != 0
    assert "has changed the kernels" in done.stdout
    assert "linux-image-6.2.0-1-amd64" in done.stdout
    lab.on("gpu-0", "apt-get purge -q -y --allow-change-held-packages linux-image-6.2.0-1-amd64 nvidia-dkms-580-open")


def test_a_run_that_stopped_is_gone_back_from_by_a_downgrade(lab: DriverLab) -> None:
    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW))
    done = lab.play("gpu-0", "nvidia_driver", "gateway_traffic", arguments=("-e", "fleet_reboot=true"))
    assert done.returncode == 0, done.stdout + done.stderr
    expect_clean(lab, "gpu-0", found, facts)
    assert f"nvidia-utils-580 {NOW}-1ubuntu1 hold ok installed" in installed(lab, "gpu-0")


def test_the_driver_of_an_image_is_held_and_not_replaced(lab: DriverLab) -> None:
    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NEWER), mode="verified")
    lab.on("gpu-0", "apt-mark unhold nvidia-utils-580")
    report = lab.probe("gpu-0", found.items, facts)
    assert report.veto == ()
    assert [item.why for item in report.drift] == ["do not include nvidia-utils-580"]
    done = lab.play("gpu-0", "nvidia_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nvidia-utils-580 {NOW}-1ubuntu1 hold ok installed" in installed(lab, "gpu-0")
    expect_clean(lab, "gpu-0", found, facts)


def test_amd_gets_driver_and_rocm_with_groups_and_numa(lab: DriverLab) -> None:
    found, facts = driver(lab, "gpu-1", "mi300x-8", with_amd(*AMD_OLD))
    done = lab.play("gpu-1", "amd_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    found, facts = driver(lab, "gpu-1", "mi300x-8", with_amd(*AMD_NOW))
    report = lab.probe("gpu-1", found.items, facts)
    assert report.veto == ()
    assert "its ROCm is 6.4.3, planned is 7.0.2" in str(report.drift)
    refused = lab.play("gpu-1", "amd_driver", "gateway_traffic")
    assert "gpu-1 must be restarted for AMD's driver 6.14.14" in refused.stdout
    with Streams() as streams:
        done = lab.play("gpu-1", "amd_driver", "gateway_traffic", arguments=("-e", "fleet_reboot=true"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (streams.count["cut"], streams.count["failed"]) == (0, 0)
    expect_clean(lab, "gpu-1", found, facts)
    assert report.facts["mec_firmware"] == 185
    assert lab.on("gpu-1", "id -nG vllm").split()[1:] == ["video", "render"]
    assert "kernel.numa_balancing = 0" in lab.on("gpu-1", "cat /etc/sysctl.d/61-vllm-fleet-amd.conf")
    again = lab.play("gpu-1", "amd_driver", "gateway_traffic")
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout


def test_a_release_is_rolled_out_batch_by_batch_without_losing_a_request(lab: DriverLab) -> None:
    for name in SERVING:
        root = state.host_dir(driver_lab.BRIDGE, name) / "root"
        write_files(root, {"opt/vllm/engines/stand-in/bin/vllm": File(driver_lab.ENGINE, 0o755)})
        lab.on(name, "mkdir -p /var/lib/vllm")
        lab.variables[name] = driver_lab.release(lab, name, "the first")
    groups = {"needs_nvidia_driver": (), "needs_amd_driver": (), "needs_gateway": (), "needs_vllm_service": SERVING}
    book = paths.root() / "playbooks" / "rollout.yml"
    with Streams() as streams:
        done = lab.playbook(book, groups)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (streams.count["cut"], streams.count["failed"]) == (0, 0)
    assert streams.count["whole"] > 8
    again = lab.playbook(book, groups)
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout


def test_a_host_that_a_stopped_run_left_in_drain_gets_its_traffic_back(lab: DriverLab) -> None:
    item = {"role": "gateway", "kind": "traffic", "path": "/run/haproxy/admin.sock"}
    assert lab.probe("gateway-0", (item,), {}).drift == ()
    done = lab.play("gpu-0", "gateway_traffic", arguments=("-e", "gateway_traffic_state=drained"))
    assert done.returncode == 0, done.stdout + done.stderr
    (left,) = lab.probe("gateway-0", (item,), {}).drift
    assert (left.role, left.why) == ("gateway", "gives no traffic to gpu-0_0")
    done = lab.play("gateway-0", "gateway")
    assert (done.returncode, changed(done.stdout)) == (0, 1), done.stdout + done.stderr
    assert lab.probe("gateway-0", (item,), {}).drift == ()
