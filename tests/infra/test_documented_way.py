"""README.md, "rented hosts": its commands, with a server that has the plugin and a cloud that is emulated."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pages
import pytest
from hanging import HANGING_SECONDS

from lab import web
from lab.rehearsal.cloud import Account, Cloud
from lab.rehearsal.serve import serve
from vllm_fleet.base import paths
from vllm_fleet.edge import pulumi_plugins
from vllm_fleet.fleet.cloud_sdks import Plugin

# The engine is built from a package registry.
pytestmark = pytest.mark.network

PLUGIN = Plugin("aws", version("pulumi-aws"))
#: What a user changes in the copy of the example: its name, and each value that stands for one of their own.
EDITS = {
    "fleet: example-aws": "fleet: prod",
    "cr-0123456789abcdef0": "cr-0f1e2d3c4b5a69788",
    "[203.0.113.0/24]": "[192.168.7.0/24]",
    "[198.51.100.0/24]": "[192.168.0.0/16]",
}
#: Its servers are the hub and the package index: tests/unit/test_mirror_fill.py and tests/infra/test_mirror_hosts.py.
LEFT_OUT = "vllm-fleet mirror "


def documented() -> list[str]:
    """The commands of the quick start, without what follows a '#'."""
    _, _, section = (paths.root() / "README.md").read_text(encoding="utf-8").partition("## Quick start: rented hosts")
    (block,) = re.findall(r"```console\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    return [line.partition("#")[0].rstrip() for line in block.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Cloud]]:
    """The URL and the folder of a server of plugins, and the cloud that its plugin talks to."""
    folder = tmp_path_factory.mktemp("plugins")
    cloud = Cloud(tmp_path_factory.mktemp("cloud") / "cloud.json")
    cloud.account = Account(have={"reservations": [EDITS["cr-0123456789abcdef0"]], "compartments": [], "images": []})
    with serve(cloud, None, ("aws",)) as served, web.serving(web.files(folder)) as url:
        port = served["PULUMI_DEBUG_PROVIDERS"].rpartition(":")[2]
        # A plugin prints the port that it serves: this one runs already.
        text = f"#!/bin/sh\necho {port}\nexec sleep 100000\n".encode()
        with tarfile.open(folder / pulumi_plugins.archive_name(PLUGIN), "w:gz") as archive:
            member = tarfile.TarInfo("pulumi-resource-aws")
            member.size, member.mode = len(text), 0o755
            archive.addfile(member, io.BytesIO(text))
        yield url, folder, cloud


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh clone, with the environment that 'make venv' has made for this one."""
    project = pages.copy_project(tmp_path / "project")
    (project / ".venv").symlink_to(sys.prefix)
    editor = tmp_path / "editor"
    edits = [f"-e 's|{re.escape(old)}|{new}|'" for old, new in EDITS.items()]
    editor.write_text(f'#!/bin/sh\nexec sed -i {" ".join(edits)} "$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    return project


def run(checkout: Path, *lines: str, url: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Runs lines in one shell that a user has opened there; questions of Pulumi are answered with yes."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "AWS_", "VLLM_FLEET_"))}
    environment = {
        **kept,
        # The packages of the clone: the environment was installed from another one.
        "PYTHONPATH": str(checkout),
        "EDITOR": str(checkout.parent / "editor"),
        "PULUMI_OPTION_YES": "true",
        "PULUMI_OPTION_SKIP_PREVIEW": "true",
        "VLLM_FLEET_CACHE": str(checkout.parent / "cache"),
        **({pulumi_plugins.OVERRIDES: f".*={url}"} if url else {}),
        **more,
    }
    script = "\n".join(line.removeprefix("make venv && ") for line in lines)
    return subprocess.run(
        ["bash", "-ec", script],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGING_SECONDS,
    )


def test_the_commands_of_the_readme_make_the_hosts_and_need_nothing_else(
    checkout: Path, server: tuple[str, Path, Cloud]
) -> None:
    url, _, cloud = server
    lines = documented()
    assert [line.split()[0] for line in lines] == [
        *("make", "cp", "$EDITOR", "vllm-fleet", "vllm-fleet", "vllm-fleet", "pulumi", "pulumi", "ansible-playbook")
    ]
    (mirror,) = [line for line in lines if line.startswith(LEFT_OUT)]
    done = run(checkout, *(line for line in lines[:-1] if line != mirror), url=url)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = checkout / ".pulumi" / "home" / "plugins"
    assert [path.name for path in installed.iterdir() if path.is_dir()] == [f"resource-aws-v{PLUGIN.version}"]
    hosts = json.loads((checkout / "inventories" / "prod" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    assert sorted(hosts) == ["b200-0", "gateway-0", "h100-0", "h100-1"]
    assert sorted(each.name for each in cloud.records if each.shape) == sorted(hosts)
    # The last command lacks what the line that was left out provides, and nothing else.
    last = run(checkout, lines[0], lines[-1], url=url)
    assert last.returncode != 0
    assert f"run '{mirror}' first" in last.stdout + last.stderr
    assert (last.stdout + last.stderr).count("lacks wheels:") == 1, last.stderr


def test_without_a_server_the_user_is_told_in_one_sentence_and_nothing_is_made(checkout: Path) -> None:
    lines = [line for line in documented()[:-1] if not line.startswith("vllm-fleet ")]
    done = run(checkout, *lines, url="http://127.0.0.1:9")
    # Pulumi shows it as it comes, and again below "Diagnostics".
    told = re.findall(r"error: (.*)", done.stdout + done.stderr)
    (sentence,) = {line for line in told if "plugin" in line}
    assert done.returncode != 0
    assert sentence == (
        f"Pulumi's plugin {PLUGIN} is not in {checkout}/.pulumi/home/plugins and cannot be fetched: "
        "127.0.0.1: Connection refused (run 'make plugins FLEET=prod' where the internet is, copy .pulumi/home/plugins "
        f"from there; a server of your own: {pulumi_plugins.OVERRIDES}, docs/stacks.md)"
    )
    state = json.loads(run(checkout, lines[0], "pulumi stack export --stack prod").stdout)
    assert not [each for each in state["deployment"].get("resources", []) if "::aws:" in each["urn"]]


def test_plugins_are_fetched_ahead_and_verified(checkout: Path, server: tuple[str, Path, Cloud]) -> None:
    url, folder, _ = server
    archive = folder / pulumi_plugins.archive_name(PLUGIN)
    checksums = folder / pulumi_plugins.checksums_name(PLUGIN)
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    begin = documented()[:3]
    # As the target of the Makefile has it, without the environment that it would make.
    plugins = "python -m tools.plugins prod"
    checksums.unlink(missing_ok=True)
    undone = run(checkout, *begin, plugins, url=url)
    assert undone.returncode == 1
    assert f"error: no digest of {archive.name}: {url}/{checksums.name}: HTTP 404 File not found" in undone.stderr
    checksums.write_text(f"{'0' * 40}  ./{archive.name}\n", encoding="utf-8")
    wrong = run(checkout, begin[0], plugins, url=url)
    assert wrong.returncode == 1
    assert "the server's file is not the pinned one: nothing was stored" in wrong.stderr
    assert not (checkout / ".pulumi" / "home" / "plugins").exists()
    sha1 = hashlib.sha1(archive.read_bytes(), usedforsecurity=False).hexdigest()
    checksums.write_text(f"{sha1}  ./{archive.name}\n", encoding="utf-8")
    done = run(checkout, begin[0], plugins, url=url)
    assert done.stdout == f"{PLUGIN}: installed in .pulumi/home/plugins, SHA-256 {sha256}\n", done.stderr
    assert run(checkout, begin[0], plugins, url="http://127.0.0.1:9").stdout == f"{PLUGIN}: is there\n"
    # On another machine the fleet's own digest counts, whatever the server publishes.
    checksums.unlink()
    kept = checkout / "inventories" / "prod" / "plugins.sha256"
    assert f"{sha256}  {archive.name}\n" in kept.read_text(encoding="utf-8")
    other = {"PULUMI_HOME": str(checkout.parent / "other")}
    assert run(checkout, begin[0], plugins, url=url, **other).stdout.endswith(f"SHA-256 {sha256}\n")
    kept.write_text(kept.read_text(encoding="utf-8").replace(sha256, "0" * 64), encoding="utf-8")
    refused = run(checkout, begin[0], plugins, url=url, PULUMI_HOME=str(checkout.parent / "third"))
    assert refused.returncode == 1
    assert f"the SHA-256 {sha256} instead of {'0' * 64}" in refused.stderr


@pytest.mark.parametrize(
    ("fleet", "code", "says"),
    [
        ("nowhere", 2, "error: there is no fleet 'nowhere'"),
        ("lab", 0, "lab: nothing to fetch: no cloud makes its hosts"),
    ],
)
def test_a_fleet_without_a_cloud_or_that_is_not_there(checkout: Path, fleet: str, code: int, says: str) -> None:
    done = run(checkout, documented()[0], f"python -m tools.plugins {fleet}")
    assert done.returncode == code
    assert says in done.stdout + done.stderr
