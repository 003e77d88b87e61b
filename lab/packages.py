"""Programs of Debian's packages, unpacked into the cache and not installed: a package would start a service here."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.artifacts import store
from vllm_fleet.base import paths


def docker_registry() -> Path:
    """A registry of images."""
    return _unpacked("usr/bin/docker-registry", "docker-registry")


def nginx() -> Path:
    """A server of files."""
    return _unpacked("usr/sbin/nginx", "nginx")


def skopeo() -> tuple[Path, dict[str, str]]:
    """What copies images, and the variables that it needs."""
    program = _unpacked("usr/bin/skopeo", "skopeo", "libgpgme11", "libassuan0")
    (libraries,) = {path.parent for path in program.parents[2].glob("usr/lib/*/libgpgme.so.11")}
    return program, {"LD_LIBRARY_PATH": str(libraries)}


def _unpacked(program: str, *packages: str) -> Path:
    """The program of the first package; the others are those of its libraries that a machine may lack."""

    def make(folder: Path) -> None:
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(["apt-get", "download", "-q", *packages], cwd=folder, check=True, capture_output=True)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
            package.unlink()

    target = paths.cache_dir() / "tools" / packages[0]
    return store.build_once(packages[0], target, lambda folder: (folder / program).is_file(), make) / program
