"""The roles container_engine and vllm_image on a real host with real docker and a real registry; no vLLM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import one_run
import pytest
import yaml
from hanging import HANGING_SECONDS

from lab import apt, cleanup, host, network, web
from lab.artifacts import image
from lab.registry import serving
from lab.rootfs import File
from lab.spec import HostSpec, NetworkSpec
from lab.tree import tree_digest
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host import container
from vllm_fleet.host.apt_repositories import ANY_SYSTEM, Repository
from vllm_fleet.schema.driver import AptSource
from vllm_fleet.schema.recipe import DockerInstall

pytestmark = [pytest.mark.root, pytest.mark.network]

BRIDGE = f"vfi{os.getpid() % 1_000_000}"
ADDRESS = "10.79.62.11"
REGISTRY = "10.79.62.1:5000"
#: Stands in for the toolkit, which needs a driver: it writes a CDI file that names no device.
TOOLKIT = """\
#!/bin/sh
[ "$1 $2" = "cdi generate" ] || exit 1
mkdir -p /etc/cdi
echo '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": []}' > "${3#--output=}"
"""


class Play(NamedTuple):
    """Roles for an image on the host, which the run knows under that name."""

    image: container.Image
    roles: tuple[str, ...] = ("container_engine", "vllm_image")
    name: str = "box"


@dataclass(frozen=True)
class Box:
    """A host, a registry, and the digests of two builds of one image and of one for another machine."""

    folder: Path
    storage: Path
    first: str
    second: str
    arm: str

    def on(self, command: str, check: bool = True) -> str:
        """What a command says on the host."""
        options = (
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "ConnectTimeout=10",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}",
        )
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-i", str(self.folder / "login")),
                *(word for option in options for word in ("-o", option)),
                *(f"root@{ADDRESS}", command),
            ],
            check=check,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        ).stdout.strip()

    def image(self, digest: str, toolkit: container.Toolkit | None = None) -> container.Image:
        """What the plan would make of such an image, on a host with NVIDIA GPUs where it has a toolkit for them."""
        vendor = "nvidia" if toolkit else "cpu"
        install = DockerInstall(image=image.NAME, tag="1", digest=digest, options=["--ipc=host"], serves=False)
        return container.Image(install, "x86_64", vendor, container.Registry(REGISTRY), toolkit)

    def play(self, *plays: Play) -> tuple[int, dict[str, dict[str, int]], str]:
        """Exit code, counts by name and output of one run of the plays; one that fails does not stop the others."""
        reached = {
            "ansible_host": ADDRESS,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.folder / "login"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.folder / 'known_hosts'}",
        }
        hosts = {each.name: {**reached, **container.image_variables(each.image)} for each in plays}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}, sort_keys=False))
        book = [one_run.play({each.name: each.roles for each in plays}, become=False)]
        (self.folder / "play.yml").write_text(yaml.safe_dump(book))
        done = subprocess.run(
            ["ansible-playbook", "-i", self.folder / "hosts.yml", self.folder / "play.yml", *one_run.ARGUMENTS],
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg"),
                "ANSIBLE_ROLES_PATH": str(paths.root() / "roles"),
                "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGING_SECONDS,
        )
        return done.returncode, one_run.counts(done.stdout), done.stdout + done.stderr

    def digests(self) -> set[str]:
        """The images that the host has."""
        return set(self.on('docker image ls --digests --no-trunc --format "{{.Digest}}"').split()) - {"<none>"}


def key(folder: Path, name: str) -> tuple[str, str]:
    """A new SSH key: private and public."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    public = path.with_suffix(".pub").read_text(encoding="utf-8").split()
    return path.read_text(encoding="utf-8"), " ".join(public[:2])


def store(folder: Path) -> tuple[str, str, str]:
    """A storage with small images: an empty file system is enough to be pulled."""
    layer, content = image.add_layer(folder, folder.parent / "nothing", ())
    found = []
    for architecture, build in (("amd64", "1"), ("amd64", "2"), ("arm64", "1")):
        config: dict[str, Any] = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Labels": {"build": build}},
            "rootfs": {"type": "layers", "diff_ids": [content]},
            "history": [{"created_by": "test"}],
        }
        found.append(image.add_image(folder, config, [layer]))
    return found[0], found[1], found[2]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    folder = tmp_path_factory.mktemp("box")
    for name in ("storage", "nothing"):
        (folder / name).mkdir()
    private, public = key(folder, "host")
    _, login = key(folder, "login")
    (folder / "known_hosts").write_text(f"{ADDRESS} {public}\n", encoding="utf-8")
    spec = HostSpec(
        bridge=BRIDGE,
        name="box",
        address=ADDRESS,
        subnet="10.79.62.0/24",
        user="root",
        authorised_key=login,
        host_key=public,
        tree=tree_digest(),
        peers={},
        binds={},
        disk_gib=2,
        containers=True,
    )
    try:
        network.create(NetworkSpec(BRIDGE, spec.subnet, str(folder), 2))
        host.create(spec, private)
        found = Box(folder, folder / "storage", *store(folder / "storage"))
        with serving(folder / "storage", REGISTRY):
            code, _, said = found.play(Play(found.image(found.first)))
            assert code == 0, said
            yield found
    finally:
        cleanup.down(BRIDGE)


