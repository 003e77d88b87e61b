"""The ports of rented gateways: the API for clients, and port 80 for the CA where the gateways ask one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder
from test_policy import FUNCTIONS, POOLS, openings

ACME: dict[str, Any] = {"email": "me@example.com", "names": ["api.example.com"], "accept_terms": True}


@pytest.mark.parametrize("cloud", sorted(POOLS))
@pytest.mark.parametrize("networks", [[], ["192.0.2.0/24", "203.0.113.0/24"]], ids=["everywhere", "own CA"])
def test_port_80_is_open_to_the_ca_alone(cloud: str, networks: list[str], tmp_path: Path, recorder: Recorder) -> None:
    recorder.functions.update(FUNCTIONS)
    asked = {**ACME, "challenge_from": networks} if networks else ACME
    found = write(
        tmp_path,
        cloud,
        POOLS[cloud],
        gateway={"hosts": 1, "port": 443, "tls": {"acme": asked}},
        access={"ssh_from": ["203.0.113.0/24"], "api_from": ["198.51.100.0/24"]},
    )
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    rules = list(openings(recorder.resources))
    sources = {
        port: {each for rule in rules if rule.ports == (port, port) for each in rule.sources} for port in (80, 443)
    }
    assert sources == {80: set(networks or ["0.0.0.0/0"]), 443: {"198.51.100.0/24"}}
    assert all("gateway" in rule.rule or "acme" in rule.rule for rule in rules if rule.ports == (80, 80))
