"""``vllm-fleet plan``: hosts, instances, memory, and what differs from the stack."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from vllm_fleet import plan as plans
from vllm_fleet import stack
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, stdout
from vllm_fleet.errors import FleetError

EPILOG = "Examples: vllm-fleet plan | vllm-fleet plan --fleet prod --json"


def command(fleet: FleetOption = "lab", json: JsonOption = False) -> None:
    """Print the To-Be of a fleet: its hosts, what each runs and how it fits, and what the stack lacks."""
    plan = plans.load(fleet_directory(fleet))
    try:
        stack.locations(plan)
        as_is = "the stack has just these hosts"
    except FleetError as fault:
        as_is = str(fault)
    records = [_record(host) for host in plan.hosts]
    if json:
        print_json({"fleet": plan.fleet, "hosts": records, "stack": as_is})
        return
    table = Table(box=None, pad_edge=False)
    for title in ("host", "class", "model", "engine", "profile", "instances", "sequences", "status"):
        table.add_column(title)
    for record in records:
        first = record["instances"][0] if record["instances"] else None
        if first is None:
            table.add_row(record["host"], "-", "gateway", "-", "-", "-", "-", "-")
            continue
        table.add_row(
            record["host"],
            first["host_class"],
            first["model"],
            first["engine"],
            first["profile"],
            f"{first['instances']} x TP{first['tensor_parallel_size']}",
            str(first["fit"]["max_num_seqs"]),
            first["status"],
        )
    stdout.print(table)
    stdout.print(f"stack: {as_is}", markup=False)


def _record(host: plans.HostPlan) -> dict[str, Any]:
    deployment = host.deployment.record() if host.deployment else {}
    return {
        "host": host.name,
        "kind": host.kind,
        "pool": host.pool,
        "cloud": host.cloud,
        "instances": [{"name": name, "port": port, **deployment} for name, port in host.instances],
    }
