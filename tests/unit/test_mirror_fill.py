"""A mirror is filled from stand-ins of its origins: once, resumed, verified, carried; or not at all."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stand_in_origin import Origin, offer, serving, sha256

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download, hub
from vllm_fleet.mirror.parts import Encoding, Model, Need, Wheels
from vllm_fleet.mirror.store import Index, Store
from vllm_fleet.operate import fill_mirror

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = os.urandom(3 << 20)
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Origin]:
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "original/model.bin": b"x" * 5000, "a.metal": b"y"}
    with serving(Origin(models={"org/model": {COMMIT: files}})) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{found.url}/simple")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(download.time, "sleep", lambda _: None)
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mirror")


def wheels(origin: Origin, *bodies: bytes) -> Wheels:
    lines = [offer(origin, f"p{number}-1.0-py3-none-any.whl", body) for number, body in enumerate(bodies)]
    return Wheels("engine", "".join(lines), "3.11", "x86_64", "2.36")


MODEL = Model("org/model", COMMIT, None, ("*.metal",))


def needs_of(origin: Origin) -> list[Need]:
    vocabulary = b"a vocabulary"
    origin.files["/o200k"] = vocabulary
    return [
        wheels(origin, os.urandom(200_000), os.urandom(100)),
        Encoding("o200k_base.tiktoken", sha256(vocabulary), f"{origin.url}/o200k"),
        MODEL,
    ]


def test_everything_is_fetched_once_and_a_second_run_asks_nothing(origin: Origin, store: Store) -> None:
    needs = needs_of(origin)
    results = fill_mirror.fill_store(store, needs)
    assert [result.files for result in results] == [2, 1, 2]
    assert sum(result.fetched_bytes for result in results) == sum(result.bytes for result in results)
    assert len(origin.bodies()) == len(set(origin.bodies()))
    assert not any("original/" in path or "metal" in path for path in origin.bodies())
    assert sha256(store.place(f"models/org--model/{COMMIT}/model.safetensors").read_bytes()) == sha256(WEIGHTS)
    asked, sent = len(origin.requests), origin.sent
    again = fill_mirror.fill_store(store, needs)
    assert sum(result.fetched_bytes for result in again) == 0
    assert (len(origin.requests), origin.sent) == (asked, sent)


def test_the_index_is_what_pip_and_uv_read(origin: Origin, store: Store) -> None:
    need = wheels(origin, b"a wheel")
    fill_mirror.fill_store(store, [need])
    page = store.place("wheels/simple/p0/index.html").read_text()
    digest = sha256(b"a wheel")
    assert f'href="../../files/{digest[:2]}/{digest}/p0-1.0-py3-none-any.whl#sha256={digest}"' in page
    assert store.place(f"wheels/files/{digest[:2]}/{digest}/p0-1.0-py3-none-any.whl").read_bytes() == b"a wheel"


def test_a_cut_connection_goes_on_where_it_stopped(origin: Origin, store: Store) -> None:
    body = os.urandom(3 << 20)
    need = wheels(origin, body)
    origin.cuts["/packages/p0-1.0-py3-none-any.whl"] = 2 << 20
    (result,) = fill_mirror.fill_store(store, [need])
    ranges = [asked for _, path, asked in origin.requests if path.startswith("/packages/")]
    assert ranges == ["", f"bytes={2 << 20}-"]
    assert result.fetched_bytes == len(body) - (2 << 20) or result.fetched_bytes == len(body)


def test_a_run_that_was_ended_is_resumed_by_the_next(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(3 << 20)
    need = wheels(origin, body)
    path = "/packages/p0-1.0-py3-none-any.whl"
    origin.cuts[path] = 1 << 20
    with monkeypatch.context() as patch:
        patch.setattr(download, "_TRIES", 1)
        with pytest.raises(FleetError, match="the partial file is kept"):
            fill_mirror.fill_store(store, [need])
    assert store.read() == Index()
    before = origin.sent
    fill_mirror.fill_store(store, [need])
    assert [asked for _, asked_path, asked in origin.requests if asked_path == path][-1] == f"bytes={1 << 20}-"
    assert origin.sent - before < len(body)


def test_a_model_that_was_cut_goes_on_where_it_stopped(origin: Origin, store: Store) -> None:
    large = os.urandom(12 << 20)  # huggingface_hub keeps what came in pieces of 10 MB
    origin.models["org/model"][COMMIT]["model.safetensors"] = large
    path = f"/org/model/resolve/{COMMIT}/model.safetensors"
    origin.cuts[path] = 11 << 20
    fill_mirror.fill_store(store, [MODEL])
    ranges = [asked for method, asked_path, asked in origin.requests if asked_path == path and method == "GET"]
    assert ranges == ["", f"bytes={10 << 20}-"]
    assert store.place(f"{MODEL.path}/model.safetensors").read_bytes() == large
    assert not list(store.directory.rglob("*.incomplete"))


@pytest.mark.parametrize("kind", ["wheel", "model"])
def test_a_corrupted_byte_on_the_way_is_found_and_fetched_again(origin: Origin, store: Store, kind: str) -> None:
    need: Need = wheels(origin, WEIGHTS) if kind == "wheel" else MODEL
    path = "/packages/p0-1.0-py3-none-any.whl" if kind == "wheel" else f"/org/model/resolve/{COMMIT}/model.safetensors"
    origin.wrong[path] = bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]
    fill_mirror.fill_store(store, [need])
    assert origin.bodies().count(path) == 2
    assert fill_mirror.verify_store(store, store.read()) == []


@pytest.mark.parametrize("kind", ["wheel", "model"])
def test_a_corrupted_byte_on_the_disk_is_found_and_fetched_again(origin: Origin, store: Store, kind: str) -> None:
    need: Need = wheels(origin, WEIGHTS) if kind == "wheel" else MODEL
    fill_mirror.fill_store(store, [need])
    name = next(name for name, entry in store.read().files.items() if entry.size == len(WEIGHTS))
    place = store.place(name)
    info = place.stat()
    place.write_bytes(b"\0" + WEIGHTS[1:] if WEIGHTS[0] else b"\1" + WEIGHTS[1:])
    os.utime(place, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert sum(result.fetched_bytes for result in fill_mirror.fill_store(store, [need])) == 0, (
        "its time says that it is whole"
    )
    assert fill_mirror.verify_store(store, store.read()) == [name]
    assert sum(result.fetched_bytes for result in fill_mirror.fill_store(store, [need])) == len(WEIGHTS)
    assert place.read_bytes() == WEIGHTS


def test_a_file_that_is_not_the_pinned_one_is_refused(origin: Origin, store: Store) -> None:
    need = wheels(origin, b"a wheel")
    origin.files["/packages/p0-1.0-py3-none-any.whl"] = b"a wheeL"
    with pytest.raises(FleetError, match="nothing was stored"):
        fill_mirror.fill_store(store, [need])
    assert store.read() == Index()
    assert not list(store.directory.rglob("*.whl"))


def test_a_full_disk_is_told_before_anything_is_fetched(
    origin: Origin, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = needs_of(origin)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 30, 1 << 30, 1 << 20))
    with pytest.raises(FleetError, match=r"are missing in .* and 0.00 GiB are free") as fault:
        fill_mirror.fill_store(store, needs)
    assert fault.value.exit_code == 2
    assert not [path for path in origin.bodies() if "/simple/" not in path]


def test_a_private_model_needs_its_token_which_is_kept_nowhere(origin: Origin, store: Store, tmp_path: Path) -> None:
    origin.token = TOKEN
    with pytest.raises(FleetError, match="the hub requires a token") as fault:
        fill_mirror.fill_store(store, [MODEL])
    assert "--hub-token-file" in fault.value.hint
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o644)
    with pytest.raises(FleetError, match="readable by other users"):
        hub.read_token(file)
    file.chmod(0o600)
    fill_mirror.fill_store(store, [MODEL], token=hub.read_token(file))
    file.unlink()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_another_commit_is_an_error(origin: Origin, store: Store) -> None:
    with pytest.raises(FleetError, match="does not have the revision"):
        fill_mirror.fill_store(store, [replace(MODEL, revision="f" * 40)])


def test_a_mirror_is_carried_without_any_origin(origin: Origin, store: Store, tmp_path: Path) -> None:
    needs = needs_of(origin)
    fill_mirror.fill_store(store, needs)
    keys = [need.key for need in needs]
    disk, beyond = Store(tmp_path / "disk"), Store(tmp_path / "beyond")
    asked = len(origin.requests)
    assert sum(result.fetched_files for result in fill_mirror.copy_parts(store, disk, keys)) == 5
    assert sum(result.fetched_files for result in fill_mirror.copy_parts(store, disk, keys)) == 0, (
        "a second time there is nothing"
    )
    fill_mirror.copy_parts(disk, beyond, keys)
    assert sum(result.fetched_bytes for result in fill_mirror.fill_store(beyond, needs)) == 0
    assert len(origin.requests) == asked
    assert beyond.place(f"models/org--model/{COMMIT}/model.json").is_file()
    assert beyond.place("wheels/simple/p0/index.html").is_file()


def test_a_disk_with_a_wrong_byte_is_refused(origin: Origin, store: Store, tmp_path: Path) -> None:
    fill_mirror.fill_store(store, [MODEL])
    disk = Store(tmp_path / "disk")
    fill_mirror.copy_parts(store, disk, [MODEL.key])
    place = disk.place(f"models/org--model/{COMMIT}/model.safetensors")
    place.write_bytes(WEIGHTS[::-1])
    with pytest.raises(FleetError, match="has the SHA-256"):
        fill_mirror.copy_parts(disk, Store(tmp_path / "beyond"), [MODEL.key])


def test_a_disk_of_another_fleet_is_refused(origin: Origin, store: Store, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="lacks model:org/model"):
        fill_mirror.copy_parts(Store(tmp_path / "disk"), store, [MODEL.key])


def test_two_runs_do_not_write_one_mirror(store: Store) -> None:
    with fill_mirror.lock_store(store), pytest.raises(FleetError, match="another run"), fill_mirror.lock_store(store):
        pass


def test_a_mirror_that_is_no_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    with pytest.raises(FleetError, match="cannot be read: Not a directory") as fault:
        Store(tmp_path / "cache" / "mirror").read()
    assert fault.value.exit_code == 2
    assert "remove" not in fault.value.hint


def test_an_index_that_is_nested_too_deeply_is_refused(store: Store) -> None:
    store.directory.mkdir(exist_ok=True)
    (store.directory / "mirror.json").write_text("[" * 100_000)
    with pytest.raises(FleetError, match="is not the index of a mirror"):
        store.read()


def test_an_index_that_leaves_the_folder_is_refused(store: Store) -> None:
    store.directory.mkdir()
    (store.directory / "mirror.json").write_text(
        '{"version": 1, "parts": {}, "files": {"../x": {"sha256": "", "size": 0, "mtime_ns": 0}}}'
    )
    with pytest.raises(FleetError, match="is outside the folder"):
        store.read()
