"""Outputs of tools are text of strangers: every parser returns its declared types, and nothing ends the program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_fleet.base import paths
from vllm_fleet.facts.host_answer import HostFacts
from vllm_fleet.on_host import gpu_facts, host_tools, kernel_log, machine_facts

FIXTURES: Mapping[str, list[dict[str, Any]]] = yaml.safe_load(
    (paths.root() / "tests" / "fixtures" / "tool_outputs.yml").read_text(encoding="utf-8")
)
FIELDS = gpu_facts.NVIDIA_FIELDS
LOG = """\
[    9.431] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.03
[ 7421.877] NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
[ 7421.878] NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000)
[ 7421.879] NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)
[131453.74] nvidia-nvswitch0: SXid (PCI:0000:00:00.0): 20034, Fatal, Link 30 LTSSM Fault Up
[   12.345] NVRM: GPU 0000:18:00.0: RmInitAdapter failed! (0x23:0x65:1426)
"""


def names(part: str) -> Any:
    return pytest.mark.parametrize("case", FIXTURES[part], ids=[case["name"] for case in FIXTURES[part]])


@names("nvidia")
def test_nvidia_smi_of_public_reports(case: Mapping[str, Any]) -> None:
    gpus, driver, _ = gpu_facts.nvidia_gpus(case["rows"], FIELDS)
    assert gpus == [case["gpu"]] * len(gpus)
    assert len(gpus) == case["rows"].count("\n")
    assert driver == case["driver"]
    modes = gpu_facts.nvidia_modes(case["rows"], FIELDS)
    assert (modes["mig_gpus"], modes["fabric_states"]) == (case["mig_gpus"], case["fabric_states"])


@names("rocm_smi")
def test_rocm_smi_of_public_reports(case: Mapping[str, Any]) -> None:
    gpus, _, firmware = gpu_facts.rocm_smi_gpus(case["output"])
    assert (gpus, firmware) == (case["gpus"], case["mec_firmware"])


@names("amd_smi")
def test_amd_smi_of_public_reports(case: Mapping[str, Any]) -> None:
    assert gpu_facts.amd_smi_gpus(case["static"], case["firmware"]) == (
        case["gpus"],
        case["driver"],
        case["mec_firmware"],
    )


@names("pci")
def test_switches_are_counted_on_the_bus(case: Mapping[str, Any], tmp_path: Path) -> None:
    number = 0
    for kind, count in case["devices"].items():
        for _ in range(count):
            folder = tmp_path / "sys/bus/pci/devices" / f"0000:{number:02x}:00.0"
            folder.mkdir(parents=True)
            for name, value in zip(("class", "vendor", "device"), kind.split(), strict=True):
                (folder / name).write_text(f"{value}\n", encoding="utf-8")
            number += 1
    gpus, switches = machine_facts.read_pci(str(tmp_path))
    assert (gpus, switches) == (case["gpus"], case["nvswitches"])


@pytest.mark.parametrize(
    ("files", "kernel"),
    [
        ({"etc/default/grub": "GRUB_DEFAULT=0\n"}, "6.17.0-8-generic"),
        ({"etc/default/grub": 'GRUB_DEFAULT="0" # first\n'}, "6.17.0-8-generic"),
        ({"etc/default/grub": "GRUB_DEFAULT=saved\n"}, None),
        ({"etc/default/grub": "GRUB_DEFAULT=0\n", "etc/default/grub.d/50-cloud.cfg": "GRUB_DEFAULT='1>2'\n"}, None),
        ({"etc/default/grub": "GRUB_DEFAULT=0\n", "etc/default/grub.d/5.cfg": 'GRUB_FLAVOUR_ORDER="aws"\n'}, None),
        ({}, None),
    ],
    ids=["first", "quoted", "saved", "pinned", "flavour", "no grub"],
)
def test_the_kernel_that_boots_next(tmp_path: Path, files: Mapping[str, str], kernel: str | None) -> None:
    kernels = ("6.8.0-51-generic", "6.17.0-8-generic", "6.9.0-1-generic")
    boot = {f"boot/vmlinuz-{name}": "" for name in kernels} | {"boot/vmlinuz": "", "boot/initrd.img-9": ""}
    for name, text in {**boot, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert machine_facts.read_next_kernel(str(tmp_path)) == kernel


@pytest.mark.parametrize(
    ("listed", "nvidia", "amd"),
    [
        ("updates/dkms/nvidia.ko.zst:\nkernel/drivers/gpu/drm/amd/amdgpu/amdgpu.ko.zst: x\n", True, False),
        ("kernel/nvidia-580-open/nvidia.ko: x\nupdates/dkms/amdgpu.ko.zst: y\n", True, True),
        ("kernel/drivers/net/forcedeth.ko: updates/dkms/nvidia.ko\nextra/amdgpu.ko.xz:\n", False, True),
    ],
)
def test_the_driver_of_another_kernel(tmp_path: Path, listed: str, nvidia: bool, amd: bool) -> None:
    folder = tmp_path / "lib/modules/6.8.0"
    folder.mkdir(parents=True)
    (folder / "modules.dep").write_text(listed, encoding="utf-8")
    assert machine_facts.has_driver("6.8.0", str(tmp_path)) == {"nvidia": nvidia, "amd": amd}
    assert machine_facts.has_driver("6.9.0", str(tmp_path)) is None
    assert machine_facts.has_headers("6.8.0", str(tmp_path)) is False


@pytest.mark.parametrize(("value", "enforced"), [(b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\0", False), (b"\x06", None)])
def test_secure_boot(tmp_path: Path, value: bytes, enforced: bool | None) -> None:
    assert machine_facts.read_secure_boot(str(tmp_path)) is False
    variable = tmp_path / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.parent.mkdir(parents=True)
    assert machine_facts.read_secure_boot(str(tmp_path)) is None
    variable.write_bytes(value)
    assert machine_facts.read_secure_boot(str(tmp_path)) is enforced


@pytest.mark.parametrize(("control", "bridges"), [(0x1D, 1), (0x01, 0), (0x00, 0)])
def test_bridges_that_redirect(tmp_path: Path, control: int, bridges: int) -> None:
    """A configuration space with the capability AER, then ACS, as PCI Express lays them out."""
    space = bytearray(4096)
    space[0x100:0x104] = (0x0001 | 1 << 16 | 0x148 << 20).to_bytes(4, "little")
    space[0x148:0x14C] = (0x000D | 1 << 16).to_bytes(4, "little")
    space[0x14E:0x150] = control.to_bytes(2, "little")
    folder = tmp_path / "sys/bus/pci/devices/0000:00:01.0"
    folder.mkdir(parents=True)
    (folder / "class").write_text("0x060400\n", encoding="utf-8")
    (folder / "config").write_bytes(bytes(space))
    assert machine_facts.read_acs_bridges(str(tmp_path)) == bridges
    (folder / "config").write_bytes(bytes(space[:64]))
    assert machine_facts.read_acs_bridges(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "none"),
        ({"disabled": ""}, "disabled"),
        ({"status.json": "{}"}, "running"),
        ({"status.json": "{}", "result.json": '{"v1": {"errors": []}}'}, "done"),
        ({"status.json": "{}", "result.json": '{"v1": {"errors": ["x"]}}'}, "error"),
        ({"status.json": "{}", "result.json": '{"v1"'}, "running"),
    ],
)
def test_the_first_boot(tmp_path: Path, files: Mapping[str, str], state: str) -> None:
    folder = tmp_path / "run/cloud-init"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    assert machine_facts.read_cloud_init(str(tmp_path)) == state


def test_the_switches_of_b200_are_behind_an_infiniband_device(tmp_path: Path) -> None:
    """NVIDIA's Fabric Manager guide: a ConnectX-7 whose vital product data has SW_MNG."""
    for at, data in enumerate((b"\x82SMDL SW_MNG\0", b"\x82ConnectX-7\0")):
        folder = tmp_path / f"sys/bus/pci/devices/0000:0{at}:00.0"
        folder.mkdir(parents=True)
        (folder / "class").write_text("0x020700\n", encoding="utf-8")
        (folder / "vendor").write_text("0x15b3\n", encoding="utf-8")
        (folder / "vpd").write_bytes(data)
    assert machine_facts.read_pci(str(tmp_path)) == ({}, 1)


