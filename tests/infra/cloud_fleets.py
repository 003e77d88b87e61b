"""Fleets in clouds for the tests of their components: the real plan of a real fleet.yml, and what is asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import yaml

from infra.fleet import Fleet, FleetArgs
from infra.state import State
from vllm_fleet.fleet import plan


def write(folder: Path, cloud: str, pool: dict[str, Any], **more: Any) -> plan.Plan:
    """The plan of a fleet ``demo`` with one pool, ``main``, and a gateway."""
    fleet = {
        "fleet": "demo",
        "defaults": {"model": "openai/gpt-oss-20b"},
        "pools": {"main": {"cloud": cloud, "hosts": 2, **pool}},
        "gateway": {"hosts": 1, "tls": {"certificate_file": "a.pem"}},
        "access": {"ssh_from": ["203.0.113.0/24"], "api_from": ["198.51.100.0/24", "0.0.0.0/0"]},
        **more,
    }
    directory = folder / "demo"
    directory.mkdir(exist_ok=True)
    (directory / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return plan.load(directory)


def built(found: plan.Plan, check: Callable[[Any], None], before: State | None = None) -> pulumi.Output[Any]:
    """Runs the program for a plan, and the check when it is through: its last resource is there."""
    fleet = Fleet("demo", FleetArgs(found, before or State()))
    return pulumi.Output.all(fleet.inventory, fleet.file.id).apply(lambda known: check(known[0]))
