"""Which disks the store of models may have: only those that clouds build into hosts, and only empty ones."""

from __future__ import annotations

import importlib.machinery
import importlib.util
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
