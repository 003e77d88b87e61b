"""What a fleet fetches, as its plan names it: parts, files of locks, packages of distributions, and what hosts get."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from host_keys import public_key

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan
from vllm_fleet.host import apt_repositories, drivers
from vllm_fleet.host.apt_repositories import MirroredSystem
from vllm_fleet.mirror import apt_lists, apt_packages, nginx_config, parts, wheels
from vllm_fleet.mirror.parts import Debs, Encoding, Model, Wheels
from vllm_fleet.mirror.store import Entry, Index, Store, default_directory
from vllm_fleet.mirror.wheels import Offer
from vllm_fleet.schema.driver import RepositoryMirror


def change(folder: Path, **values: object) -> Path:
    """The golden fleet with other values."""
    file = folder / "golden" / "fleet.yml"
    data = yaml.safe_load(file.read_text())
    data.update(values)
    file.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return file.parent


MIRROR = {"url": "http://192.0.2.9:8070", "distribution": "debian-12"}


def parts_by_kind(folder: Path, catalog: Catalog) -> dict[str, list[parts.Need]]:
    found: dict[str, list[parts.Need]] = {}
    for need in parts.list_parts(plan.load(folder, catalog), catalog):
        found.setdefault(type(need).__name__, []).append(need)
    return found


def test_each_part_is_named_once_however_many_hosts_need_it(fleets: Path, catalog: Catalog) -> None:
    found = parts_by_kind(change(fleets, mirror=MIRROR), catalog)
    assert {kind: len(each) for kind, each in found.items()} == {"Wheels": 2, "Encoding": 2, "Model": 1, "Debs": 1}


@pytest.mark.parametrize("acme", [False, True])
def test_the_distributions_packages_are_those_of_all_manifests(fleets: Path, catalog: Catalog, acme: bool) -> None:
    asked = {"email": "me@example.com", "names": ["api.example.com"], "accept_terms": True}
    gateway = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text())["gateway"]
    tls = {"gateway": {**gateway, "port": 443, "plain": False, "tls": {"acme": asked}}} if acme else {}
    folder = change(fleets, mirror=MIRROR, **tls)
    (wanted,) = parts_by_kind(folder, catalog)["Debs"]
    assert isinstance(wanted, Debs)
    installed = {
        item["name"]
        for host in inventory.load(folder).hosts
        for item in host.manifest.items
        if item["kind"] == "package"
    }
    assert installed <= {name for each in wanted.sets for name in each.packages}
    assert ("certbot" in installed) == acme


def gpu_fleet(folder: Path, copy: str = "", **pool: object) -> Path:
    """The golden fleet with one H100 in place of its pools; ``copy`` is the fleet's own of NVIDIA's repository."""
    host = {"g": {"address": "198.51.100.9", "ssh_host_key": public_key("Gpu")}}
    gpu = {"host_class": "h100-1", "cloud": "static", "model": "openai/gpt-oss-20b", "static": host, **pool}
    artifacts = yaml.safe_load((folder / "golden" / "fleet.yml").read_text())["artifacts"]
    if copy:
        (folder / "golden" / "nvidia.asc").write_text("a key")
        own = {"uri": copy, "signing_key_file": "nvidia.asc"}
        artifacts["repositories"] = {"nvidia-cuda": own, "nvidia-container-toolkit": own}
    return change(folder, mirror={**MIRROR, "packages": ["linux-headers-1"]}, pools={"gpu": gpu}, artifacts=artifacts)


WHEEL = {"engine": "vllm-0.32.0-cuda"}
DOCKER = {"engine": "vllm-0.12.0-cuda", "install": "docker"}


@pytest.mark.parametrize(
    ("pool", "names"),
    [
        ({**WHEEL, "driver": "managed"}, ["nvidia-cuda"]),
        ({**WHEEL, "driver": "verified"}, []),
        ({**DOCKER, "driver": "managed"}, ["nvidia-cuda", "nvidia-container-toolkit"]),
        ({**DOCKER, "driver": "verified"}, ["nvidia-container-toolkit"]),
    ],
)
def test_what_hosts_get_of_vendors_is_in_the_mirror(
    fleets: Path, catalog: Catalog, pool: dict[str, object], names: list[str]
) -> None:
    folder = gpu_fleet(fleets, "http://10.0.0.5/nvidia", **pool)
    (wanted,) = parts_by_kind(folder, catalog)["Debs"]
    assert isinstance(wanted, Debs)
    assert [each.name for each in wanted.repositories] == names
    vendors = {each.uri for each in wanted.origins if each.suite == "/"}
    assert vendors == ({"http://10.0.0.5/nvidia"} if names else set())
    flat = {name for each in wanted.sets for name in each.packages}
    assert (set(apt_repositories.TOOLS) <= flat) == bool(names)
    assert ("nvidia-kernel-open-dkms=580.159.03-1*" in flat) == (pool["driver"] == "managed")
    assert ("nvidia-container-toolkit=1.17.8-*" in flat) == (pool.get("install") == "docker")
    assert "linux-headers-1" in flat
    key = wanted.key
    (folder / "nvidia.asc").write_text("another key")
    (again,) = parts_by_kind(folder, catalog)["Debs"]
    assert (again.key == key) == (names == [])


def test_a_copy_on_the_hosts_themselves_is_read_with_tools_of_the_mirror(fleets: Path, catalog: Catalog) -> None:
    folder = gpu_fleet(fleets, "file:/srv/nvidia", **WHEEL, driver="managed")
    (wanted,) = parts_by_kind(folder, catalog)["Debs"]
    assert isinstance(wanted, Debs)
    assert wanted.repositories == ()
    assert set(apt_repositories.TOOLS) <= {name for each in wanted.sets for name in each.packages}


def test_hosts_take_what_vendors_have_from_the_mirror_too(catalog: Catalog, tmp_path: Path) -> None:
    """By an address and a fingerprint, or with the key file of the fleet's own copy; and each preferred by its name."""
    mirror = MirroredSystem("ubuntu-24.04", "http://192.0.2.9:8070/debs/ubuntu-24.04")
    sized = catalog.host_class("h100-1")
    found = drivers.choose_driver(catalog, sized, drivers.DriverChoice("managed", mirror=mirror))
    assert found
    (repository,) = found.variables["driver_packages_repositories"]
    at = "http://192.0.2.9:8070/debs/ubuntu-24.04/nvidia-cuda"
    source = {"uri": at, "suites": ["/"], "components": [], "check_valid_until": False}
    assert repository["systems"] == {"ubuntu-24.04": source}
    assert repository["key"]["url"] == f"{at}/key.asc"
    assert repository["key"]["fingerprint"] == catalog.drivers.repositories["nvidia-cuda"].key.fingerprint
    assert "Pin: release l=NVIDIA CUDA\n" in found.variables["driver_packages_preferences"]
    assert "Pin: origin" not in found.variables["driver_packages_preferences"]
    key = tmp_path / "key.asc"
    key.write_text("a key")
    for uri, mirrored in (("http://10.0.0.5/cuda", True), ("file:/srv/cuda", False)):
        own = {"nvidia-cuda": (RepositoryMirror(uri=uri, signing_key_file="key.asc"), key)}
        copied = drivers.choose_driver(catalog, sized, drivers.DriverChoice("managed", copies=own, mirror=mirror))
        assert copied
        (repository,) = copied.variables["driver_packages_repositories"]
        assert next(iter(repository["systems"].values()))["uri"] == (at if mirrored else uri)
        assert repository["key"]["file"] == str(key)


