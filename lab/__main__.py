"""``python -m lab``: the host image, the list of hosts, and removal without Pulumi."""

from __future__ import annotations

import argparse
import json
import sys

from lab import cleanup, state
from lab.tree import ensure_tree
from vllm_fleet.base.errors import FleetError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tree", help="create the hosts' file tree once; print its folder")
    listing = commands.add_parser("ps", help="list the hosts of all labs of this cache")
    listing.add_argument("--json", action="store_true", help="print JSON")
    removal = commands.add_parser("down", help="remove a lab, with or without Pulumi's state")
    which = removal.add_mutually_exclusive_group(required=True)
    which.add_argument("--lab", metavar="BRIDGE", help="the lab with this bridge")
    which.add_argument("--all", action="store_true", help="all labs of this cache")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "tree":
            print(ensure_tree())
        elif chosen.command == "ps":
            _list(chosen.json)
        else:
            _down(state.labs() if chosen.all else [chosen.lab])
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


def _list(as_json: bool) -> None:
    hosts = cleanup.status()
    if as_json:
        print(json.dumps([host.record() for host in hosts], indent=2))
        return
    for host in hosts:
        up = f"up, pid {' '.join(map(str, host.pids))}" if host.pids else "down"
        print(f"{host.lab:<16} {host.name:<20} {host.address:<16} {up}  ({host.owner})")


def _down(bridges: list[str]) -> None:
    for bridge in bridges:
        if not state.lab_dir(bridge).is_dir():
            raise FleetError(f"there is no lab {bridge!r}", f"there are: {', '.join(state.labs()) or 'none'}")
        cleanup.down(bridge)
        print(f"removed the lab {bridge}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
