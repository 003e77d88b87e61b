"""Hosts that reach nothing but their mirror get docker and the engine's image from it, with the origin shut down."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml
from mirror_lab import COMMIT, MODEL, Hosts, Project, boot, project

from lab import cleanup
from lab import registry as lab_registry
from lab.artifacts import image
from vllm_fleet.base import paths

sys.path.insert(0, str(paths.root() / "tests" / "unit"))
from stand_in_origin import Origin, serving

pytestmark = [pytest.mark.root, pytest.mark.network]

BRIDGE = "vf-mirimg"
SUBNET = "10.79.252"
MIRROR, *SERVING = NAMES = ["mirror-0", "h0"]
ORIGIN = "127.0.0.1:5983"
ROLES = {"mirror", "container_engine", "vllm_image"}
PLAYS = [f"playbooks/{name}.yml" for name in ("probe", "mirror", "prepare-hosts", "prepare-engines")]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-mirror-images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A killed run may have left its hosts.
        cleanup.down(BRIDGE)
        try:
            yield boot(BRIDGE, SUBNET, NAMES, tmp_path_factory.mktemp("owner"), SERVING)
        finally:
            cleanup.down(BRIDGE)


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The storage of the image's origin, and its digest."""
    folder = tmp_path_factory.mktemp("image")
    for name in ("storage", "content"):
        (folder / name).mkdir()
    (folder / "content" / "data").write_bytes(os.urandom(8 << 20))
    layer, inside = image.add_layer(folder / "storage", folder / "content", ())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [inside]},
        "history": [{"created_by": "test"}],
    }
    yield folder / "storage", image.add_image(folder / "storage", config, [layer])


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts, digest: tuple[Path, str]) -> Iterator[Project]:
    base = tmp_path_factory.mktemp("mirrored")
    files = {"config.json": b"{}", "model.safetensors": os.urandom(1 << 20)}
    with serving(Origin(models={MODEL: {COMMIT: files}})) as hub:
        found = project(base / "project", base / "cache", hosts, {}, hub.url)
        spec = yaml.safe_load((found.fleet / "fleet.yml").read_text())
        spec["pools"]["lab"]["install"] = "docker"
        spec["artifacts"]["images"] = {"vllm-0.32.0-cpu": digest[1]}
        spec["mirror"] |= {"registry": ORIGIN, "registry_port": 5000}
        (found.fleet / "fleet.yml").write_text(yaml.safe_dump(spec))
        with lab_registry.serving(digest[0], ORIGIN):
            done = found.mirror()
            assert done["fetched_bytes"] == done["bytes"]
    # From here on neither the hub nor the registry answers.
    yield found


def drift(copy: Project) -> set[str]:
    """The roles of this test that own anything that is not as planned."""
    words = [sys.executable, "-m", "vllm_fleet", "drift", "--fleet", copy.fleet.name, "--json"]
    return {item["role"] for item in json.loads(copy.run(*words).stdout)["drift"]} & ROLES


def test_every_host_gets_docker_and_the_image_from_the_mirror(
    hosts: Hosts, copy: Project, digest: tuple[Path, str]
) -> None:
    assert drift(copy) == ROLES
    copy.playbooks(*PLAYS)
    assert drift(copy) == set()
    key = copy.fleet / "ssh" / "id_ed25519"
    wanted = f"{hosts.addresses[MIRROR]}:5000/{image.NAME}@{digest[1]}"
    for name in SERVING:
        said = hosts.on(name, f"docker image inspect {wanted}", key)
        assert wanted in said.stdout, said.stdout + said.stderr


def test_a_second_run_changes_nothing(copy: Project) -> None:
    said = copy.playbooks(*PLAYS[:2], "-e", "fleet_probe=false", "--limit", MIRROR)
    assert "changed=0" in said.rsplit("PLAY RECAP", 1)[-1]


def test_the_registry_listens_for_the_hosts_alone_and_takes_nothing(hosts: Hosts, copy: Project) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    listening = hosts.on(MIRROR, "ss -Hltn sport = :5000", key).stdout.split()
    assert listening[3] == f"{hosts.addresses[MIRROR]}:5000"
    request = Request(f"http://{hosts.addresses[MIRROR]}:5000/v2/x/blobs/uploads/", method="POST")
    with pytest.raises(HTTPError, match="405"):
        urlopen(request, timeout=10)
    user = hosts.on(MIRROR, "systemctl show --value -p User docker-registry; systemctl is-enabled docker-registry", key)
    assert user.stdout.split() == ["docker-registry", "enabled"]


def test_a_layer_that_was_changed_on_the_mirror_is_carried_again(
    hosts: Hosts, copy: Project, digest: tuple[Path, str]
) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    damage = (
        "set -- $(find /srv/vllm-fleet-mirror/images -name data -size +1M); printf x | dd of=$1 conv=notrunc seek=9"
    )
    assert hosts.on(MIRROR, damage, key).returncode == 0
    assert drift(copy) == {"mirror"}
    copy.playbooks(*PLAYS[:2])
    assert drift(copy) == set()
