"""Which disk the store of models gets: the one that the plan names, and never one with anything on it.

The trees of /sys/block have what people have published of such hosts:
  AWS     ``nvme list`` in oogali/ebs-automatic-nvme-mapping#7, ``lsblk`` of an i4i.large in scylla-ansible-roles#407
  Google  models of GoogleCloudPlatform/guest-configs, src/lib/udev/google_nvme_id; disks as in its #30
  Azure   Azure/azure-vm-utils, doc/disk-identification.md (Standard_D2alds_v6) and udev/80-azure-disk.rules
Attributes are those of the kernel's Documentation/ABI/stable/sysfs-nvme.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vllm_fleet.base import paths
from vllm_fleet.host import model_disk

FILE = paths.root() / "roles" / "model_store" / "files" / "vllm-model-disk"
EBS, STORE = "Amazon Elastic Block Store", "Amazon EC2 NVMe Instance Storage"
EXT4 = {"TYPE": "ext4", "LABEL": "vllm-models", "UUID": "u-1"}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program on a host without disks."""
    loader = importlib.machinery.SourceFileLoader("vllm_model_disk", str(FILE))
    spec = importlib.util.spec_from_loader("vllm_model_disk", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    (tmp_path / "sys" / "block").mkdir(parents=True)
    (tmp_path / "sys" / "dev" / "block").mkdir(parents=True)
    monkeypatch.setattr(module, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(module, "STORE", str(tmp_path / "lib" / "models"))
    monkeypatch.setattr(module, "UNITS", str(tmp_path / "units"))
    monkeypatch.setattr(module, "PLACES", {kind: str(tmp_path / kind) for kind in module.PLACES})
    monkeypatch.setattr(module, "mounts", lambda: [])
    monkeypatch.setattr(module, "swaps", lambda: [])
    return module


class Host:
    """A tree of /sys/block, with what is mounted and what blkid finds."""

    def __init__(self, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sys = Path(program.SYS)
        self.mounted: list[tuple[str, str]] = []
        self.swaps: list[str] = []
        self.signatures: dict[str, dict[str, str]] = {}
        self.ran: list[list[str]] = []
        self._next = 0
        monkeypatch.setattr(program, "mounts", lambda: self.mounted)
        monkeypatch.setattr(program, "swaps", lambda: self.swaps)
        monkeypatch.setattr(program, "probe", lambda device: self.signatures.get(device, {}))
        monkeypatch.setattr(program, "take_alone", lambda _: None)
        monkeypatch.setattr(program, "run", self._run)
        monkeypatch.setattr(program.shutil, "which", lambda name: f"/sbin/{name}")

    def _run(self, words: list[str]) -> str:
        self.ran.append(words)
        return ""

    def disk(self, name: str, model: str, **more: Any) -> Path:
        """A disk; ``transport`` of its controller, ``parts`` on it, ``hidden``, ``serial``, ``nsid``."""
        folder = self.sys / "block" / name
        (folder / "device").mkdir(parents=True)
        # The kernel pads models to 40 characters.
        (folder / "device" / "model").write_text(f"{model:<40}\n")
        (folder / "device" / "serial").write_text(f"{more.get('serial', ''):<20}\n")
        if transport := more.get("transport", "pcie"):
            (folder / "device" / "transport").write_text(f"{transport}\n")
        for key in ("hidden", "nsid"):
            if key in more:
                (folder / key).write_text(f"{more[key]}\n")
        self._number(folder)
        for part in more.get("parts", ()):
            (folder / part).mkdir()
            (folder / part / "partition").write_text("1\n")
            self._number(folder / part)
        (folder / "holders").mkdir()
        for holder in more.get("holders", ()):
            (folder / "holders" / holder).touch()
        return folder

    def _number(self, folder: Path) -> None:
        self._next += 1
        (folder / "dev").write_text(f"259:{self._next}\n")
        (self.sys / "dev" / "block" / f"259:{self._next}").symlink_to(folder)

    def mount(self, name: str, folder: str) -> None:
        """Mounts a disk, or a partition of it."""
        (found,) = [path for path in (self.sys / "block").glob("**/dev") if path.parent.name == name]
        self.mounted.append((found.read_text().strip(), folder))


@pytest.fixture
def host(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(program, monkeypatch)


def aws(host: Host, local: int = 2) -> None:
    """The root disk is not the first, and an empty EBS volume that somebody has attached is beside it."""
    host.disk("nvme1n1", EBS, serial="vol00000000000000000", parts=["nvme1n1p1", "nvme1n1p14", "nvme1n1p15"])
    host.mount("nvme1n1p1", "/")
    host.disk("nvme0n1", EBS, serial="vol11111111111111111")
    for number in range(local):
        host.disk(f"nvme{number + 2}n1", STORE, serial=f"AWS2222222222222222{number}")


def gcp(host: Host) -> None:
    host.disk("nvme0n1", "nvme_card-pd", parts=["nvme0n1p1"])
    host.mount("nvme0n1p1", "/")
    host.disk("nvme0n2", "nvme_card-pd")
    host.disk("nvme1n1", "nvme_card0")
    host.disk("nvme2n1", "nvme_card1")


def azure(host: Host) -> None:
    host.disk("nvme0n1", "MSFT NVMe Accelerator v1.0", parts=["nvme0n1p1"], nsid=1)
    host.mount("nvme0n1p1", "/")
    host.disk("nvme0n2", "MSFT NVMe Accelerator v1.0", nsid=2)
    host.disk("nvme1n1", "Microsoft NVMe Direct Disk v2", nsid=1)


def oracle(host: Host) -> None:
    """The root disk is reached by iSCSI. No name of an NVMe disk there was found: it does not matter."""
    host.disk("sda", "BlockVolume", transport="", parts=["sda1"])
    host.mount("sda1", "/")
    host.disk("sdb", "BlockVolume", transport="")
    host.disk("nvme0n1", "a model that nobody has heard of")
    host.disk("nvme1n1", "a model that nobody has heard of")


@pytest.mark.parametrize(
    ("cloud", "inside"),
    [
        (aws, ["/dev/nvme2n1", "/dev/nvme3n1"]),
        (gcp, ["/dev/nvme1n1", "/dev/nvme2n1"]),
        (azure, ["/dev/nvme1n1"]),
        (oracle, ["/dev/nvme0n1", "/dev/nvme1n1"]),
    ],
)
def test_disks_inside_are_told_from_network_disks_without_a_list_of_names(
    program: ModuleType, host: Host, cloud: Callable[[Host], None], inside: list[str]
) -> None:
    cloud(host)
    found, _ = program.inside_disks(program.disks(), program.system_models())
    assert [disk.path for disk in found] == inside
    assert program.empty_disks(found) == (inside, [])


def test_a_root_on_an_array_is_followed_to_its_disks(program: ModuleType, host: Host) -> None:
    aws(host)
    array = host.disk("dm-0", "", transport="")
    (array / "slaves").mkdir()
    (array / "slaves" / "nvme1n1p1").symlink_to(host.sys / "block" / "nvme1n1" / "nvme1n1p1")
    host.mounted = []
    host.mount("dm-0", "/")
    assert program.system_models() == {EBS}


def test_a_disk_over_a_network_and_a_path_of_a_multipath_disk_are_none(program: ModuleType, host: Host) -> None:
    aws(host, local=0)
    host.disk("nvme5n1", "Linux", transport="tcp")
    host.disk("nvme6c6n1", "nvme_card", hidden=1)
    head = host.disk("nvme6n1", "nvme_card", transport="")
    (head / "device" / "nvme6").mkdir()
    (head / "device" / "nvme6" / "transport").write_text("pcie\n")
    found, others = program.inside_disks(program.disks(), program.system_models())
    assert [disk.path for disk in found] == ["/dev/nvme6n1"]
    assert "/dev/nvme5n1 is reached by tcp" in others


def partition(host: Host) -> None:
    host.disk("nvme2n1", STORE, parts=["nvme2n1p1"])


def signature(host: Host) -> None:
    host.disk("nvme2n1", STORE)
    host.signatures["/dev/nvme2n1"] = {"TYPE": "xfs", "LABEL": "data"}


def held(host: Host) -> None:
    host.disk("nvme2n1", STORE, holders=["dm-1"])


def mounted(host: Host) -> None:
    host.disk("nvme2n1", STORE)
    host.mount("nvme2n1", "/data")


def swap(host: Host) -> None:
    host.disk("nvme2n1", STORE)
    host.swaps.append("/dev/nvme2n1 partition 1024 0 -2")


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (partition, "in use (partition nvme2n1p1)"),
        (signature, "has xfs 'data' on it"),
        (held, "in use (dm-1 on it)"),
        (mounted, "in use (mounted at /data)"),
        (swap, "in use (swap)"),
    ],
)
def test_a_disk_with_anything_on_it_is_never_taken(
    program: ModuleType,
    host: Host,
    use: Callable[[Host], None],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aws(host, local=0)
    use(host)
    code, report = ran(program, {"kind": "local", "count": 1}, capsys, monkeypatch)
    assert (code, report["changed"], host.ran) == (1, False, [])
    assert f"/dev/nvme2n1 {'is ' if 'in use' in says else ''}{says}" in report["message"]
    assert "local_disks: false" in report["message"]
    assert f"is of the kind that the system runs from ({EBS})" in report["message"]


def ran(
    program: ModuleType, asked: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, Any]]:
    """The exit code, and the one JSON object that is printed."""
    monkeypatch.setattr("sys.argv", ["vllm-model-disk", json.dumps(asked)])
    code = program.main()
    return code, json.loads(capsys.readouterr().out)


def test_several_disks_become_one_and_the_store_is_in_it(
    program: ModuleType,
    host: Host,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aws(host)
    code, report = ran(program, {"kind": "local", "count": 2}, capsys, monkeypatch)
    assert (code, report["changed"]) == (0, True)
    assert host.ran[0] == [
        *("mdadm", "--create", "/dev/md/vllm-models", "--level=0", "--raid-devices=2", "--run"),
        *("/dev/nvme2n1", "/dev/nvme3n1"),
    ]
    assert host.ran[1][:4] == ["mkfs.ext4", "-q", "-L", "vllm-models"]
    assert host.ran[1][-1] == "/dev/md/vllm-models"
    assert host.ran[-1][:3] == ["systemctl", "enable", "--now"]
    (unit,) = Path(program.UNITS).iterdir()
    assert "Options=noatime,nofail\n" in unit.read_text()
    assert Path(program.STORE).readlink() == Path(program.PLACES["local"]) / "vllm-models"


def test_a_shape_with_fewer_disks_than_are_empty_is_refused(
    program: ModuleType, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(host, local=3)
    code, report = ran(program, {"kind": "local", "count": 2}, capsys, monkeypatch)
    assert (code, host.ran) == (1, [])
    assert "3 disks are empty, and the host's type has 2 inside" in report["message"]


def test_without_mdadm_several_disks_are_refused_before_anything_is_written(
    program: ModuleType, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(host)
    monkeypatch.setattr(program.shutil, "which", lambda _: None)
    code, report = ran(program, {"kind": "local", "count": 2}, capsys, monkeypatch)
    assert (code, host.ran) == (1, [])
    assert "mdadm" in report["message"]
    assert not Path(program.UNITS).exists()


@pytest.mark.parametrize("has_file_system", [False, True])
def test_what_an_interrupted_run_has_left_is_completed(
    program: ModuleType,
    host: Host,
    has_file_system: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aws(host, local=0)
    for name in ("nvme2n1", "nvme3n1"):
        host.disk(name, STORE, holders=["md127"])
        host.signatures[f"/dev/{name}"] = {"TYPE": "linux_raid_member", "LABEL": "h100-0:vllm-models"}
    if has_file_system:
        host.signatures["/dev/md127"] = EXT4
    assert ran(program, {"kind": "local", "count": 2}, capsys, monkeypatch)[0] == 0
    words = [each[0] for each in host.ran]
    assert "mdadm" not in words
    assert ("mkfs.ext4" in words) == (not has_file_system)


def test_an_array_of_somebody_else_is_not_completed(program: ModuleType, host: Host) -> None:
    host.disk("nvme2n1", STORE, holders=["md127"])
    host.signatures["/dev/nvme2n1"] = {"TYPE": "linux_raid_member", "LABEL": "h100-0:data"}
    assert program.own_device(program.disks()) is None
    host.signatures["/dev/nvme2n1"] = {"TYPE": "linux_raid_member", "LABEL": "h100-0:vllm-models"}
    host.signatures["/dev/md127"] = {"TYPE": "xfs"}
    assert program.own_device(program.disks()) is None


@pytest.mark.parametrize("place", ["/opt/dlami/nvme", "local"])
def test_disks_that_are_mounted_already_are_used_as_they_are(
    program: ModuleType,
    host: Host,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(tmp_path / "image")
    monkeypatch.setattr(program, "MOUNTED", (folder,))
    host.mounted.append(("253:0", folder if place != "local" else program.PLACES["local"]))
    code, report = ran(program, {"kind": "local", "count": 8}, capsys, monkeypatch)
    assert (code, report["changed"], host.ran) == (0, True, [])
    code, report = ran(program, {"kind": "local", "count": 8}, capsys, monkeypatch)
    assert (code, report["changed"]) == (0, False)


def test_the_root_disk_needs_nothing(
    program: ModuleType, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(host)
    code, report = ran(program, {"kind": "root"}, capsys, monkeypatch)
    assert (code, report["changed"], host.ran) == (0, False, [])


def test_a_scratch_disk_is_mounted_and_never_formatted(
    program: ModuleType, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"kind": "scratch", "label": "DOSCRATCH"}
    code, report = ran(program, asked, capsys, monkeypatch)
    assert code == 1
    assert "no disk has the label DOSCRATCH" in report["message"]
    exists = program.os.path.exists
    monkeypatch.setattr(program.os.path, "exists", lambda path: path.endswith("/DOSCRATCH") or exists(path))
    assert ran(program, asked, capsys, monkeypatch)[0] == 0
    assert [words[0] for words in host.ran] == ["systemctl", "systemctl"]
    (unit,) = Path(program.UNITS).iterdir()
    assert "What=/dev/disk/by-label/DOSCRATCH\n" in unit.read_text()


@pytest.mark.parametrize(
    ("cloud", "name", "others", "found"),
    [
        # The kernel has the volume's id as the serial, where the image lacks Amazon's udev rules.
        ("aws", "vol-11111111111111111", aws, "/dev/nvme0n1"),
        # Azure's images before Ubuntu 25.04 have no udev rules for remote disks that are NVMe.
        ("azure", "lun0", azure, "/dev/nvme0n2"),
        ("aws", "vol-33333333333333333", aws, None),
        ("gcp", "models", gcp, None),
        ("azure", "lun1", azure, None),
    ],
)
def test_a_volume_is_found_by_its_id(
    program: ModuleType, host: Host, cloud: str, name: str, others: Callable[[Host], None], found: str | None
) -> None:
    others(host)
    assert program.find_volume(model_disk.volume(cloud, name)) == found


@pytest.mark.parametrize(
    ("cloud", "name", "link"),
    [
        ("aws", "vol-0123456789abcdef0", "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"),
        ("gcp", "models", "/dev/disk/by-id/google-models"),
        ("azure", "lun0", "/dev/disk/azure/scsi1/lun0"),
    ],
)
def test_a_volume_has_the_link_that_its_cloud_s_udev_rules_make(cloud: str, name: str, link: str) -> None:
    assert link in model_disk.volume(cloud, name)["links"]


def test_a_volume_that_is_not_attached_is_refused_after_a_while(
    program: ModuleType, host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "APPEARS_SECONDS", -1)
    code, report = ran(program, {"kind": "volume", **model_disk.volume("gcp", "models")}, capsys, monkeypatch)
    assert code == 1
    assert "the volume models is not attached: none of /dev/disk/by-id/google-models exists" in report["message"]


@pytest.fixture
def moved(program: ModuleType, tmp_path: Path) -> Iterator[Path]:
    """A store with a model on the root disk, and the folder that it belongs to."""
    old = Path(program.STORE)
    (old / "org--model" / "revision").mkdir(parents=True)
    (old / "org--model" / "revision" / "weights").write_text("w")
    folder = tmp_path / "volume"
    folder.mkdir()
    yield folder


def test_a_store_that_was_elsewhere_moves_with_what_it_has(program: ModuleType, moved: Path) -> None:
    """With the programs of this machine: cp keeps times, which the stamps of verified files depend on."""
    file = Path(program.STORE) / "org--model" / "revision" / "weights"
    before = file.stat().st_mtime_ns
    assert program.settle(str(moved)) is True
    assert Path(program.STORE).readlink() == moved / "vllm-models"
    assert (file.read_text(), file.stat().st_mtime_ns) == ("w", before)
    assert sorted(path.name for path in Path(program.STORE).parent.iterdir()) == ["models"]
    assert program.settle(str(moved)) is False


@pytest.mark.parametrize("at", ["os.rename", "os.replace", "os.symlink"])
def test_a_move_that_is_interrupted_is_completed_by_the_next_run(
    program: ModuleType, moved: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(at, stop)
        with pytest.raises(KeyboardInterrupt):
            program.settle(str(moved))
    assert program.settle(str(moved)) is True
    assert (Path(program.STORE) / "org--model" / "revision" / "weights").read_text() == "w"
    assert program.settle(str(moved)) is False


def test_a_copy_that_fails_leaves_the_store_as_it_was(
    program: ModuleType, moved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: list[str]) -> str:
        Path(words[-1]).mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(program, "run", fails)
    with pytest.raises(OSError, match="No space left"):
        program.settle(str(moved))
    assert (Path(program.STORE) / "org--model" / "revision" / "weights").read_text() == "w"
    assert list(moved.iterdir()) == []


def test_a_disk_that_an_operator_has_mounted_at_the_store_is_not_moved(
    program: ModuleType, host: Host, moved: Path
) -> None:
    host.mounted.append(("253:0", program.STORE))
    with pytest.raises(program.Refused, match="another disk is mounted at"):
        program.settle(str(moved))


@pytest.mark.parametrize(("more", "grown"), [(0, False), (64 << 20, True)])
def test_a_file_system_fills_a_disk_that_was_enlarged(
    program: ModuleType, tmp_path: Path, more: int, grown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real mkfs.ext4 and dumpe2fs on a file. The kernel alone enlarges what is mounted."""
    image = tmp_path / "disk"
    image.write_bytes(b"")
    os.truncate(image, 256 << 20)
    program.run(["mkfs.ext4", "-q", "-F", str(image)])
    os.truncate(image, (256 << 20) + 4096 + more)
    real, ran = program.run, []

    def run(words: list[str]) -> str:
        if words[0] == "blockdev":
            return f"{image.stat().st_size}\n"
        ran.append(words)
        return str(real(words)) if words[0] == "dumpe2fs" else ""

    monkeypatch.setattr(program, "run", run)
    assert program.grow(str(image)) is grown
    assert (["resize2fs", str(image)] in ran) is grown


def test_what_blkid_says_is_a_signature_none_or_an_error(program: ModuleType, tmp_path: Path) -> None:
    """The real blkid: an empty disk, a file system with a blank in its label, and a disk that is not there."""
    device = tmp_path / "disk"
    device.write_bytes(bytes(8 << 20))
    assert program.probe(str(device)) == {}
    program.run(["mkfs.ext4", "-q", "-F", "-L", "my data", str(device)])
    assert program.text(program.probe(str(device))) == "ext4 'my data'"
    with pytest.raises(OSError, match="nothing-there"):
        program.probe(str(tmp_path / "nothing-there"))
