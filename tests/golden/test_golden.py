"""Everything that is rendered for fixed fleets, beside its golden copies: --update-golden writes them again."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_copies import fill_store, fleet_copies

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.host.haproxy import ADMIN_SOCKET, API_KEYS
from vllm_fleet.operate import drift

COPIES = Path(__file__).parent / "copies"
FLEETS = Path(__file__).parents[1] / "fixtures" / "fleets"
NAMES = sorted(file.parent.name for file in FLEETS.glob("*/fleet.yml"))


@pytest.fixture(scope="module", autouse=True)
def controller(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[None]:
    """A controller that has run nothing yet, and whose mirror has all that the fleets with a mirror need."""
    folder = tmp_path_factory.mktemp("controller")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_FLEET_INVENTORIES", str(FLEETS))
        patch.setenv("VLLM_FLEET_CACHE", str(folder / "cache"))
        patch.setattr(paths, "run_dir", lambda fleet: folder / "run" / fleet)
        patch.chdir(paths.root())
        fill_store(catalog, FLEETS / "two-clouds")
        yield


@pytest.mark.parametrize("fleet", NAMES)
def test_what_is_rendered_is_what_was_reviewed(fleet: str, request: pytest.FixtureRequest) -> None:
    files = fleet_copies(FLEETS / fleet)
    folder = COPIES / fleet
    if request.config.getoption("--update-golden"):
        shutil.rmtree(folder, ignore_errors=True)
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == set(files)
    for name, text in files.items():
        assert text == (folder / name).read_text(encoding="utf-8"), f"{fleet}/{name} differs: look, then make golden"


def test_every_copy_is_of_a_fleet(request: pytest.FixtureRequest) -> None:
    stale = [path for path in COPIES.iterdir() if path.name not in NAMES]
    if request.config.getoption("--update-golden"):
        for path in stale:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        stale = []
    assert not stale


@pytest.mark.parametrize("fleet", NAMES)
def test_rendering_twice_gives_the_same_bytes(fleet: str) -> None:
    first, second = drift.site_of_run(FLEETS / fleet), inventory.load(FLEETS / fleet)
    assert first is not second
    assert [(host.variables, host.manifest.text) for host in first.hosts] == [
        (host.variables, host.manifest.text) for host in second.hosts
    ]


def copies_called(name: str) -> list[Path]:
    files = sorted(COPIES.rglob(name))
    assert len(files) >= len(NAMES), f"a fleet has no {name}"
    return files


@pytest.mark.root
def test_nft_takes_the_firewalls() -> None:
    for file in copies_called("firewall.nft"):
        done = subprocess.run(["nft", "-c", "-f", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{file}: {done.stderr}"


def test_haproxy_takes_the_gateways(tmp_path: Path) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here; the e2e tests check the lab's config on its gateway")
    for number, file in enumerate(copies_called("haproxy.cfg")):
        text = file.read_text(encoding="utf-8").replace(API_KEYS, str(file.with_name(Path(API_KEYS).name)))
        config = tmp_path / f"{number}.cfg"
        config.write_text(text.replace(str(Path(ADMIN_SOCKET).parent), str(tmp_path)), encoding="utf-8")
        done = subprocess.run(["haproxy", "-c", "-f", config], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{file}: {done.stderr}"