def test_images_are_on_a_file_system_of_their_own_kind(box: Box) -> None:
    assert box.on('docker info --format "{{.Driver}} {{.LiveRestoreEnabled}}"') == "overlay2 true"
    assert box.on("systemctl is-active docker; systemctl is-enabled docker").split() == ["active", "enabled"]


def test_a_run_keeps_what_a_release_names_and_has_the_daemon_read_its_settings(box: Box) -> None:
    """Settings that it has not read are read by the next run."""
    box.on(f"mkdir -p /opt/vllm/releases/a; echo FLEET_IMAGE=r/i@{box.first} > /opt/vllm/releases/a/0.env")
    before = box.on("systemctl show --value -p ActiveEnterTimestampMonotonic docker")
    box.on("rm /etc/docker/vllm-fleet.loaded")
    code, _, said = box.play(Play(box.image(box.second)))
    assert code == 0, said
    assert box.digests() == {box.first, box.second}
    # A reload, which ends no container of others.
    assert box.on("systemctl show --value -p ActiveEnterTimestampMonotonic docker") == before
    assert "Reloaded configuration" in box.on("journalctl --no-pager -o cat -u docker")


def test_what_is_not_for_the_host_is_refused_with_what_to_do(box: Box) -> None:
    """An image for another machine, one of other bytes than its digest says, an NVIDIA host of another system."""
    systems = {"plan-9": AptSource(uri="http://192.0.2.1", suites=["/"])}
    elsewhere = Repository("nvidia-container-toolkit", systems, Path(__file__))
    wrong = f"sha256:{'0' * 64}"
    place = image.blob(box.storage, wrong)
    place.parent.mkdir(parents=True)
    shutil.copy(image.blob(box.storage, box.first), place)
    image.link(box.storage, "_manifests/revisions", wrong)
    code, counts, said = box.play(
        Play(box.image(box.arm), ("vllm_image",), "arm"),
        Play(box.image(wrong), ("vllm_image",), "wrong"),
        Play(box.image(box.second, container.Toolkit(elsewhere, {}, False)), ("container_engine",), "bare"),
    )
    assert code != 0
    assert {name: count["failed"] for name, count in counts.items()} == {"arm": 1, "wrong": 1, "bare": 1}, said
    assert "is for linux/arm64, this host needs linux/amd64" in said
    assert box.on('docker image inspect --format "{{.RepoDigests}}" vllm-fleet/lab:deploy') != f"[{box.arm}]"
    assert "Task failed: Module failed" in said.partition("Pull | Pull the image by its digest")[2]
    assert wrong not in box.digests()
    assert "has no nvidia-container-toolkit for debian-12, it has plan-9" in " ".join(said.split())


@pytest.fixture
def toolkit(box: Box, catalog: Catalog, tmp_path: Path) -> Iterator[container.Toolkit]:
    """Stand-ins of the toolkit's packages as the recipes pin them, in a repository that the host reaches."""
    recipe = catalog.drivers.container_toolkit
    tool = {"usr/bin/nvidia-ctk": File(TOOLKIT, 0o755)}
    key = apt.build(
        tmp_path / "repository",
        [
            apt.Package(name, pattern.replace("*", release), tool if name.endswith("-base") else {})
            for name, pattern in recipe.packages.items()
            for release in ("1", "2")
        ],
    )
    with web.serving(web.files(tmp_path / "repository"), REGISTRY.partition(":")[0]) as url:
        source = AptSource(uri=url, suites=["/"])
        yield container.Toolkit(Repository(recipe.repository, {ANY_SYSTEM: source}, key), recipe.packages, False)


def test_an_nvidia_host_gets_the_toolkit_and_names_its_gpus_for_containers(
    box: Box, toolkit: container.Toolkit
) -> None:
    """Just the versions of the recipe, held; and what no release names is removed; a second run changes nothing."""
    box.on("rm -r /opt/vllm/releases/a")
    wanted = Play(box.image(box.second, toolkit))
    code, _, said = box.play(wanted)
    assert code == 0, said
    assert box.digests() == {box.second}
    assert json.loads(box.on("cat /etc/cdi/nvidia.yaml"))["kind"] == "nvidia.com/gpu"
    assert box.on("systemctl is-enabled nvidia-cdi.service") == "enabled"
    assert set(toolkit.versions) <= set(box.on("apt-mark showhold").split())
    assert box.on("dpkg-query -W -f '${Version}' nvidia-container-toolkit") == "1.17.8-2"
    assert "nvidia" in box.on('docker info --format "{{json .Runtimes}}"')
    code, counts, said = box.play(wanted)
    assert (code, counts["box"]["changed"]) == (0, 0), said
    # One that the host's own image has brought is left as it is, unless the fleet's hosts get their drivers from here.
    managed = replace(toolkit, versions={**toolkit.versions, "nvidia-container-toolkit": "1.17.8-1"}, managed=True)
    for changes, version in ((replace(managed, managed=False), "1.17.8-2"), (managed, "1.17.8-1")):
        code, _, said = box.play(Play(box.image(box.second, changes), ("container_engine",)))
        assert code == 0, said
        assert box.on("dpkg-query -W -f '${Version}' nvidia-container-toolkit") == version
