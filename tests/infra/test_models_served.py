"""Models that a host has already, or downloads from object storage: the lab's real model, on a lab host.

The fleet's own inventory and playbooks bring it there. The Hugging Face cache is made by huggingface_hub, the list of
digests by sha256sum, the mounts by systemd, the downloads by the program of the role, over HTTPS.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engine_host
import pytest
import yaml
from engine_host import ADDRESS, EngineHost
from hanging import HANGING_SECONDS

from lab.artifacts.encodings import encodings_dir
from vllm_fleet.base import paths

sys.path.insert(0, str(paths.root() / "tests"))
sys.path.insert(0, str(paths.root() / "tests" / "unit"))
import https_files
from stand_in_origin import Origin, serving

pytestmark = [pytest.mark.root, pytest.mark.network]

MODEL = "vllm-fleet/lab-gpt-oss"
FLEET = "models"
PLAYS = """
- ansible.builtin.import_playbook: {root}/playbooks/probe.yml
- ansible.builtin.import_playbook: {root}/playbooks/prepare-hosts.yml
- name: Wait for models
  hosts: needs_model_store
  become: true
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: model_store
        tasks_from: await
"""


@dataclass(frozen=True)
class Fleet:
    """A fleet of one host, whose model has another source in each test."""

    folder: Path
    host: EngineHost
    environment: dict[str, str]

    def source(self, **source: Any) -> None:
        """Gives the model a source."""
        file = self.folder / "fleet.yml"
        spec = yaml.safe_load(file.read_text())
        spec["artifacts"]["models"] = {MODEL: source}
        file.write_text(yaml.safe_dump(spec))

    def run(self, playbook: str = "") -> tuple[int, str]:
        """Runs a playbook; without one, prepares the host where it differs, and waits for the model."""
        (self.folder / "plays.yml").write_text(PLAYS.format(root=paths.root()))
        done = subprocess.run(
            ["ansible-playbook", "-i", self.folder / "fleet.yml", playbook or self.folder / "plays.yml"],
            cwd=paths.root(),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def drift(self) -> list[dict[str, str]]:
        """What differs of the role model_store."""
        done = subprocess.run(
            [sys.executable, "-m", "vllm_fleet", "drift", "--fleet", FLEET, "--json"],
            cwd=paths.root(),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )
        return [item for item in json.loads(done.stdout)["drift"] if item["role"] == "model_store"]

    def model_directory(self) -> str:
        """The folder that vLLM is given."""
        done = subprocess.run(
            ["ansible-inventory", "-i", self.folder / "fleet.yml", "--host", "gpu-0"],
            cwd=paths.root(),
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return str(json.loads(done.stdout)["model_store_models"][0]["directory"])


def lab_model() -> Path:
    found = (paths.cache_dir() / "lab-model" / "current").resolve()
    assert (found / "model.safetensors").is_file(), "run 'make setup'"
    return found


def model_names() -> list[str]:
    return sorted(json.loads((lab_model() / "model.json").read_text())["files"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    base = tmp_path_factory.mktemp("models")
    with (paths.cache_dir() / "test-wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine_host.made(base) as host:
            folder = base / "inventories" / FLEET
            folder.mkdir(parents=True)
            key = (base / "known_hosts").read_text().split(" ", 1)[1].strip()
            spec = {
                "fleet": FLEET,
                "defaults": {"model": MODEL},
                "pools": {
                    "gpu": {
                        "host_class": "cpu-2",
                        "cloud": "static",
                        "static": {"gpu-0": {"address": ADDRESS, "user": "deploy", "ssh_host_key": key}},
                    }
                },
                "access": {"ssh_private_key_file": str(base / "id_ed25519")},
                "artifacts": {"encodings": str(encodings_dir())},
            }
            (folder / "fleet.yml").write_text(yaml.safe_dump(spec))
            sums = subprocess.run(
                ["sha256sum", *model_names()], cwd=lab_model(), capture_output=True, text=True, check=True
            )
            (folder / "sums.txt").write_text(sums.stdout)
            environment = {
                **os.environ,
                "VLLM_FLEET_INVENTORIES": str(base / "inventories"),
                "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
            }
            yield Fleet(folder, host, environment)


def place(fleet: Fleet, path: str) -> Path:
    """A copy of the lab's model on the host, owned by root."""
    folder = fleet.host.root / path.lstrip("/")
    shutil.copytree(lab_model(), folder)
    return folder


