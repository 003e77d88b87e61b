"""More hosts than one subnet of the emulated cloud once had, through the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import engine_steps

# The engine is built from a package registry.
pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.long]


def test_a_fleet_of_260_hosts_is_whole_and_does_not_change(tmp_path: Path) -> None:
    # The benchmark refuses a fleet in which a host, or an address, is missing, and a second run that changes one.
    rows = list(engine_steps.measure(260, engine_steps.AT_END, tmp_path / "project"))
    assert [row.step for row in rows] == list(engine_steps.STEPS)
    assert all(row.resources > 260 for row in rows)