def without_debian(catalog: Catalog) -> Catalog:
    """The recipes of a vendor that has packages for Ubuntu alone."""
    cuda, release = catalog.drivers.repositories["nvidia-cuda"], catalog.drivers.releases["nvidia-580"]
    systems = {name: source for name, source in cuda.systems.items() if name.startswith("ubuntu")}
    changes = {
        "repositories": {**catalog.drivers.repositories, "nvidia-cuda": cuda.model_copy(update={"systems": systems})},
        "releases": {"nvidia-580": release.model_copy(update={"packages": release.packages[:1]})},
    }
    return replace(catalog, drivers=catalog.drivers.model_copy(update=changes))


def test_a_vendor_that_has_nothing_for_the_distribution_is_an_error_of_the_plan(fleets: Path, catalog: Catalog) -> None:
    folder = gpu_fleet(fleets, **WHEEL, driver="managed")
    assert apt_packages.find_missing(plan.load(folder, catalog), catalog) == ()
    ubuntu = without_debian(catalog)
    with pytest.raises(FleetError, match=r"has no nvidia-cuda for debian-12, which g needs") as fault:
        parts_by_kind(folder, ubuntu)
    assert fault.value.hint == "use one of ubuntu-22.04, ubuntu-24.04, or name a copy in artifacts.repositories"
    # Before the hosts are paid for.
    (told,) = apt_packages.find_missing(plan.load(folder, ubuntu), ubuntu)
    assert told.message == fault.value.message
    copied = gpu_fleet(fleets, "http://10.0.0.5/nvidia", **WHEEL, driver="managed")
    (told,) = apt_packages.find_missing(plan.load(copied, ubuntu), ubuntu)
    assert told.message == "recipes/drivers.yml has no driver packages for debian-12, which g needs"
    assert told.hint == "use one of ubuntu-22.04, ubuntu-24.04"


