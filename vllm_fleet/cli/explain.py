"""``vllm-fleet explain HOST``: each value of a host with the file, rule and reason that it comes from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.merge import leaves
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_text
from vllm_fleet.fleet import plan as plans

_OF_HEAD = (
    *("host_class", "model", "engine", "profile", "status", "evidence", "notes", "alternatives"),
    *("fit", "device_memory"),
)
EPILOG = """\b
Examples:
  vllm-fleet explain lab-0
  vllm-fleet explain h100-3 --fleet prod --json"""


def command(
    host: Annotated[str, typer.Argument(help="A host of the fleet.")],
    fleet: FleetOption = "lab",
    json: JsonOption = False,
) -> None:
    """Show where each value of a host comes from.

    Prints every argument and environment variable of the host with the file, the rule and the reason.
    """
    planned = plans.load(fleet_directory(fleet)).host(host)
    if planned.deployment is None:
        raise FleetError(f"{host} is a gateway: it has no recipe", "name a serving host", host=host)
    record: dict[str, Any] = planned.deployment.record()
    values = dict(leaves({"args": record["args"], "env": record["env"]}))
    keys = {key: {"value": values[key], **origin} for key, origin in record["provenance"].items()}
    head = {key: record[key] for key in _OF_HEAD}
    if json:
        print_json({"host": host, "pool": planned.pool, **head, "keys": keys})
        return
    print_text(f"{host}: {head['model']} on {head['host_class']}, {head['engine']}, {head['profile']}")
    print_text(f"status: {head['status']} ({head['evidence']})")
    fit = planned.deployment.fit
    print_text(f"memory: {fit.text}")
    if fit.device:
        print_text(f"one device: {fit.device.text()}")
    for note in head["notes"]:
        print_text(f"note: {note}")
    print_text()
    for key, entry in keys.items():
        rule = f" rule {entry['rule']}" if entry["rule"] else ""
        print_text(f"{key} = {entry['value']!r}", bold=True)
        print_text(f"  {entry['file']}{rule}: {entry['why']}")
        print_text(f"  source: {entry['source']}")
        if spelled := entry.get("spelling"):
            place = f"{spelled['file']} entry {spelled['entry']}"
            print_text(f"  written {spelled['name']} there; {place}: {spelled['why']}")
