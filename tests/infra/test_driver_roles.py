"""The driver roles on real hosts with an apt repository of stand-ins: versions, holds, kernels, restarts, traffic."""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import driver_lab
import https_files
import one_run
import pytest
from driver_lab import SERVING, DriverLab, Play, Streams

from lab import apt, cleanup, gpu, shell, state
from lab.gpu import packages
from lab.rootfs import File, write_files
from vllm_fleet.base import paths
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host.drivers import DriverChoice, HostDriver, choose_driver
from vllm_fleet.host.manifest import wanted_facts
from vllm_fleet.host.manifest_items import traffic_item
from vllm_fleet.schema.driver import DriverMode, RepositoryMirror, SigningKey, SystemSource

REBOOT = paths.root() / "tests" / "infra" / "reboot.yml"
pytestmark = [pytest.mark.root, pytest.mark.network]
#: What the recipes have, one that is newer, and one whose module wants another kernel.
NOW, NEWER, GREEDY = "580.159.03", "580.178.04", "580.200.01"
#: That of the lab's hosts, and the package there with the kernel's module.
SYSTEM, MODULE = "debian-12", "nvidia-kernel-open-dkms"
AMD_NOW, AMD_OLD = ("6.14.14", "7.0.2"), ("6.12.12", "6.4.3")
KERNEL = "linux-image-6.1.0-1-amd64"
#: What the manifest of a gateway says of its traffic.
TRAFFIC = traffic_item("gateway", "/run/haproxy/admin.sock")


def with_nvidia(version: str) -> Catalog:
    """The recipes with another version of NVIDIA's driver."""
    found = catalogs.load()
    release = found.drivers.releases["nvidia-580"]
    assert release.dependencies

    def at(packages: dict[str, str]) -> dict[str, str]:
        return {name: pattern.replace(NOW, version) for name, pattern in packages.items()}

    rows = [
        row.model_copy(update={"packages": at(row.packages), "fabric_manager": at(row.fabric_manager)})
        for row in release.packages
    ]
    pin = release.dependencies.model_copy(update={"version": f"{version}-1*"})
    return _with(found, "nvidia-580", {"version": version, "packages": rows, "dependencies": pin})


def with_amd(version: str, rocm: str) -> Catalog:
    """The recipes with another version of AMD's driver and ROCm."""
    found = catalogs.load()
    driver_count, rocm_count = ("30100200", "70002") if version == AMD_NOW[0] else ("30100000", "60403")
    release = found.drivers.releases["amdgpu-30.10.2"]
    patterns = {
        name: pattern.replace(AMD_NOW[0], version).replace("30100200", driver_count).replace("70002", rocm_count)
        for name, pattern in release.packages[0].packages.items()
    }
    rows = [release.packages[0].model_copy(update={"packages": patterns})]
    return _with(found, "amdgpu-30.10.2", {"version": version, "rocm": rocm, "packages": rows})


def _with(found: Catalog, name: str, changes: dict[str, Any]) -> Catalog:
    releases = {**found.drivers.releases, name: found.drivers.releases[name].model_copy(update=changes)}
    return replace(found, drivers=found.drivers.model_copy(update={"releases": releases}))


def with_key(found: Catalog, key: SigningKey) -> Catalog:
    """The recipes with the stand-ins as NVIDIA's repository, whose key is somewhere else."""
    source = SystemSource(uri=f"file:{driver_lab.REPOSITORY}", suites=["/"])
    drivers = found.drivers
    there = drivers.repositories["nvidia-cuda"].model_copy(update={"systems": {"debian-12": source}, "key": key})
    repositories = {**drivers.repositories, "nvidia-cuda": there}
    return replace(found, drivers=drivers.model_copy(update={"repositories": repositories}))


def stand_ins() -> Iterator[apt.Package]:
    """Everything that the repository has."""
    for version in (NOW, NEWER, GREEDY):
        row = with_nvidia(version).drivers.releases["nvidia-580"].packages_for(SYSTEM)
        assert row
        for package in packages.nvidia(gpu.gpus("h100-8"), version, {**row.packages, **row.fabric_manager}):
            wants = version == GREEDY and package.name == MODULE
            relations = {"Depends": "linux-image-6.2.0-1-amd64"} if wants else package.relations
            # What a user has installed, and a driver of another branch would remove.
            relations = {**relations, "Conflicts": "somebodys-driver"} if package.name == MODULE else relations
            yield replace(package, relations=relations)
    for version, rocm in (AMD_NOW, AMD_OLD):
        release = with_amd(version, rocm).drivers.releases["amdgpu-30.10.2"]
        yield from packages.amd(gpu.gpus("mi300x-8"), version, rocm, release.packages[0].packages)
    yield from (apt.Package(KERNEL, version) for version in ("6.1.1-1", "6.1.2-1"))
    yield apt.Package("linux-image-6.2.0-1-amd64", "6.2.1-1")
    yield apt.Package("somebodys-driver", "1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
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
    lab: DriverLab, name: str, sized: str, recipes: Catalog, mode: DriverMode = "managed", own: bool = True
) -> tuple[HostDriver, dict[str, Any]]:
    """The driver that a host of a class gets, as the inventory would say it, and the facts that it must have.

    ``own``: from the fleet's own copy of the repository, with its key as a file.
    """
    mirror = RepositoryMirror(uri=f"file:{driver_lab.REPOSITORY}", signing_key_file="key.asc")
    copies = dict.fromkeys(recipes.drivers.repositories, (mirror, lab.repository / "key.asc"))
    host_class = recipes.host_class(sized)
    found = choose_driver(recipes, host_class, DriverChoice(mode, copies=copies if own else {}, lab=True))
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


