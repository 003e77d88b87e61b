"""The example fleets of the other clouds, made and unmade by the real engine and the real SDKs."""

from __future__ import annotations

import json
import shutil
import subprocess
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from rehearsing import QUIET, Rehearsal, rehearse

from lab.rehearsal import script
from lab.rehearsal.stage import account_of
from vllm_fleet.base import paths
from vllm_fleet.fleet import plan, private_networks

# The engine is built from a package registry.
pytestmark = pytest.mark.network


#: Example -> host -> where its roles put the weights.
WANTED: dict[str, dict[str, Any]] = {
    "example-gcp": {
        "b200-0": {"kind": "local", "count": 32},
        "h100-0": {"kind": "volume", "name": "models", "links": ["/dev/disk/by-id/google-models"]},
    },
    "example-amd": {
        "mi300x-0": {"kind": "local", "count": 8},
        "mi355x-0": {"kind": "local", "count": 8},
        "mi325x-0": {"kind": "scratch", "label": "DOSCRATCH"},
    },
}


def disks(found: Rehearsal) -> dict[str, Any]:
    """The disk for models of each host, as the inventory plugin hands it to the roles."""
    script.properties(found.stage.folder, ["openai/gpt-oss-120b"])
    done = subprocess.run(
        ["ansible-inventory", "-i", str(found.stage.folder / "fleet.yml"), "--list"],
        cwd=paths.root(),
        env=dict(found.stage.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # It wraps each text that is never a template.
    told = json.loads(done.stdout, object_hook=lambda each: each.get("__ansible_unsafe", each))
    variables = told["_meta"]["hostvars"]
    return {name: each["model_store_disk"] for name, each in variables.items() if "model_store_disk" in each}


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
        assert disks(found) == WANTED[example]
        shutil.rmtree(found.stage.folder / "artifacts")
        found.stage.pulumi("destroy", *QUIET[:2])
        assert found.cloud.records == []
        assert sorted(path.name for path in found.stage.folder.iterdir()) == ["fleet.yml", "zones.json"]
