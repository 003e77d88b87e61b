"""``python -m tools.engines generate``: writes the engine name manifests, or checks them against the wheels."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from tools.engines import manifest, wheels
from tools.engines.releases import RELEASES, Release
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import display, root

_SHOWN_LINES = 60


def names_dir() -> Path:
    """The folder of the manifests."""
    return root() / "recipes" / "engines" / "names"


def _write(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(content, encoding="utf-8")
    draft.replace(path)


def _update_manifest(release: Release, *, check: bool) -> bool:
    """Generates one manifest; returns whether the file is up to date already."""
    path = names_dir() / f"{release.id}.yml"
    wanted = manifest.text(manifest.build(release, wheels.sources(release)))
    present = path.read_text(encoding="utf-8") if path.is_file() else ""
    same = wanted == present
    if check and not same:
        lines = difflib.unified_diff(
            present.splitlines(), wanted.splitlines(), display(path), "from the wheel", lineterm=""
        )
        sys.stdout.write("\n".join(list(lines)[:_SHOWN_LINES]) + "\n")
    elif not same:
        _write(path, wanted)
    state = "is as the wheel says" if same else "differs from the wheel" if check else "written"
    sys.stderr.write(f"engines: {display(path)} {state}\n")
    return same


def main(arguments: list[str]) -> int:
    """Runs the command; 0 done, 1 a manifest differs (with ``--check``) or the work failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.engines", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="read the wheels and write recipes/engines/names/")
    known = [release.id for release in RELEASES]
    generate.add_argument("--only", metavar="ID", choices=known, action="append", help=f"one of {', '.join(known)}")
    generate.add_argument("--check", action="store_true", help="write nothing, show the differences")
    options = parser.parse_args(arguments)
    try:
        chosen = [release for release in RELEASES if not options.only or release.id in options.only]
        same = [_update_manifest(release, check=options.check) for release in chosen]
    except FleetError as error:
        sys.stderr.write(f"engines: {error}\n")
        return error.exit_code
    return 1 if options.check and not all(same) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
