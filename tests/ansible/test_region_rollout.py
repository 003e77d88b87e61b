"""'vllm-fleet rollout' with workers, from fleet.yml to the probe that runs there: SSH servers of this machine work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from hanging import HANGING_SECONDS
from ssh_servers import Loop

from vllm_fleet.base import paths
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.on_host import run_worker


@pytest.fixture
def fleet(fleets: Path, tmp_path: Path) -> Iterator[Path]:
    """Two regions, whose workers answer and whose hosts do not."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "id"))
    (tmp_path / "id").chmod(0o600)
    loop = Loop(key)
    name = f"regions{os.getpid()}"
    golden = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text(encoding="utf-8"))
    artifacts = fleets.parent / "artifacts"
    servers = {region: loop.server(f"127.0.0.{number}") for number, region in enumerate(("east", "west"), start=3)}
    spec = {
        "fleet": name,
        "defaults": golden["defaults"],
        "artifacts": {
            "models": {golden["defaults"]["model"]: str(artifacts / "model")},
            "encodings": str(artifacts / "encodings"),
        },
        "pools": {
            region: {
                "host_class": "cpu-2",
                "cloud": "static",
                "static": {
                    f"{region}-0": {
                        "address": f"127.0.0.{number}",
                        "private_address": f"10.0.0.{number}",
                        "port": 1,
                        "ssh_host_key": server.key,
                    }
                },
            }
            for number, (region, server) in enumerate(servers.items(), start=1)
        },
        "workers": {
            region: {
                "address": f"127.0.0.{number}",
                "port": server.port,
                "ssh_host_key": server.key,
                "pools": [region],
                "python": sys.executable,
            }
            for number, (region, server) in enumerate(servers.items(), start=3)
        },
        "access": {"ssh_private_key_file": str(tmp_path / "id")},
    }
    folder = fleets / name
    folder.mkdir()
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    yield folder / "fleet.yml"
    loop.stop()
    shutil.rmtree(paths.run_dir(name), ignore_errors=True)
    for region in servers:
        lock = Path(run_worker.base_folder()) / f"{text_sha256(f'{name} {region}')[:16]}.lock"
        lock.unlink(missing_ok=True)


def rollout(fleet: Path, *words: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        ["vllm-fleet", "rollout", "--fleet", fleet.parent.name, "--json", *words],
        cwd=paths.root(),
        env={**os.environ, "VLLM_FLEET_INVENTORIES": str(fleet.parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_the_worker_of_the_first_region_probes_its_hosts_and_says_what_is_wrong(fleet: Path) -> None:
    code, result = rollout(fleet)
    assert code == 1
    assert (result["error"]["host"], result["record"]) == ("east-0", None)
    assert "cannot be reached at 127.0.0.1 port 1" in result["error"]["message"]
    name = text_sha256(f"{fleet.parent.name} east")[:16]
    base = Path(run_worker.base_folder())
    assert (base / f"{name}.lock").exists()
    assert not (base / name).exists(), "the worker has kept the folder of the run"


def test_one_region_alone_has_its_own_hosts(fleet: Path) -> None:
    code, result = rollout(fleet, "--region", "west")
    assert (code, result["error"]["host"]) == (1, "west-0")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--limit", "east-0"), "the hosts of a run with workers are those of its regions"),
        (("--region", "north"), "there is no region 'north'"),
    ],
)
def test_what_regions_cannot_do_is_refused(fleet: Path, words: tuple[str, ...], says: str) -> None:
    done = subprocess.run(
        ["vllm-fleet", "rollout", "--fleet", fleet.parent.name, *words],
        cwd=paths.root(),
        env={**os.environ, "VLLM_FLEET_INVENTORIES": str(fleet.parent.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )
    assert done.returncode == 2
    assert says in done.stderr
