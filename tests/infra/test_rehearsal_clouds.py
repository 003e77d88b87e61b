"""The example fleets of the other clouds, made and unmade by the real engine and the real SDKs."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml
from rehearsing import QUIET, rehearse

from lab.rehearsal import script
from lab.rehearsal.stage import account_of
from vllm_fleet.fleet import plan, private_networks

# The engine is built from a package registry.
pytestmark = pytest.mark.network


@pytest.mark.parametrize("example", ["example-gcp", "example-amd"])
def test_an_example_is_made_does_not_change_and_goes_without_a_trace(example: str, tmp_path: Path) -> None:
    fleet = {**yaml.safe_load(script.copy(example, 1)), "protect": False}
    with rehearse(tmp_path, fleet) as found:
        found.cloud.account = account_of(found.stage.folder)
        found.up()
        hosts = found.stack()
        assert set(hosts) == set(found.ids())
        assert len({host["address"] for host in hosts.values()}) == len(hosts)
        for host in plan.load(found.stage.folder).hosts:
            block = private_networks.block([host])
            assert block is None or ip_address(hosts[host.name]["private_address"]) in block
        said = found.stage.pulumi("preview", "--refresh", "--expect-no-changes", "--suppress-outputs")
        assert "create" not in said
        assert "update" not in said.replace("Previewing update", "").replace("previewing update", "")
        found.stage.pulumi("destroy", *QUIET[:2])
        assert found.cloud.records == []
        assert sorted(path.name for path in found.stage.folder.iterdir()) == ["fleet.yml", "zones.json"]
