"""Runs the Pulumi CLI with its output captured, and reads what a preview would do."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError

#: Set for a preview that shows all that a run would refuse, in place of refusing it; no other run reads it.
SHOW_VARIABLE = "FLEET_SHOW_REFUSED"
_HINT = "run it by hand to see its whole output"


def run_pulumi(
    *words: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text_in: str | None = None,
    timeout_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs ``pulumi`` to its end and returns its exit code and output, also after a failure.

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
        raise FleetError("pulumi is not on PATH", "run 'make setup' and '. ./activate'") from None


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
            f"'pulumi {' '.join(words)}' failed: {_first_error(done.stderr or done.stdout)}",
            _HINT,
            code=ErrorCode.WORK_FAILED,
        )
    return done.stdout


def preview(stack: str, *options: str) -> dict[str, Any]:
    """What ``pulumi up`` would do to a stack, including what it would refuse for the sake of hosts that serve.

    Args:
        stack: the stack; it has the name of its fleet.
        options: further options, as of ``pulumi up``.

    Returns:
        The preview, as ``pulumi preview --json`` prints it.

    Raises:
        FleetError: the stack or the program pulumi is missing, or the preview failed (``work-failed``).
    """
    words = ("preview", "--json", "--ignore-protect", "--stack", stack, "--non-interactive", *options)
    done = run_pulumi(*words, cwd=paths.root(), environment={**os.environ, SHOW_VARIABLE: "1"})
    if f"no stack named '{stack}' found" in done.stderr:
        raise FleetError(f"there is no Pulumi stack {stack!r}", f"run 'pulumi stack init {stack}', or omit --preview")
    report = _parse_json(done.stdout)
    if done.returncode != 0 or report is None:
        diagnostics = (report or {}).get("diagnostics", [])
        errors = [entry["message"] for entry in diagnostics if entry.get("severity") == "error"]
        reason = " ".join("\n".join(errors).split()) or _first_error(done.stderr) or "it printed no JSON"
        raise FleetError(f"'pulumi {' '.join(words)}' failed: {reason}", _HINT, code=ErrorCode.WORK_FAILED)
    return report


def _first_error(text: str) -> str:
    """The first error of an output, in one line: those after it follow from it. All of it where none is called so."""
    before, *errors = re.split(r"(?:^|\s)error: ", text)
    return " ".join((errors[0] if errors else before).split())[:500]


def _parse_json(text: str) -> dict[str, Any] | None:
    try:
        report = json.loads(text)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None
