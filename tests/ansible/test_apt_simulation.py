"""What apt would do, asked before anything is changed: real apt on this machine, and a repository of stand-ins."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

from lab import apt
from vllm_fleet.base import paths

NOW, NEWER = "1.5-1ubuntu1", "1.9-1ubuntu1"
MODULE = runpy.run_path(str(paths.root() / "plugins" / "modules" / "apt_simulation.py"), run_name="module")

#: Installed here, and needed by no other package.
LEAF = "nftables"

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="only Debian and Ubuntu have apt")


def stand_ins() -> list[apt.Package]:
    """A driver in two versions whose parts want each other's exact version, and packages that do harm."""
    packages = []
    for version in (NOW, NEWER):
        packages += [
            apt.Package("x-driver", version, relations={"Depends": f"x-firmware (= {version})"}),
            apt.Package("x-firmware", version),
            apt.Package("x-manager", version, relations={"Provides": f"x-manager-1 (= {version})"}),
        ]
    return [
        *packages,
        apt.Package("x-rival", "1", relations={"Conflicts": LEAF}),
        apt.Package("x-kernel", "1", relations={"Depends": "linux-image-x"}),
        apt.Package("linux-image-x", "1"),
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vendor")
    key = apt.build(folder, stand_ins())
    shutil.copy(key, key.with_name("vllm-fleet-k.asc"))
    return folder


def ask(repository: Path, folder: Path, *names: str, **options: Any) -> dict[str, Any]:
    source = {"uri": f"file:{repository}", "suites": ["/"], "components": []}
    there = {"name": "vendor", "systems": {"any": source}, "key": {"name": "k"}}
    pins = f"Package: x-*\nPin: version {NOW}\nPin-Priority: 1001\n"
    given = {"repositories": [there], "keyrings": str(repository), "preferences": pins, "kernels": ["linux-image-*"]}
    return run_module("apt_simulation", folder, {"names": list(names), **given, **options}, check=True)


def test_packages_and_what_they_need_are_found_and_nothing_is_changed(repository: Path, tmp_path: Path) -> None:
    lists = Path("/var/lib/apt/lists")
    before = {path: path.stat().st_mtime_ns for path in lists.iterdir()}
    found = ask(repository, tmp_path, "x-driver=1.5-1*", "x-manager")
    assert (found["problems"], found["removes"], found["changed"]) == ([], [], False)
    assert found["installs"] == [f"{name} {NOW}" for name in ("x-driver", "x-firmware", "x-manager")]
    assert {path: path.stat().st_mtime_ns for path in lists.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (["x-driver=1.4-*"], {}, f"no repository has x-driver at version 1.4-*, there is {NEWER}, {NOW}"),
        (["x-manager-1=1.5-*", "x-driver=1.5-*"], {}, "no repository has a package x-manager-1"),
        (["x-missing"], {}, "Unable to locate package x-missing"),
        (["x-driver=1.5-*"], {"preferences": ""}, f"x-driver : Depends: x-firmware (= {NOW}) but {NEWER} is to be"),
        (["x-rival"], {}, f"apt would remove {LEAF}"),
        (["x-kernel"], {}, "apt would install the kernel packages linux-image-x"),
    ],
)
def test_what_must_not_happen_is_named(
    repository: Path, tmp_path: Path, names: list[str], options: dict[str, Any], says: str
) -> None:
    assert says in "; ".join(ask(repository, tmp_path, *names, **options)["problems"])


def test_an_older_version_of_another_package_is_named() -> None:
    judged = MODULE["judge_steps"](
        [],
        {"libc6": ("2.36", "2.35"), "x-driver": ("2", "1"), "new": (None, "1")},
        {"own": ["x-*"], "kernels": []},
        lambda first, second: first < second,
    )
    assert judged == ["apt would downgrade libc6 from 2.36 to 2.35"]


def test_only_the_source_of_the_same_repository_is_left_out() -> None:
    lines = "deb http://a/x /\n#deb http://v/cuda /\ndeb [signed-by=/k] http://v/cuda/ /\n"
    assert MODULE["without_sources"](lines, ["http://v/cuda"], False) == "deb http://a/x /\n#deb http://v/cuda /\n"
    stanzas = "Types: deb\nURIs: http://a/x\nSuites: /\n\nTypes: deb\nURIs: http://v/cuda\nSuites: /\n"
    assert MODULE["without_sources"](stanzas, ["http://v/cuda"], True).strip().endswith("http://a/x\nSuites: /")


def test_a_package_on_hold_is_changed_if_it_is_the_drivers_own() -> None:
    status = (
        "Package: x-firmware\nStatus: hold ok installed\nVersion: 1\n\n"
        "Package: others\nStatus: hold ok installed\nVersion: 1\n\n"
        "Package: x-driver\nStatus: install ok installed\nVersion: 1\n"
    )
    released, held = MODULE["release_holds"](status, ["x-*"])
    assert held == {"x-firmware"}
    assert released == status.replace("hold", "install", 1)
