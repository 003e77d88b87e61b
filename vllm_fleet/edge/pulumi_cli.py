"""Asks the Pulumi CLI what it would do; nothing here changes a stack."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError

_HINT = "run it by hand to see all that it says"


def preview(stack: str) -> dict[str, Any]:
    """What ``pulumi up`` would do to a stack, protected resources included.

    Args:
        stack: the stack, which is called like its fleet.

    Raises:
        FleetError: there is no such stack, no Pulumi, or the preview failed (``work-failed``).
    """
    words = ["pulumi", "preview", "--json", "--ignore-protect", "--stack", stack, "--non-interactive"]
    told = " ".join(words)
    try:
        done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FleetError("there is no 'pulumi' on PATH", "run 'make setup' and '. ./activate'") from None
    if f"no stack named '{stack}' found" in done.stderr:
        raise FleetError(f"there is no Pulumi stack {stack!r}", f"pulumi stack init {stack}, or leave --preview out")
    found = _json(done.stdout)
    if done.returncode != 0 or found is None:
        errors = [each["message"] for each in (found or {}).get("diagnostics", []) if each.get("severity") == "error"]
        reason = " ".join("\n".join(errors).split()) or " ".join(done.stderr.split())[-500:] or "it printed no JSON"
        raise FleetError(f"'{told}' failed: {reason}", _HINT, code="work-failed")
    return found


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
