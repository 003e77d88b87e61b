"""A host that serves from an image: real docker in a lab host, a real registry, an image that is built here."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.running_lab import Lab, folder_of
from lab import job
from lab.artifacts import image
from lab.registry import serving

FLEET = "imagetest"
HOST = "box-0"
UNIT = "vllm-docker@0.service"
#: A wheel's unit that runs before the pool becomes one of images; it stands in for a vLLM that serves.
OLD_UNIT = "# Made by vllm-fleet\n[Service]\nExecStart=/usr/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"


@dataclass(frozen=True)
class Boxes:
    """The lab and the storage of its registry."""

    lab: Lab
    storage: Path
    digest: str

    def plan(self, digest: str) -> None:
        """Writes another digest into the fleet."""
        path = self.lab.folder / "fleet.yml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(vllm-0.32.0-cpu: )\S+(?=})", rf'\1"{digest}"', text), encoding="utf-8")

    def on(self, command: str) -> str:
        """What a command says that succeeds on the host."""
        done = self.lab.on(HOST, command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def images(self) -> set[str]:
        """The digests that the host has."""
        return set(self.on('docker image ls --digests --no-trunc --format "{{.Digest}}"').split()) - {"<none>"}

    def unit(self, *names: str) -> list[str]:
        """Properties of the unit."""
        return self.on(f"systemctl show --value {' '.join('-p ' + name for name in names)} {UNIT}").split("\n")


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with folder_of(FLEET, "vf-image") as folder:
        # The cache stays as it is: what a test adds to the storage goes with the test.
        storage = folder.parent.parent / "storage"
        shutil.copytree(image.storage(), storage, copy_function=os.link)
        lab = Lab(folder, job.Endpoint("", "", ""))
        found = Boxes(lab, storage, image.digest(storage))
        found.plan(found.digest)
        job.stack_up(FLEET)
        lab.on(HOST, f'printf "{OLD_UNIT}" > /etc/systemd/system/vllm@.service; systemctl enable --now vllm@0')
        with serving(storage, "10.77.10.1:5000"):
            job.roll_out(FLEET)
            yield Boxes(Lab(folder, job.endpoint(FLEET)), storage, found.digest)


def test_the_image_serves(boxes: Boxes) -> None:
    job.show(boxes.lab.gateway)
    named = boxes.on('docker container inspect --format "{{.Config.Image}} {{.HostConfig.NetworkMode}}" vllm-0')
    assert named == f"10.77.10.1:5000/vllm-fleet/lab@{boxes.digest} host"
    assert boxes.on('docker image inspect --format "{{.RepoDigests}}" vllm-fleet/lab:deploy') == (
        f"[10.77.10.1:5000/vllm-fleet/lab@{boxes.digest}]"
    )


def test_a_unit_of_a_wheel_is_stopped_for_it(boxes: Boxes) -> None:
    said = boxes.lab.on(HOST, "systemctl is-active vllm@0; systemctl is-enabled vllm@0").stdout
    assert said.split() == ["inactive", "disabled"]


def test_vllm_is_no_root_and_reaches_no_docker(boxes: Boxes) -> None:
    script = "id -u; id -G; grep CapEff /proc/1/status; ls /run/docker.sock 2>&1; true"
    inside = boxes.on(f'docker exec vllm-0 sh -c "{script}"')
    user, groups, capabilities, socket = inside.split("\n")
    account = boxes.on("id -u vllm; getent group docker")
    assert user == account.split()[0]
    assert account.split(":")[2] not in groups.split()
    assert account.endswith(":"), "nobody is a member of the group docker"
    assert int(capabilities.split()[1], 16) == 0
    assert "No such file" in socket


def test_no_value_of_a_variable_is_in_the_list_of_processes(boxes: Boxes) -> None:
    seen = boxes.on("ps axww -o args")
    assert "--env=VLLM_CPU_KVCACHE_SPACE" in seen
    assert "VLLM_CPU_KVCACHE_SPACE=" not in seen


def test_a_second_run_changes_nothing(boxes: Boxes) -> None:
    for arguments in ((), ("-e", "fleet_probe=false")):
        done = boxes.lab.playbook(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(re.findall(r"changed=(\d+)", done.stdout)) == {"0"}, done.stdout
    assert boxes.lab.drift() == (0, {"fleet": FLEET, "hosts": 2, "drift": [], "unreachable": [], "vetoes": []})


def test_the_unit_is_hardened(boxes: Boxes) -> None:
    boxes.on(f"systemd-analyze security --no-pager --threshold=20 {UNIT}")


def test_a_restart_of_docker_ends_no_request(boxes: Boxes) -> None:
    before = boxes.unit("MainPID", "ActiveEnterTimestamp")
    boxes.on("systemctl restart docker")
    job.show(boxes.lab.gateway)
    assert boxes.unit("MainPID", "ActiveEnterTimestamp") == before


def test_a_digest_that_the_registry_does_not_keep_is_refused(boxes: Boxes) -> None:
    """The registry answers with another image than the one of that digest."""
    wrong = f"sha256:{hashlib.sha256(b'another').hexdigest()}"
    place = image.blob(boxes.storage, wrong)
    place.parent.mkdir(parents=True)
    shutil.copy(image.blob(boxes.storage, boxes.digest), place)
    image.link(boxes.storage, "_manifests/revisions", wrong)
    boxes.plan(wrong)
    done = boxes.lab.playbook()
    boxes.plan(boxes.digest)
    assert done.returncode != 0
    assert "TASK [vllm_image : Pull | Pull the image by its digest]" in done.stdout
    assert wrong not in boxes.images()
    assert boxes.unit("ActiveState") == ["active"]
    assert boxes.lab.drift()[0] == 0


def until(boxes: Boxes, container: str) -> str:
    """Waits until the host runs another container than that one."""
    for _ in range(120):
        now = boxes.lab.on(HOST, 'docker container inspect --format "{{.Id}}" vllm-0').stdout.strip()
        if now and now != container:
            return now
        time.sleep(0.5)
    pytest.fail("no other container was started")


def test_container_and_unit_end_together_and_start_again(boxes: Boxes) -> None:
    first = boxes.on('docker container inspect --format "{{.Id}}" vllm-0')
    boxes.on("docker kill vllm-0")
    second = until(boxes, first)
    boxes.on(f"systemctl kill --signal=KILL {UNIT}")
    third = until(boxes, second)
    boxes.on(f"systemctl stop {UNIT}")
    assert third not in boxes.on("docker container ls --all --no-trunc --quiet")


def test_another_digest_is_rolled_out_and_the_old_image_is_kept(boxes: Boxes) -> None:
    later = image.variant(boxes.storage, "later")
    boxes.plan(later)
    done = boxes.lab.playbook()
    assert done.returncode == 0, done.stdout + done.stderr
    job.show(boxes.lab.gateway)
    assert boxes.images() == {boxes.digest, later}
    assert boxes.on('docker container inspect --format "{{.Config.Image}}" vllm-0').endswith(later)
    assert boxes.on('docker image inspect --format "{{.RepoDigests}}" vllm-fleet/lab:deploy').endswith(f"{later}]")
    assert boxes.lab.drift()[0] == 0
