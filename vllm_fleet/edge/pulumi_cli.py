"""Runs the Pulumi CLI with its output captured, and reads what a preview would do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError


def run_pulumi(
    *words: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text_in: str | None = None,
    timeout_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``pulumi`` to its end and returns its exit code and output, whatever they are.

    Args:
        words: its arguments.
        cwd: the folder that it runs in; None: the current one.
        environment: its whole environment; None: the one of this program.
        text_in: what it reads from standard input.
        timeout_seconds: after that it is killed; None: never.

    Raises:
        FleetError: there is no ``pulumi`` on PATH.
        subprocess.TimeoutExpired: it did not end in time.
    """
    try:
        return subprocess.run(
            ["pulumi", *words],
            cwd=cwd,
            env=environment,
            input=text_in,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
        )
    except FileNotFoundError:
        raise FleetError("there is no 'pulumi' on PATH", "run 'make setup' and '. ./activate'") from None


def pulumi_output(*words: str, cwd: Path | None = None, text_in: str | None = None) -> str:
    """Runs ``pulumi`` and returns its standard output.

    Args:
        words: its arguments.
        cwd: the folder that it runs in; None: the current one.
        text_in: what it reads from standard input.

    Raises:
        FleetError: there is no ``pulumi`` on PATH, or it failed (``work-failed``).
    """
    done = run_pulumi(*words, cwd=cwd, text_in=text_in)
    if done.returncode != 0:
        raise FleetError(
            f"'pulumi {' '.join(words)}' failed: {(done.stderr or done.stdout).strip()[-500:]}",
            "run it by hand",
            code="work-failed",
        )
    return done.stdout


def preview(stack: str) -> dict[str, Any]:
    """What ``pulumi up`` would do to a stack, protected resources included.

    Args:
        stack: the stack, which is called like its fleet.

    Raises:
        FleetError: there is no such stack, no Pulumi, or the preview failed (``work-failed``).
    """
    words = ("preview", "--json", "--ignore-protect", "--stack", stack, "--non-interactive")
    done = run_pulumi(*words, cwd=paths.root())
    if f"no stack named '{stack}' found" in done.stderr:
        raise FleetError(f"there is no Pulumi stack {stack!r}", f"pulumi stack init {stack}, or leave --preview out")
    steps = _json(done.stdout)
    if done.returncode != 0 or steps is None:
        diagnostics = (steps or {}).get("diagnostics", [])
        errors = [item["message"] for item in diagnostics if item.get("severity") == "error"]
        reason = " ".join("\n".join(errors).split()) or " ".join(done.stderr.split())[-500:] or "it printed no JSON"
        raise FleetError(
            f"'pulumi {' '.join(words)}' failed: {reason}", "run it by hand to see all that it says", code="work-failed"
        )
    return steps


def _json(text: str) -> dict[str, Any] | None:
    try:
        data = json.loads(text)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None
