"""What a mirror takes of a vendor's repository: real apt and gpg on a signed one of stand-ins; no host, no network."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import apt as stand_ins
from lab import web
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import apt
from vllm_fleet.host import apt_repositories
from vllm_fleet.host.apt_repositories import Repository
from vllm_fleet.mirror.apt_packages import Debs, PackageSet
from vllm_fleet.schema.distribution import Distribution
from vllm_fleet.schema.driver import AptSource, SigningKey

SYSTEM = "debian-12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two versions of a driver, and what it depends on; its key is beside it."""
    folder = tmp_path_factory.mktemp("vendor")
    packages = [stand_ins.Package("gpu-driver", f"{n}.0-1", relations={"Depends": "gpu-firmware"}) for n in (1, 2)]
    stand_ins.build(
        folder, [*packages, stand_ins.Package("gpu-firmware", "7"), stand_ins.Package("not-asked-for", "1")]
    )
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with web.serving(web.files(folder)) as found:
        yield found


@pytest.fixture
def key(folder: Path, url: str, tmp_path: Path) -> SigningKey:
    shown = subprocess.run(
        ["gpg", "--batch", "--homedir", tmp_path, "--show-keys", "--with-colons", folder / "key.asc"],
        capture_output=True,
        text=True,
        check=True,
    )
    fingerprint = next(line.split(":")[9] for line in shown.stdout.splitlines() if line.startswith("fpr:"))
    # A vendor's is at https.
    return SigningKey.model_construct(url=f"{url}/key.asc", fingerprint=fingerprint, sha256=None)


def need(catalog: Catalog, uri: str, key: SigningKey | Path, *sets: tuple[str, ...]) -> Debs:
    """Packages of the vendor alone: the distribution has no archive here."""
    known = catalog.distributions.distributions[SYSTEM]
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    record = Distribution.model_construct(**{**dict(known), "sources": [], "keyring": keyring})
    vendor = Repository("vendor", {apt_repositories.ANY_SYSTEM: AptSource(uri=uri, suites=["/"])}, key)
    return Debs(SYSTEM, record, "amd64", tuple(PackageSet(each) for each in sets), (vendor,))


def test_a_mirror_lists_what_its_hosts_ask_for_with_what_that_depends_on(
    catalog: Catalog, folder: Path, url: str, key: SigningKey, tmp_path: Path
) -> None:
    """Two kinds of hosts may want two versions of one package."""
    found = apt.list_files(need(catalog, url, key, ("gpu-driver=1.0-*",), ("gpu-driver=2.0-1",)), tmp_path / "work")
    at = f"debs/{SYSTEM}/vendor"
    debs = ("gpu-driver_1.0-1_all.deb", "gpu-driver_2.0-1_all.deb", "gpu-firmware_7_all.deb")
    assert {each.path for each in found} == {f"{at}/{name}" for name in (*debs, "InRelease", "Packages", "key.asc")}
    for each in found:
        assert each.sha256 == hashlib.sha256((folder / Path(each.path).name).read_bytes()).hexdigest(), each
    (one,) = [each for each in found if each.path.endswith("_7_all.deb")]
    assert one.source.startswith(url)
    assert one.size == (folder / "gpu-firmware_7_all.deb").stat().st_size


@pytest.mark.parametrize("wrong", [{"fingerprint": "A" * 40}, {"sha256": "0" * 64}])
def test_another_key_than_the_recipes_is_refused(
    catalog: Catalog, url: str, key: SigningKey, tmp_path: Path, wrong: dict[str, str]
) -> None:
    other = key.model_copy(update=wrong)
    with pytest.raises(FleetError, match=r"the key at http.*/key.asc is not") as fault:
        apt.list_files(need(catalog, url, other, ("gpu-driver",)), tmp_path / "work")
    assert fault.value.hint == "ask the vendor of vendor why it changed, then pin the new key"


def test_a_list_that_another_key_has_signed_is_refused(catalog: Catalog, url: str, tmp_path: Path) -> None:
    stand_ins.build(tmp_path / "other", [stand_ins.Package("x", "1")])
    with pytest.raises(FleetError, match=r"not signed|NO_PUBKEY"):
        apt.list_files(need(catalog, url, tmp_path / "other" / "key.asc", ("gpu-driver",)), tmp_path / "work")


def test_a_package_that_the_vendor_does_not_have_is_named(
    catalog: Catalog, url: str, key: SigningKey, tmp_path: Path
) -> None:
    with pytest.raises(FleetError, match=r"gpu-driver 3\.0 is not there, but 2\.0-1, 1\.0-1"):
        apt.list_files(need(catalog, url, key, ("gpu-driver=3.0",)), tmp_path / "work")
