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


def test_bare_hosts_serve_after_one_run(amd: Amd) -> None:
    assert amd.drift()[0] == 3
    # In one batch, which is quicker than one after the other.
    said = amd.site("-e", "fleet_rollout_batch=100%")
    marks = ("TASK [amd_driver : ", "TASK [vllm_image : ", "TASK [vllm_service : ")
    places = [said.index(mark) for mark in marks]
    assert places == sorted(places), "what a GPU says of itself decides what its engine gets"
    assert amd.drift() == (0, {"fleet": FLEET, "hosts": 3, "drift": []})


def test_the_gateway_answers_from_both(amd: Amd) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "1"}]}
    answers = {json.dumps(ask("/v1/chat/completions", body)) for _ in range(20)}
    assert answers == {json.dumps({"choices": [{"text": name}]}) for name in GPUS}


def test_the_driver_is_the_one_of_the_recipe_and_stays(amd: Amd, catalog: Catalog) -> None:
    release = catalog.drivers.releases[RELEASE]
    for name in GPUS:
        assert f'"{release.version}"' in amd.on(name, "/opt/rocm/bin/rocm-smi --showdriverversion --json")
        held = amd.on(name, "apt-mark showhold").split()
        assert set(release.packages) <= set(held)
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
    assert "/dev/kfd" in said
    assert "Start request repeated too quickly" in said
    assert "vllm_service" in {item["role"] for item in amd.drift()[1]["drift"]}
    amd.site()
    assert amd.drift()[0] == 0
