"""``python -m lab``: what the lab's owner needs beside Pulumi."""

from __future__ import annotations

import argparse
import json
import sys

from lab import cleanup, state
from lab.tree import ensure_tree
from vllm_fleet.base.errors import FleetError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is 0 when it is done, else that of its error."""
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("tree", help="make the file tree of the hosts, once; prints its folder")
    listing = commands.add_parser("ps", help="list the hosts of all labs of this cache")
    listing.add_argument("--json", action="store_true", help="as data")
    removal = commands.add_parser("down", help="remove a lab whatever Pulumi knows of it")
    which = removal.add_mutually_exclusive_group(required=True)
    which.add_argument("--lab", metavar="BRIDGE", help="the lab of that bridge")
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
    found = cleanup.status()
    if as_json:
        print(json.dumps([each.record() for each in found], indent=2))
        return
    for each in found:
        up = f"up, pid {' '.join(map(str, each.pids))}" if each.pids else "down"
        print(f"{each.lab:<16} {each.name:<20} {each.address:<16} {up}  ({each.owner})")


def _down(bridges: list[str]) -> None:
    for bridge in bridges:
        if not state.lab_dir(bridge).is_dir():
            raise FleetError(f"there is no lab {bridge!r}", f"there are: {', '.join(state.labs()) or 'none'}")
        cleanup.down(bridge)
        print(f"removed the lab {bridge}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
