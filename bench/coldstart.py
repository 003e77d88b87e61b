"""``python -m bench.coldstart``: the first start of vLLM on a new host, with and without an equal host's caches.

Creates a lab of two equal hosts and rolls them out, one after the other, with no caches of earlier runs: the first
compiles, the second gets the caches of the first. Then the second starts again with the caches that it has.
Writes ``docs/cold-start.md``; removes the hosts at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import machine
from bench.markdown import markdown
from lab import job, state
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError

FLEET = "coldstart"
#: The lab's recipe turns compilation off, since its hosts are for tests; this benchmark measures it.
_FLEET = """\
fleet: coldstart
defaults: {model: vllm-fleet/lab-gpt-oss, profile: balanced}
pools:
  lab:
    host_class: cpu-2
    cloud: lab
    placement: {bridge: vf-start, subnet: 10.77.8.0/24}
    hosts: 2
    overrides:
      args: {enforce-eager: null}
      env: {TORCHDYNAMO_DISABLE: null}
      why: a start that compiles is what the benchmark measures
gateway: {hosts: 0}
access:
  ssh_private_key_file: ssh/id_ed25519
artifacts:
  models: {vllm-fleet/lab-gpt-oss: "{cache}/lab-model/current"}
  encodings: "{cache}/encodings"
"""
_COMPILER = "apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q g++ python3-dev"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m bench.coldstart", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print data instead of the table")
    parser.add_argument("--no-write", action="store_true", help="leave docs/cold-start.md as it is")
    chosen = parser.parse_args(arguments)
    try:
        seconds = _measure()
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    if not chosen.no_write:
        write_atomically(paths.root() / "docs" / "cold-start.md", _document(seconds))
    print(json.dumps(seconds, indent=2) if chosen.json else "\n".join(_table(seconds)))
    return 0


def _measure() -> dict[str, float]:
    """Start -> seconds to the first completion."""
    base = paths.cache_dir() / "bench" / FLEET
    folder = base / "inventories" / FLEET
    with state.locked(f"bench-{FLEET}"):
        shutil.rmtree(base, ignore_errors=True)
        folder.mkdir(parents=True)
        (base / "pulumi").mkdir()
        (folder / "fleet.yml").write_text(_FLEET, encoding="utf-8")
        os.environ |= {
            "VLLM_FLEET_INVENTORIES": str(base / "inventories"),
            "PULUMI_BACKEND_URL": f"file://{base / 'pulumi'}",
        }
        try:
            job.stack_down(FLEET)  # what a killed run left behind
            job.stack_up(FLEET)
            # The lab's hosts have no compiler.
            _ansible(folder, "serving", _COMPILER, "shell")
            first_host = inventory.load(folder).hosts[0].variables
            key = Path(first_host["vllm_service_start_cache"]).name
            (Path(first_host["vllm_service_start_cache_store"]) / f"{key}.json").unlink(missing_ok=True)
            job.roll_out(FLEET)
            first = _started(folder)
            _ansible(folder, "lab-1", "systemctl restart vllm@0.service")
            return {
                "nothing compiled": first["lab-0"],
                "compiled by an equal host": first["lab-1"],
                "compiled by itself or an equal host, started again": _started(folder)["lab-1"],
            }
        finally:
            job.stack_down(FLEET)
            (paths.root() / f"Pulumi.{FLEET}.yaml").unlink(missing_ok=True)
            shutil.rmtree(base, ignore_errors=True)


def _started(folder: Path) -> dict[str, float]:
    """Host -> seconds that its instance took to start."""
    output = _ansible(folder, "serving", "cat /run/vllm-0/started")
    times = re.findall(r"^(\S+) \|.*\(stdout\) ([\d.]+)", output, re.MULTILINE)
    return {host: float(seconds) for host, seconds in times}


def _ansible(folder: Path, hosts: str, command: str, module: str = "command") -> str:
    words = ["ansible", "-i", str(folder / "fleet.yml"), hosts, "--become", "--one-line", "-m", module, "-a", command]
    done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise FleetError(f"{command!r} on {hosts} failed: {done.stdout[-500:]}", code=ErrorCode.WORK_FAILED)
    return done.stdout


def _table(starts: dict[str, float]) -> list[str]:
    cold = next(iter(starts.values()))
    lines = [("what the host has", "to the first completion [s]", "of the cold start")]
    lines += [(name, f"{seconds:.1f}", f"{seconds / cold:.0%}") for name, seconds in starts.items()]
    return markdown(lines, right={1, 2})


def _document(starts: dict[str, float]) -> str:
    lines = [
        "# The start of a new host",
        "",
        "Written by `make bench`; run it again instead of editing this file.",
        "",
        "One run of the lab's model on vLLM's CPU build, two equal hosts one after the other. The controller keeps",
        "the caches that the first has compiled and copies them to the second, verified by digest, before its start. A",
        "GPU compiles more code than this small model needs; other work on the machine makes all times longer.",
        "",
        *_table(starts),
        "",
        f"Machine: {machine.processors()}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
