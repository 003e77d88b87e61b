"""Locks of builds that are on an index of their own, from stand-ins of the indexes on this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in_index
import yaml
from hanging import HANGING_SECONDS
from stand_in_index import Indexes

from tools.locks.__main__ import main
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge.uv import uv_program
from vllm_fleet.fleet import plan

ENGINE = "vllm-0.14.1-rocm"


@pytest.fixture
def indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Indexes]:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    # uv knows what it has fetched by the address, and the port may be one of an earlier run.
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    with stand_in_index.serving() as found:
        monkeypatch.setenv("UV_DEFAULT_INDEX", found.cuda)
        yield found


def make(*more: str) -> int:
    return main(["--engine", ENGINE, "--machine", "x86_64", *more])


@pytest.fixture
def lock(indexes: Indexes, tmp_path: Path) -> Path:
    output = tmp_path / "rocm.txt"
    assert make("--index", indexes.rocm, "--output", str(output)) == 0
    return output


def test_the_index_of_the_build_gives_its_lock(catalog: Catalog, lock: Path, indexes: Indexes) -> None:
    found = engine_locks.read(lock)
    assert list(engine_locks.lock_errors(found, catalog.engines[ENGINE], "x86_64")) == []
    assert found.platform == ("rocm", "7.0")
    assert found.version("vllm") == "0.14.1+rocm700"
    assert found.header["index"] == indexes.rocm
    text = lock.read_text(encoding="utf-8")
    assert make("--index", indexes.rocm, "--output", str(lock), "--check") == 0
    assert lock.read_text(encoding="utf-8") == text


def test_the_cuda_build_of_the_same_release_is_refused(
    indexes: Indexes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the package index has fits the requirement, and is another build."""
    output = tmp_path / "rocm.txt"
    assert make("--index", indexes.cuda, "--output", str(output)) == 1
    assert "without +rocm in its version: that is the CUDA build" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("python", "taken"), [("3.11", "vllm-0.14.1-cp38-abi3"), ("3.12", "vllm-0.14.1+rocm700-cp312")]
)
def test_without_a_lock_the_python_decides_between_the_builds(
    indexes: Indexes, tmp_path: Path, python: str, taken: str
) -> None:
    """The reason for the lock and for the check of the Python: nothing is said when the other build is taken."""
    words = ["--index", indexes.rocm, "--index-strategy", "unsafe-best-match", "--no-deps", "vllm==0.14.1"]
    done = install(tmp_path, python, *words)
    assert done.returncode == 0, done.stderr
    assert [file for file in indexes.fetched if file.replace("%2B", "+").startswith(taken)]


def test_with_the_lock_another_python_gets_nothing(lock: Path, indexes: Indexes, tmp_path: Path) -> None:
    words = ["--index", indexes.rocm, "--index-strategy", "unsafe-best-match", "--require-hashes", "-r", str(lock)]
    right = install(tmp_path, "3.12", *words)
    assert right.returncode == 0, right.stderr
    assert (tmp_path / "3.12" / "vllm-0.14.1+rocm700.dist-info").is_dir()
    assert install(tmp_path, "3.11", *words).returncode != 0
    assert not list((tmp_path / "3.11").glob("vllm*"))


def install(folder: Path, python: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Installs as if for another Python: none of them has to be there."""
    platform = ("--python-version", python, "--python-platform", "x86_64-manylinux_2_35", "--only-binary", ":all:")
    command = [uv_program(), "pip", "install", "--target", str(folder / python), *platform, *words]
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=HANGING_SECONDS
    )


@pytest.fixture
def fleet(fleets: Path, lock: Path) -> Path:
    """A rack of an MI300X host, whose fleet brings the lock of its engine."""
    folder = fleets / "golden"
    spec = yaml.safe_load((folder / "fleet.yml").read_text(encoding="utf-8"))
    host = spec["pools"]["rack"]["static"]["rack-a"]
    spec["pools"] = {"rack": {"host_class": "mi300x-8", "cloud": "static", "static": {"amd-0": host}, "engine": ENGINE}}
    spec["defaults"]["model"] = "openai/gpt-oss-120b"
    spec["gateway"] = {"hosts": 0}
    spec["artifacts"]["models"] = {"openai/gpt-oss-120b": "../../artifacts/model"}
    spec["artifacts"]["locks"] = {ENGINE: "locks/rocm-{machine}.txt"}
    (folder / "locks").mkdir()
    (folder / "locks" / "rocm-x86_64.txt").write_bytes(lock.read_bytes())
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    (folder / "stack.json").unlink()
    return folder


def test_a_fleet_brings_the_lock_of_its_engine(fleet: Path, catalog: Catalog, indexes: Indexes) -> None:
    (host,) = inventory.build(plan.load(fleet, catalog), catalog).hosts
    assert host.variables["vllm_engine_lock_file"] == str((fleet / "locks" / "rocm-x86_64.txt").resolve())
    assert host.variables["vllm_engine_index_urls"] == [indexes.rocm]
    assert host.variables["vllm_engine_platform"] == {"name": "rocm", "version": "7.0"}
    assert host.variables["vllm_engine_python_versions"] == ["3.12"]
    wanted = {key: host.manifest.facts[key] for key in ("python", "glibc_min", "rocm_min")}
    assert wanted == {"python": ["3.12"], "glibc_min": "2.35", "rocm_min": "7.0"}
    paths_of_engine = [item["path"] for item in host.manifest.items if item["role"] == "vllm_engine" and "path" in item]
    engine = f"/opt/vllm/engines/{host.variables['vllm_engine_directory_id']}"
    assert paths_of_engine == ["/opt/vllm/engines", f"{engine}/bin/vllm", f"{engine}/.complete"]


def test_a_lock_for_an_engine_that_there_is_not_is_refused(fleet: Path, catalog: Catalog) -> None:
    spec = yaml.safe_load((fleet / "fleet.yml").read_text(encoding="utf-8"))
    spec["artifacts"]["locks"]["vllm-9-rocm"] = "locks/rocm-x86_64.txt"
    (fleet / "fleet.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    with pytest.raises(FleetError, match="there is no engine"):
        inventory.build(plan.load(fleet, catalog), catalog)


def test_a_lock_for_another_engine_is_refused(fleet: Path, catalog: Catalog) -> None:
    other = paths.root() / "recipes" / "engines" / "locks" / "vllm-0.12.0-cuda-x86_64.txt"
    (fleet / "locks" / "rocm-x86_64.txt").write_bytes(other.read_bytes())
    with pytest.raises(FleetError, match=r"is for the engine vllm-0\.12\.0-cuda") as refused:
        inventory.build(plan.load(fleet, catalog), catalog)
    assert refused.value.key == f"artifacts.locks.{ENGINE}"
    assert "tools.locks" in refused.value.hint
