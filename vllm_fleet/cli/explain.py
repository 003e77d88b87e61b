"""``vllm-fleet explain HOST``: each value of a host with the file, rule and reason it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.merge import leaves
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, stdout
from vllm_fleet.fleet import plan as plans

EPILOG = "Examples: vllm-fleet explain lab-0 | vllm-fleet explain h100-3 --fleet prod --json"


def command(
    host: Annotated[str, typer.Argument(help="A host of the fleet.")],
    fleet: FleetOption = "lab",
    json: JsonOption = False,
) -> None:
    """Print every argument and environment variable of a host with the file, rule and reason behind it."""
    found = plans.load(fleet_directory(fleet)).host(host)
    if found.deployment is None:
        raise FleetError(f"{host} is a gateway: no recipe rules it", "ask for a serving host", host=host)
    record: dict[str, Any] = found.deployment.record()
    values = dict(leaves({"args": record["args"], "env": record["env"]}))
    keys = {key: {"value": values[key], **origin} for key, origin in record["provenance"].items()}
    told = ("host_class", "model", "engine", "profile", "status", "evidence", "notes", "alternatives")
    head = {key: record[key] for key in told}
    if json:
        print_json({"host": host, "pool": found.pool, **head, "keys": keys})
        return
    stdout.print(f"{host}: {head['model']} on {head['host_class']}, {head['engine']}, {head['profile']}", markup=False)
    stdout.print(f"status: {head['status']} ({head['evidence']})", markup=False)
    for note in head["notes"]:
        stdout.print(f"note: {note}", markup=False)
    stdout.print()
    for key, entry in keys.items():
        rule = f" rule {entry['rule']}" if entry["rule"] else ""
        stdout.print(f"{key} = {entry['value']!r}", markup=False, style="bold")
        stdout.print(f"  {entry['file']}{rule}: {entry['why']}", markup=False)
        stdout.print(f"  source: {entry['source']}", markup=False)
        if spelled := entry.get("spelling"):
            place = f"{spelled['file']} entry {spelled['entry']}"
            stdout.print(f"  written {spelled['name']} there; {place}: {spelled['why']}", markup=False)
