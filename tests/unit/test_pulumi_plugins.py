"""Pulumi's plugins: which a fleet needs, where they are, and what is said where they are not."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from lab import web
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.edge import pulumi_plugins
from vllm_fleet.fleet import cloud_sdks, plan, stack_faults
from vllm_fleet.fleet.cloud_sdks import Plugin

AWS = Plugin("aws", "7.51.1")
GITHUB = "https://github.com/pulumi/pulumi-aws/releases/download/v7.51.1"
PULUMI = "https://get.pulumi.com/releases/plugins"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of Pulumi, an x86_64 machine, and no variable of the user's own."""
    for name in (pulumi_plugins.OVERRIDES, "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", "PULUMI_DEBUG_PROVIDERS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PULUMI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return tmp_path / "home"


def example(name: str) -> plan.Plan:
    return plan.load(paths.root() / "inventories" / name)


@pytest.mark.parametrize(
    ("fleet", "names"),
    [
        ("example-aws", ["aws"]),
        ("example-gcp", ["gcp"]),
        ("example-amd", ["azure-native", "oci", "digitalocean"]),
        ("lab", []),
    ],
)
def test_a_fleet_needs_the_plugins_of_its_clouds_at_the_locked_versions(fleet: str, names: list[str]) -> None:
    locked = {
        each["name"]: each["version"] for each in tomllib.loads((paths.root() / "uv.lock").read_text())["package"]
    }
    found = cloud_sdks.list_plugins(example(fleet), load_catalog())
    assert [(each.name, each.version) for each in found] == [(name, locked[f"pulumi-{name}"]) for name in names]


def test_every_cloud_that_is_rented_names_a_package_of_the_project() -> None:
    needed = " ".join(metadata.requires("vllm-fleet") or [])
    assert [table.name for table in load_catalog().clouds.values() if not table.sdk or table.sdk not in needed] == []


def test_a_cloud_without_its_sdk_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.distribution

    def without_azure(name: str) -> metadata.Distribution:
        if name == "pulumi-azure-native":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(cloud_sdks, "distribution", without_azure)
    ((fault, is_wrong),) = stack_faults.find(example("example-amd"), load_catalog())
    assert not is_wrong
    assert str(fault).startswith(
        "inventories/example-amd/fleet.yml: the cloud 'azure' needs the Python package pulumi-azure-native, which this "
        "environment does not have (run 'make venv'"
    )
    with pytest.raises(FleetError, match="needs the Python package pulumi-azure-native") as caught:
        cloud_sdks.list_plugins(example("example-amd"), load_catalog())
    assert caught.value.exit_code == 2


def test_a_plugin_is_there_when_its_folder_is_complete(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / "plugins" / "resource-aws-v7.51.1"
    assert not pulumi_plugins.is_installed(AWS)
    folder.mkdir(parents=True)
    assert pulumi_plugins.is_installed(AWS)
    assert not pulumi_plugins.is_installed(Plugin("aws", "7.51.0"))
    (home / "plugins" / "resource-aws-v7.51.1.partial").touch()
    assert not pulumi_plugins.is_installed(AWS)
    monkeypatch.setenv("PULUMI_DEBUG_PROVIDERS", "gcp:4,aws:5")
    assert pulumi_plugins.is_installed(AWS)


@pytest.mark.parametrize(
    ("overrides", "folders"),
    [
        ("", [GITHUB, PULUMI]),
        ("nothing=https://a", [GITHUB, PULUMI]),
        (".*=https://a.test/x/", ["https://a.test/x"]),
        # The first that fits counts; groups by number and by name, and what Pulumi itself knows.
        (r"(?P<org>\w+)/pulumi-(\w+)$=http://a.test/${org}/$2/v${VERSION}-${OS}-${ARCH}", ["http://a.test/pulumi/aws/v7.51.1-linux-amd64"]),
        ("^https://get=https://b.test/${NAME}", [GITHUB, "https://b.test/aws"]),
        ("gcp$=https://a.test,aws$=https://b.test", ["https://b.test"]),
    ],
)  # fmt: skip
def test_servers_are_those_that_pulumi_asks(
    overrides: str, folders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pulumi_plugins.OVERRIDES, overrides)
    assert list(pulumi_plugins.list_origins(AWS)) == folders


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("https://a.test", "write REGEXP=URL"),
        (".*=https://a.test?x=1", "write REGEXP=URL"),
        ("(=https://a.test", "is no regular expression"),
        (".*=github://api.a.test/org", "pulumi plugin install resource aws 7.51.1 --exact"),
    ],
)
def test_a_wrong_override_is_told(overrides: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pulumi_plugins.OVERRIDES, overrides)
    with pytest.raises(FleetError) as caught:
        pulumi_plugins.list_origins(AWS)
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_server_without_the_archive_and_one_that_may_not_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web.serving(web.files(tmp_path)) as url:
        monkeypatch.setenv(pulumi_plugins.OVERRIDES, f".*={url}")
        with pytest.raises(FleetError, match=r"cannot be fetched: 127\.0\.0\.1: HTTP 404 for http") as caught:
            pulumi_plugins.check_reachable([AWS], "prod")
        assert caught.value.exit_code == 1
        assert caught.value.hint.startswith("run 'make plugins FLEET=prod' where the internet is")
        (tmp_path / pulumi_plugins.archive_name(AWS)).touch()
        pulumi_plugins.check_reachable([AWS], "prod")
    monkeypatch.setenv("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", "true")
    with pytest.raises(FleetError, match="keeps Pulumi from fetching it") as caught:
        pulumi_plugins.check_reachable([AWS], "prod")
    assert caught.value.exit_code == 2
