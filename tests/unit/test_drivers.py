"""Drivers as data: every class has one or a reason, and what a host gets follows from it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from healthy_host import H100, HEALTHY

from vllm_fleet import inventory as sites
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.facts.states import DriftState, VetoCode
from vllm_fleet.host import drivers
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.host.manifest_items import holds_item, package_item, traffic_item
from vllm_fleet.on_host import probe
from vllm_fleet.operate import drift, probing
from vllm_fleet.reports import driver_check
from vllm_fleet.schema.driver import RepositoryMirror

NO_DRIVER = {
    "vendor": None,
    "gpus": [],
    "problems": {"nvidia": {"state": "no_driver", "why": "nvidia-smi not found"}},
    "driver": None,
}


def families(catalog: Catalog) -> list[str]:
    return sorted(catalog.classes)


def got(catalog: Catalog, name: str, **options: Any) -> drivers.HostDriver:
    choice = drivers.DriverChoice(options.pop("mode", "managed"), **options)
    found = drivers.choose_driver(catalog, catalog.host_class(name), choice)
    assert found
    return found


def test_every_class_has_a_driver_or_a_reason(catalog: Catalog) -> None:
    assert list(driver_check.driver_errors(catalog)) == []
    for sized in catalog.sized_classes():
        row = catalog.drivers.classes[sized.family.name]
        found = drivers.choose_driver(catalog, sized, drivers.DriverChoice("managed"))
        assert (found is None) == (sized.family.vendor == "cpu")
        assert row.why
        assert row.source


@pytest.mark.parametrize(
    ("name", "says"),
    [("plan-9", "there is no repository 'plan-9'"), ("amdgpu-30.10.2", "amdgpu-30.10.2 has nothing for aarch64")],
)
def test_the_container_toolkit_comes_from_a_repository_that_has_it(catalog: Catalog, name: str, says: str) -> None:
    toolkit = catalog.drivers.container_toolkit.model_copy(update={"repository": name})
    recipes = replace(catalog, drivers=catalog.drivers.model_copy(update={"container_toolkit": toolkit}))
    assert [fault.message for fault in driver_check.driver_errors(recipes)] == [says]


def changed(catalog: Catalog, name: str, **changes: Any) -> list[str]:
    row = catalog.drivers.classes[name].model_copy(update=changes)
    recipes = catalog.drivers.model_copy(update={"classes": {**catalog.drivers.classes, name: row}})
    return [fault.message for fault in driver_check.driver_errors(replace(catalog, drivers=recipes))]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("h100", {"releases": ["nvidia-1"]}, "there is no release 'nvidia-1'"),
        ("h100", {"releases": ["amdgpu-30.10.2"]}, "amdgpu-30.10.2 is a driver of amd"),
        ("h100", {"driver_below": "580.100"}, "580.159.03 is not below the ceiling 580.100"),
        ("h100", {"fabric_manager": [1]}, "has no size 1 with more than one GPU"),
        ("l40s", {"fabric_manager": [8]}, "its GPUs are joined by pcie: there is no NVSwitch"),
        ("mi300x", {"imex": True}, "amdgpu-30.10.2 has no IMEX"),
        ("mi300x", {"releases": ["amdgpu-30.10.2"]}, "vllm-0.33.0-rocm: no driver of recipes/drivers.yml has ROCm 7.2"),
        (
            "cpu",
            {"releases": ["nvidia-580"], "driver_below": "620"},
            "a class has 'releases' if it has GPUs, and only then",
        ),
    ],
)
def test_what_does_not_agree_is_a_fault(catalog: Catalog, name: str, changes: dict[str, Any], says: str) -> None:
    assert any(says in message for message in changed(catalog, name, **changes))


def test_a_class_without_a_row_is_a_fault(catalog: Catalog) -> None:
    rows = {name: row for name, row in catalog.drivers.classes.items() if name != "h100"}
    recipes = catalog.drivers.model_copy(update={"classes": rows})
    (fault,) = driver_check.driver_errors(replace(catalog, drivers=recipes))
    assert "has no entry for the class 'h100'" in fault.message


@pytest.mark.parametrize(("name", "has"), [("gb200-4", True), ("b200-8", False), ("h100-8", False)])
def test_imex_has_the_driver_s_version_where_hosts_share_their_network(catalog: Catalog, name: str, has: bool) -> None:
    found = {item["name"]: item.get("version") for item in got(catalog, name).items if item["kind"] == "package"}
    assert (found.get("nvidia-imex") == found["nvidia-utils-580"]) == has
    assert ("nvidia-imex" in found) == has


@pytest.mark.parametrize(
    ("name", "has"),
    [("h100-8", True), ("h100-4", False), ("h100-1", False), ("b200-8", True), ("gb200-4", False), ("l40s-8", False)],
)
def test_the_fabric_manager_is_for_hosts_with_switches(catalog: Catalog, name: str, has: bool) -> None:
    found = got(catalog, name)
    for names in found.variables["driver_packages_names"].values():
        named = dict(each.split("=") for each in names if each != "infiniband-diags")
        assert ("nvidia-fabricmanager" in named) == has
        # In NVIDIA's repository it is a virtual name, of which apt takes no version.
        assert "nvidia-fabricmanager-580" not in named
        assert named.pop("nvlsm", "2025.10.12-1*") == "2025.10.12-1*"
        assert set(named.values()) == {"580.159.03-1*"}
    assert found.variables["nvidia_driver_subnet_manager"] == (name == "b200-8")
    assert ("nvidia-fabricmanager.service" in {item.get("name") for item in found.items}) == has
    assert found.facts.get("fabric_manager", False) == has


def test_every_package_is_pinned_and_the_vendor_comes_before_the_distribution(catalog: Catalog) -> None:
    text = got(catalog, "mi300x-8").variables["driver_packages_preferences"]
    assert 'Package: *\nPin: origin "repo.radeon.com"\nPin-Priority: 600' in text
    assert "Package: amdgpu-dkms\nPin: version 1:6.14.14.30100200-*\nPin-Priority: 1001" in text


def test_what_the_packages_depend_on_is_pinned_to_their_version(catalog: Catalog) -> None:
    """Without it apt takes the newest of a dependency that the recipe does not name, and nothing fits."""
    text = got(catalog, "h100-8").variables["driver_packages_preferences"]
    assert "Package: *nvidia* libcuda1*" in text
    assert text.rstrip().endswith("Pin: version 580.159.03-1*\nPin-Priority: 1001")


def test_the_modules_are_loaded_before_an_instance_starts(catalog: Catalog) -> None:
    """Also with a driver of the image: the sandbox of the instance keeps CUDA from loading them."""
    for mode in ("managed", "verified"):
        items = {item.get("name") or item.get("path") for item in got(catalog, "h100-8", mode=mode).items}
        assert {"vllm-gpu-devices.service", "/etc/systemd/system/vllm-gpu-devices.service"} <= items
    assert drivers.NVLINK not in items
    assert drivers.NVLINK in {item.get("path") for item in got(catalog, "b200-8").items}
    assert got(catalog, "b200-8").variables["driver_packages_kernel_modules"] == ["linux-modules-extra"]
    units = paths.root() / "roles"
    for unit in ("vllm_service/files/vllm@", "vllm_service/files/vllm-docker@", "container_engine/files/nvidia-cdi"):
        text = (units / f"{unit}.service").read_text(encoding="utf-8")
        for key in ("Wants", "After"):
            assert re.search(rf"^{key}=.*\bvllm-gpu-devices.service$", text, re.MULTILINE), (unit, key)


@pytest.mark.parametrize("system", ["ubuntu-22.04", "ubuntu-24.04", "debian-12", "debian-13"])
def test_each_system_has_names_of_its_own(catalog: Catalog, system: str) -> None:
    found = got(catalog, "h100-1")
    names = [each.partition("=")[0] for each in found.packages(system)]
    assert ("nvidia-dkms-580-open" in names) == system.startswith("ubuntu")
    assert ("nvidia-kernel-open-dkms" in names) == system.startswith("debian")
    items = [item["name"] for item in found.items if system in item.get("systems", ())]
    assert items == sorted(names)
    (repository,) = found.repositories
    assert repository.source(system) is not None


def test_debian_13_has_a_key_that_it_accepts(catalog: Catalog) -> None:
    (repository,) = got(catalog, "h100-1").variables["driver_packages_repositories"]
    assert repository["key"]["fingerprint"].endswith("3BF863CC")
    assert repository["systems"]["debian-13"]["key"]["fingerprint"].endswith("8793F200")
    assert "key" not in repository["systems"]["debian-12"]


def test_an_arm_host_has_packages_of_its_own(catalog: Catalog) -> None:
    (repository,) = got(catalog, "gb200-4").variables["driver_packages_repositories"]
    assert set(repository["systems"]) == {"ubuntu-22.04", "ubuntu-24.04"}, "NVIDIA has none for Debian on ARM"
    assert repository["systems"]["ubuntu-24.04"]["uri"].endswith("/ubuntu2404/sbsa")
    (repository,) = got(catalog, "b200-8").variables["driver_packages_repositories"]
    assert repository["systems"]["ubuntu-24.04"]["uri"].endswith("/ubuntu2404/x86_64")


def test_a_fleets_own_repository_stands_in_place_of_the_vendors(catalog: Catalog, tmp_path: Path) -> None:
    key = tmp_path / "mirror.asc"
    key.write_text("a key", encoding="utf-8")
    mirror = RepositoryMirror(uri="http://10.0.0.5/apt/cuda", signing_key_file="mirror.asc")
    found = got(catalog, "h100-8", copies={"nvidia-cuda": (mirror, key)})
    (repository,) = found.variables["driver_packages_repositories"]
    source = {"uri": "http://10.0.0.5/apt/cuda", "suites": ["/"], "components": [], "check_valid_until": True}
    assert repository["systems"] == {"any": source}
    assert repository["key"]["file"] == str(key)
    assert 'Pin: origin "10.0.0.5"' in found.variables["driver_packages_preferences"]


def test_the_engine_decides_which_rocm(catalog: Catalog) -> None:
    engine = catalog.engines["vllm-0.32.0-rocm"]
    assert engine.wheel
    newer = engine.model_copy(update={"wheel": engine.wheel.model_copy(update={"rocm_min": "9.0"})})
    older = catalog.engines["vllm-0.14.1-rocm"]
    assert got(catalog, "mi300x-8", engine=older).facts["rocm_version"] == "7.0.2"
    assert got(catalog, "mi300x-8", engine=engine).facts["rocm_version"] == "7.2.0"
    with pytest.raises(FleetError, match=r"no driver of recipes/drivers.yml has ROCm 9\.0"):
        got(catalog, "mi300x-8", engine=newer)


def judged(catalog: Catalog, mode: str, facts: dict[str, Any]) -> probing.Report:
    found = got(catalog, "h100-8", mode=mode)
    manifest = Manifest("gpu-0", (), {**wanted_facts(catalog.host_class("h100-8")), **found.facts})
    return probing.parse_report("gpu-0", manifest, json.dumps({"drift": [], "veto": [], "facts": facts}))


@pytest.mark.parametrize("mode", ["managed", "verified"])
def test_a_host_that_is_right_is_left_alone(catalog: Catalog, mode: str) -> None:
    report = judged(catalog, mode, HEALTHY)
    assert (report.veto, report.drift) == ((), ())


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (NO_DRIVER, "no_driver", "nvidia-smi not found: install the driver"),
        (
            {**NO_DRIVER, "problems": {"nvidia": {"state": "driver_mismatch", "why": "nvidia-smi says: mismatch"}}},
            "driver_mismatch",
            "restart the host",
        ),
        (
            {"driver": "535.183.01", "fabric_manager": "535.183.01"},
            "driver_too_old",
            "needs the driver 570.26 or newer",
        ),
        (
            {"driver": "620.10", "fabric_manager": "620.10"},
            "driver_too_new",
            "needs a driver below 620: it has 620.10",
        ),
        (
            {"fabric_manager": "580.126.20"},
            "wrong_fabric_manager",
            "its fabric manager is 580.126.20, its driver is 580.159.03: CUDA fails",
        ),
        ({"fabric_manager": None}, "no_fabric_manager", "its fabric manager is missing"),
    ],
)
def test_a_driver_that_is_managed_is_drift_and_one_of_an_image_a_veto(
    catalog: Catalog, changes: dict[str, Any], code: str, says: str
) -> None:
    managed, verified = (judged(catalog, mode, {**HEALTHY, **changes}) for mode in ("managed", "verified"))
    assert managed.veto == ()
    assert managed.roles == {"nvidia_driver"}
    assert [says in item.why for item in managed.drift if item.state == code] == [True]
    assert verified.drift == ()
    assert [says in veto.text for veto in verified.veto if veto.code == code] == [True]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"gpus": [H100] * 7}, "too_few_gpus"),
        ({"gpus": [{**H100, "name": "NVIDIA A100-SXM4-80GB"}] * 8}, "wrong_gpu_name"),
        ({"vendor": "amd"}, "wrong_vendor"),
        ({"ecc_uncorrected": 3}, "ecc_errors"),
        ({"xid": [79]}, "xid_errors"),
    ],
)
def test_no_driver_mends_the_hardware(catalog: Catalog, changes: dict[str, Any], code: str) -> None:
    report = judged(catalog, "managed", {**HEALTHY, **changes})
    assert [veto.code for veto in report.veto] == [code]
    assert report.drift == ()


def test_an_image_may_bring_another_driver_within_the_bounds(catalog: Catalog) -> None:
    other = {"driver": "570.195.03", "fabric_manager": "570.195.03", "cuda": "12.8"}
    assert judged(catalog, "verified", {**HEALTHY, **other}).veto == ()
    assert "the plan has 580.159.03" in judged(catalog, "managed", {**HEALTHY, **other}).drift[0].why


def test_an_image_is_held_and_gets_no_repository(catalog: Catalog) -> None:
    found = got(catalog, "h100-8", mode="verified")
    assert found.variables["driver_packages_repositories"] == []
    assert {item["kind"] for item in found.items} == {"file", "holds", "unit"}


@pytest.mark.parametrize(
    ("cloud", "mode"), [("static", "managed"), ("lab", "managed"), ("aws", "verified"), ("oci", "verified")]
)
def test_who_brings_the_driver(cloud: str, mode: str) -> None:
    assert drivers.default_mode(cloud) == mode


def test_it_stands_after_the_operating_system_in_the_manifest(catalog: Catalog, golden_site: sites.Site) -> None:
    manifest = next(host.manifest for host in golden_site.hosts if host.plan.kind == "serving")
    assert got(catalog, "h100-8").extend(manifest).roles[:3] == ("host_baseline", "nvidia_driver", "harmony_encodings")


PACKAGES = {"nvidia-utils-580": ("580.159.03-1ubuntu1", True), "linux-image-6.8": ("6.8.0-1", False)}


@pytest.mark.parametrize(
    ("name", "version", "difference"),
    [
        ("nvidia-utils-580", None, None),
        ("nvidia-utils-580", "580.159.03-*", None),
        ("nvidia-utils-580", "580.159.*1", None),
        ("nvidia-utils-580", "580.126.20-*", ("wrong_version", "is at 580.159.03-1ubuntu1, not 580.126.20-*")),
        ("nvidia-utils-570", None, ("not_installed", "is not installed")),
    ],
)
def test_a_package_at_its_version(name: str, version: str | None, difference: tuple[str, str] | None) -> None:
    assert probe.check_package(package_item("r", name, version), PACKAGES) == difference


def test_what_is_installed_of_a_pattern_is_held() -> None:
    assert probe.check_holds(holds_item("r", ["nvidia-*"]), PACKAGES) is None
    difference = probe.check_holds(holds_item("r", ["nvidia-*", "linux-image-*"]), PACKAGES)
    assert difference == ("not_held", "do not include linux-image-6.8")


def test_a_gateway_that_does_not_run_has_nobody_in_drain(tmp_path: Path) -> None:
    assert probe.check_traffic(traffic_item("gateway", str(tmp_path / "admin.sock"))) is None


@pytest.mark.parametrize(("site", "name"), [("golden_site", "vllm@0.service"), ("image_site", "vllm-docker@0.service")])
def test_only_a_host_without_a_running_instance_is_idle(
    site: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unit that makes the container of an instance does not count: it runs only while an instance starts."""

    def unit(state: str) -> list[dict[str, str]]:
        return [{"role": "vllm_service", "kind": "unit", "what": name, "state": state, "why": ""}]

    for state in DriftState:
        kept = {"lab-0": unit(state.value), "lab-1": unit("not_reloaded")}
        monkeypatch.setattr(drift, "_load_drift", lambda _, __, kept=kept: kept)
        stopped = state in ("unknown_unit", "inactive", "failed")
        assert drift.find_idle_hosts(request.getfixturevalue(site)) == ({"lab-0"} if stopped else set()), state


def test_a_host_that_is_asked_again_leaves_the_others_as_they_were(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(drift, "_file", lambda _: tmp_path / "drift.json")
    drifted = probing.Drift("a", "nvidia_driver", "driver", "driver", VetoCode.NO_DRIVER, "is missing")
    drift.save_drift(
        "f",
        {"a": probing.Report("a", (drifted,)), "b": probing.Report("b", (replace(drifted, host="b"),))},
        os.getpid(),
    )
    drift.save_drift("f", {"a": probing.Report("a")}, os.getpid())
    assert drift.roles_to_run("f") == {"a": frozenset(), "b": frozenset({"nvidia_driver"})}


def test_a_repository_that_the_recipes_do_not_know_is_an_error(fleets: Path) -> None:
    path = fleets / "golden" / "fleet.yml"
    text = path.read_text(encoding="utf-8").replace(
        "artifacts:\n",
        "artifacts:\n  repositories: {cuda: {uri: 'http://10.0.0.5/cuda', signing_key_file: fleet.yml}}\n",
    )
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FleetError, match=r"is not a repository of recipes/drivers\.yml"):
        sites.load(fleets / "golden")