# -- Any text -----------------------------------------------------------------------------------------------------


def is_gpu(gpu: Any) -> bool:
    """Whether a record has the declared types, and text that a terminal only prints."""
    return (
        set(gpu) == {"name", "memory_mib", "arch"}
        and all(
            value is None or (isinstance(value, str) and value.isprintable()) for value in (gpu["name"], gpu["arch"])
        )
        and is_count(gpu["memory_mib"])
    )


def is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value <= 2**53)


def is_version(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value[0].isdigit() and value.isprintable())


SEEDS = [case[key] for part in FIXTURES.values() for case in part for key in case if isinstance(case[key], str)]
SEEDS += [LOG, "ERR!", "N/A", "[GPU is lost]", '{"gpu_data": null}', '{"card0": []}', "[" * 5000, '{"a":' * 5000]
KEYS = [
    *("card0", "card1", "system", "Driver version", "VRAM Total Memory (B)", "MEC firmware version", "GFX Version"),
    *("gpu_data", "gpu", "asic", "market_name", "vram", "size", "value", "unit", "vram_size_mb", "Card Series"),
    *("driver", "version", "driver_version", "fw_list", "fw_id", "fw_version"),
]
#: JSON with the right keys and any values.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["N/A", "ERR!", "0x"]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            children,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A public output with a part cut out, doubled or replaced."""
    text = draw(st.sampled_from(SEEDS))
    begin = draw(st.integers(0, len(text)))
    end = draw(st.integers(begin, min(len(text), begin + 60)))
    return str(text[:begin] + draw(st.text(max_size=20) | st.just(text[begin:end] * 2)) + text[end:])


