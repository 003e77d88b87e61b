"""Which disks the store of models may have: only those that clouds build into hosts, and only empty ones."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_fleet.base import paths

FILE = paths.root() / "roles" / "model_store" / "files" / "vllm-model-disk"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("vllm_model_disk", str(FILE))
    spec = importlib.util.spec_from_loader("vllm_model_disk", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def disk(path: str, model: str = "Amazon EC2 NVMe Instance Storage", **other: Any) -> dict[str, Any]:
    return {
        "path": path,
        "type": "disk",
        "model": model,
        "fstype": None,
        "pttype": None,
        "mountpoints": [None],
        **other,
    }


SYSTEM = disk("/dev/nvme0n1", "Amazon Elastic Block Store", pttype="gpt", children=[{"path": "/dev/nvme0n1p1"}])
EMPTY = [disk("/dev/nvme2n1"), disk("/dev/nvme1n1")]


@pytest.mark.parametrize(
    ("disks", "mounts", "count", "chosen"),
    [
        ([SYSTEM, *EMPTY], {"/"}, 2, ("/mnt/vllm-models", ["/dev/nvme1n1", "/dev/nvme2n1"])),
        ([SYSTEM, *EMPTY], {"/", "/opt/dlami/nvme"}, 2, ("/opt/dlami/nvme", [])),
        ([SYSTEM, *EMPTY], {"/", "/mnt/vllm-models"}, 2, ("/mnt/vllm-models", [])),
        ([SYSTEM, *EMPTY], {"/"}, 0, (None, [])),
        ([SYSTEM, *EMPTY], {"/"}, 3, (None, [])),
        ([SYSTEM, disk("/dev/nvme1n1", fstype="xfs"), EMPTY[0]], {"/"}, 2, (None, [])),
        ([SYSTEM, disk("/dev/nvme1n1", pttype="dos")], {"/"}, 1, (None, [])),
        ([SYSTEM, disk("/dev/nvme1n1", children=[{"path": "/dev/md0"}])], {"/"}, 1, (None, [])),
        ([SYSTEM, disk("/dev/nvme1n1", "Amazon Elastic Block Store")], {"/"}, 1, (None, [])),
        ([SYSTEM, disk("/dev/nvme1n1", None)], {"/"}, 1, (None, [])),
    ],
)
def test_a_disk_with_anything_on_it_is_never_taken(
    program: ModuleType, disks: list[Any], mounts: set[str], count: int, chosen: tuple[str | None, list[str]]
) -> None:
    assert program.choose({"blockdevices": disks}, mounts, count) == chosen


def test_several_disks_become_one_and_one_stays_itself(program: ModuleType) -> None:
    several = list(program.commands(["/dev/a", "/dev/b"]))
    assert several[0][:2] == ["mdadm", "--create"]
    assert several[1][-1] == "/dev/md/vllm-models"
    assert next(iter(program.commands(["/dev/a"])))[-1] == "/dev/a"


@pytest.mark.parametrize(
    ("chosen", "changed", "status"), [(None, False, 0), ("/opt/nvme/models", True, 0), (OSError("no lsblk"), False, 1)]
)
def test_it_reports_in_json_whether_it_has_changed_anything(
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chosen: Any,
    changed: bool,
    status: int,
) -> None:
    def choose(*_: Any) -> tuple[str | None, list[str]]:
        if isinstance(chosen, Exception):
            raise chosen
        return chosen, []

    monkeypatch.setattr(program, "STORE", str(tmp_path / "store"))
    monkeypatch.setattr(program, "run", lambda _: "{}")
    monkeypatch.setattr(program, "choose", choose)
    monkeypatch.setattr(program, "link", lambda _: None)
    monkeypatch.setattr("sys.argv", ["vllm-model-disk", "1"])
    assert program.main() == status
    report = json.loads(capsys.readouterr().out)
    assert (report["changed"], set(report)) == (changed, {"changed", "message"})


def test_a_store_that_has_files_is_left_alone(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(program, "STORE", str(tmp_path))
    assert program.main() == 0
    assert json.loads(capsys.readouterr().out) == {"changed": False, "message": "the store exists"}


def member(array_label: str = "h100-0:vllm-models", **array: Any) -> dict[str, Any]:
    """A disk that an interrupted run has made a member of the array."""
    child = {"path": "/dev/md127", "type": "raid0", "fstype": None, "label": None, **array}
    return disk("/dev/nvme1n1", fstype="linux_raid_member", label=array_label, children=[child])


@pytest.mark.parametrize(
    ("disks", "left"),
    [
        ([SYSTEM, *EMPTY], []),
        ([SYSTEM, member()], [("/dev/md127", False)]),
        ([SYSTEM, member(fstype="ext4", label="other")], []),
        ([SYSTEM, disk("/dev/nvme1n1", fstype="ext4", label="vllm-models")], [("/dev/nvme1n1", True)]),
        ([SYSTEM, disk("/dev/nvme1n1", fstype="ext4", label="data")], []),
        ([SYSTEM, member("h100-0:data")], []),
        ([disk("/dev/sda", "QEMU HARDDISK", fstype="ext4", label="vllm-models")], []),
    ],
)
def test_what_an_interrupted_run_has_left_is_completed(program: ModuleType, disks: list[Any], left: list[Any]) -> None:
    assert list(program.own_devices({"blockdevices": disks})) == left
    for device in left:
        words = list(program.commands([], device))
        assert ("mkfs.ext4" in [word[0] for word in words]) == (not device[1])
        assert "mdadm" not in [word[0] for word in words]


def test_several_disks_without_mdadm_are_refused_before_anything_is_written(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []

    def run(words: list[str]) -> str:
        ran.append(words[0])
        return json.dumps({"blockdevices": EMPTY})

    monkeypatch.setattr(program, "STORE", str(tmp_path / "store"))
    monkeypatch.setattr(program, "UNIT", str(tmp_path / "unit"))
    monkeypatch.setattr(program, "run", run)
    monkeypatch.setattr(program.shutil, "which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["vllm-model-disk", "2"])
    assert program.main() == 1
    assert "mdadm" in json.loads(capsys.readouterr().out)["message"]
    assert ran == ["lsblk"]
    assert not (tmp_path / "unit").exists()


@pytest.mark.root
def test_a_disk_gets_a_file_system_that_lsblk_names_as_the_projects(program: ModuleType, tmp_path: Path) -> None:
    """A real loop device, mkfs.ext4 and lsblk; no array, because the kernel may lack md."""
    file = tmp_path / "disk"
    with file.open("wb") as image:
        image.truncate(64 << 20)
    device = program.run(["losetup", "--find", "--show", str(file)]).strip()
    try:
        program.run(next(iter(program.commands([device]))))
        columns = "--output=PATH,TYPE,MODEL,FSTYPE,PTTYPE,LABEL,MOUNTPOINTS"
        (found,) = json.loads(program.run(["lsblk", "--json", columns, device]))["blockdevices"]
        # udev, which tells lsblk, may not run here; blkid reads the disk itself.
        read = program.run(["blkid", "--probe", "--output", "export", device])
        values = dict(line.split("=", 1) for line in read.splitlines() if "=" in line)
        inside = {
            **found,
            "type": "disk",
            "model": EMPTY[0]["model"],
            "fstype": values["TYPE"],
            "label": values["LABEL"],
        }
        assert list(program.own_devices({"blockdevices": [inside]})) == [(device, True)]
        assert list(program.empty_disks({"blockdevices": [inside]})) == []
    finally:
        program.run(["losetup", "--detach", device])