def copied_bytes(fleet: Fleet) -> int:
    """What is in the host's own store."""
    return int(fleet.host.on("du -sb --exclude=.requests /var/lib/vllm/models | cut -f1").stdout or 0)


def flip(fleet: Fleet, path: str) -> None:
    """Changes one byte, and hides it: the size and the time stay."""
    words = f"touch -r {path} /tmp/when; printf x | dd of={path} conv=notrunc bs=1 seek=777 2>/dev/null"
    assert fleet.host.on(f"{words}; touch -r /tmp/when {path}").returncode == 0


def assert_adopted(fleet: Fleet, source: str, before: int) -> None:
    """The model is served from the folder itself, read-only, and a second run changes nothing."""
    code, said = fleet.run()
    assert code == 0, said[-6000:]
    assert fleet.drift() == []
    directory = fleet.model_directory()
    same = f"stat -L -c '%d:%i' {source}/model.safetensors {directory}/model.safetensors | sort -u | wc -l"
    assert fleet.host.on(same).stdout.strip() == "1"
    assert copied_bytes(fleet) - before < 1 << 20
    assert "Read-only" in fleet.host.on(f"touch {directory}/new").stderr
    reads = fleet.host.on(f"runuser -u vllm -- cat {directory}/config.json")
    assert json.loads(reads.stdout)["model_type"] == "gpt_oss"
    _, again = fleet.run()
    assert "changed=0" in again, again[-3000:]
    # In the namespace of the unit too, which has no /home and no /root.
    seen = fleet.host.on(
        "systemd-run --quiet --pipe --wait -p User=vllm -p ProtectHome=yes -p ProtectSystem=strict -p PrivateMounts=yes"
        f" cat {directory}/config.json"
    )
    assert json.loads(seen.stdout)["model_type"] == "gpt_oss", seen.stderr


def assert_a_changed_byte_is_found(fleet: Fleet, path: str) -> None:
    flip(fleet, path)
    assert [item["state"] for item in fleet.drift()] == ["file_changed"]
    code, said = fleet.run()
    assert code == 2, said[-3000:]
    assert "has the SHA-256" in said, said[-4000:]


def test_a_folder_below_a_closed_home_is_served_where_it_is(fleet: Fleet) -> None:
    folder = place(fleet, "/root/models/lab")
    before = copied_bytes(fleet)
    fleet.source(on_host="/root/models/lab", digests="sums.txt")
    assert_adopted(fleet, "/root/models/lab", before)
    assert_a_changed_byte_is_found(fleet, "/root/models/lab/model.safetensors")
    shutil.copy(lab_model() / "model.safetensors", folder / "model.safetensors")
    code, said = fleet.run()
    assert code == 0, said[-3000:]
    assert fleet.drift() == []


def fill_cache(fleet: Fleet, path: str, tmp_path: Path) -> str:
    """Lets huggingface_hub fill a cache on the host; the commit."""
    revision = str(json.loads((lab_model() / "model.json").read_text())["revision"])
    bodies = {name: (lab_model() / name).read_bytes() for name in model_names()}
    cache = fleet.host.root / path.lstrip("/")
    with serving(Origin(models={MODEL: {revision: bodies}})) as origin:
        code = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], revision=sys.argv[2], "
        code += "cache_dir=sys.argv[3])"
        environment = {**os.environ, "HF_ENDPOINT": origin.url, "HF_HOME": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code, MODEL, revision, cache], env=environment, check=True)
    return revision


