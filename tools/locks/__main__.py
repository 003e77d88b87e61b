"""``python -m tools.locks``: writes the locks of engines. An existing lock does not change.

A lock contains the packages that the index had on the engine's date (``as_of``), so the same recipe gives the same
lock. Builds on another index (ROCm, another CUDA) need ``--index``, and a machine that reaches that index.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from tools.locks.compile import packages
from tools.locks.text import lock_text
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import display
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog, load
from vllm_fleet.schema.recipe import Engine, Machine


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 a lock differs (with ``--check``) or the work failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.locks", description=__doc__)
    parser.add_argument("--engine", metavar="ID", action="append", help="default: every engine that has locks")
    parser.add_argument("--machine", choices=get_args(Machine), help="default: every one that is locked, else x86_64")
    parser.add_argument("--index", metavar="URL", action="append", help="in front of the package index")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: the file that the recipe names")
    parser.add_argument("--check", action="store_true", help="write nothing, print the differences")
    options = parser.parse_args(arguments)
    if options.output and (len(options.engine or ()) != 1 or not options.machine):
        parser.error("--output is for one lock: name one engine and one machine")
    try:
        catalog = load()
        chosen = _chosen(catalog, options.engine, options.machine)
        same = [_update_lock(catalog, engine, machine, options) for engine, machine in chosen]
    except FleetError as fault:
        sys.stderr.write(f"locks: {fault}\n")
        return fault.exit_code
    return 1 if options.check and not all(same) else 0


def _chosen(catalog: Catalog, names: list[str] | None, machine: Machine | None) -> Iterator[tuple[Engine, Machine]]:
    for engine in [catalog.engine(name) for name in names] if names else catalog.engines.values():
        if engine.wheel is None:
            if names:
                raise FleetError(f"{engine.id} is installed as an image only", "name an engine with a wheel")
            continue
        locked: list[Machine] = list(engine.wheel.locks) or (["x86_64"] if names else [])
        for chosen in [machine] if machine and (names or machine in locked) else locked:
            yield engine, chosen


def _update_lock(catalog: Catalog, engine: Engine, machine: Machine, options: argparse.Namespace) -> bool:
    """Generates one lock; returns whether the file is up to date already."""
    wheel = engine.wheel
    assert wheel is not None  # noqa: S101 - narrows a type; _chosen has ruled it out
    path = options.output or catalog.root / "engines" / wheel.locks.get(machine, f"locks/{engine.id}-{machine}.txt")
    indexes = options.index or ([wheel.index] if wheel.index else [])
    command = f"python -m tools.locks --engine {engine.id} --machine {machine}"
    command += "".join(f" --index {url}" for url in options.index or ())
    text = lock_text(engine, wheel, machine, packages(engine, wheel, machine, indexes), indexes, command)
    if wrong := list(engine_locks.lock_errors(engine_locks.parse(text, display(path)), engine, machine)):
        raise FleetError(
            f"the lock of {engine.id} for {machine} {'; '.join(wrong)}",
            "name the index that has the right build with --index",
            code=ErrorCode.WORK_FAILED,
        )
    same = path.is_file() and path.read_text(encoding="utf-8") == text
    if not same and not options.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    state = "matches the index" if same else "differs from the index" if options.check else "written"
    sys.stderr.write(f"locks: {display(path)} {state}\n")
    return same


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
