"""Everything that is rendered for fixed fleets, beside its golden copies: --update-golden writes them again."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import pytest
import yaml
from fleet_copies import fill_store, fleet_copies
from made_certificates import certificate_text

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.addresses import IpAddress
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import names
from vllm_fleet.host.firewall import ACCOUNT
from vllm_fleet.host.haproxy import ADMIN_SOCKET, API_KEYS, CERTIFICATE, SCRIPT
from vllm_fleet.operate import drift

COPIES = Path(__file__).parent / "copies"
FLEETS = Path(__file__).parents[1] / "fixtures" / "fleets"
#: What the DNS names of the fleets resolve to.
RESOLVED = {"gpu-a.example.org": ("10.0.0.5",), "api.example.org": ("203.0.113.4", "2001:db8::4")}
NAMES = sorted(file.parent.name for file in FLEETS.glob("*/fleet.yml"))


def resolve(asked: Iterable[str]) -> Mapping[str, tuple[IpAddress, ...]]:
    return {name: tuple(map(ipaddress.ip_address, RESOLVED[name])) for name in asked}


@pytest.fixture(scope="module", autouse=True)
def controller(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[None]:
    """A controller that has run nothing yet, and whose mirror has all that the fleets with a mirror need."""
    folder = tmp_path_factory.mktemp("controller")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_FLEET_INVENTORIES", str(FLEETS))
        patch.setenv("VLLM_FLEET_CACHE", str(folder / "cache"))
        patch.setattr(paths, "run_dir", lambda fleet: folder / "run" / fleet)
        patch.setattr(names, "resolve_names", resolve)
        patch.chdir(paths.root())
        fill_store(catalog, [FLEETS / name for name in NAMES])
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
    first, second = drift.load_site_of_run(FLEETS / fleet), inventory.load(FLEETS / fleet)
    assert first is not second
    assert [(host.variables, host.manifest.text) for host in first.hosts] == [
        (host.variables, host.manifest.text) for host in second.hosts
    ]


def copies_of(place: str) -> list[Path]:
    """The golden copies of the files that hosts have at a path, or below it."""
    copies = []
    for manifest in sorted(COPIES.rglob("manifest.yml")):
        for item in yaml.load(manifest.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["items"]:
            copy = manifest.with_name(PurePosixPath(item.get("path", "-")).name)
            if f"{item.get('path')}/".startswith(f"{place}/") and copy.is_file():
                copies.append(copy)
    assert copies, f"no golden fleet has a file at {place}"
    return copies


def run_judge(*command: str | Path) -> str:
    """The output of a program that must accept a file."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}: {done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.root
def test_nft_takes_the_firewalls(tmp_path: Path) -> None:
    for number, file in enumerate(copies_of("/etc/vllm/firewall.nft")):
        # This machine has no account of vLLM.
        rules = tmp_path / f"{number}.nft"
        rules.write_text(file.read_text(encoding="utf-8").replace(f'"{ACCOUNT}"', '"nobody"'), encoding="utf-8")
        run_judge("nft", "-c", "-f", rules)


def test_haproxy_takes_the_gateways(tmp_path: Path) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed here; the e2e tests check the lab's config on its gateway")
    (tmp_path / "gateway.pem").write_text(certificate_text(), encoding="utf-8")
    for number, file in enumerate(copies_of("/etc/haproxy/haproxy.cfg")):
        text = file.read_text(encoding="utf-8").replace(API_KEYS, str(file.with_name(Path(API_KEYS).name)))
        text = text.replace(SCRIPT, str(paths.root() / "roles/gateway/files/vllm-gateway.lua"))
        text = text.replace(CERTIFICATE, str(tmp_path / "gateway.pem"))
        config = tmp_path / f"{number}.cfg"
        config.write_text(text.replace(str(Path(ADMIN_SOCKET).parent), str(tmp_path)), encoding="utf-8")
        run_judge("haproxy", "-c", "-f", config)


@pytest.mark.skipif(shutil.which("apt-config") is None, reason="apt is not installed here")
def test_apt_takes_its_files(tmp_path: Path) -> None:
    for file in copies_of("/etc/apt/apt.conf.d"):
        values = re.findall(r'"(.*)"', file.read_text(encoding="utf-8"))
        read = run_judge("apt-config", "-c", file, "dump")
        assert values and all(f'"{value}"' in read for value in values), file
    alone = [f"-oDir::Etc::{name}parts=/dev/null" for name in ("preferences", "source")]
    alone += [f"-oDir::State::lists={tmp_path}", f"-oDir::Cache={tmp_path}"]
    (tmp_path / "partial").mkdir()
    for file in copies_of("/etc/apt/preferences.d"):
        assert "W:" not in run_judge("apt-cache", *alone, "policy", f"-oDir::Etc::preferences={file}")
    for file in copies_of("/etc/apt/vllm-fleet.sources"):
        # Prints where it would fetch, and fetches nothing.
        read = run_judge("apt-get", *alone, "--print-uris", "update", f"-oDir::Etc::sourcelist={file}")
        assert "http://10.60.0.2:8070/debs/ubuntu-24.04/0/dists/noble-security/InRelease" in read


def test_no_gateway_has_a_regular_expression() -> None:
    """HAProxy compiles them to machine code, which its unit forbids (MemoryDenyWriteExecute): it would not start."""
    copies = sorted((Path(__file__).parent / "copies").glob("*/*/haproxy.cfg"))
    assert len(copies) >= 5
    for copy in copies:
        found = re.search(r"regsub|rxp|_reg\b|-m reg|path_reg|hdr_reg", copy.read_text(encoding="utf-8"))
        assert found is None, f"{copy}: {found}"
