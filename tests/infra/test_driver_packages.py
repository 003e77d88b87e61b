"""Whether apt can install a driver of the recipes: real apt on repositories of stand-ins with the vendor's relations.

Newer versions of the branch are in the repository too, as in the vendor's own. No host, no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lab import apt as stand_ins
from lab import gpu, web
from lab.gpu import packages
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import apt
from vllm_fleet.host.apt_repositories import ANY_SYSTEM, Repository
from vllm_fleet.host.drivers import DriverChoice, HostDriver, choose_driver
from vllm_fleet.mirror.apt_packages import Debs, PackageSet
from vllm_fleet.schema.distribution import Distribution
from vllm_fleet.schema.driver import AptSource

NOW, NEWER = "580.159.03", "580.178.04"
SYSTEMS = ("ubuntu-22.04", "ubuntu-24.04", "debian-12", "debian-13")
#: What the recipes named before their names were compared with the vendor's repository.
OLD = (
    *("libnvidia-cfg1-580", "libnvidia-compute-580", "nvidia-compute-utils-580", "nvidia-dkms-580-open"),
    *("nvidia-kernel-common-580", "nvidia-kernel-source-580-open", "nvidia-utils-580"),
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Path:
    """The key of the repository, which is in its folder."""
    made: dict[tuple[str, str], stand_ins.Package] = {}
    for version in (NOW, NEWER):
        for entry in catalog.drivers.releases["nvidia-580"].packages:
            names = {name: each.replace(NOW, version) for name, each in entry.all_packages.items()}
            for package in packages.nvidia(gpu.gpus("b200-8"), version, names):
                made[package.name, package.version] = package
    return stand_ins.build(tmp_path_factory.mktemp("nvidia"), made.values())


@pytest.fixture(scope="module")
def url(key: Path) -> Iterator[str]:
    with web.serving(web.files(key.parent)) as found:
        yield found


def driver(catalog: Catalog, sized: str) -> HostDriver:
    found = choose_driver(catalog, catalog.host_class(sized), DriverChoice("managed"))
    assert found
    return found


def installed(catalog: Catalog, url: str, key: Path, wanted: PackageSet, work: Path) -> dict[str, str]:
    """What apt would install of the vendor's repository: name -> version."""
    record = catalog.distributions.distributions["debian-12"]
    record = Distribution.model_construct(**{**dict(record), "sources": [], "keyring": str(key)})
    vendor = Repository("nvidia-cuda", {ANY_SYSTEM: AptSource(uri=url, suites=["/"])}, key)
    found = apt.list_files(Debs("debian-12", record, "amd64", (wanted,), (vendor,)), work)
    debs = [Path(each.path).name.split("_") for each in found if each.path.endswith(".deb")]
    return {name: version for name, version, _ in debs}


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("sized", ["h100-8", "b200-8", "gb200-4", "l40s-1"])
def test_every_package_and_what_it_needs_is_at_the_version_of_the_recipe(
    catalog: Catalog, url: str, key: Path, tmp_path: Path, system: str, sized: str
) -> None:
    found = driver(catalog, sized)
    wanted = PackageSet(found.packages(system), found.pins)
    versions = installed(catalog, url, key, wanted, tmp_path / "work")
    assert {each.partition("=")[0] for each in wanted.packages} <= set(versions)
    assert versions.pop("nvlsm", "2025.10.12-1ubuntu1") == "2025.10.12-1ubuntu1"
    assert (versions.pop("infiniband-diags", None) is not None) == (sized == "b200-8")
    assert set(versions.values()) == {f"{NOW}-1ubuntu1"}


def test_without_pins_for_what_they_need_the_packages_do_not_resolve(
    catalog: Catalog, url: str, key: Path, tmp_path: Path
) -> None:
    """The reason for the pins: apt takes the newest version of a dependency."""
    pins = tuple(f"Package: {name}\nPin: version {NOW}-*\nPin-Priority: 1001" for name in OLD)
    old = PackageSet(tuple(f"{name}={NOW}-*" for name in OLD), pins)
    with pytest.raises(FleetError, match=rf"Depends: nvidia-firmware-580 \(= {NOW}-1ubuntu1\).*{NEWER}"):
        installed(catalog, url, key, old, tmp_path / "work")
    found = driver(catalog, "h100-8")
    assert installed(catalog, url, key, replace(old, pins=found.pins), tmp_path / "work")["nvidia-firmware-580"]


def test_a_virtual_name_is_refused_by_name(catalog: Catalog, url: str, key: Path, tmp_path: Path) -> None:
    """NVIDIA/gpu-driver-container, pull request 451."""
    wanted = PackageSet((f"nvidia-fabricmanager-580={NOW}-*", f"nvidia-utils-580={NOW}-*", "nvidia-imex=1-*"))
    with pytest.raises(FleetError, match="there is no package nvidia-fabricmanager-580") as fault:
        installed(catalog, url, key, wanted, tmp_path / "work")
    assert "nvidia-utils-580" not in fault.value.message
    assert re.search(rf"nvidia-imex 1-\* is not there, but {NEWER}\S*, {NOW}", fault.value.message)
    assert "nvidia-cuda" in fault.value.hint
