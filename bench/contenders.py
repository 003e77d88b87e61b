"""The contenders: the project's two ways to check an unchanged fleet, and two peers with the same checks.

The output of each run shows whether it checked every host and changed none: a program that fails at once would
otherwise be the fastest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import fleets, peers
from bench.target import Target
from vllm_fleet import inventory
from vllm_fleet.base import paths

SITE = "ansible-playbook site.yml"
DRIFT = "vllm-fleet drift"
PYINFRA = "pyinfra"
TUNED = "Ansible tasks, tuned"
STOCK = "Ansible tasks, default configuration"


@dataclass(frozen=True)
class Contender:
    """One program that checks the fleet.

    Attributes:
        name: its name in the table.
        command: number of hosts -> command, run in the checkout.
        fault: (number of hosts, output) -> why the run does not count; None when it does.
        environment: variables besides the common ones.
        slow: whether it is measured on few hosts by default.
    """

    name: str
    command: Callable[[int], list[str]]
    fault: Callable[[int, str], str | None]
    environment: Mapping[str, str]
    slow: bool = False


def ansible_fault(count: int, output: str) -> str | None:
    """Why a run of Ansible tasks does not count: its recap must show every host, unchanged and reached."""
    recap = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", output, re.MULTILINE)
    clean = sum(1 for numbers in recap if set(numbers) == {"0"})
    return None if clean == len(recap) == count else f"{clean} of {count} hosts were clean"


def site_fault(count: int, output: str, drift_file: Path) -> str | None:
    """Why a run of site.yml does not count: nothing may have changed and every host must have been probed.

    Args:
        count: number of hosts.
        output: what the run printed; the probe is one task for all hosts, so the recap names one.
        drift_file: the drift that the run found.
    """
    recap = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", output, re.MULTILINE)
    if not recap or any(set(numbers) != {"0"} for numbers in recap):
        return "a host was changed, unreachable or failed"
    drifts = json.loads(drift_file.read_text(encoding="utf-8"))["hosts"]
    clean = sum(1 for items in drifts.values() if not items)
    return None if clean == count else f"{clean} of {count} hosts were clean"


def drift_fault(count: int, output: str) -> str | None:
    """Why a run of ``vllm-fleet drift --json`` does not count."""
    report = json.loads(output)
    if report["hosts"] == count and report["drift"] == []:
        return None
    return f"it reports {report['hosts']} hosts, {report['drift']}"


def pyinfra_fault(count: int, operations: int, output: str) -> str | None:
    """Why a run of pyinfra does not count: its grand total must be all 'no change'."""
    total = re.search(r"Grand total +(\S+) +(\S+) +(\S+) +(\S+)", output)
    wanted = (str(count * operations), "-", "-", str(count * operations))
    if total and total.groups() == wanted:
        return None
    return f"its grand total is {total.groups() if total else 'missing'}"


def contenders(target: Target, work: Path, counts: list[int], fleets_folder: Path, venv: Path) -> list[Contender]:
    """The contenders, with the files that they need; the target must have been deployed.

    Args:
        target: the deployed target.
        work: an existing folder for playbooks and inventories.
        counts: all numbers of hosts that they will run on.
        fleets_folder: the folder of the benchmark's fleets.
        venv: the environment of pyinfra.
    """
    items = inventory.load(fleets_folder / fleets.fleet_name(counts[0])).hosts[0].manifest.items
    checks = peers.checks(items, peers.copy_files(items, target.root, work / "copies"))
    texts = {
        "tuned.cfg": peers.TUNED_CFG,
        "default.cfg": "",
        "checks.yml": peers.playbook_text(checks),
        "deploy.py": peers.pyinfra_deploy_text(checks),
    }
    for count in counts:
        known_hosts = fleets_folder / fleets.fleet_name(count) / "known_hosts"
        addresses = fleets.addresses(count)
        texts[f"hosts-{count}.yml"] = peers.ansible_inventory_text(addresses, target.private_key, known_hosts)
        texts[f"hosts_{count}.py"] = peers.pyinfra_inventory_text(addresses, target.private_key, known_hosts)
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
    program = Path(sys.executable).parent
    tasks = [str(program / "ansible-playbook"), str(work / "checks.yml"), "-i"]
    return [
        Contender(
            SITE,
            site_command(fleets_folder),
            lambda count, output: site_fault(count, output, paths.run_dir(fleets.fleet_name(count)) / "drift.json"),
            site_environment(),
        ),
        Contender(
            DRIFT,
            lambda count: [str(program / "vllm-fleet"), "drift", "--json", "--fleet", fleets.fleet_name(count)],
            drift_fault,
            {"VLLM_FLEET_INVENTORIES": str(fleets_folder)},
        ),
        Contender(
            PYINFRA,
            lambda count: [str(venv / "bin/pyinfra"), "-y", str(work / f"hosts_{count}.py"), str(work / "deploy.py")],
            lambda count, output: pyinfra_fault(count, len(checks), output),
            {},
        ),
        Contender(
            TUNED,
            lambda count: [*tasks, str(work / f"hosts-{count}.yml")],
            ansible_fault,
            {"ANSIBLE_CONFIG": str(work / "tuned.cfg")},
            slow=True,
        ),
        Contender(
            STOCK,
            lambda count: [*tasks, str(work / f"hosts-{count}.yml")],
            ansible_fault,
            {"ANSIBLE_CONFIG": str(work / "default.cfg")},
            slow=True,
        ),
    ]


def site_command(fleets_folder: Path) -> Callable[[int], list[str]]:
    """Number of hosts -> ``ansible-playbook site.yml`` on the fleet of that many."""
    program = str(Path(sys.executable).parent / "ansible-playbook")
    return lambda count: [program, "-i", str(fleets_folder / fleets.fleet_name(count) / "fleet.yml"), "site.yml"]


def site_environment() -> dict[str, str]:
    """The variables of :func:`site_command`."""
    return {"ANSIBLE_CONFIG": str(paths.root() / "ansible.cfg")}


def common_environment(home: Path) -> dict[str, str]:
    """The environment that all contenders share.

    It leaves out the user's own configuration of Ansible and SSH. Python keeps its bytecode outside the checkout: some
    containers forbid bytecode, and then every start would compile everything.

    Args:
        home: an empty folder that takes the place of the user's home.
    """
    own = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ANSIBLE_", "VLLM_FLEET_", "PYTHON", "SSH_AUTH_SOCK"))
    }
    return {
        **own,
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        # The code of this checkout, also where several share a virtual environment.
        "PYTHONPATH": str(paths.root()),
        "PYTHONPYCACHEPREFIX": str(paths.cache_dir() / "bench" / "bytecode"),
        "VLLM_FLEET_CACHE": str(paths.cache_dir()),
    }


@contextmanager
def work_folder() -> Iterator[Path]:
    """The folder of one benchmark, empty at its beginning and gone at its end; only this user can read it."""
    work = paths.cache_dir() / "bench" / "work"
    shutil.rmtree(work, ignore_errors=True)  # what a killed run left behind
    (work / "home").mkdir(parents=True)
    work.chmod(0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
