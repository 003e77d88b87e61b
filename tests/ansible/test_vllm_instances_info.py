"""What a role must do about the instances of a host, with a stand-in for systemctl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module

SYSTEMCTL = """\
#!/bin/sh
case $1 in
    list-units) cat "{folder}/units" ;;
    show) cat "{folder}/shown" ;;
esac
"""


class Host:
    """A host with instances of one unit, and what they have loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "systemctl").write_text(SYSTEMCTL.format(folder=folder), encoding="utf-8")
        (folder / "systemctl").chmod(0o755)
        self.units: dict[str, str] = {}
        #: Properties of units, as ``systemctl show`` prints them.
        self.shown: dict[str, dict[str, str]] = {}

    def run(self, unit: str, number: str, loaded: str) -> None:
        """Has an instance run."""
        self.units[unit] = "active"
        directory = self.folder / f"vllm-{number}"
        directory.mkdir()
        (directory / "loaded").write_text(f"{loaded}\n", encoding="utf-8")

    def compare(self, *plan: tuple[str, str, str], files: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the module returns for instances: unit, number and what is to be loaded."""
        rows = [{"unit": unit, "active": state} for unit, state in self.units.items()]
        (self.folder / "units").write_text(json.dumps(rows), encoding="utf-8")
        blocks = [
            "".join(f"{key}={value}\n" for key, value in {"Id": unit, **self.shown.get(unit, {})}.items())
            for unit in [*(unit for unit, _, _ in plan), *self.shown]
        ]
        (self.folder / "shown").write_text("\n".join(blocks), encoding="utf-8")
        instances = [
            {"unit": unit, "runtime_directory": str(self.folder / f"vllm-{number}"), "loaded": loaded}
            for unit, number, loaded in plan
        ]
        arguments = {"instances": instances, "files": list(files)}
        return run_module("vllm_instances_info", self.folder, arguments, path=self.folder)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_an_instance_with_the_release_of_the_plan_goes_on(host: Host) -> None:
    host.run("vllm@0.service", "0", "a b")
    result = host.compare(("vllm@0.service", "0", "a b\n"))
    assert result["instances"] == [{"unit": "vllm@0.service", "state": "started"}]
    assert (result["stale"], result["surplus"], result["start_times"]) == ([], [], [])
    assert (result["drain_needed"], result["reload_needed"], result["changed"]) == (False, False, False)


def test_an_instance_with_another_release_restarts_out_of_traffic(host: Host) -> None:
    host.run("vllm@0.service", "0", "a b")
    host.run("vllm@1.service", "1", "a c")
    result = host.compare(("vllm@0.service", "0", "a b"), ("vllm@1.service", "1", "a b"))
    states = [(row["unit"], row["state"]) for row in result["instances"]]
    assert states == [("vllm@0.service", "started"), ("vllm@1.service", "restarted")]
    assert result["stale"] == ["vllm@1.service"]
    assert result["start_times"] == [str(host.folder / "vllm-1" / "started")]
    assert result["drain_needed"] is True


def test_an_instance_that_does_not_run_starts(host: Host) -> None:
    host.units["vllm@0.service"] = "failed"
    result = host.compare(("vllm@0.service", "0", "a b"))
    assert result["stale"] == ["vllm@0.service"]
    assert result["drain_needed"] is True


def test_units_that_the_plan_does_not_have_stop(host: Host) -> None:
    """Also one that is the same instance as the other unit; one that does not run needs no drain."""
    host.run("vllm-docker@0.service", "0", "a b")
    host.units |= {"vllm@0.service": "active", "vllm@1.service": "inactive"}
    result = host.compare(("vllm-docker@0.service", "0", "a b"))
    assert (result["surplus"], result["drain_needed"]) == (["vllm@0.service", "vllm@1.service"], True)
    host.units["vllm@0.service"] = "inactive"
    assert host.compare(("vllm-docker@0.service", "0", "a b"))["drain_needed"] is False


def test_a_unit_file_that_systemd_has_not_read_is_reported(host: Host) -> None:
    host.run("vllm@0.service", "0", "a b")
    host.shown["vllm@0.service"] = {"NeedDaemonReload": "yes"}
    assert host.compare(("vllm@0.service", "0", "a b"))["reload_needed"] is True


def test_an_instance_with_a_drop_in_of_somebody_else_restarts_without_it(host: Host) -> None:
    own, foreign = "/etc/systemd/system/vllm@.service.d/own.conf", "/run/systemd/system/vllm@1.service.d/x.conf"
    host.run("vllm@0.service", "0", "a b")
    host.run("vllm@1.service", "1", "a b")
    host.shown["vllm@0.service"] = {
        "FragmentPath": "/usr/lib/systemd/system/vllm@.service",
        "DropInPaths": f"/usr/lib/systemd/system/service.d/a.conf {own}",
    }
    host.shown["vllm@1.service"] = {"DropInPaths": f"{own} {foreign}"}
    result = host.compare(("vllm@0.service", "0", "a b"), ("vllm@1.service", "1", "a b"), files=(own,))
    assert (result["foreign_unit_files"], result["stale"]) == ([foreign], ["vllm@1.service"])
    assert result["drain_needed"] is True


def test_a_drop_in_of_the_unit_that_runs_the_container_counts_too(host: Host) -> None:
    foreign = "/etc/systemd/system/vllm-container@.service.d/x.conf"
    host.run("vllm-docker@0.service", "0", "a b")
    host.shown["vllm-container@0.service"] = {"DropInPaths": foreign}
    result = host.compare(("vllm-docker@0.service", "0", "a b"))
    assert (result["foreign_unit_files"], result["stale"]) == ([foreign], ["vllm-docker@0.service"])


def test_a_link_and_a_pipe_in_the_place_of_what_an_instance_has_loaded_are_not_read(host: Host) -> None:
    host.run("vllm@0.service", "0", "a b")
    loaded, other = host.folder / "vllm-0" / "loaded", host.folder / "other"
    loaded.rename(other)
    loaded.symlink_to(other)
    assert host.compare(("vllm@0.service", "0", "a b"))["stale"] == ["vllm@0.service"]
    loaded.unlink()
    os.mkfifo(loaded)
    assert host.compare(("vllm@0.service", "0", "a b"))["stale"] == ["vllm@0.service"]


def test_a_host_without_systemd_is_an_error(host: Host) -> None:
    (host.folder / "systemctl").write_text("#!/bin/sh\necho broken >&2\nexit 1\n", encoding="utf-8")
    result = host.compare(("vllm@0.service", "0", "a b"))
    assert result["failed"] is True
    assert "broken" in result["msg"]