@pytest.fixture(scope="module")
def key(lab: DriverLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigningKey]:
    """The key of the repository, to be fetched over HTTPS by a host that trusts the server."""
    with https_files.serving(lab.repository, f"{driver_lab.SUBNET}.1", tmp_path_factory.mktemp("https")) as (
        url,
        trust,
    ):
        lab.on("gpu-0", f"cat > /usr/local/share/ca-certificates/tests.crt <<'END'\n{trust}END\nupdate-ca-certificates")
        file = lab.repository / "key.asc"
        shown = shell.run("gpg", "--batch", "--show-keys", "--with-colons", file)
        fingerprint = re.search(r"^fpr:+([0-9A-F]{40}):", shown, re.MULTILINE)
        assert fingerprint
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        yield SigningKey(url=f"{url}/key.asc", fingerprint=fingerprint[1], sha256=digest)


def test_bare_hosts_get_their_drivers_and_keep_their_kernel(lab: DriverLab, key: SigningKey) -> None:
    source = f"deb [signed-by={driver_lab.REPOSITORY}/key.asc] file:{driver_lab.REPOSITORY} /"
    lab.on("gpu-0", f"echo '{source}' > /etc/apt/sources.list.d/kernel.list; apt-get update -q")
    lab.on("gpu-0", f"apt-get install -q -y {KERNEL}=6.1.1-1")

    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW))
    bare = lab.probe("gpu-0", found.items, facts)
    assert bare.veto == ()
    assert bare.roles == {"nvidia_driver"}
    assert "nvidia-smi not found: install the driver" in str(bare.drift[-1])

    before = installed(lab, "gpu-0")
    checked = lab.play("gpu-0", "nvidia_driver", arguments=("--check", "--diff"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert installed(lab, "gpu-0") == before

    # With a key from a URL, which must be of the digest and of the fingerprint that the recipe has.
    for alias, wrong in (("digest", {"sha256": "0" * 64}), ("fingerprint", {"sha256": None, "fingerprint": "A" * 40})):
        recipes = with_key(with_nvidia(NOW), key.model_copy(update=wrong))
        driver(lab, alias, "h100-1", recipes, own=False)
    without, _ = driver(lab, "gpu-0", "h100-1", with_key(with_nvidia(NOW), key), own=False)
    assert "nvidia-fabricmanager" not in str(without.items)
    driver(lab, "gpu-1", "mi300x-8", with_amd(*AMD_OLD))
    wrong_keys = (Play(alias, ("driver_packages",), of="gpu-0") for alias in ("digest", "fingerprint"))
    done = lab.plays(*wrong_keys, Play("gpu-0", ("nvidia_driver",)), Play("gpu-1", ("amd_driver",)))
    failed = [name for name, count in one_run.counts(done.stdout).items() if count["failed"]]
    assert failed == ["digest", "fingerprint"], done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert f"did not match {'0' * 64}" in said
    assert f"is not {'A' * 40}: do not use it before the vendor has said why" in said
    assert "fabricmanager" not in installed(lab, "gpu-0")
    assert f"nvidia-smi {NOW}-1ubuntu1 hold ok installed" in installed(lab, "gpu-0")

    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW))
    done = lab.play("gpu-0", "nvidia_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    expect_clean(lab, "gpu-0", found, facts)

    after = installed(lab, "gpu-0")
    assert before.splitlines()[-1] == after.splitlines()[-1], "nothing was loaded before, so nothing is restarted"
    assert f"{KERNEL} 6.1.1-1 hold ok installed" in after
    assert f"nvidia-fabricmanager {NOW}-1ubuntu1 hold ok installed" in after
    moves = re.findall(r"^Inst (\S+)", lab.on("gpu-0", "apt-get -s dist-upgrade"), re.MULTILINE)
    assert not [name for name in moves if name.startswith(("nvidia", "libnvidia", "linux-"))]
    blacklist = lab.on("gpu-0", "apt-config dump Unattended-Upgrade::Package-Blacklist")
    assert '"^nvidia-.*$"' in blacklist
    assert '"^linux-image-.*$"' in blacklist
    assert "--persistence-mode" in lab.on("gpu-0", "systemctl show -P ExecStart nvidia-persistenced")


def test_a_restart_needs_permission(lab: DriverLab) -> None:
    nvidia, nvidia_facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NEWER))
    report = lab.probe("gpu-0", nvidia.items, nvidia_facts)
    assert f"its driver is {NOW}, the plan has {NEWER}" in str(report.drift[-1])
    amd, amd_facts = driver(lab, "gpu-1", "mi300x-8", with_amd(*AMD_NOW))
    report = lab.probe("gpu-1", amd.items, amd_facts)
    assert report.veto == ()
    assert "its ROCm is 6.4.3, the plan has 7.0.2" in str(report.drift)
    before = [installed(lab, name) for name in SERVING]
    refused = lab.plays(Play("gpu-0", ("nvidia_driver",)), Play("gpu-1", ("amd_driver",)))
    assert refused.returncode != 0
    assert "gpu-0 must be restarted for NVIDIA's driver" in refused.stdout
    assert "gpu-1 must be restarted for AMD's driver 6.14.14" in refused.stdout
    assert "fleet_reboot=true" in refused.stdout
    assert [installed(lab, name) for name in SERVING] == before, "nothing is touched without permission"


