"""What every task that uses apt has, in every role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2.nativetypes import NativeEnvironment

from vllm_fleet.base import paths

APT = "ansible.builtin.apt"


def apt_tasks() -> Iterator[Any]:
    """Every task with apt, with its place."""
    for file in sorted((paths.root() / "roles").glob("*/tasks/*.yml")):
        for task in tasks_in(yaml.safe_load(file.read_text(encoding="utf-8"))):
            if APT in task:
                place = file.relative_to(paths.root() / "roles")
                yield pytest.param(place, task, id=f"{place}: {task['name']}")


def tasks_in(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks or ():
        yield task
        for section in ("block", "rescue", "always"):
            yield from tasks_in(task.get(section, []))


@pytest.mark.parametrize(("place", "task"), list(apt_tasks()))
def test_apt_waits_for_the_upgrades_of_the_first_boot(place: Path, task: dict[str, Any]) -> None:
    """unattended-upgrades holds apt's lock for minutes on a new host; Ansible's default is one minute."""
    assert task[APT]["lock_timeout"] == 600


def test_the_headers_are_those_of_the_engines_python() -> None:
    """On Ubuntu 22.04 python3-dev is for 3.10, and an engine for 3.12 compiles against the headers of 3.12."""
    (task,) = [each.values[1] for each in apt_tasks() if each.values[1]["name"] == "Install compilers"]
    names = NativeEnvironment().from_string(task[APT]["name"])
    packages: Any = names.render(vllm_engine_packages=["g++", "python3-dev"], __vllm_engine_host={"python": "3.12"})
    assert packages == ["g++", "python3-dev", "python3.12-dev"]
