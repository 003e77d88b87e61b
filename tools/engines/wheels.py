"""The Python sources of published wheels: fetched once, verified as a whole, kept as a small archive of sources.

A CUDA wheel is 0.3 to 0.5 GB, of which 10 MB are Python. The whole file is fetched nevertheless: only then does the
digest of the package index prove what the manifest says. The index is that of uv's settings;
this program names none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from tools.engines.releases import Release
from tools.engines.sources import Sources
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir
from vllm_fleet.edge import download
from vllm_fleet.edge.uv import uv_program
from vllm_fleet.mirror.store import Artifact

_TIMEOUT_SECONDS = 120
# Compiled files read the environment too; their names are kept beside the sources.
_BINARY_NAMES = "names-in-compiled-files.txt"
_VARIABLE = re.compile(rb"VLLM_[A-Z0-9_]{3,}")
# Any of the platforms that the wheels are for does: the sources are the same, and this one takes all of their tags.
_PLATFORM = ("--python-platform", "x86_64-manylinux_2_35", "--python-version", "3.12")


def sources(release: Release) -> Sources:
    """The sources of a release's wheel, from the cache or fetched into it.

    Raises:
        FleetError: the index does not have the wheel, the transfer fails, or the digest is not the pinned one.
    """
    folder = cache_dir() / "wheels"
    # Named by the digest of the wheel: it was verified when the archive was made.
    kept = folder / f"{release.file}.{release.sha256[:16]}.sources.zip"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wheel = folder / release.file
        _fetch(release, wheel)
        _keep_sources(wheel, kept)
        wheel.unlink()
    return read_archive(kept)


def read_archive(path: Path) -> Sources:
    """What an archive of sources holds."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if name.endswith(".py")}
        return Sources(files, frozenset(archive.read(_BINARY_NAMES).decode().split()))


def read_installed(site_packages: Path) -> Sources:
    """The sources of the vLLM that is installed in an environment.

    Args:
        site_packages: the environment's folder of packages.
    """
    files = sorted((site_packages / "vllm").rglob("*.py"))
    texts = {path.relative_to(site_packages).as_posix(): path.read_text(encoding="utf-8") for path in files}
    compiled = [path for path in (site_packages / "vllm").rglob("*") if path.is_file() and _is_compiled(path.name)]
    return Sources(texts, frozenset(name for path in compiled for name in _names_in(path.read_bytes())))


def _keep_sources(wheel: Path, kept: Path) -> None:
    draft = kept.with_name(f".{kept.name}.{os.getpid()}")
    names: set[str] = set()
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as small:
        for name in whole.namelist():
            if name.endswith(".py"):
                small.writestr(name, whole.read(name))
            elif _is_compiled(name):
                names |= _names_in(whole.read(name))
        small.writestr(_BINARY_NAMES, "\n".join(sorted(names)))
    draft.replace(kept)


def _is_compiled(name: str) -> bool:
    return name.endswith(".so") or "." not in name.rpartition("/")[2]  # libraries, and programs such as vllm-rs


def _names_in(content: bytes) -> set[str]:
    return {name.decode() for name in _VARIABLE.findall(content)}


def _fetch(release: Release, wheel: Path) -> None:
    """Downloads a wheel, or resumes its download; ``wheel`` is there only when it is complete and verified."""
    published = _published(release)
    artifact = Artifact(wheel.name, release.sha256, published.get("size", 0), published["url"])
    try:
        download.fetch_file(artifact, wheel, _Progress(release.file, artifact.size).add)
    except FleetError as error:
        error.file, error.key = "tools/engines/releases.py", release.id
        raise


class _Progress:
    """Prints a line for each tenth of a file."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._done, self._tenths = 0, -1

    def add(self, number: int) -> None:
        self._done += number
        tenths = self._done * 10 // self._size if self._size else 0
        if tenths != self._tenths:
            self._tenths = tenths
            sys.stderr.write(f"engines: {self._name}: {self._done >> 20} MiB, {tenths * 10} %\n")


def _published(release: Release) -> dict[str, Any]:
    """What the package index says of the pinned wheel: ``url``, ``size``, ``hashes``."""
    requirement = f"{release.distribution}=={release.version}"
    form = ("--quiet", "--no-header", "--format", "pylock.toml")
    done = subprocess.run(
        [uv_program(), "pip", "compile", "-", "--no-deps", "--no-build", *form, *_PLATFORM],
        input=requirement,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise FleetError(
            f"the package index does not give {requirement}: {done.stderr.strip()}", code=ErrorCode.WORK_FAILED
        )
    wheels = [wheel for package in tomllib.loads(done.stdout)["packages"] for wheel in package.get("wheels", [])]
    for wheel in wheels:
        if wheel.get("url", "").endswith(f"/{release.file}") and wheel["hashes"].get("sha256") == release.sha256:
            return dict(wheel)
    raise FleetError(
        f"the package index has no {release.file} with the pinned sha256",
        hint=f"it offers {[wheel.get('url', '').rpartition('/')[2] for wheel in wheels]}",
        file="tools/engines/releases.py",
        key=release.id,
        code=ErrorCode.WORK_FAILED,
    )
