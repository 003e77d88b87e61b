"""The vocabularies of harmony, from PyPI.

Their own download page would be one more host that a controller must reach. The wheel of litellm 1.80.0 contains the
official files, under the names of tiktoken's cache (the SHA-1 of their URLs). Their digests are checked, so the source
does not matter. The engine reads the folder through ``TIKTOKEN_ENCODINGS_BASE``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from lab.artifacts.store import only_one, say
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir, display
from vllm_fleet.edge.uv import run_uv

#: Name of each file -> its official digest; a test compares them with recipes/encodings.yml.
SHA256 = {
    "o200k_base.tiktoken": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base.tiktoken": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
#: Name of each file -> its member of the wheel.
MEMBERS = {
    "o200k_base.tiktoken": "litellm/litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790",
    "cl100k_base.tiktoken": "litellm/litellm_core_utils/tokenizers/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
}
_LOCK = Path(__file__).parent / "encodings-lock.txt"


def encodings_dir() -> Path:
    """The folder with the vocabularies, in the cache; fetches it on the first call (12 MB).

    Raises:
        FleetError: uv is missing, the package cannot be downloaded, or the file has another digest.
    """
    folder = cache_dir() / "encodings"
    if not _are_official(folder):
        with only_one("encodings"):
            if not _are_official(folder):
                _fetch(folder)
    return folder


def put(source: Path, name: str, folder: Path) -> Path:
    """Copies a vocabulary file to its place atomically.

    Args:
        source: the candidate.
        name: what it must be.
        folder: where it belongs; made if missing.

    Returns:
        The file in its place.

    Raises:
        FleetError: the candidate is missing or has another digest; the place is unchanged then.
    """
    if not source.is_file():
        raise FleetError(
            "the package does not hold the vocabulary",
            hint="pin the release that encodings.py describes",
            file=display(_LOCK),
            code=ErrorCode.WORK_FAILED,
        )
    if (digest := file_sha256(source)) != SHA256[name]:
        raise FleetError(
            f"the sha256 of {name} is {digest}, the official one is {SHA256[name]}",
            hint="nothing was installed; run it again, and if the digest differs again, do not trust the package index",
            file=str(source),
            code=ErrorCode.WORK_FAILED,
        )
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / name
    # A copy, not a move: uv hard-links what it installs, and a change to this file must not reach uv's cache.
    draft = folder / f".{name}.{os.getpid()}"
    shutil.copyfile(source, draft)
    draft.replace(place)
    return place


def _are_official(folder: Path) -> bool:
    return all((folder / name).is_file() and file_sha256(folder / name) == SHA256[name] for name in MEMBERS)


def _fetch(folder: Path) -> None:
    say("fetching the harmony vocabularies (12 MB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".encodings.", dir=folder.parent))
    try:
        run_uv(
            ["pip", "install", "--quiet", "--target", str(draft), "--no-deps", "--require-hashes", "-r", str(_LOCK)],
            "fetching the harmony vocabularies",
        )
        for name, member in MEMBERS.items():
            put(draft / member, name, folder)
    finally:
        shutil.rmtree(draft)