def test_another_lock_or_package_is_another_part() -> None:
    one = Wheels("engine", "a==1 --hash=sha256:00", "3.11", "x86_64", "2.36")
    assert one.key != Wheels("engine", "a==2 --hash=sha256:00", "3.11", "x86_64", "2.36").key
    assert one.key != Wheels("engine", "a==1 --hash=sha256:00", "3.12", "x86_64", "2.36").key
    assert one.key == Wheels("engine", "a==1 --hash=sha256:00", "3.11", "x86_64", "2.36").key


@pytest.mark.parametrize("name", ["openai/gpt-oss-120b", "openai/gpt-oss-20b"])
def test_a_model_of_the_guides_is_pinned_and_fetched_without_its_copies(catalog: Catalog, name: str) -> None:
    model = catalog.model(name)
    assert model.weights is not None
    assert re.fullmatch("[0-9a-f]{40}", model.weights.revision)
    assert model.weights.ignore == ["original/*", "metal/*"]
    assert model.encodings == ["o200k_base.tiktoken", "cl100k_base.tiktoken"]


def test_a_model_without_folder_and_pin_is_an_error(fleets: Path, catalog: Catalog) -> None:
    folder = change(fleets, artifacts={"encodings": "../../artifacts/encodings"})
    with pytest.raises(FleetError, match=r"has no copy of 'vllm-fleet/lab-gpt-oss', and its recipe pins no revision"):
        parts.list_parts(plan.load(folder, catalog), catalog)


@pytest.mark.parametrize(
    ("mirror", "says"),
    [
        ({"distribution": "debian-12"}, "is at 'url' or on 'host'"),
        ({"url": "http://a:1", "host": "gateway-0"}, "either at 'url' or on 'host'"),
        ({"url": "ftp://a"}, "is not the URL of a server"),
        ({"url": "http://a:1", "ports": 1}, "Extra inputs|not a key|unknown"),
    ],
)
def test_a_mirror_that_says_nothing_or_two_things_is_an_error(
    fleets: Path, catalog: Catalog, mirror: dict[str, object], says: str
) -> None:
    with pytest.raises(FleetError, match=says):
        plan.load(change(fleets, mirror=mirror), catalog)


def test_an_unknown_distribution_and_an_unknown_host_are_errors(fleets: Path, catalog: Catalog) -> None:
    with pytest.raises(FleetError, match=r"mirror.distribution: there is no distribution 'plan-9'"):
        plan.load(change(fleets, mirror={**MIRROR, "distribution": "plan-9"}), catalog)
    with pytest.raises(FleetError, match=r"mirror.host: there is no host 'nobody'"):
        inventory.load(change(fleets, mirror={"host": "nobody"}))


def test_hosts_of_a_fleet_with_a_mirror_fetch_from_nowhere_else(fleets: Path) -> None:
    found = inventory.load(change(fleets, mirror=MIRROR))
    origins = re.compile(r"https?://(?!192\.0\.2\.9:8070)")
    for host in found.hosts:
        text = str({key: value for key, value in host.variables.items() if not key.startswith("vllm_service")})
        assert not origins.search(text), host.plan.name
        assert "Check-Valid-Until: no" in host.variables["host_baseline_apt_sources"]
    lab = found.hosts[0].variables
    assert lab["vllm_engine_index_url"] == "http://192.0.2.9:8070/wheels/simple"
    assert lab["harmony_encodings_mirror_url"] == "http://192.0.2.9:8070/encodings"
    (model,) = lab["model_store_models"]
    assert model["url"] == f"http://192.0.2.9:8070/models/vllm-fleet--lab-gpt-oss/{model['revision']}"
    assert "/etc/apt/vllm-fleet.sources" in {item.get("path") for item in found.hosts[0].manifest.items}


