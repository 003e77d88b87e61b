"""Fleets through the engine as a section of ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from bench import load, machine
from bench.engine_steps import Row
from bench.markdown import markdown, paragraph

TITLE = "## Pulumi at scale: through the engine"


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a table."""
    head: tuple[str, ...] = (
        "hosts",
        "state saved",
        "step",
        "wall [s]",
        "engine",
        "program",
        "keys and files",
        "cloud",
        "peak [MiB]",
    )
    lines = [head]
    for row in rows:
        figures = (row.engine_cpu, row.program_cpu, row.provider_cpu, row.cloud_cpu)
        lines.append(
            (
                str(row.hosts),
                row.saved,
                row.step,
                f"{row.seconds:.1f}",
                *(f"{figure:.1f}" for figure in figures),
                f"{row.engine_mib:.0f}",
            )
        )
    return markdown(lines, right={0, 3, 4, 5, 6, 7, 8})


def section(rows: Sequence[Row]) -> list[list[str]]:
    """The section as blocks of lines."""
    return [
        [TITLE],
        paragraph(
            f"The same fleets with the real Pulumi engine {version('pulumi')} and a state in files; the cloud is "
            "rehearsed on the same machine and answers at once, so a real `up` takes as much longer as the cloud takes "
            "to start hosts. From the left: the time, then the CPU seconds of the engine, of the program, of the "
            "provider of keys and files, and of the rehearsed cloud (a real one works elsewhere); then the engine's "
            "memory. Every host exists at the end with an address of its own, and the unchanged fleet was not changed. "
            f"{load.describe_load(load.worst(row.others for row in rows))}"
        ),
        table(rows),
        paragraph(
            "With a state in files or in a bucket, the engine writes the whole state anew before and after each "
            "step of a resource. That keeps track of a host when a run is killed, and it grows with the square of "
            "the number of hosts: each host means six writes of a file that has 10 KB for each host that exists. An "
            "unchanged fleet is written once. `PULUMI_SKIP_CHECKPOINTS=true` (at the end) writes once: a run that is "
            "killed then forgets the hosts that it has made, which cost money, so use it for rehearsals only. Pulumi "
            "Cloud gets the steps, not the state. For a fleet of more than a few hundred hosts, several stacks "
            "are quicker than one. With `?metadata=skip` at the end of a `file://` backend's address, as here, "
            "the engine needs a seventh less CPU: it writes no digests beside the state."
        ),
        paragraph(
            f"Printed by `python -m bench.engine`, processors: {machine.processors()}. `BENCH_FULL=1` also makes the "
            "largest fleet with its state saved after each step."
        ),
    ]
