"""Images in a mirror: what is named, what is fetched and kept as a registry keeps it, and what hosts are told."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from stand_in_origin import Origin, serving, sha256
from stand_in_registry import Guarded, Made, guarding, made

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import download
from vllm_fleet.edge import registry as edge_registry
from vllm_fleet.fleet import plan
from vllm_fleet.mirror import image_store, parts
from vllm_fleet.mirror.parts import Debs, Image
from vllm_fleet.mirror.store import Entry, Store, default_directory
from vllm_fleet.operate import fill_mirror, serve_mirror

NAME = "vllm/vllm-openai"
AMD64, ARM64 = "linux/amd64", "linux/arm64"
LAYERS = {AMD64: os.urandom(3 << 20), ARM64: os.urandom(1 << 20)}


@pytest.fixture(scope="module")
def image() -> Made:
    return made(LAYERS)


@pytest.fixture
def origin(image: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with serving(Origin(files=image.files(NAME))) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mirror")


def need_of(origin: Origin, image: Made, platform: str = AMD64) -> Image:
    return Image(NAME, image.listed, platform, origin.url.removeprefix("http://"))


def layer(image: Made, platform: str = AMD64) -> str:
    return next(digest for digest, body in image.blobs.items() if body == LAYERS[platform])


@pytest.mark.parametrize(
    ("name", "own", "found"),
    [
        ("ubuntu", None, ("registry-1.docker.io", "library/ubuntu")),
        (NAME, None, ("registry-1.docker.io", NAME)),
        ("ghcr.io/org/name", None, ("ghcr.io", "org/name")),
        (NAME, "10.0.0.1:5000", ("10.0.0.1:5000", NAME)),
        ("ghcr.io/org/name", "10.0.0.1:5000", ("10.0.0.1:5000", "ghcr.io/org/name")),
    ],
)
def test_an_image_is_where_its_name_says_or_where_the_fleet_does(
    name: str, own: str | None, found: tuple[str, str]
) -> None:
    assert image_store.locate_image(name, own) == found


def test_the_name_of_a_part_says_all_of_its_content() -> None:
    one = Image(NAME, f"sha256:{'1' * 64}", AMD64)
    assert Image.from_key(one.key) == one
    assert Image(NAME, one.digest, ARM64).key != one.key
    assert Image(NAME, one.digest, AMD64, "10.0.0.1:5000").key == one.key


def test_of_a_list_only_what_the_hosts_run_is_fetched_once(origin: Origin, image: Made, store: Store) -> None:
    need = need_of(origin, image)
    (result,) = fill_mirror.fill_store(store, [need])
    assert result.files == 5, "list, manifest, configuration, two layers"
    blobs = [path for path in origin.bodies() if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 3
    assert not store.place(f"images/{image_store.blob_path(layer(image, ARM64))}").exists()
    assert store.place(f"images/{image_store.blob_path(layer(image))}").read_bytes() == LAYERS[AMD64]
    asked = len(origin.requests)
    assert fill_mirror.fill_store(store, [need])[0].fetched_bytes == 0
    assert len(origin.requests) == asked


def test_a_layer_of_two_images_is_fetched_once(origin: Origin, image: Made, store: Store) -> None:
    fill_mirror.fill_store(store, [need_of(origin, image), need_of(origin, image, ARM64)])
    blobs = [path for path in origin.bodies() if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 5


def test_the_folder_is_the_storage_of_a_registry(origin: Origin, image: Made, store: Store) -> None:
    fill_mirror.fill_store(store, [need_of(origin, image)])
    base = store.place("images/docker/registry/v2/repositories") / NAME
    for digest in (image.listed, image.platforms[AMD64]):
        assert (base / f"_manifests/revisions/sha256/{digest[7:]}/link").read_text() == digest
    assert (base / f"_layers/sha256/{layer(image)[7:]}/link").read_text() == layer(image)


def test_a_cut_layer_goes_on_where_it_stopped(origin: Origin, image: Made, store: Store) -> None:
    path = f"/v2/{NAME}/blobs/{layer(image)}"
    origin.cuts[path] = 2 << 20
    fill_mirror.fill_store(store, [need_of(origin, image)])
    assert [asked for _, each, asked in origin.requests if each == path] == ["", f"bytes={2 << 20}-"]


def test_a_corrupted_layer_is_found_on_the_way_and_on_the_disk(origin: Origin, image: Made, store: Store) -> None:
    path, need = f"/v2/{NAME}/blobs/{layer(image)}", need_of(origin, image)
    origin.wrong[path] = b"\0" + LAYERS[AMD64][1:]
    fill_mirror.fill_store(store, [need])
    assert origin.bodies().count(path) == 2
    name = f"images/{image_store.blob_path(layer(image))}"
    info = store.place(name).stat()
    with store.place(name).open("r+b") as file:
        file.write(bytes(255 - byte for byte in LAYERS[AMD64][:9]))
    os.utime(store.place(name), ns=(info.st_atime_ns, info.st_mtime_ns))
    assert fill_mirror.verify_store(store, store.read()) == [name]
    assert fill_mirror.fill_store(store, [need])[0].fetched_bytes == len(LAYERS[AMD64])
    assert fill_mirror.verify_store(store, store.read()) == []


def test_a_manifest_that_is_not_the_pinned_one_is_refused(origin: Origin, image: Made, store: Store) -> None:
    origin.files[f"/v2/{NAME}/manifests/{image.listed}"] = b"{}"
    with pytest.raises(FleetError, match=f"the manifest {image.listed} has the SHA-256") as fault:
        fill_mirror.fill_store(store, [need_of(origin, image)])
    assert "nothing was stored" in fault.value.hint
    assert not store.place("images").exists()


def test_an_image_for_other_machines_is_refused(origin: Origin, store: Store) -> None:
    only = made({ARM64: b"x"})
    origin.files |= only.files(NAME)
    with pytest.raises(FleetError, match="has no manifest for linux/amd64, only for linux/arm64") as fault:
        fill_mirror.fill_store(store, [Image(NAME, only.listed, AMD64, origin.url.removeprefix("http://"))])
    assert fault.value.exit_code == 2


@pytest.mark.parametrize("digest", ["sha512:00", "../../etc/passwd"])
def test_a_part_that_no_registry_could_name_is_refused(digest: str) -> None:
    with pytest.raises(FleetError, match="a manifest has a part with the digest"):
        list(image_store.image_blobs({"config": {"digest": digest, "size": 1}, "layers": []}))


def test_a_list_of_lists_is_refused(origin: Origin, image: Made, store: Store) -> None:
    inner = {"digest": image.listed, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    body = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
    digest = f"sha256:{sha256(body)}"
    origin.files[f"/v2/{NAME}/manifests/{digest}"] = body
    with pytest.raises(FleetError, match="contains another image list"):
        fill_mirror.fill_store(store, [Image(NAME, digest, AMD64, origin.url.removeprefix("http://"))])


def test_a_signer_that_is_none_is_told_by_its_file(image: Made, store: Store, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(FleetError, match="holds no CA certificate") as fault:
        fill_mirror.fill_store(store, [Image(NAME, image.listed, AMD64, "127.0.0.1:1", tmp_path / "ca.pem")])
    assert fault.value.exit_code == 2


def test_a_full_disk_is_told_before_a_layer_is_fetched(
    origin: Origin, image: Made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(FleetError, match=r"are missing in .* and 0.00 GiB are free"):
        fill_mirror.fill_store(store, [need_of(origin, image)])
    assert not [path for path in origin.bodies() if "/blobs/" in path]


def test_images_are_carried_without_any_origin(origin: Origin, image: Made, store: Store, tmp_path: Path) -> None:
    need = need_of(origin, image)
    fill_mirror.fill_store(store, [need])
    disk, beyond = Store(tmp_path / "disk"), Store(tmp_path / "beyond")
    asked = len(origin.requests)
    fill_mirror.copy_parts(store, disk, [need.key])
    fill_mirror.copy_parts(disk, beyond, [need.key])
    assert fill_mirror.fill_store(beyond, [need])[0].fetched_bytes == 0
    assert len(origin.requests) == asked
    for place, digest in image_store.repository_links(NAME, image.listed, AMD64, beyond.read_bytes):
        assert beyond.place(place).read_text() == digest


def test_an_account_goes_to_those_who_give_tokens_and_no_further(
    origin: Origin, image: Made, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = base64.b64encode(b"me:secret").decode()
    with guarding(Guarded(image, NAME, account, origin.url)) as guard:
        host = guard.url.removeprefix("http://")
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        need = Image(NAME, image.listed, AMD64, host)
        with pytest.raises(FleetError, match="HTTP 403"):
            fill_mirror.fill_store(store, [need])
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: {"auth": account}}}))
        fill_mirror.fill_store(store, [need])
        assert [own for path, own in guard.asked if path == "/token"][1:] == [f"Basic {account}"] * guard.tokens
        assert not [path for path, own in guard.asked if path != "/token" and account in own]
    assert [path for path in origin.bodies() if "/blobs/" in path], "the layers came from elsewhere"
    assert set(origin.authorizations) == {""}
    kept = [path for path in store.directory.rglob("*") if path.is_file()]
    assert not [path for path in kept if account.encode() in path.read_bytes()]


def test_a_token_is_asked_for_again_before_it_ends(
    origin: Origin, image: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(edge_registry, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(edge_registry, "_account", lambda _: "")
    with guarding(Guarded(image, NAME, "", origin.url, lasts=100)) as guard:
        access = edge_registry.image_access(Image(NAME, image.listed, AMD64, guard.url.removeprefix("http://")))
        for later, token in ((0.0, "t1"), (70.0, "t1"), (20.0, "t2")):
            now[0] += later
            assert access.headers()["Authorization"] == f"Bearer {token}"


def fleet(folder: Path, image: Made, **mirror: object) -> Path:
    """The golden fleet with every engine as an image."""
    file = folder / "golden" / "fleet.yml"
    spec: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    for pool in spec["pools"].values():
        pool["install"] = "docker"
    spec["artifacts"]["images"] = {"vllm-0.32.0-cpu": image.listed}
    spec["mirror"] = mirror
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return file.parent


def test_a_mirror_with_a_port_for_images_carries_them(fleets: Path, catalog: Catalog, image: Made) -> None:
    given = {"url": "http://192.0.2.9:8070", "registry": "192.0.2.1:5000", "distribution": "debian-12"}
    without = parts.list_parts(plan.load(fleet(fleets, image, **given), catalog), catalog)
    assert not [each for each in without if isinstance(each, Image)]
    folder = fleet(fleets, image, **given, registry_port=5001)
    found = parts.list_parts(plan.load(folder, catalog), catalog)
    (wanted,) = (each for each in found if isinstance(each, Image))
    assert wanted == Image("vllm-fleet/lab", image.listed, AMD64, "192.0.2.1:5000")
    (sets,) = (each.sets for each in found if isinstance(each, Debs))
    assert {"docker.io", "python3-requests", "docker-registry"} <= {name for each in sets for name in each.packages}
    variables = inventory.load(folder).hosts[0].variables
    assert variables["vllm_image_reference"] == f"192.0.2.9:5001/vllm-fleet/lab@{image.listed}"
    assert variables["container_engine_registry"] == "192.0.2.9:5001"


@pytest.mark.parametrize(
    ("mirror", "says"),
    [
        ({"registry_port": 5000}, "carries images is at 'url' or on 'host'"),
        ({"url": "http://192.0.2.9:8070", "registry_port": 8070}, "served at two ports"),
    ],
)
def test_a_port_that_serves_nothing_or_two_things_is_an_error(
    fleets: Path, catalog: Catalog, image: Made, mirror: dict[str, object], says: str
) -> None:
    with pytest.raises(FleetError, match=says):
        plan.load(fleet(fleets, image, **mirror), catalog)


def test_a_host_of_the_fleet_serves_the_images(
    fleets: Path, catalog: Catalog, image: Made, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    name = "vllm-fleet/lab"
    origin.files |= image.files(name)
    where = origin.url.removeprefix("http://")
    folder = fleet(fleets, image, host="gateway-0", registry=where, registry_port=5000)
    with pytest.raises(FleetError, match=r"lacks .*image:vllm-fleet/lab@sha256"):
        inventory.load(folder)
    store = Store(default_directory())
    wanted = parts.list_parts(plan.load(folder, catalog), catalog)
    fill_mirror.fill_store(store, [each for each in wanted if isinstance(each, Image)])
    index = store.read()
    for number, need in enumerate(each for each in wanted if not isinstance(each, Image)):
        index = index.with_part(need.key, {f"part/{number}": Entry("0" * 64, 1, 1)})
    store.write(index)
    host = {each.plan.name: each for each in inventory.load(folder).hosts}["gateway-0"]
    address = host.location.service_address
    settings = json.loads(host.variables["mirror_registry_config"])
    assert settings["http"]["addr"] == f"{address}:5000"
    assert settings["storage"]["maintenance"]["readonly"] == {"enabled": True}
    assert any(page.endswith(f"{image.listed[7:]}/link") for page in host.variables["mirror_pages"])
    units = {item["name"] for item in host.manifest.items if item["kind"] == "unit" and item["role"] == "mirror"}
    assert units == {"nginx.service", "docker-registry.service"}


def test_what_serves_files_ends_with_what_serves_images(
    fleets: Path, catalog: Catalog, image: Made, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fleet(fleets, image, url="http://10.0.0.8:8070", registry="192.0.2.1:5000", registry_port=5000)
    files = subprocess.Popen(["sleep", "60"])
    listens: list[str] = []

    def registry_that_ends(_: Store, listen: str, state: Path) -> subprocess.Popen[bytes]:
        listens.append(listen)
        return subprocess.Popen(["false"])

    monkeypatch.setattr(serve_mirror, "start_nginx", lambda *_: files)
    monkeypatch.setattr(serve_mirror, "start_registry", registry_that_ends)
    with pytest.raises(FleetError, match="docker-registry ended with 1"):
        serve_mirror.serve_until_ended(store, plan.load(folder, catalog))
    assert listens == ["10.0.0.8:5000"]
    assert files.poll() is not None