def test_a_host_of_the_fleet_becomes_the_mirror_when_all_is_fetched(
    fleets: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    folder = change(fleets, mirror={"host": "gateway-0", "distribution": "debian-12"})
    with pytest.raises(FleetError, match=r"lacks wheels:vllm-0.32.0-cpu.*run 'vllm-fleet mirror --fleet golden'"):
        inventory.load(folder)
    index = Index()
    for number, need in enumerate(parts.list_parts(plan.load(folder, catalog), catalog)):
        index = index.with_part(need.key, {f"part/{number}": Entry("0" * 64, 1, 1)})
    store = Store(default_directory())
    store.write(index)
    found = {host.plan.name: host for host in inventory.load(folder).hosts}
    assert found["gateway-0"].manifest.roles == ("host_baseline", "gateway", "mirror")
    assert "mirror" not in found["lab-0"].manifest.roles
    address = found["gateway-0"].location.service_address
    assert found["lab-0"].variables["vllm_engine_index_url"] == f"http://{address}:8070/wheels/simple"
    assert "file:/srv/vllm-fleet-mirror/debs/debian-12/0" in found["gateway-0"].variables["mirror_apt_sources"]


LOCK = """# a comment
torch==2.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
only-arm==1.0 ; platform_machine == "aarch64" \\
    --hash=sha256:cc
old==1 ; python_version < "3.11" --hash=sha256:dd
"""


def test_a_lock_is_read_for_one_kind_of_host() -> None:
    found = {line.project: line.sha256 for line in wheels.parse_lock(LOCK, "3.11", "x86_64")}
    assert found == {"torch": {"aa", "bb"}}
    assert {line.project for line in wheels.parse_lock(LOCK, "3.10", "aarch64")} == {"torch", "only-arm", "old"}


@pytest.mark.parametrize("line", ["torch==2.0", "torch>=2 --hash=sha256:aa"])
def test_a_line_that_pins_nothing_is_an_error(line: str) -> None:
    with pytest.raises(FleetError, match="pins no version or no sha256"):
        list(wheels.parse_lock(line, "3.11", "x86_64"))


@pytest.mark.parametrize(
    ("machine", "glibc", "chosen"),
    [
        ("x86_64", "2.36", "a-1-cp311-cp311-manylinux_2_28_x86_64.whl"),
        ("x86_64", "2.17", "a-1-cp311-cp311-manylinux2014_x86_64.whl"),
        ("aarch64", "2.36", "a-1-py3-none-any.whl"),
    ],
)
def test_the_wheel_is_the_one_that_the_host_prefers(machine: str, glibc: str, chosen: str) -> None:
    names = [
        "a-1.tar.gz",
        "a-1-py3-none-any.whl",
        "a-1-cp311-cp311-manylinux2014_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_39_x86_64.whl",
        "a-1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "a-1-cp311-cp311-macosx_11_0_arm64.whl",
    ]
    offers = [Offer(name, f"https://x/{name}", f"{number:064d}", 1) for number, name in enumerate(names)]
    wanted = wheels.LockedPackage("a", "1", frozenset(offer.sha256 for offer in offers))
    found = wheels.choose_offer(wanted, offers, wheels.wheel_tags("3.11", machine, glibc))
    assert found is not None
    assert found.filename == chosen


def test_a_file_whose_hash_is_not_in_the_lock_is_never_chosen() -> None:
    offer = Offer("a-1-py3-none-any.whl", "https://x", "0" * 64, 1)
    assert (
        wheels.choose_offer(
            wheels.LockedPackage("a", "1", frozenset({"1" * 64})), [offer], wheels.wheel_tags("3.11", "x86_64", "2.36")
        )
        is None
    )


RELEASE = """Origin: Debian
Acquire-By-Hash: yes
SHA256:
 {} 100 main/binary-amd64/Packages
 {} 50 main/binary-amd64/Packages.xz
 {} 60 main/binary-amd64/Packages.gz
""".format("1" * 64, "2" * 64, "3" * 64)
ORIGIN = apt_lists.Origin("http://x/debian", "bookworm", ("main",), "debs/debian-12/0")


def test_the_list_of_an_archive_is_the_one_that_apt_asks_for() -> None:
    (found,) = apt_lists.release_lists(RELEASE, ORIGIN, "amd64")
    assert found.path == f"debs/debian-12/0/dists/bookworm/main/binary-amd64/by-hash/SHA256/{'2' * 64}"
    (plain,) = apt_lists.release_lists(RELEASE.replace("Acquire-By-Hash: yes\n", ""), ORIGIN, "amd64")
    assert plain.path == "debs/debian-12/0/dists/bookworm/main/binary-amd64/Packages.xz"
    with pytest.raises(FleetError, match="has no list main/binary-arm64/Packages"):
        list(apt_lists.release_lists(RELEASE, ORIGIN, "arm64"))


def test_packages_are_found_with_their_digest_in_the_archive_that_has_them() -> None:
    printed = (
        "'http://x/debian/pool/l/libc_1%2b2_amd64.deb' libc.deb 7 MD5Sum:1\n"
        "'http://x/debian-security/pool/n.deb' n.deb 8 \n"
    )
    wanted = apt_lists.printed_urls(printed)
    assert len(wanted) == 2
    listed = (
        f"Package: libc\nFilename: pool/l/libc_1+2_amd64.deb\nSize: 7\nSHA256: {'4' * 64}\n\n"
        "Package: n\nFilename: pool/n.deb\n"
    )
    (found,) = apt_lists.pool_files(listed, wanted, ORIGIN)
    assert (found.path, found.sha256, found.size) == ("debs/debian-12/0/pool/l/libc_1+2_amd64.deb", "4" * 64, 7)


def test_a_stanza_without_a_file_and_odd_characters_end_no_list() -> None:
    listed = (
        "Package: none\nVersion: 1\n \nDescription: a\x0cFilename: pool/forged.deb\u2028Size: 1\n\n\n"
        f"Package: libc\nDescription: a\n Filename: no\nSize: 7\nSHA256: {'4' * 64}\nFilename: pool/libc.deb\n\n"
        f"Package: short\nFilename: pool/short.deb\nSize: 7\nSHA256: {'4' * 63}\n\n"
        f"Package: size\nFilename: pool/size.deb\nSize: -7\nSHA256: {'4' * 64}\n\n"
        f"Package: last\nFilename: pool/last.deb\nSize: 8\nSHA256: {'5' * 64}"
    )
    wanted = [f"http://x/debian/pool/{name}.deb" for name in ("libc", "last", "forged", "short", "size")]
    found = [(each.source, each.size, each.sha256) for each in apt_lists.pool_files(listed, wanted, ORIGIN)]
    assert found == [(wanted[0], 7, "4" * 64), (wanted[1], 8, "5" * 64)]


def test_of_a_signed_release_only_the_signed_text_counts() -> None:
    signed = f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{RELEASE}"
    signature = "-----BEGIN PGP SIGNATURE-----\n\niQIz\n-----END PGP SIGNATURE-----\n"
    (found,) = apt_lists.release_lists(f"{signed}{signature}{RELEASE.replace('2' * 64, '9' * 64)}", ORIGIN, "amd64")
    assert found.sha256 == "2" * 64


def test_the_pages_of_the_index_name_every_wheel_with_its_digest() -> None:
    digest = "5" * 64
    found = wheels.index_pages({f"wheels/files/55/{digest}/My_Pkg-1-py3-none-any.whl": digest, "encodings/x": "6" * 64})
    assert set(found) == {"wheels/simple/index.html", "wheels/simple/my-pkg/index.html"}
    assert f"#sha256={digest}" in found["wheels/simple/my-pkg/index.html"]


def test_the_server_gives_no_hidden_file_and_takes_nothing() -> None:
    text = nginx_config.server_block("/srv/x", "8070", "/log")
    assert "location ~ /\\. { return 404; }" in text
    assert "^(GET|HEAD)$" in text
    assert "listen 8070;" in text


def test_a_part_that_is_taken_away_takes_only_its_own_files() -> None:
    entry = Entry("0" * 64, 1, 1)
    index = Index().with_part("a", {"x": entry, "y": entry}).with_part("b", {"y": entry})
    assert set(index.without(["a"]).files) == {"y"}


def test_the_vocabularies_have_their_official_page(catalog: Catalog) -> None:
    need = Encoding("x", "0" * 64, catalog.encodings.encodings["cl100k_base.tiktoken"].url)
    assert need.url.endswith("/cl100k_base.tiktoken")


def test_models_of_two_organisations_have_two_places() -> None:
    assert Model("a/b", "c").path != Model("d/b", "c").path


def test_the_lab_needs_no_mirror() -> None:
    assert "mirror" not in yaml.safe_load((paths.root() / "inventories" / "lab" / "fleet.yml").read_text())
