"""``vllm-fleet upgrade-check``: its text, its JSON, its exit codes and the pools of a fleet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from click.testing import Result
from typer.testing import CliRunner

from vllm_fleet.cli import app

LARGE = "openai/gpt-oss-120b"
OLD, NEW = "vllm-0.12.0-cuda", "vllm-0.32.0-cuda"


def fleet_of(fleets: Path, pools: dict[str, dict[str, Any]]) -> None:
    path = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    spec["pools"] = {
        name: {"cloud": "lab", "hosts": 1, "placement": spec["pools"]["lab"]["placement"], **pool}
        for name, pool in pools.items()
    }
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")


def run(*arguments: str, before: str = OLD) -> Result:
    return CliRunner().invoke(app, ["upgrade-check", "--from", before, "--to", NEW, *arguments])


def test_a_fleet_is_told_of_its_own_pools(fleets: Path) -> None:
    gpu = {"model": LARGE, "host_class": "h200-8"}
    fleet_of(
        fleets,
        {
            "pinned": {**gpu, "engine": OLD},
            "unset": {**gpu, "profile": "max-throughput"},
            "other": {**gpu, "engine": NEW},
            "cpu": {"host_class": "cpu-2"},
        },
    )
    result = run("--fleet", "golden", "--json")
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert {name: each["outcome"] for each in data["effects"] for name in each["cases"]} == {
        "pinned": "changed",
        "unset": "changed",
    }
    assert [gone["name"] for gone in data["gone"]] == ["VLLM_MXFP4_USE_MARLIN"]
    assert (data["fleet"], data["changes"]) == ("golden", True)


def test_a_fleet_without_such_a_pool_does_not_change(fleets: Path) -> None:
    result = run("--fleet", "golden")
    assert result.exit_code == 0
    assert "no deployment is affected" in result.stdout


def test_the_text_tells_all_four_parts() -> None:
    result = run()
    assert result.exit_code == 3
    for line in (
        "environment variable VLLM_MXFP4_USE_MARLIN (vllm-0.32.0-cuda: no longer read)",
        "gpu-memory-utilization: 0.9 -> 0.92",
        ": it is for engine ==0.12.0 (",
        "h200-8 (balanced)",
        '- env.VLLM_MXFP4_USE_MARLIN = "1"',
        "refused as before: does not fit",
    ):
        assert line in result.stdout


def test_the_help_gives_examples_and_exit_codes() -> None:
    text = " ".join(CliRunner().invoke(app, ["upgrade-check", "--help"]).stdout.split())
    assert "Examples: vllm-fleet upgrade-check --from vllm-0.12.0-cuda --to vllm-0.32.0-cuda" in text
    assert "Exit code 0: no deployment changes. Exit code 3: a deployment changes" in text
