"""Sources of models: what fleet.yml may say, whose digests count, and what check and plan say before site.yml."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from stand_in_origin import Origin, serving

from vllm_fleet import inventory
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import model_file_fault
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import check, lock
from vllm_fleet.cli import plan as plan_command
from vllm_fleet.fleet import plan
from vllm_fleet.host.model_files import DigestList, FileDigest, read_digests
from vllm_fleet.mirror import client, parts
from vllm_fleet.mirror.store import Entry, Index, Store
from vllm_fleet.operate import fill_mirror, new_fleet
from vllm_fleet.schema.model_source import ModelSource

MODEL = "openai/gpt-oss-20b"
LAB = "vllm-fleet/lab-gpt-oss"


def gpu_fleet(fleets: Path, source: Any = None, model: str = MODEL, **pool: Any) -> Path:
    """The golden fleet with one H100 whose model has a source; None: no source is given."""
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text())
    # A second call finds the pool of the first.
    pools = spec["pools"]
    host = {"g": pools["rack"]["static"]["rack-a"]} if "rack" in pools else pools["gpu"]["static"]
    sized = "h100-1" if model == MODEL else "cpu-2"
    spec["pools"] = {"gpu": {"host_class": sized, "cloud": "static", "model": model, "static": host, **pool}}
    spec["gateway"] = {"hosts": 0}
    spec["artifacts"]["models"] = {} if source is None else {model: source}
    file.write_text(yaml.safe_dump(spec))
    # The hosts of the golden fleet, which are not in this one.
    (file.parent / "stack.json").unlink(missing_ok=True)
    return file.parent


def host_files(folder: Path) -> dict[str, Any]:
    (host,) = inventory.load(folder).hosts
    (model,) = host.variables["model_store_models"]
    return {"model": model, "host": host}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "gives no source"),
        ({"on_host": "/a", "url": "https://x/y"}, "gives on_host and url"),
        ({"on_host": "a"}, "not an absolute path"),
        ({"on_host": "/a/../etc"}, "not an absolute path"),
        ({"on_host": "/a b"}, "contains ' '"),
        ({"on_host": "/a%i"}, "contains '%'"),
        ({"on_host": "/a\n"}, "not an absolute path"),
        ({"huggingface_cache": "/a:b"}, "contains ':'"),
        ({"on_host": "/data/x", "mount": "/mnt"}, "not below the mount point"),
        ({"on_host": "/data/x", "token_file": "t"}, "'token_file' does not belong to 'on_host'"),
        ({"hub": "mirror", "endpoint": "https://x"}, "'endpoint' does not belong to 'hub'"),
        ({"url": "s3://bucket/folder"}, "https://BUCKET.s3.REGION.amazonaws.com"),
        ({"url": "gs://bucket/folder"}, "https://storage.googleapis.com"),
        ({"url": "http://x/y"}, "must begin with https://"),
        ({"url": "https://u:p@x/y"}, "must not contain an account"),
        ({"url": "https://x/y?X-Amz-Signature=1"}, "presigned"),
        ({"url": "https://x:port/"}, "is not a URL"),
        ({"hub": "hosts", "revision": "main"}, "'main' is not a commit: write all 40 digits"),
    ],
)
def test_a_source_that_cannot_work_is_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as fault:
        ModelSource.model_validate(source)
    assert message in str(fault.value)


def test_text_stays_a_folder_on_the_controller() -> None:
    assert ModelSource.model_validate("{cache}/x").controller == "{cache}/x"


@given(st.text(max_size=40))
def test_a_file_name_is_a_plain_one_or_it_is_refused(name: str) -> None:
    if model_file_fault(name) is None:
        assert "/" not in name
        assert name.isprintable()
        assert not name.startswith(".")
        assert not name.lower().endswith((".bin", ".pt", ".py", ".pkl"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "x.pt", "modeling_x.py", "../x", "a/b", "a\nb", "\x1b[31m", "", "-x"]
)
def test_pickles_code_and_paths_are_refused_by_name(name: str) -> None:
    assert model_file_fault(name)


class TestDigestLists:
    """The lists of users."""

    def test_the_output_of_sha256sum_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        (tmp_path / "original").mkdir()
        (tmp_path / "original" / "x.bin").write_text("not read")
        for words in ("sha256sum *.json *.safetensors", "sha256sum -b *.*", "find . -type f -exec sha256sum {} +"):
            listed = subprocess.run(
                ["sh", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True
            ).stdout
            (tmp_path.parent / "sums").write_text(listed)
            found = read_digests(tmp_path.parent / "sums")
            assert found.files == {
                name: FileDigest(file_sha256(tmp_path / name)) for name in ("config.json", "model.safetensors")
            }

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x", "is not a line of 'sha256sum'"),
            (f"{'a' * 64}  ../config.json", "leads out of the model's folder"),
            (f"{'a' * 64}  /etc/passwd", "leads out of the model's folder"),
            (f"{'a' * 64}  weights.bin", "can run code"),
            (f"\\{'a' * 64}  a\\nb", "is not a line of 'sha256sum'"),
            (f"{'a' * 64}  config.json\n{'b' * 64}  config.json", "twice"),
            (f"{'a' * 64}  config.json", "no a .safetensors file"),
            ("{", "is not a list of a model's files"),
            ('{"revision": "x", "files": {"config.json": {"sha256": "zz"}}}', "the SHA-256 of 'config.json'"),
            ("\x00\xff", "is not a line of 'sha256sum'"),
        ],
    )
    def test_a_wrong_list_is_one_error(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "sums").write_text(text)
        with pytest.raises(FleetError, match=message) as fault:
            read_digests(tmp_path / "sums")
        assert fault.value.exit_code == 2

    @given(st.binary(max_size=200))
    def test_any_bytes_are_a_list_or_one_error(self, tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
        file = tmp_path_factory.mktemp("list") / "sums"
        file.write_bytes(body)
        try:
            read_digests(file)
        except FleetError as fault:
            assert fault.file


def write_sums(folder: Path, files: dict[str, str]) -> None:
    (folder / "sums.txt").write_text("".join(f"{digest}  {name}\n" for name, digest in files.items()))


def recipe_files(catalog: Catalog) -> dict[str, str]:
    weights = catalog.model(MODEL).weights
    assert weights
    return {name: digest for name, (_, digest) in weights.files.items()}


def test_a_cache_is_mounted_with_its_blobs_and_served_from_its_snapshot(fleets: Path, catalog: Catalog) -> None:
    found = host_files(gpu_fleet(fleets, {"huggingface_cache": "/data/hf/hub"}))
    adopted, weights = found["model"]["adopted"], catalog.model(MODEL).weights
    assert weights
    assert adopted["folder"] == "/data/hf/hub/models--openai--gpt-oss-20b"
    assert found["model"]["directory"] == f"{adopted['place']}/snapshots/{weights.revision}"
    assert {file["name"] for file in found["model"]["files"]} == set(weights.files) - {"LICENSE", "USAGE_POLICY"}
    stores = [item for item in found["host"].manifest.items if item["kind"] == "store"]
    assert [(item["path"], item["account"]) for item in stores] == [(found["model"]["directory"], "vllm")]
    assert "Options=bind,ro,nosuid,nodev,noexec" in adopted["unit_text"]
    (config,) = [file["content"] for file in found["host"].variables["vllm_service_files"] if file["name"] == "0.yaml"]
    assert yaml.safe_load(config)["model"] == found["model"]["directory"]


def test_a_container_sees_the_blobs_too(fleets: Path) -> None:
    engine = {"engine": "vllm-0.12.0-cuda", "install": "docker"}
    folder = gpu_fleet(fleets, {"huggingface_cache": "/data/hf/hub"}, **engine)
    spec = yaml.safe_load((folder / "fleet.yml").read_text())
    spec["artifacts"]["images"] = {engine["engine"]: f"sha256:{'a' * 64}"}
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec))
    found = host_files(folder)
    (env,) = [file["content"] for file in found["host"].variables["vllm_service_files"] if file["name"] == "0.env"]
    place = found["model"]["adopted"]["place"]
    assert f"--volume={place}:{place}:ro" in env


def test_the_recipes_digests_verify_what_hosts_download_from_the_hub(fleets: Path, catalog: Catalog) -> None:
    (fleets / "golden" / "token").touch(0o600)
    (fleets / "golden" / "token").write_text("hf_secret")
    found = host_files(gpu_fleet(fleets, {"hub": "hosts", "token_file": "token"}))
    weights = catalog.model(MODEL).weights
    assert weights
    assert found["model"]["url"] == f"https://huggingface.co/{MODEL}/resolve/{weights.revision}"
    assert {file["name"]: file["sha256"] for file in found["model"]["files"]} == recipe_files(catalog)
    assert all(file["size"] for file in found["model"]["files"])
    assert "hf_secret" not in json.dumps([found["model"], found["host"].manifest.text])
    paths = {item.get("path") for item in found["host"].manifest.items}
    assert "/usr/local/libexec/vllm-fetch" in paths
    (fleets / "golden" / "token").chmod(0o644)
    with pytest.raises(FleetError, match="is readable by other users"):
        inventory.load(fleets / "golden")


def test_your_own_list_counts_and_agrees_or_does_not(fleets: Path, catalog: Catalog) -> None:
    folder = gpu_fleet(fleets, {"on_host": "/data/m", "digests": "sums.txt"})
    write_sums(folder, recipe_files(catalog))
    found = plan.load(folder, catalog)
    weights = catalog.model(MODEL).weights
    assert weights
    same = client.find_model_files(found, catalog, MODEL)
    assert (same.revision, same.digests_from) == (
        weights.revision,
        "your own list sums.txt, which agrees with the recipe",
    )
    write_sums(folder, {**recipe_files(catalog), "config.json": "0" * 64})
    other = client.find_model_files(found, catalog, MODEL)
    assert other.digests_from == "your own list sums.txt"
    assert other.revision != weights.revision


def test_a_model_with_unknown_digests_is_refused_by_check_and_plan(
    fleets: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = gpu_fleet(fleets, {"on_host": "/data/m"}, model=LAB)
    with pytest.raises(FleetError, match=r"the digests of .* are unknown") as fault:
        check.command("golden", json=False)
    assert fault.value.key == f"artifacts.models.{LAB}"
    assert fault.value.line
    # Its recipe pins no commit, so 'lock' would have nothing to ask the hub for.
    assert "vllm-fleet lock" not in fault.value.hint
    assert "give 'controller', a folder on this machine" in fault.value.hint
    assert fault.value.exit_code == 2
    with_commit = gpu_fleet(fleets, {"hub": "hosts", "revision": "a" * 40}, model=LAB)
    with pytest.raises(FleetError, match=r"the digests of .* are unknown") as fault:
        client.find_model_files(plan.load(with_commit, catalog), catalog, LAB)
    assert "vllm-fleet lock --fleet golden" in fault.value.hint
    gpu_fleet(fleets, {"on_host": "/data/m"}, model=LAB)
    plan_command.command("golden", json=True)
    refusals = json.loads(capsys.readouterr().out)["site_refuses"]
    # The fixture's vocabularies and its private key are not there either.
    (refused,) = [refused for refused in refusals if refused["key"].startswith("artifacts.models")]
    assert "are unknown" in refused["message"]
    assert folder


def test_no_source_at_all_is_said_with_the_choices(fleets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_fleet(fleets)
    check.command("golden", json=False)
    said = capsys.readouterr().out
    assert "site.yml will refuse: " in said
    for word in ("vllm-fleet mirror --fleet golden", "huggingface_cache", "on_host", "'url'", "hub: hosts"):
        assert word in said
    plan_command.command("golden", json=False)
    assert "site.yml will refuse: " in capsys.readouterr().out
    with pytest.raises(FleetError, match="has no copy of"):
        inventory.load(fleets / "golden")


@pytest.mark.parametrize(
    ("source", "says", "moves"),
    [
        ({"huggingface_cache": "/data/hf/hub"}, "not copied", 0),
        ({"url": "https://h/m"}, "https://h/m, by each host", 1),
        ({"hub": "hosts"}, "the hub, by each host", 1),
        (None, "the hub, by the controller, copied", 2),
    ],
)
def test_plan_shows_the_source_and_the_bytes_that_move(
    fleets: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str], source: Any, says: str, moves: int
) -> None:
    gpu_fleet(fleets, source)
    plan_command.command("golden", json=True)
    (model,) = json.loads(capsys.readouterr().out)["models"]
    weights = catalog.model(MODEL).weights
    assert weights
    size = sum(size for size, _ in weights.files.values())
    assert (says in model["source"], model["bytes"], model["moves"]) == (True, size, moves * size)
    assert model["digests"].startswith("the recipe (")


def test_the_recipes_digests_are_as_large_as_the_recipes_weights(catalog: Catalog) -> None:
    for model in catalog.models.values():
        if model.weights and model.weights.files:
            size = sum(size for size, _ in model.weights.files.values()) / 2**30
            assert abs(size - model.shape.weights_gib) < 0.1, model.name


def test_hosts_that_have_the_model_need_none_of_the_mirror(fleets: Path, catalog: Catalog) -> None:
    for source, kinds in (({"on_host": "/data/m"}, 0), ({"hub": "hosts"}, 0), ({"hub": "mirror"}, 1)):
        needs = parts.list_parts(plan.load(gpu_fleet(fleets, source), catalog), catalog)
        assert len([need for need in needs if isinstance(need, parts.Model)]) == kinds


def test_a_disk_with_another_model_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    need = parts.Model(MODEL, "0" * 40, None, (), (("config.json", "a" * 64, 2),))
    disk = Store(tmp_path)
    for digest, message in (("b" * 64, "has the SHA-256"), (None, "has no file")):
        name = f"{need.path}/{'config.json' if digest else 'other.json'}"
        disk.write(Index().with_part(need.key, {name: Entry(digest or "c" * 64, 2, 1)}))
        with pytest.raises(FleetError, match=message) as fault:
            fill_mirror.check_pinned_models(disk, [need])
        assert fault.value.exit_code == 2
    disk.write(Index().with_part(need.key, {f"{need.path}/config.json": Entry("a" * 64, 2, 1)}))
    fill_mirror.check_pinned_models(disk, [need])
    assert fill_mirror.unpinned_models([need, parts.Model("a/b", "1")]) == ("a/b",)


def test_lock_asks_the_hub_once_and_keeps_what_it_says(
    fleets: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    revision = "1" * 40
    bodies = {"config.json": b"{}", "model.safetensors": b"w" * 2000, "original/x.bin": b"x"}
    folder = gpu_fleet(fleets, {"huggingface_cache": "/data/hf/hub", "revision": revision}, model=LAB)
    with serving(Origin(models={LAB: {revision: bodies}})) as origin:
        monkeypatch.setenv("HF_ENDPOINT", origin.url)
        lock.command("golden", json=True)
        assert json.loads(capsys.readouterr().out)["locked"] == [LAB]
        asked = len(origin.requests)
        lock.command("golden", json=True)
        assert json.loads(capsys.readouterr().out)["locked"] == []
        assert len(origin.requests) == asked
        with pytest.raises(FleetError, match="does not exist") as fault:
            lock.command("golden", hub_token_file=Path("/nowhere/token"))
        assert (fault.value.exit_code, fault.value.key) == (2, "--hub-token-file")
    found = client.find_model_files(plan.load(folder, catalog), catalog, LAB)
    assert found.digests_from.startswith("the hub, by models.lock.json (")
    assert set(found.sha256) == {"config.json", "model.safetensors"}
    (folder / "models.lock.json").write_text("[]")
    with pytest.raises(FleetError, match="is not a lock of models"):
        check.command("golden", json=False)


@pytest.mark.parametrize(
    ("name", "message", "exit_code"),
    [
        ("pytorch_model.bin", "can run code", 2),
        ("x y.json", "is not a plain file name", 2),
        ("evil\x1b[2J.json", "the hub lists a file", 1),
    ],
)
def test_a_hostile_repository_is_refused_by_lock(
    fleets: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, exit_code: int
) -> None:
    revision = "1" * 40
    folder = gpu_fleet(fleets, {"hub": "hosts", "revision": revision}, model=LAB)
    with serving(Origin(models={LAB: {revision: {"config.json": b"{}", name: b"x"}}})) as origin:
        monkeypatch.setenv("HF_ENDPOINT", origin.url)
        with pytest.raises(FleetError, match=message) as fault:
            lock.command("golden", json=True)
    assert fault.value.exit_code == exit_code
    assert "\x1b" not in str(fault.value)
    assert not (folder / "models.lock.json").exists()


def test_a_folder_of_the_controller_that_is_not_the_recipes_revision_it_claims_is_refused(
    fleets: Path, catalog: Catalog
) -> None:
    folder = gpu_fleet(fleets, "copy")
    weights = catalog.model(MODEL).weights
    assert weights
    (folder / "copy").mkdir()
    files = {name: {"sha256": "0" * 64, "size": 1} for name in weights.files}
    (folder / "copy" / "model.json").write_text(json.dumps({"revision": weights.revision, "files": files}))
    with pytest.raises(FleetError, match="but the recipe"):
        inventory.load(folder)


@pytest.mark.parametrize("beside", [{}, {MODEL: {"hub": "hosts"}}])
def test_a_model_that_no_recipe_has_gets_no_source(fleets: Path, catalog: Catalog, beside: dict[str, Any]) -> None:
    folder = gpu_fleet(fleets)
    spec = yaml.safe_load((folder / "fleet.yml").read_text())
    spec["artifacts"]["models"] = {"openai/gpt-oss-20B": {"hub": "hosts"}, **beside}
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec))
    with pytest.raises(FleetError, match="'openai/gpt-oss-20B'") as fault:
        plan.load(folder, catalog)
    assert fault.value.key == "artifacts.models.openai/gpt-oss-20B"
    assert fault.value.line
    assert MODEL in fault.value.hint
    assert not fault.value.others


def test_code_of_a_models_repository_is_never_run(fleets: Path, catalog: Catalog) -> None:
    pool = {"overrides": {"args": {"trust-remote-code": True}, "why": "it is only a test"}}
    with pytest.raises(FleetError, match="run code on the host"):
        plan.load(gpu_fleet(fleets, {"on_host": "/m"}, **pool), catalog)


def test_init_can_write_each_source(fleets: Path) -> None:
    text = (fleets / "golden" / "fleet.yml").read_text()
    for source in ({"on_host": "/data/m"}, {"huggingface_cache": "/hf/hub"}, {"hub": "hosts"}, {"url": "https://h/m"}):
        written = new_fleet.set_model_source(f"# mine\n{text}", MODEL, source)
        assert yaml.safe_load(written)["artifacts"]["models"][MODEL] == source
        assert written.startswith("# mine\n")
    with pytest.raises(FleetError, match="gives no source"):
        new_fleet.set_model_source(text, MODEL, {})


def test_each_list_has_a_revision_of_its_own() -> None:
    assert DigestList({}, None, "x").own_revision != DigestList({"a": FileDigest("b")}, None, "x").own_revision
    assert DigestList({}, "1", "x").own_revision == "1"
