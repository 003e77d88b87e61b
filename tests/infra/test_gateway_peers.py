"""Gateways that share their tables: every cloud opens one port between them, and to no other host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
from cloud_fleets import built, write
from recording import Recorder
from test_policy import FUNCTIONS, POOLS, Opening, openings, table_openings

from vllm_fleet.host.haproxy import TABLES_PORT

ACME = {"email": "me@example.com", "names": ["api.example.com"], "accept_terms": True}
TLS = {"tls": {"certificate_file": "a.pem"}}
SHARING: list[dict[str, Any]] = [
    {"affinity": "session"},
    {"affinity": "conversation"},
    {"responses_store": True},
]


def to_tables(folder: Path, cloud: str, recorder: Recorder, **gateway: Any) -> list[Opening]:
    """The rules of a fleet in a cloud that let something in at the port of the tables."""
    recorder.functions.update(FUNCTIONS)
    found = write(folder, cloud, POOLS[cloud], gateway={**TLS, **gateway})
    pulumi.runtime.test(lambda: built(found, lambda _: None))()
    return table_openings(recorder.resources)


@pytest.mark.parametrize("cloud", POOLS)
@pytest.mark.parametrize("shared", SHARING, ids=str)
def test_gateways_reach_the_tables_of_each_other_and_no_other_host_does(
    shared: dict[str, Any], cloud: str, tmp_path: Path, recorder: Recorder
) -> None:
    (rule,) = to_tables(tmp_path, cloud, recorder, hosts=2, **shared)
    assert rule.ports == (TABLES_PORT, TABLES_PORT)
    (source,) = rule.sources
    assert source.endswith("-gateway")
    if cloud == "gcp":
        assert recorder.of("Firewall")[rule.rule]["targetTags"] == [source]
    else:
        assert "-gateway" in rule.rule


@pytest.mark.parametrize("cloud", POOLS)
@pytest.mark.parametrize(
    "gateway", [{"hosts": 1, "affinity": "session", "responses_store": True}, {"hosts": 2}], ids=["one", "nothing"]
)
def test_gateways_that_share_nothing_open_nothing(
    gateway: dict[str, Any], cloud: str, tmp_path: Path, recorder: Recorder
) -> None:
    assert to_tables(tmp_path, cloud, recorder, **gateway) == []


@pytest.mark.parametrize("cloud", POOLS)
def test_gateways_pass_challenges_on_where_the_ca_alone_may_ask(cloud: str, tmp_path: Path, recorder: Recorder) -> None:
    asked = {**ACME, "challenge_from": ["192.0.2.0/24"]}
    to_tables(tmp_path, cloud, recorder, hosts=2, port=443, tls={"acme": asked})
    sources = {each for rule in openings(recorder.resources) if rule.ports == (80, 80) for each in rule.sources}
    (gateways,) = sources - {"192.0.2.0/24"}
    assert gateways.endswith("-gateway")


@pytest.mark.parametrize("cloud", POOLS)
def test_a_second_gateway_adds_one_rule_and_changes_no_other(cloud: str, tmp_path: Path, recorder: Recorder) -> None:
    to_tables(tmp_path, cloud, recorder, hosts=1, affinity="session")
    before = set(openings(recorder.resources))
    recorder.resources.clear()
    (rule,) = to_tables(tmp_path, cloud, recorder, hosts=2, affinity="session")
    assert set(openings(recorder.resources)) - before == {rule}
