"""``python -m tools.pulumi.provide``: prints the folder of a Pulumi command line with its Python language host.

The first that exists: a recent one on PATH; what an earlier run has put into the cache; the released archive,
verified by its digest; a build from Go modules. Progress, and the reason for a build, go to standard error.
"""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

from tools.pulumi import go_build
from tools.pulumi.programs import find_installed
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import cache_dir


def cached_or_new() -> Path:
    """The folder of the programs in the cache, filled when they are not there yet.

    Raises:
        FleetError: the archive is not the pinned one, or is out of reach and the build failed.
    """
    version = go_build.pinned_version()
    place = cache_dir() / "pulumi" / version
    if not go_build.is_built(place):
        # Imported here: httpx and what comes with it are not needed where the programs are built already.
        from tools.pulumi import archive

        if not archive.is_installed(place, version):
            place.mkdir(parents=True, exist_ok=True)
            with (place / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (go_build.is_built(place) or archive.is_installed(place, version)):
                    _fill(place, version)
    return place / "bin"


def _fill(place: Path, version: str) -> None:
    from tools.pulumi import archive

    try:
        archive.install_archive(version, place)
    except archive.UnavailableError as reason:
        print(f"setup: {reason}; building Pulumi {version} from its Go modules instead, minutes", file=sys.stderr)
        go_build.build(place)


def main() -> int:
    """The command; the exit code is 0, or that of the error."""
    try:
        print(find_installed() or cached_or_new())
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
