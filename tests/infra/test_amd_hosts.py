"""Two bare hosts with AMD GPUs go through the whole site.yml and serve from images behind the gateway.

All that the project brings is the real thing: driver roles, docker, units, HAProxy, firewall, probe. AMD's packages and
tools are stand-ins (lab/gpu), their device nodes are /dev/null, and vLLM for ROCm is the small image of amd_lab.py.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from amd_lab import (
    ADDRESSES,
    BRIDGE,
    ENGINES,
    FLEET,
    GATEWAY,
    GPUS,
    INSTINCT,
    KERNEL,
    KEY,
    MODEL,
    RADEON,
    REGISTRY,
    RELEASE,
    Amd,
    boot,
    store,
    write_fleet,
)
from host_snapshot import SNAPSHOT, docker_ce

from lab import cleanup
from lab import registry as lab_registry
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog

pytestmark = [pytest.mark.root, pytest.mark.network]


@pytest.fixture(scope="module")
def amd(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[Amd]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-amd.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A killed run may have left its hosts, and what they have said of themselves.
        cleanup.down(BRIDGE)
        shutil.rmtree(paths.run_dir(FLEET), ignore_errors=True)
        folder = tmp_path_factory.mktemp("amd")
        try:
            hosts = boot(folder, catalog)
            digests = store(folder, catalog)
            write_fleet(folder, hosts, digests, catalog)
            with lab_registry.serving(folder / "storage", REGISTRY):
                yield Amd(folder, digests)
        finally:
            cleanup.down(BRIDGE)
            shutil.rmtree(paths.run_dir(FLEET), ignore_errors=True)


def ask(path: str, body: Any) -> Any:
    """What the gateway answers; the code of a refusal."""
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = Request(f"http://{ADDRESSES[GATEWAY]}:8080{path}", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except HTTPError as refusal:
        return refusal.code


def test_what_is_somebody_elses_is_named_before_anything_changes(amd: Amd) -> None:
    """Every conflict of a host in one run, and none of them is touched."""
    amd.on(INSTINCT, docker_ce(), seconds=500)
    amd.on(
        RADEON,
        "systemd-run -q --unit=shop python3 -m http.server 8000; useradd -m vllm; mkdir -p /opt/vllm/venv;"
        "printf '[Service]\nExecStart=/bin/true\n' > /etc/systemd/system/vllm@.service;"
        "mkdir -p /etc/docker; echo '{\"live-restore\": false}' > /etc/docker/daemon.json",
    )
    amd.on(GATEWAY, "mkdir -p /etc/haproxy; echo '# of the shop' > /etc/haproxy/haproxy.cfg")
    before = {name: amd.on(name, SNAPSHOT) for name in ADDRESSES}
    done = amd.run("ansible-playbook", "-i", str(amd.folder / FLEET / "fleet.yml"), "site.yml")
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    code, found = amd.drift()
    assert code == 2
    messages = sorted(f"{veto['host']}: {veto['why']}" for veto in found["vetoes"])
    for host, part in (
        (RADEON, "port 8000 is used by python3 (process "),
        (RADEON, ", shop.service)"),
        (RADEON, "the account vllm exists and vllm-fleet did not make it"),
        (RADEON, "/etc/systemd/system/vllm@.service exists and vllm-fleet did not make it"),
        (RADEON, "/opt/vllm contains files that vllm-fleet did not make (venv)"),
        (RADEON, "/etc/docker/daemon.json has another live-restore"),
        (GATEWAY, "/etc/haproxy/haproxy.cfg exists and vllm-fleet did not make it"),
    ):
        assert [text for text in messages if text.startswith(f"{host}: ") and part in text], (part, messages)
        assert part in said
    assert not [text for text in messages if text.startswith(INSTINCT)], "its docker-ce can be used"
    assert {name: amd.on(name, SNAPSHOT) for name in ADDRESSES} == before
    amd.on(
        RADEON,
        "systemctl stop shop; userdel -r vllm 2>/dev/null; rm -r /opt/vllm/venv /etc/systemd/system/vllm@.service;"
        "rmdir /opt/vllm; rm -r /etc/docker",
    )
    amd.on(GATEWAY, "rm -r /etc/haproxy")


@pytest.fixture(scope="module")
def snapshots(amd: Amd) -> dict[str, set[str]]:
    """What is on each host before the first run, for the tests of hosts that leave."""
    return {name: set(amd.on(name, SNAPSHOT).splitlines()) for name in ADDRESSES}


def test_bare_hosts_serve_after_one_run(amd: Amd, snapshots: dict[str, set[str]]) -> None:
    assert amd.drift()[0] == 3
    said = amd.site()
    marks = ("TASK [amd_driver : ", "TASK [vllm_image : ", "TASK [vllm_service : ")
    places = [said.index(mark) for mark in marks]
    assert places == sorted(places), "what a GPU says of itself decides what its engine gets"
    assert amd.drift() == (0, {"fleet": FLEET, "hosts": 3, "drift": [], "unreachable": [], "vetoes": []})


def test_the_gateway_answers_from_both(amd: Amd) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "1"}]}
    answers = {json.dumps(ask("/v1/chat/completions", body)) for _ in range(20)}
    assert answers == {json.dumps({"choices": [{"text": name}]}) for name in GPUS}


def test_the_driver_is_the_one_of_the_recipe_and_stays(amd: Amd, catalog: Catalog) -> None:
    release = catalog.drivers.releases[RELEASE]
    entry = release.packages_for("debian-12")
    for name in GPUS:
        assert f'"{release.version}"' in amd.on(name, "/opt/rocm/bin/rocm-smi --showdriverversion --json")
        held = amd.on(name, "apt-mark showhold").split()
        assert set(entry.packages) <= set(held)
        assert set(KERNEL) & set(held) == (set(KERNEL) if name == INSTINCT else set())


@pytest.mark.parametrize("name", GPUS)
def test_the_engine_reaches_the_devices_and_nothing_else(amd: Amd, name: str) -> None:
    seen = amd.seen(name)
    assert seen["devices"] == ["/dev/kfd", "/dev/dri/renderD128"]
    account = amd.on(name, "id -u vllm; id -g vllm; getent group video render docker | cut -d: -f3").split()
    user, group, video, render, docker = (int(word) for word in account)
    assert seen["uid"] == user
    # By number: the image has other groups of these names, and the option of the guides names one of them.
    assert {group, video, render, 940} <= set(seen["groups"])
    assert docker not in seen["groups"]
    assert (int(seen["rights"], 16), seen["socket"]) == (0, False)


@pytest.mark.parametrize("name", GPUS)
def test_the_container_is_run_as_the_recipe_says(amd: Amd, catalog: Catalog, name: str) -> None:
    install = catalog.engines[ENGINES[name]].docker
    assert install
    shown = json.loads(amd.on(name, "docker container inspect vllm-0"))[0]
    assert shown["Config"]["Image"] == f"{REGISTRY}/{install.image}@{amd.digests[ENGINES[name]]}"
    given = shown["HostConfig"]
    assert (given["IpcMode"], given["NetworkMode"], given["CapDrop"]) == ("host", "host", ["ALL"])
    assert given["CapAdd"] == ["SYS_PTRACE"]
    assert {"seccomp=unconfined", "no-new-privileges"} <= set(given["SecurityOpt"])
    environment = amd.seen(name)["environment"]
    assert environment["VLLM_ROCM_USE_AITER"] == "1"
    # The recipe of the second one has it for as long as nothing is known of the firmware, as before the driver came.
    assert "HSA_NO_SCRATCH_RECLAIM" not in environment


def test_a_second_run_changes_nothing(amd: Amd) -> None:
    """Nor does one that leaves nothing to the probe and runs every role of a host."""
    for arguments in ((), ("-e", "fleet_probe=false", "--limit", INSTINCT)):
        said = amd.site(*arguments)
        assert set(re.findall(r"changed=(\d+)", said)) == {"0"}, said


def test_a_release_that_could_not_start_does_not_keep_the_next_run_from_starting_one(amd: Amd) -> None:
    """Its devices are away until systemd starts the unit no more, as with a driver that is not loaded."""
    away = "mv /dev/kfd /dev/kfd-away; for _ in 1 2 3 4 5 6; do systemctl restart vllm-docker@0; done"
    said = amd.on(RADEON, f"({away}) 2>&1; mv /dev/kfd-away /dev/kfd; journalctl --no-pager -o cat -u vllm-docker@0")
    # What docker says stands in the journal of the unit that failed, not of the one that ran docker.
    assert "/dev/kfd" in said
    assert "Start request repeated too quickly" in said
    assert "vllm_service" in {item["role"] for item in amd.drift()[1]["drift"]}
    amd.site()
    assert amd.drift()[0] == 0


def test_the_docker_of_somebody_else_is_used(amd: Amd) -> None:
    """docker-ce stays, its daemon was not restarted, and its settings are those of before with ours."""
    assert amd.on(INSTINCT, "dpkg-query -W -f '${db:Status-Status}' docker-ce") == "installed"
    docker_io = amd.on(INSTINCT, "dpkg-query -W -f '${db:Status-Status}' docker.io 2>/dev/null || true")
    assert docker_io in ("", "not-installed")
    settings = json.loads(amd.on(INSTINCT, "cat /etc/docker/daemon.json"))
    assert settings == {
        "labels": ["owner=shop"],
        "insecure-registries": ["shop.example:80", REGISTRY],
        "live-restore": True,
    }
    assert amd.on(INSTINCT, "stat -c %a /etc/docker/daemon.json") == "640"
    assert amd.on(INSTINCT, "docker info --format '{{.LiveRestoreEnabled}}'") == "true"
    assert "Reloaded configuration" in amd.on(INSTINCT, "journalctl --no-pager -o cat -u docker")


@pytest.mark.parametrize("name", GPUS)
def test_no_program_that_listens_may_use_docker(amd: Amd, name: str) -> None:
    """The unit that listens runs as vllm without the group docker; the program of root has no network."""
    script = "for unit in vllm-docker@0 vllm-container@0; do systemctl show --value -p MainPID $unit; done"
    outer, inner = amd.on(name, script).split()
    docker = amd.on(name, "getent group docker | cut -d: -f3")
    status = amd.on(name, f"grep -E '^(Uid|Groups|CapEff)' /proc/{outer}/status /proc/{inner}/status")
    rows = {tuple(line.split(":", 2)[:2]): line.split(":", 2)[2].split() for line in status.splitlines()}
    assert rows[(f"/proc/{outer}/status", "Uid")][0] == amd.on(name, "id -u vllm")
    assert docker not in rows[(f"/proc/{outer}/status", "Groups")]
    assert rows[(f"/proc/{inner}/status", "Uid")][0] == "0"
    assert rows[(f"/proc/{inner}/status", "CapEff")] == ["0000000000000000"]
    assert amd.on(name, f"readlink /proc/{inner}/ns/net") != amd.on(name, "readlink /proc/1/ns/net")
    denied = "setpriv --reuid=vllm --regid=vllm --init-groups docker ps > /dev/null 2>&1 && echo may || echo may not"
    assert amd.on(name, denied) == "may not"


def test_a_stopped_unit_leaves_no_container(amd: Amd) -> None:
    amd.on(RADEON, "systemctl stop vllm-docker@0")
    assert amd.on(RADEON, "docker ps -aq --filter name=vllm-0") == ""
    amd.on(RADEON, "systemctl start vllm-docker@0")
    assert amd.drift()[0] == 0


def left_behind(amd: Amd, name: str, before: set[str]) -> tuple[set[str], set[str]]:
    """What a host has more and less than before."""
    now = set(amd.on(name, SNAPSHOT).splitlines())
    return now - before, before - now


def leave(amd: Amd, *arguments: str) -> tuple[int, Any]:
    done = amd.run("vllm-fleet", "leave", "--fleet", FLEET, "--json", *arguments)
    return done.returncode, json.loads(done.stdout)


def test_leaving_needs_a_word_and_a_check_changes_nothing(amd: Amd) -> None:
    before = amd.on(INSTINCT, SNAPSHOT)
    assert leave(amd, INSTINCT)[0] == 2
    code, found = leave(amd, INSTINCT, "--check")
    assert code == 0
    assert {"/opt/vllm", "account vllm", "container vllm-0", "nftables table inet vllm_fleet"} <= set(found["removed"])
    assert amd.on(INSTINCT, SNAPSHOT) == before
    assert amd.drift()[0] == 0


def test_a_host_that_leaves_keeps_what_it_had(amd: Amd, snapshots: dict[str, set[str]]) -> None:
    """Files, accounts, units, tables, holds and packages are those of before, but for the packages that stay."""
    code, found = leave(amd, INSTINCT, "--yes")
    assert code == 0, found
    more, less = left_behind(amd, INSTINCT, snapshots[INSTINCT])
    assert less == set()
    packages = next(row["what"] for row in found["kept"] if row["what"].startswith("packages "))
    assert "docker" not in packages
    assert not {line for line in more if "vllm" in line}
    assert json.loads(amd.on(INSTINCT, "cat /etc/docker/daemon.json")) == {
        "labels": ["owner=shop"],
        "insecure-registries": ["shop.example:80"],
    }
    assert amd.on(INSTINCT, "systemctl is-active docker") == "active"
    assert leave(amd, INSTINCT, "--yes")[1]["removed"] == []


def test_packages_that_apt_would_remove_are_named(amd: Amd) -> None:
    """Docker's containerd alone, as on a node of Kubernetes: Debian's docker would remove it."""
    amd.on(INSTINCT, "DEBIAN_FRONTEND=noninteractive apt-get -qq -y purge docker-ce docker-ce-cli > /dev/null 2>&1")
    before = amd.on(INSTINCT, SNAPSHOT)
    code, found = amd.drift()
    assert code == 2
    said = [veto["why"] for veto in found["vetoes"] if veto["host"] == INSTINCT]
    assert any("to install docker.io, apt would remove containerd.io" in text for text in said), found
    assert amd.on(INSTINCT, SNAPSHOT) == before


def test_with_packages_nothing_is_left(amd: Amd, snapshots: dict[str, set[str]]) -> None:
    """A run that was interrupted half way is completed."""
    amd.on(RADEON, "systemctl stop vllm-docker@0; rm -r /opt/vllm/releases /etc/apt/apt.conf.d/60-vllm-fleet")
    code, found = leave(amd, RADEON, "--yes", "--packages")
    assert code == 0, found
    more, less = left_behind(amd, RADEON, snapshots[RADEON])
    assert (more, less) == (set(), set())


def test_a_gateway_leaves_too(amd: Amd, snapshots: dict[str, set[str]]) -> None:
    code, found = leave(amd, GATEWAY, "--yes", "--packages")
    assert code == 0, found
    assert left_behind(amd, GATEWAY, snapshots[GATEWAY]) == (set(), set())
