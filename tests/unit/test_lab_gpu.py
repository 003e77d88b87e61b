"""The stand-ins of the lab: every GPU class in every count is read as what it is."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_stand_ins import CLASSES, facts_of

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.facts import vetoes
from vllm_fleet.host.manifest import wanted_facts


def test_every_family_with_gpus_has_tools() -> None:
    assert gpu.families() == {name.rpartition("-")[0] for name in CLASSES}


@pytest.mark.parametrize("name", CLASSES)
def test_the_facts_are_those_of_the_class(tmp_path: Path, name: str) -> None:
    wanted = catalogue.load().host_class(name)
    facts = facts_of(tmp_path, gpu.gpus(name))
    assert facts["vendor"] == wanted.family.vendor
    assert len(facts["gpus"]) == wanted.count
    assert {each["arch"] for each in facts["gpus"]} == {wanted.family.arch}
    assert facts["driver"]
    assert vetoes.vetoes(wanted_facts(wanted), facts) == ()


@pytest.mark.parametrize("missing", ["rocm-smi", "amd-smi"])
def test_one_tool_of_amd_is_enough(tmp_path: Path, missing: str) -> None:
    facts = facts_of(tmp_path, gpu.gpus("mi300x-2"), without=missing)
    assert [each["name"] for each in facts["gpus"]] == ["AMD Instinct MI300X"] * 2
    assert (facts["rocm"], facts["mec_firmware"]) == ("7.0.2", 185)


def test_what_can_be_wrong_with_a_host(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, replace(gpu.gpus("h200-8"), count=7, ecc_uncorrected=2, xid=(79,), cuda="12.2"))
    assert (len(facts["gpus"]), facts["ecc_uncorrected"], facts["xid"], facts["cuda"]) == (7, 2, [79], "12.2")


@pytest.mark.parametrize(
    ("name", "tool", "question", "status", "says"),
    [
        ("h200-8", "nvidia-smi", ["--query-gpu=cuda_version,name", "--format=csv"], 2, 'Field "cuda_version" is not a'),
        ("h200-8", "nvidia-smi", ["--moon"], 2, "Invalid combination of input arguments"),
        ("mi300x-8", "rocm-smi", ["--moon"], 2, "unrecognized arguments: --moon"),
        ("mi300x-8", "amd-smi", ["moon"], 255, "Command 'moon' is invalid"),
    ],
)
def test_all_else_is_refused(tmp_path: Path, name: str, tool: str, question: list[str], status: int, says: str) -> None:
    write_files(tmp_path, gpu.tools(name))
    done = subprocess.run([tmp_path / "usr/local/bin" / tool, *question], capture_output=True, text=True)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_a_driver_that_does_not_work(tmp_path: Path) -> None:
    broken = replace(gpu.gpus("h200-8"), broken="Failed to initialize NVML: Driver/library version mismatch")
    assert "version mismatch" in facts_of(tmp_path, broken)["problems"]["nvidia"]


def test_a_class_without_tools_is_an_error() -> None:
    with pytest.raises(FleetError, match="no tools stand in for 'cpu-2'"):
        gpu.tools("cpu-2")
