"""The harmony vocabulary, ``o200k_base.tiktoken``, from PyPI.

Its own download page is one more host that a controller must reach. The wheel of litellm 1.80.0 ships the official
file unchanged, under the name that tiktoken's cache gives it (the SHA-1 of its address): the digest proves it, so
where the bytes came from does not matter. The engine reads the folder through ``TIKTOKEN_ENCODINGS_BASE``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from lab.artifacts.store import only_one, say, sha256_of
from lab.artifacts.uv import run_uv
from vllm_fleet.errors import FleetError
from vllm_fleet.paths import cache_dir, display

FILE_NAME = "o200k_base.tiktoken"
SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_LOCK = Path(__file__).parent / "encodings-lock.txt"
_MEMBER = "litellm/litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790"


def encodings_dir() -> Path:
    """The folder with the vocabulary, in the cache; fetches it on the first call (12 MB).

    Raises:
        FleetError: when uv is missing, the package cannot be had, or the file is not the official one.
    """
    folder = cache_dir() / "encodings"
    if not _is_official(folder / FILE_NAME):
        with only_one("encodings"):
            if not _is_official(folder / FILE_NAME):
                _fetch(folder)
    return folder


def put(source: Path, folder: Path) -> Path:
    """Copies a vocabulary file to its place, whole or not at all.

    Args:
        source: the candidate.
        folder: where it belongs; made if missing.

    Returns:
        The file in its place.

    Raises:
        FleetError: when the candidate is not there or not the official file; the place is then as it was.
    """
    if not source.is_file():
        raise FleetError(
            "the package does not hold the vocabulary any more",
            hint="pin the release that encodings.py describes",
            file=display(_LOCK),
            code="work-failed",
        )
    if (digest := sha256_of(source)) != SHA256:
        raise FleetError(
            f"the vocabulary's sha256 is {digest}, the official one is {SHA256}",
            hint="nothing was put in place; fetch it again, and if it stays wrong do not trust the package index",
            file=str(source),
            code="work-failed",
        )
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / FILE_NAME
    # A copy, not a move: uv hard-links what it installs, and a change to this file must not reach uv's cache.
    draft = folder / f".{FILE_NAME}.{os.getpid()}"
    shutil.copyfile(source, draft)
    draft.replace(place)
    return place


def _is_official(path: Path) -> bool:
    return path.is_file() and sha256_of(path) == SHA256


def _fetch(folder: Path) -> None:
    say("fetching the harmony vocabulary (12 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".encodings.", dir=folder.parent))
    try:
        run_uv(
            ["pip", "install", "--quiet", "--target", str(draft), "--no-deps", "--require-hashes", "-r", str(_LOCK)],
            "fetching the harmony vocabulary",
        )
        put(draft / _MEMBER, folder)
    finally:
        shutil.rmtree(draft)
