"""Previews a stack with the Pulumi CLI; nothing here changes a stack."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

_HINT = "run it by hand to see its whole output"


def preview(stack: str) -> dict[str, Any]:
    """What ``pulumi up`` would do to a stack, including protected resources.

    Args:
        stack: the stack; it has the name of its fleet.

    Returns:
        The preview, as ``pulumi preview --json`` prints it.

    Raises:
        FleetError: the stack or the program pulumi is missing, or the preview failed (``work-failed``).
    """
    words = ["pulumi", "preview", "--json", "--ignore-protect", "--stack", stack, "--non-interactive"]
    try:
        done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FleetError("pulumi is not on PATH", "run 'make setup' and '. ./activate'") from None
    if f"no stack named '{stack}' found" in done.stderr:
        raise FleetError(f"there is no Pulumi stack {stack!r}", f"run 'pulumi stack init {stack}', or omit --preview")
    report = _parse_json(done.stdout)
    if done.returncode != 0 or report is None:
        diagnostics = (report or {}).get("diagnostics", [])
        errors = [entry["message"] for entry in diagnostics if entry.get("severity") == "error"]
        reason = " ".join("\n".join(errors).split()) or " ".join(done.stderr.split())[-500:] or "it printed no JSON"
        raise FleetError(f"'{' '.join(words)}' failed: {reason}", _HINT, code="work-failed")
    return report


def _parse_json(text: str) -> dict[str, Any] | None:
    try:
        report = json.loads(text)
    except ValueError:
        return None
    return report if isinstance(report, dict) else None