def test_a_host_whose_requests_do_not_end_in_time_is_not_touched_and_has_its_traffic_back(lab: DriverLab) -> None:
    """By the playbook for hosts without an instance of their plan: the gateway may give them requests all the same."""
    before = installed(lab, "gpu-0")
    groups = {"needs_nvidia_driver": ("gpu-0",), "needs_amd_driver": (), "idle": ("gpu-0",)}
    book = paths.root() / "playbooks" / "drivers.yml"
    # They end when the playbook has, and not after a time: a busy machine may need any.
    with Streams(pieces=100_000) as streams:
        try:
            done = lab.playbook(book, groups, "-e", "fleet_reboot=true", "-e", "gateway_traffic_drain_seconds=1")
            drift = lab.probe("gateway-0", (TRAFFIC,), {}).drift
        finally:
            for name in SERVING:
                lab.on(name, "touch /run/enough")
    for name in SERVING:
        lab.on(name, "rm /run/enough")
    assert drift == ()
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "gpu-0 was not touched and has its traffic: gateway-0: after 1 s requests are in flight still: " in said
    assert "raise gateway_traffic_drain_seconds" in said
    assert (streams.count["cut"], streams.count["failed"]) == (0, 0)
    assert streams.count["whole"] >= 8
    assert installed(lab, "gpu-0") == before, "neither packages nor the time of the start"


def refused(lab: DriverLab, recipes: Catalog) -> str:
    """What a role says that refuses, with the host as it was: packages, sources, pins, lists, instances and traffic."""
    look = "cd /etc/apt && find . /var/lib/apt/lists -type f | sort | xargs sha256sum; systemctl is-active vllm@0"
    before = installed(lab, "gpu-0") + lab.on("gpu-0", look)
    driver(lab, "gpu-0", "h100-8", recipes)
    done = lab.play("gpu-0", "nvidia_driver", arguments=("-e", "fleet_reboot=true"))
    assert done.returncode != 0
    assert installed(lab, "gpu-0") + lab.on("gpu-0", look) == before
    assert lab.probe("gateway-0", (TRAFFIC,), {}).drift == ()
    return " ".join(done.stdout.split())


def test_what_apt_could_not_do_is_refused_by_name_before_anything_is_changed(lab: DriverLab) -> None:
    """A version that is not there, a name that is virtual, a kernel, and packages that would be removed."""
    said = refused(lab, with_nvidia("580.1.1"))
    assert "gpu-0 is not changed: no repository has firmware-nvidia-gsp at version 580.1.1-1*, there is" in said
    assert "Packages come from nvidia-cuda" in said
    release = with_nvidia(NEWER).drivers.releases["nvidia-580"]
    old = [
        row.model_copy(update={"fabric_manager": {"nvidia-fabricmanager-580": f"{NEWER}-*"}})
        for row in release.packages
    ]
    said = refused(lab, _with(with_nvidia(NEWER), "nvidia-580", {"packages": old}))
    assert "no repository has a package nvidia-fabricmanager-580" in said
    said = refused(lab, with_nvidia(GREEDY))
    assert "apt would install the kernel packages linux-image-6.2.0-1-amd64" in said
    said = refused(lab, _with(with_nvidia(NEWER), "nvidia-580", {"dependencies": None}))
    assert "apt cannot install the packages" in said
    assert f"libnvidia-gpucomp (= {NEWER}-1ubuntu1)" in said