def test_a_hugging_face_cache_is_served_where_it_is(fleet: Fleet, tmp_path: Path) -> None:
    revision = fill_cache(fleet, "/data/hf/hub", tmp_path)
    snapshot = f"/data/hf/hub/models--vllm-fleet--lab-gpt-oss/snapshots/{revision}"
    assert fleet.host.on(f"readlink {snapshot}/config.json").stdout.startswith("../../blobs/")
    before = copied_bytes(fleet)
    fleet.source(huggingface_cache="/data/hf", digests="sums.txt", revision=revision)
    code_of_run, said = fleet.run()
    assert code_of_run == 2
    assert "for HF_HOME, its folder hub" in said
    fleet.source(huggingface_cache="/data/hf/hub", digests="sums.txt", revision=revision)
    assert_adopted(fleet, snapshot, before)
    blob = fleet.host.on(f"readlink -f {snapshot}/model.safetensors").stdout.strip()
    assert_a_changed_byte_is_found(fleet, blob)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("chmod o+w {0}", "every account may write"),
        ("chmod 600 {0}/config.json", "cannot read"),
    ],
)
def test_what_is_not_safe_is_refused_before_anything_is_changed(fleet: Fleet, damage: str, message: str) -> None:
    fleet.host.on("rm -rf /data/bad /data/there")
    folder = "/data/bad"
    place(fleet, folder)
    fleet.source(on_host=folder, digests="sums.txt")
    assert fleet.host.on(damage.format(folder)).returncode == 0
    mounts = fleet.host.on("ls /etc/systemd/system").stdout
    code, said = fleet.run()
    assert code == 2
    assert message.format(folder) in said, said[-3000:]
    assert fleet.host.on("ls /etc/systemd/system").stdout == mounts


def test_a_mount_point_that_is_not_mounted_is_named(fleet: Fleet) -> None:
    fleet.host.on("mkdir -p /mnt/nfs/lab")
    fleet.source(on_host="/mnt/nfs/lab", mount="/mnt/nfs", digests="sums.txt")
    code, said = fleet.run()
    assert code == 2
    assert "/mnt/nfs is not mounted" in said


def test_a_model_is_downloaded_over_https_from_object_storage(fleet: Fleet, tmp_path: Path) -> None:
    served = tmp_path / "bucket"
    shutil.copytree(lab_model(), served / "lab")
    with contextlib.ExitStack() as stack:
        url, ca = stack.enter_context(https_files.serving(served, fleet.host.gateway, tmp_path))
        (fleet.folder / "ca.pem").write_text(ca)
        fleet.source(url=f"{url}/lab", digests="sums.txt")
        code, said = fleet.run()
        assert code == 2
        assert "ca_file" in said
        fleet.source(url=f"{url}/lab/", digests="sums.txt", ca_file="ca.pem")
        code, said = fleet.run()
        assert code == 0, said[-5000:]
        assert fleet.drift() == []
        _, again = fleet.run()
        assert "changed=0" in again
        fleet.host.on(f"printf x | dd of={fleet.model_directory()}/config.json conv=notrunc bs=1 seek=3")
        (served / "lab" / "config.json").write_text("{}")
        code, said = fleet.run()
        assert code == 2
        assert "has the SHA-256" in said, said[-4000:]


def test_vllm_serves_from_a_hugging_face_cache_below_a_closed_home(fleet: Fleet, tmp_path: Path) -> None:
    """The real engine in the real unit: the run ends well only after a completion of one token."""
    revision = fill_cache(fleet, "/home/ops/hf/hub", tmp_path)
    assert fleet.host.on("chmod 700 /home/ops").returncode == 0
    before = copied_bytes(fleet)
    fleet.source(huggingface_cache="/home/ops/hf/hub", digests="sums.txt", revision=revision)
    code, said = fleet.run("site.yml")
    assert code == 0, said[-6000:]
    assert copied_bytes(fleet) - before < 1 << 20
