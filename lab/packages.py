"""Programs from Debian packages, unpacked into the cache: an installation would start their services here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.artifacts import store
from vllm_fleet.base import paths


def docker_registry() -> Path:
    """The path of ``docker-registry``."""
    return _unpacked("usr/bin/docker-registry", "docker-registry")


def nginx() -> Path:
    """The path of ``nginx``."""
    return _unpacked("usr/sbin/nginx", "nginx")


def pebble() -> Path:
    """The path of ``pebble``, the CA of Let's Encrypt for tests; ``pebble-challtestsrv``, its DNS, is beside it."""
    return _unpacked("usr/bin/pebble", "pebble")


def skopeo() -> tuple[Path, dict[str, str]]:
    """The path of ``skopeo``, and the environment variables that it needs."""
    program = _unpacked("usr/bin/skopeo", "skopeo", "libgpgme11", "libassuan0")
    (libraries,) = {path.parent for path in program.parents[2].glob("usr/lib/*/libgpgme.so.11")}
    return program, {"LD_LIBRARY_PATH": str(libraries)}


def _unpacked(program: str, *packages: str) -> Path:
    """The unpacked first package with its libraries, which are the other packages."""

    def make(folder: Path) -> None:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", "-q", *packages], cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
            package.unlink()

    target = paths.cache_dir() / "tools" / packages[0]
    return store.build_once(packages[0], target, lambda folder: (folder / program).is_file(), make) / program