TEXTS = mutated() | st.text() | VALUES.map(json.dumps) | VALUES.map(lambda value: f"WARN [x] {json.dumps(value)} end")
many = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@many
@given(TEXTS, TEXTS)
def test_no_output_of_a_vendors_tool_breaks_a_parser(text: str, other: str) -> None:
    for gpus, driver, number in (
        gpu_facts.nvidia_gpus(text, FIELDS),
        gpu_facts.rocm_smi_gpus(text),
        gpu_facts.amd_smi_gpus(text, other),
    ):
        assert all(map(is_gpu, gpus))
        assert is_version(driver)
        assert is_count(number)
        facts = {"vendor": None, "gpus": gpus, "driver": driver, "mec_firmware": number}
        HostFacts.model_validate_json(json.dumps(facts))
    modes = gpu_facts.nvidia_modes(text, FIELDS)
    HostFacts.model_validate_json(json.dumps({"vendor": None, "gpus": [], **modes}))
    assert is_count(modes["mig_gpus"])
    for key in ("fabric_states", "recovery_actions"):
        assert modes[key] is None or all(isinstance(value, str) and value for value in modes[key])
    assert all(map(is_count, gpu_facts.remapped_rows(text)))
    assert is_count(gpu_facts.count_links(text))


@many
@given(TEXTS)
def test_no_log_breaks_the_search_for_errors(text: str) -> None:
    for error in kernel_log.find_errors(text + "\n" + LOG):
        assert set(error) == {"kind", "code", "device", "detail"}
        assert error["kind"] in ("xid", "sxid", "rm_init", "off_bus")
        assert is_count(error["code"])
        assert error["detail"].isprintable()
    facts = {"vendor": None, "gpus": [], "gpu_errors": kernel_log.find_errors(text)}
    HostFacts.model_validate_json(json.dumps(facts))


@settings(many, max_examples=100)
@given(st.binary(max_size=300) | TEXTS.map(lambda text: text.encode("utf-8", "replace")))
def test_no_file_of_a_host_breaks_a_fact(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "any_file"
    for path in (
        "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
        "sys/bus/pci/devices/0000:00:00.0/class",
        "sys/bus/pci/devices/0000:00:00.0/vendor",
        "sys/bus/pci/devices/0000:00:00.0/device",
        "sys/bus/pci/devices/0000:00:00.0/config",
        "sys/bus/pci/devices/0000:00:00.0/vpd",
        "sys/kernel/iommu_groups/0/type",
        "sys/class/iommu/dmar0/x",
        "sys/class/drm/card0/device/current_compute_partition",
        "sys/module/nvidia/version",
        "run/cloud-init/result.json",
        "etc/default/grub",
        "lib/modules/6.8.0/modules.dep",
        "boot/vmlinuz-6.8.0",
    ):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    at = str(root)
    assert machine_facts.read_secure_boot(at) in (None, False, True)
    assert all(map(is_count, (machine_facts.read_pci(at)[1], machine_facts.read_acs_bridges(at))))
    assert machine_facts.read_iommu(at) in (None, "off", "passthrough", "translated")
    assert machine_facts.read_cloud_init(at) in ("none", "disabled", "running", "done", "error")
    assert machine_facts.read_next_kernel(at) in (None, "6.8.0")
    loaded = machine_facts.read_kernel_driver(at)["nvidia"]
    assert loaded == "unknown" or is_version(loaded)
    assert all(mode.isalnum() for mode in machine_facts.read_partitions("current_compute_partition", at) or ())
    assert set(machine_facts.has_driver("6.8.0", at) or {}) == {"nvidia", "amd"}


@pytest.mark.parametrize(
    "text", ["", "N/A", "[N/A]", "ERR!", "[Unknown Error]", "[GPU is lost]", " none ", "-", None, True]
)
def test_what_is_no_value_is_none(text: Any) -> None:
    assert host_tools.parse_text(text) is None
    assert host_tools.parse_version(text) is None
    assert host_tools.parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("177", 177), ("0xb1", 177), (177, 177), ("196592.0", 196592), ("-1", None), ("1e9", None), ("9" * 40, None)),
        *((float("inf"), None), (float("nan"), None), ("0x", None), ("\uff11\uff12", None), ({"value": 3}, None)),
    ],
)
def test_a_number_of_a_tool(text: Any, number: int | None) -> None:
    assert host_tools.parse_number(text) == number


