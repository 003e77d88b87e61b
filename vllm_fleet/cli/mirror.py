"""``vllm-fleet mirror``: everything that a fleet's hosts fetch, once from the origins, verified, in one folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, stderr, stdout
from vllm_fleet.edge import hub
from vllm_fleet.fleet import plan
from vllm_fleet.mirror import parts
from vllm_fleet.mirror.store import Store, default_directory
from vllm_fleet.operate import fill_mirror, serve_mirror

EPILOG = (
    "Examples: vllm-fleet mirror --fleet prod | vllm-fleet mirror --verify | vllm-fleet mirror --to /media/disk/mirror "
    "(there: --from /media/disk/mirror) | vllm-fleet mirror --serve"
)


def command(
    fleet: FleetOption = "lab",
    directory: Annotated[Path | None, typer.Option(help="The mirror's folder; in the cache without it.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte; fetch again what is wrong.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer packages of the distribution.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Carry the fleet's parts into this folder.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Take the parts from this folder.")] = None,
    hub_token_file: Annotated[Path | None, typer.Option(help="A file with the hub's token, for you alone.")] = None,
    serving: Annotated[bool, typer.Option("--serve", help="Serve the folder with nginx until it is ended.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch what the fleet's hosts need, once, verified; carry it across an air gap; serve it."""
    if to and from_:
        raise FleetError("--to and --from are two directions", "give one of them")
    asked = plan.load(fleet_directory(fleet))
    wanted = parts.list_parts(asked, catalogue.load())
    keys = [part.key for part in wanted]
    store = Store((directory or default_directory()).resolve())
    tell = _Progress()
    wrong: list[str] = []
    with fill_mirror.locked(store):
        if verify:
            wrong = fill_mirror.verify(store, store.read(), tell.say)
        if from_:
            results = fill_mirror.copy(Store(from_.resolve()), store, keys, tell.count)
        else:
            reporter = fill_mirror.Reporter(tell.say, tell.count)
            results = fill_mirror.fill(
                store, wanted, token=hub.read_token(hub_token_file), refresh=refresh, reporter=reporter
            )
    if to:
        carried = Store(to.resolve())
        with fill_mirror.locked(carried):
            results = fill_mirror.copy(store, carried, keys, tell.count)
        store = carried
    _report(fleet, store, results, wrong, json)
    if serving:
        serve_mirror.run(store, asked)


def _report(fleet: str, store: Store, results: list[fill_mirror.Result], wrong: list[str], as_json: bool) -> None:
    fetched = sum(result.fetched_bytes for result in results)
    total = sum(result.bytes for result in results)
    if as_json:
        record: dict[str, Any] = {
            "fleet": fleet,
            "directory": str(store.directory),
            "bytes": total,
            "fetched_bytes": fetched,
            "wrong_files": wrong,
            "parts": [result.record() for result in results],
        }
        print_json(record)
        return
    for result in results:
        stdout.print(
            f"{result.key:<60} {result.files:>5} files {_size(result.bytes):>10}, "
            f"fetched {_size(result.fetched_bytes)}",
            markup=False,
        )
    for name in wrong:
        stdout.print(f"was wrong and is not used: {name}", markup=False)
    stdout.print(
        f"{paths.display(store.directory)}: {_size(total)} verified, {_size(fetched)} of it fetched now", markup=False
    )


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


class _Progress:
    """Lines for stderr: in place on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        stderr.print(f"mirror: {line}", markup=False)

    def count(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else 15.0) and done < total:
            return
        self._last = now
        rate = done / max(now - self._began, 0.1)
        end = "\r" if self._terminal and done < total else "\n"
        stderr.print(f"mirror: {_size(done)} of {_size(total)}, {_size(int(rate))}/s", end=end, markup=False)
