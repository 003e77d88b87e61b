"""The facts of hosts that recipes use, saved for the next plan of the fleet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically

#: What a rule's ``when.fact`` can ask for; the driver, whose compiler makes part of the caches of a start; and the
#: number of NVSwitches, which decides about the fabric manager.
ASKED = ("mec_firmware", "driver", "nvswitches")
Facts = Mapping[str, Mapping[str, Any]]


def _file(fleet: str) -> Path:
    return paths.run_dir(fleet) / "facts.json"


def load(fleet: str) -> Facts:
    """Host -> its facts at the last probe; empty before the first one."""
    try:
        facts = json.loads(_file(fleet).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    return {host: known for host, known in facts.items() if isinstance(known, dict)}


def keep(fleet: str, facts_by_host: Facts) -> bool:
    """Adds the facts of hosts to the known facts of the others.

    Args:
        fleet: the fleet's name.
        facts_by_host: host -> all of its facts, as :func:`vllm_fleet.on_host.gpu_facts.read_facts` spells them.

    Returns:
        Whether any fact is new.
    """
    known = load(fleet)
    reported = {
        host: {name: facts[name] for name in ASKED if facts.get(name) is not None}
        for host, facts in facts_by_host.items()
    }
    merged = {host: facts for host, facts in {**known, **reported}.items() if facts}
    if merged == known:
        return False
    write_atomically(_file(fleet), json.dumps(merged, indent=1, sort_keys=True) + "\n")
    return True