# -- Limits -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have begun the time of all tools."""
    monkeypatch.setattr(host_tools, "_clock", {"ends": float("inf")})


def shell(body: str, limit: int = host_tools.OUTPUT_BYTES) -> host_tools.Answer:
    return host_tools.wait_for_tool(host_tools.start_tool("sh", "-c", body), limit)


def test_a_tool_that_prints_without_end_is_stopped() -> None:
    answer = shell("yes NVIDIA H200", 1 << 20)
    assert (answer.state, answer.message) == ("tool_failed", "more than 1 MiB of output")
    assert len(answer.out) < 2 << 20


def test_all_tools_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "TOTAL_SECONDS", -1.0)
    host_tools.start_clock()
    # The limit of one tool alone is forty seconds.
    assert [shell("sleep 600").state, shell("echo x").state] == ["tool_hangs", ""]


def test_what_a_tool_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "TOOL_SECONDS", 0.3)
    pid = tmp_path / "pid"
    assert shell(f"sleep 600 & echo $! > {pid}; wait").state == "tool_hangs"
    child = Path("/proc") / pid.read_text(encoding="utf-8").strip()
    while child.exists() and "Z" not in (child / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1][:3]:
        pass


def test_a_tool_speaks_the_language_that_the_parsers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    assert shell("echo $LC_ALL $LANGUAGE").out == "C C\n"


def test_a_message_of_a_tool_is_one_printable_line() -> None:
    answer = shell("printf '\\033[31mErr\\rx\\n more\\n'; exit 3")
    assert answer.message == "[31mErr"
    assert answer.message.isprintable()


def test_a_tool_gets_no_input_of_the_probe() -> None:
    assert shell("cat").out == ""


def test_a_tool_that_cannot_be_started_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "nvidia-smi"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host_tools.run_tool("nvidia-smi").state == "no_driver"


# -- The log ------------------------------------------------------------------------------------------------------


def test_the_errors_in_a_log() -> None:
    found = {(error["kind"], error["code"], error["device"], error["detail"]) for error in kernel_log.find_errors(LOG)}
    assert found == {
        ("xid", 79, "0000:1b:00", ""),
        ("xid", 149, "0008:01:00", "fatal"),
        ("xid", 154, "0008:01:00", "Node Reboot Required"),
        ("sxid", 20034, "0000:00:00", "fatal"),
        ("rm_init", 0, "0000:18:00", ""),
    }


def test_a_device_that_the_driver_calls_healthy_again_has_no_error() -> None:
    again = "[8000.1] NVRM: Xid (PCI:0008:01:00): 154, GPU recovery action changed from 0x1 (GPU Reset) to 0x0 (None)\n"
    assert "0008:01:00" not in {error["device"] for error in kernel_log.find_errors(LOG + again)}
    later = "[9000.1] NVRM: Xid (PCI:0008:01:00): 95, Uncontained\n"
    assert 95 in {error["code"] for error in kernel_log.find_errors(LOG + again + later)}


@pytest.mark.parametrize(
    "line",
    [
        "[1.0] systemd[1]: Started NVRM: Xid (PCI:0000:1b:00): 79, forged.",
        "[1.0] audit: comm=NVRM: Xid (PCI:0000:1b:00): 79, forged.",
        "[1.0] NVRM: Xid (PCI:zz): 79, no address",
        "[1.0] NVRM: Xid (PCI:0000:1b:00): 79999999999",
    ],
)
def test_a_line_that_only_contains_the_words_is_no_error(line: str) -> None:
    assert kernel_log.find_errors(line) == []


def test_a_gpu_that_fell_off_the_bus_before_its_driver_started_it() -> None:
    log = "[3.1] NVRM: The NVIDIA GPU 0000:18:00.0\n[3.1] NVRM: (PCI ID: 10de:2901) installed in this system has\n"
    log += "[3.1] NVRM: fallen off the bus and is not responding to commands.\n"
    assert [(error["kind"], error["device"]) for error in kernel_log.find_errors(log)] == [("off_bus", "0000:18:00")]
