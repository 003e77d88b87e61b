"""``vllm-fleet mirror``: downloads everything that a fleet's hosts need into one folder, once, and verifies it."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_note, print_text
from vllm_fleet.edge import hub
from vllm_fleet.fleet import plan
from vllm_fleet.mirror import parts
from vllm_fleet.mirror.store import INDEX, Store, default_directory
from vllm_fleet.operate import fill_mirror, serve_mirror

EPILOG = """\b
Examples:
  vllm-fleet mirror --fleet prod
  vllm-fleet mirror --verify
  vllm-fleet mirror --serve
Across an air gap:
  vllm-fleet mirror --to /media/disk/mirror      (on this side)
  vllm-fleet mirror --from /media/disk/mirror    (on the other side)"""


def command(
    fleet: FleetOption = "lab",
    directory: Annotated[Path | None, typer.Option(help="The mirror's folder. Default: a folder in the cache.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte; download damaged files again.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Look for newer packages of the distribution.")] = False,
    to: Annotated[Path | None, typer.Option("--to", help="Copy what the fleet needs to this folder.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Copy what the fleet needs from this folder.")] = None,
    hub_token_file: Annotated[Path | None, typer.Option(help="File with the hub's token, mode 0600.")] = None,
    serving: Annotated[bool, typer.Option("--serve", help="Serve the folder with nginx until interrupted.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch, verify, copy and serve what the hosts download.

    Everything is downloaded once and verified by digest. A second run downloads only what is missing.
    """
    if to and from_:
        raise FleetError("--to and --from exclude each other", "give one of them")
    if to and serving:
        raise FleetError(
            "--serve and --to exclude each other", "copy first; then serve the copy with '--directory DIR --serve'"
        )
    for option, folder in (("--directory", directory), ("--to", to)):
        if folder and (fault := paths.folder_fault(folder)):
            raise fault.error_of(option, folder)
    if from_ and (fault := paths.file_fault(from_ / INDEX)):
        why = f"it has no {INDEX}" if fault.is_missing else fault.message
        raise FleetError(f"--from {paths.display(from_)} is no mirror: {why}", fault.hint)
    token = hub.read_token(hub_token_file)
    planned = plan.load(fleet_directory(fleet))
    if serving:
        serve_mirror.check_servable(planned)
    wanted = parts.list_parts(planned, catalogue.load())
    keys = [part.key for part in wanted]
    store = Store(paths.absolute(directory or default_directory()))
    tell = _Progress()
    wrong: list[str] = []
    with fill_mirror.lock_store(store):
        if verify:
            wrong = fill_mirror.verify_store(store, store.read(), tell.say)
        if from_:
            carried = Store(paths.absolute(from_))
            fill_mirror.check_pinned_models(carried, wanted)
            for name in fill_mirror.unpinned_models(wanted):
                tell.say(
                    f"nothing but the disk itself says what the digests of {name} are: run 'vllm-fleet lock --fleet "
                    f"{fleet}' where the hub can be reached"
                )
            results = fill_mirror.copy_parts(carried, store, keys, tell.count)
        else:
            reporter = fill_mirror.Reporter(tell.say, tell.count)
            results = fill_mirror.fill_store(store, wanted, token=token, refresh=refresh, reporter=reporter)
    if to:
        carried = Store(paths.absolute(to))
        with fill_mirror.lock_store(carried):
            results = fill_mirror.copy_parts(store, carried, keys, tell.count)
        store = carried
    _report(fleet, store, results, wrong, json)
    if serving:
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            serve_mirror.serve_until_ended(store, planned)


def _report(fleet: str, store: Store, results: list[fill_mirror.PartResult], wrong: list[str], as_json: bool) -> None:
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
        print_text(
            f"{result.key:<60} {result.files:>5} files {_size(result.bytes):>10}, "
            f"downloaded {_size(result.fetched_bytes)}",
        )
    for name in wrong:
        print_text(f"damaged, not used: {name}")
    print_text(f"{paths.display(store.directory)}: {_size(total)} verified, {_size(fetched)} of it downloaded now")


def _size(number: int) -> str:
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"


class _Progress:
    """Lines for stderr: in place on a terminal, else one now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        print_note(f"mirror: {line}")

    def count(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else 15.0) and done < total:
            return
        self._last = now
        rate = done / max(now - self._began, 0.1)
        end = "\r" if self._terminal and done < total else "\n"
        print_note(f"mirror: {_size(done)} of {_size(total)}, {_size(int(rate))}/s", end=end)
