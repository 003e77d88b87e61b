"""``vllm-fleet rollout`` and ``rollback`` on real vLLM: what site.yml does, with a pause, and the way back."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from hanging import HANGING_SECONDS

from e2e.running_lab import Lab
from vllm_fleet.base import paths

CHANGE = "overrides: {why: a change to roll out, args: {seed: 7}}"


def command(lab: Lab, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and JSON lines of a command."""
    done = subprocess.run(
        ["vllm-fleet", *words, "--fleet", lab.folder.name, "--json"],
        cwd=paths.root(),
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    assert done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def loaded(lab: Lab, host: str) -> str:
    """The configuration that the release of a host has."""
    return lab.on(host, "cat /opt/vllm/current/0/0.yaml").stdout


def started(lab: Lab, host: str) -> str:
    return lab.on(host, "systemctl show -P ActiveEnterTimestampMonotonic vllm@0").stdout


def test_a_fleet_without_a_change_has_nothing_to_roll_out(lab: Lab) -> None:
    code, lines = command(lab, "rollout")
    assert (code, [line["event"] for line in lines]) == (0, ["result"])
    assert (lines[0]["record"], lines[0]["error"]) == (None, None)


def test_a_change_is_checked_paused_after_its_canary_and_taken_back(lab: Lab) -> None:
    path = lab.folder / "fleet.yml"
    text = path.read_text()
    before = {host: (loaded(lab, host), started(lab, host)) for host in ("lab-0", "lab-1")}
    try:
        path.write_text(text.replace("    hosts: 2\n", f"    hosts: 2\n    {CHANGE}\n"))
        code, lines = command(lab, "rollout", "--check")
        assert code == 0, lines
        changes = {line["host"]: line["lines"] for line in lines if line["event"] == "release"}
        assert "+seed: 7" in changes["lab-0"]
        assert {host: (loaded(lab, host), started(lab, host)) for host in before} == before, "a check changes nothing"

        code, lines = command(lab, "rollout", "--pause-after", "canary")
        assert code == 0, lines
        assert (lines[-1]["accepted"], lines[-1]["left"]) == (["lab-0"], ["lab-1"])
        asked = {line["gate"] for line in lines if line["event"] == "gate" and line["passed"] and not line["waived"]}
        assert asked >= {"completion", "stream", "tools", "vocabulary", "log", "questions"}
        assert "seed: 7" in loaded(lab, "lab-0").splitlines()
        assert (loaded(lab, "lab-1"), started(lab, "lab-1")) == before["lab-1"], "a pause leaves the others"

        code, lines = command(lab, "rollback", "--host", "lab-0")
        assert code == 0, lines
        assert lines[-1]["accepted"] == ["lab-0"]
        assert loaded(lab, "lab-0") == before["lab-0"][0]
    finally:
        path.write_text(text)
    assert lab.drift()[0] == 0
