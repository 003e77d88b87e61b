"""The module that verifies files: what it stamps, what it refuses, and that check mode touches nothing."""

from __future__ import annotations

import getpass
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

from vllm_fleet.host.manifest_items import store_item
from vllm_fleet.on_host import probe


def run(folder: Path, files: dict[str, str], *, check: bool = False) -> dict[str, Any]:
    arguments = {
        "path": str(folder),
        "files": [{"name": name, "sha256": digest} for name, digest in files.items()],
    }
    return run_module("verified_store", folder, arguments, check=check)


def adopt(folder: Path, stamp: Path, files: dict[str, str], **more: Any) -> dict[str, Any]:
    """Verifies a folder that is not the project's, as the account that runs the tests."""
    arguments = {
        "path": str(folder),
        "files": [{"name": name, "sha256": digest} for name, digest in files.items()],
        "account": getpass.getuser(),
        "stamp": str(stamp),
        **more,
    }
    return run_module("verified_store", stamp.parent, arguments)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_text("w", encoding="utf-8")
    return tmp_path


def test_what_it_stamps_is_what_the_probe_trusts(folder: Path) -> None:
    files = {"weights": sha256("w")}
    item = store_item("model_store", str(folder), ".verified.json", files)
    assert probe.check_store(item) == ("incomplete", "is not complete")
    first = run(folder, files)
    assert (first["changed"], first["verified"]) == (True, ["weights"])
    assert probe.check_store(item) is None
    again = run(folder, files)
    assert (again["changed"], again["verified"]) == (False, [])


def test_a_wrong_file_is_refused_and_not_stamped(folder: Path) -> None:
    result = run(folder, {"weights": sha256("x")})
    assert result["failed"] is True
    assert "has the SHA-256" in result["msg"]
    assert not (folder / ".verified.json").exists()


def test_a_missing_file_is_refused(folder: Path) -> None:
    assert "is missing" in run(folder, {"other": sha256("x")})["msg"]


def test_check_mode_touches_nothing(folder: Path) -> None:
    assert run(folder, {"weights": sha256("w")}, check=True)["changed"] is True
    assert not (folder / ".verified.json").exists()


class TestAdopted:
    """A folder that is not the project's: only read, and its stamp is elsewhere."""

    @pytest.fixture
    def files(self) -> dict[str, str]:
        return {"weights": sha256("w")}

    def stamp(self, folder: Path) -> Path:
        found = folder.parent / "stamps" / "stamp.json"
        found.parent.mkdir(exist_ok=True)
        return found

    def drift(self, folder: Path, files: dict[str, str]) -> Any:
        stamp = str(self.stamp(folder))
        return probe.check_store(store_item("model_store", str(folder), stamp, files, getpass.getuser()))

    def test_it_is_verified_once_and_nothing_is_written_into_it(self, folder: Path, files: dict[str, str]) -> None:
        assert self.drift(folder, files) == ("incomplete", "is not complete")
        assert adopt(folder, self.stamp(folder), files)["verified"] == ["weights"]
        assert self.drift(folder, files) is None
        again = adopt(folder, self.stamp(folder), files)
        assert (again["changed"], again["verified"]) == (False, [])
        assert [path.name for path in folder.iterdir()] == ["weights"]

    def test_a_changed_byte_with_the_old_time_is_found_and_refused(self, folder: Path, files: dict[str, str]) -> None:
        adopt(folder, self.stamp(folder), files)
        before = (folder / "weights").stat()
        (folder / "weights").write_text("x")
        os.utime(folder / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert self.drift(folder, files) == ("file_changed", "weights was changed after it was verified")
        assert "has the SHA-256" in adopt(folder, self.stamp(folder), files)["msg"]

    def test_a_file_that_is_added_later_is_found_and_refused(self, folder: Path, files: dict[str, str]) -> None:
        adopt(folder, self.stamp(folder), files)
        (folder / "chat_template.json").write_text("{}")
        assert self.drift(folder, files)[0] == "file_changed"
        assert "'chat_template.json'" in adopt(folder, self.stamp(folder), files)["msg"]

    def test_what_vllm_does_not_read_may_be_there(self, folder: Path, files: dict[str, str]) -> None:
        for name in ("README.md", ".gitattributes", "model.json"):
            (folder / name).write_text("")
        (folder / "original").mkdir()
        assert adopt(folder, self.stamp(folder), files)["changed"] is True
        (folder / "additional_chat_templates").mkdir()
        assert "additional_chat_templates" in adopt(folder, self.stamp(folder), files)["msg"]

    def test_what_every_account_may_write_is_refused(self, folder: Path, files: dict[str, str]) -> None:
        for path, mode in ((folder / "weights", 0o666), (folder, 0o777)):
            before = path.stat().st_mode
            path.chmod(mode)
            assert f"every account may write {path}" in adopt(folder, self.stamp(folder), files)["msg"]
            path.chmod(before)
        (folder / "weights").unlink()
        assert "is missing" in adopt(folder, self.stamp(folder), files, stamp_only=True)["msg"]

    def test_an_account_that_is_not_made_yet_reads_what_all_can(self, folder: Path, files: dict[str, str]) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can look as another account")
        folder.chmod(0o755)
        absent = {"account": "not-made-yet", "stamp_only": True}
        assert adopt(folder, self.stamp(folder), files, **absent)["missing"] == ["weights"]
        (folder / "weights").chmod(0o600)
        assert "cannot read" in adopt(folder, self.stamp(folder), files, **absent)["msg"]

    def test_links_stay_within_the_folder(self, tmp_path: Path, files: dict[str, str]) -> None:
        tree = tmp_path / "models--a--b"
        for name in ("blobs", "snapshots/1"):
            (tree / name).mkdir(parents=True)
        (tree / "blobs" / "b").write_text("w")
        snapshot = tree / "snapshots" / "1"
        (snapshot / "weights").symlink_to("../../blobs/b")
        assert adopt(snapshot, self.stamp(tree), files, within=str(tree))["changed"] is True
        (snapshot / "weights").unlink()
        (tmp_path / "outside").write_text("w")
        (snapshot / "weights").symlink_to("../../../outside")
        assert "out of" in adopt(snapshot, self.stamp(tree), files, within=str(tree))["msg"]

    def test_files_of_another_account_are_named(self, folder: Path, files: dict[str, str]) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        os.chown(folder / "weights", 65534, 65534)
        done = adopt(folder, self.stamp(folder), files)
        assert done["changed"] is True
        assert any("who can change it after it was verified" in str(warning) for warning in done["warnings"]), done


@pytest.mark.parametrize("stamp", ["[]", "null", "7", '{"weights": null}', '{"weights": [1]}', "{", "\x00"])
def test_an_odd_stamp_is_no_stamp(folder: Path, stamp: str) -> None:
    (folder / ".verified.json").write_text(stamp, encoding="utf-8")
    files = {"weights": sha256("w")}
    item = store_item("model_store", str(folder), ".verified.json", files)
    difference = probe.check_store(item)
    assert difference is not None
    assert difference[0] in ("incomplete", "unverified")
    assert run(folder, files)["changed"] is True
    assert probe.check_store(item) is None
