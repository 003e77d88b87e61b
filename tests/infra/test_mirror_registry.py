"""Images through a mirror with real parts: a registry as their origin, another that serves the mirror, and skopeo."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from lab import packages
from lab import registry as lab_registry
from lab.artifacts import image
from vllm_fleet.base.errors import FleetError
from vllm_fleet.mirror import image_store
from vllm_fleet.mirror.parts import Image
from vllm_fleet.mirror.store import Store
from vllm_fleet.operate import fill_mirror, serve_mirror

pytestmark = [pytest.mark.network]

LAYER_BYTES = 4 << 20


def free_address() -> str:
    """A port of the loopback that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@dataclass(frozen=True)
class Site:
    """An origin with an image, and the mirror of it with the address where it will be served."""

    folder: Path
    storage: Path
    need: Image
    address: str

    @property
    def store(self) -> Store:
        return Store(self.folder / "mirror")

    def sent(self) -> int:
        """The bytes of layers that the origin has sent, by its own log."""
        log = (self.storage / "registry.log").read_text(encoding="utf-8")
        lines = re.findall(r'"GET /v2/\S+/blobs/\S+ HTTP/1\.1" 20[06] (\d+)', log)
        return sum(int(size) for size in lines if int(size) >= LAYER_BYTES)

    def skopeo(self, *words: str) -> subprocess.CompletedProcess[str]:
        program, variables = packages.skopeo()
        policy = self.folder / "policy.json"
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        return subprocess.run(
            [program, "--policy", policy, *words],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
            check=False,
        )

    def pull(self, address: str, target: Path) -> subprocess.CompletedProcess[str]:
        """As a host does, by digest and into nothing."""
        source = f"docker://{address}/{self.need.name}@{self.need.digest}"
        return self.skopeo("copy", "--src-tls-verify=false", source, f"dir:{target}")


@contextmanager
def mirror_serving(site: Site) -> Iterator[None]:
    state = site.folder / "state"
    state.mkdir(exist_ok=True)
    process = serve_mirror.start_registry(site.store, site.address, state, str(packages.docker_registry()))
    try:
        lab_registry.await_answer(site.address, process)
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("images")
    storage, content = folder / "storage", folder / "content"
    storage.mkdir()
    content.mkdir()
    (content / "data").write_bytes(os.urandom(LAYER_BYTES))
    layer, inside = image.add_layer(storage, content, ())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [inside]},
        "history": [{"created_by": "test"}],
    }
    digest = image.add_image(storage, config, [layer])
    origin = free_address()
    with lab_registry.serving(storage, origin):
        yield Site(folder, storage, Image(image.NAME, digest, "linux/amd64", origin), free_address())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_origin_sends_a_layer_once_whatever_the_number_of_pulls(site: Site, tmp_path: Path, count: int) -> None:
    fill_mirror.fill_store(site.store, [site.need])
    with mirror_serving(site):
        for number in range(count):
            done = site.pull(site.address, tmp_path / str(number))
            assert done.returncode == 0, done.stderr
            manifest = (tmp_path / str(number) / "manifest.json").read_bytes()
            image_store.parse_manifest(manifest, site.need.digest, "")
    assert LAYER_BYTES <= site.sent() < 1.1 * LAYER_BYTES
    print(f"{count} pulls: {site.sent()} bytes of layers from the origin")


def test_the_mirror_takes_no_image(site: Site, tmp_path: Path) -> None:
    fill_mirror.fill_store(site.store, [site.need])
    with mirror_serving(site):
        assert site.pull(site.address, tmp_path / "image").returncode == 0
        pushed = site.skopeo(
            "copy", "--dest-tls-verify=false", f"dir:{tmp_path / 'image'}", f"docker://{site.address}/new:1"
        )
        assert pushed.returncode != 0
        assert re.search("unsupported|405|not allowed", pushed.stderr), pushed.stderr


def test_a_wrong_byte_in_the_mirror_comes_to_no_host_and_is_fetched_again(site: Site, tmp_path: Path) -> None:
    fill_mirror.fill_store(site.store, [site.need])
    manifest = json.loads(site.store.read_bytes(f"{image_store.FOLDER}/{image_store.blob_path(site.need.digest)}"))
    name = f"{image_store.FOLDER}/{image_store.blob_path(manifest['layers'][0]['digest'])}"
    with site.store.place(name).open("r+b") as file:
        file.seek(1 << 20)
        byte = file.read(1)[0]
        file.seek(1 << 20)
        file.write(bytes([255 - byte]))
    with mirror_serving(site):
        assert site.pull(site.address, tmp_path / "wrong").returncode != 0
        assert fill_mirror.verify_store(site.store, site.store.read()) == [name]
        fill_mirror.fill_store(site.store, [site.need])
        done = site.pull(site.address, tmp_path / "right")
        assert done.returncode == 0, done.stderr


def test_images_behind_an_air_gap_are_served_from_what_was_carried(site: Site, tmp_path: Path) -> None:
    fill_mirror.fill_store(site.store, [site.need])
    disk = Store(tmp_path / "disk")
    fill_mirror.copy_parts(site.store, disk, [site.need.key])
    sent = site.sent()
    beyond = Site(tmp_path / "beyond", site.storage, site.need, free_address())
    fill_mirror.copy_parts(disk, beyond.store, [site.need.key])
    shutil.rmtree(disk.directory)
    with mirror_serving(beyond):
        done = beyond.pull(beyond.address, tmp_path / "image")
        assert done.returncode == 0, done.stderr
    assert site.sent() == sent


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of the loopback that signs itself, and its key."""
    folder.mkdir()
    found = folder / "ca.pem", folder / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ),
            *("-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", found[0], "-keyout", found[1]),
        ],
        check=True,
        capture_output=True,
    )
    return found


def test_a_registry_of_the_fleet_is_asked_by_tls_and_believed_by_its_signer(site: Site, tmp_path: Path) -> None:
    (pem, key), (other, _) = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    address = free_address()
    settings = json.loads(image_store.registry_config(str(site.storage), address))
    settings["http"]["tls"] = {"certificate": str(pem), "key": str(key)}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    words = [packages.docker_registry(), "serve", tmp_path / "config.json"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            lab_registry.await_answer(address, process)
            with pytest.raises(FleetError, match="CERTIFICATE_VERIFY_FAILED"):
                fill_mirror.fill_store(Store(tmp_path / "a"), [replace(site.need, registry=address, ca=other)])
            (found,) = fill_mirror.fill_store(Store(tmp_path / "b"), [replace(site.need, registry=address, ca=pem)])
            assert found.fetched_bytes >= LAYER_BYTES
        finally:
            process.terminate()