def test_a_package_of_somebody_else_is_not_removed(lab: DriverLab) -> None:
    lab.on(
        "gpu-0", f"apt-get remove -q -y --allow-change-held-packages {MODULE}; apt-get install -q -y somebodys-driver"
    )
    said = refused(lab, with_nvidia(NEWER))
    assert "gpu-0 is not changed: apt would remove somebodys-driver" in said
    lab.on("gpu-0", "apt-get purge -q -y somebodys-driver")


def test_drivers_and_a_release_are_rolled_out_batch_by_batch_without_losing_a_request(lab: DriverLab) -> None:
    """Both drivers go to the newer version; both hosts are restarted."""
    drivers = {
        "gpu-0": driver(lab, "gpu-0", "h100-8", with_nvidia(NEWER)),
        "gpu-1": driver(lab, "gpu-1", "mi300x-8", with_amd(*AMD_NOW)),
    }
    for name in SERVING:
        root = state.host_dir(driver_lab.BRIDGE, name) / "root"
        write_files(root, {"opt/vllm/engines/stand-in/bin/vllm": File(driver_lab.ENGINE, 0o755)})
        lab.on(name, "mkdir -p /var/lib/vllm")
        lab.variables[name] |= driver_lab.release(lab, name, "the first")
    roles = dict.fromkeys(("needs_vllm_firewall", "needs_vllm_service", "rollout"), SERVING)
    needs = {"needs_nvidia_driver": ("gpu-0",), "needs_amd_driver": ("gpu-1",), **roles}
    batches = {f"rollout_{number:04d}": (name,) for number, name in enumerate(SERVING)}
    groups = {**needs, **batches, "serving": SERVING, "idle": ()}
    before = [installed(lab, name).splitlines()[-1] for name in SERVING]
    book = paths.root() / "playbooks" / "rollout.yml"
    with Streams() as streams:
        done = lab.playbook(book, groups, "-e", "fleet_reboot=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (streams.count["cut"], streams.count["failed"]) == (0, 0)
    assert streams.count["whole"] > 8
    after = [installed(lab, name).splitlines()[-1] for name in SERVING]
    assert not set(before) & set(after), "each host was restarted"
    for name, (found, facts) in drivers.items():
        expect_clean(lab, name, found, facts)
    assert f"nvidia-smi {NEWER}-1ubuntu1 hold ok installed" in installed(lab, "gpu-0")
    found, facts = drivers["gpu-1"]
    assert lab.probe("gpu-1", found.items, facts).facts["mec_firmware"] == 185
    assert lab.on("gpu-1", "id -nG vllm").split()[1:] == ["video", "render"]
    assert "kernel.numa_balancing = 0" in lab.on("gpu-1", "cat /etc/sysctl.d/61-vllm-fleet-amd.conf")
    again = lab.playbook(book, groups, "-e", "fleet_reboot=true")
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout


def test_the_modules_are_there_before_an_instance_starts_after_a_reboot(lab: DriverLab) -> None:
    """In the order of a start: the unit loads them, then the instance starts. A stand-in creates the node in place of
    the kernel; the lab's cgroups do not enforce DeviceAllow, which needs the module."""
    lab.on("gpu-0", "rm -f /dev/nvidia-uvm")
    lab.on("gpu-0", "systemctl restart vllm@0")
    assert lab.on("gpu-0", "ls /dev/nvidia-uvm 2>/dev/null || echo none").strip() == "none", "an instance loads nothing"
    before = lab.on("gpu-0", "systemctl show -P UserspaceTimestamp")
    done = lab.playbook(REBOOT, {"gpus": ("gpu-0",)}, "-e", "fleet_reboot=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert lab.on("gpu-0", "systemctl show -P UserspaceTimestamp") != before
    lab.on("gpu-0", "systemctl start vllm@0; test -c /dev/nvidia-uvm")
    shown = "ExecMainExitTimestampMonotonic vllm-gpu-devices", "ExecMainStartTimestampMonotonic vllm@0"
    loaded, started = (int(lab.on("gpu-0", f"systemctl show -P {each}")) for each in shown)
    assert 0 < loaded <= started


def test_the_driver_of_an_image_is_held_and_not_replaced(lab: DriverLab) -> None:
    found, facts = driver(lab, "gpu-0", "h100-8", with_nvidia(NOW), mode="verified")
    lab.on("gpu-0", "apt-mark unhold nvidia-smi")
    report = lab.probe("gpu-0", found.items, facts)
    assert report.veto == ()
    assert [item.why for item in report.drift] == ["do not include nvidia-smi"]
    done = lab.play("gpu-0", "nvidia_driver")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nvidia-smi {NEWER}-1ubuntu1 hold ok installed" in installed(lab, "gpu-0")
    expect_clean(lab, "gpu-0", found, facts)
