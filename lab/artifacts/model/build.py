"""Writes the lab model once, in two revisions: the right one and a perturbed one.

It is the one that the repository carries, unless what it is made from was changed: then it is trained here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.artifacts.encodings import encodings_dir
from lab.artifacts.engine import engine_dir, lock_file
from lab.artifacts.model import published
from lab.artifacts.model.questions import QUESTIONS_FILE, read_questions
from lab.artifacts.store import build_once, say
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import cache_dir, root

MANIFEST = "model.json"
_SOURCES = ("questions", "dialogues", "harmony", "sheets", "tokenizer", "pupil", "train")
_TIMEOUT_SECONDS = 3600


def model_dir() -> Path:
    """The lab model, complete: ``vllm serve`` takes the folder.

    The first call expands the published model (seconds), or trains it where its sources were changed (minutes). The
    folder's name is the model's revision: the digest of its files, since training is not equal to the bit from machine
    to machine. ``model.json`` in it names every file with its digest, and the score.

    Raises:
        FleetError: when the engine cannot be built or the model does not learn.
    """
    return (_built() / "model").resolve()


def perturbed_dir() -> Path:
    """A revision of the same model whose weights were disturbed: it loads and serves, and is mostly wrong."""
    return (_built() / "perturbed").resolve()


def manifest_of(folder: Path) -> dict[str, Any]:
    """What ``model.json`` in a model's folder says."""
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return manifest


def describe(folder: Path, name: str, right: int, total: int) -> dict[str, Any]:
    """The manifest of a model's folder, computed from its files.

    Args:
        folder: the files; a manifest among them is left out.
        name: the model's name.
        right: how many of the cases it has right.
        total: how many cases there are.
    """
    files = {
        path.name: {"sha256": file_sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    return {
        "name": name,
        "revision": revision_of(files),
        "files": files,
        "score": {"right": right, "total": total},
    }


def revision_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    """The revision of a set of files: 40 hexadecimal digits of the digest of their names and digests."""
    lines = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def key_of(files: Iterable[Path]) -> str:
    """The key of a build: 12 hexadecimal digits of the digest of what goes into it, in that order."""
    digests = "".join(f"{file_sha256(path)}\n" for path in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def is_whole(folder: Path) -> bool:
    """Whether a model's folder holds every file of its manifest, in full length."""
    if not (folder / MANIFEST).is_file():
        return False
    files = manifest_of(folder)["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == files[name]["size"] for name in files)


def current_key() -> str:
    """The key of the model's sources as they are now."""
    here = Path(__file__).parent
    return key_of([QUESTIONS_FILE, *(here / f"{source}.py" for source in _SOURCES), lock_file()])


def publish() -> Path:
    """Trains the model from its sources and puts the result into the repository (minutes).

    Returns:
        The folder of what is published.
    """
    key = current_key()
    target = cache_dir() / "lab-model" / key
    engine, encodings = engine_dir(), encodings_dir()
    if target.exists():
        shutil.rmtree(target)
    build_once("lab-model", target, lambda folder: folder.is_dir(), lambda draft: _train(engine, encodings, draft))
    manifests = {link: manifest_of(target / link) for link in published.REVISIONS}
    scores = {link: manifest["score"]["right"] for link, manifest in manifests.items()}
    published.publish(target, key, {**scores, "total": manifests["model"]["score"]["total"]})
    _point_current(target / "model")
    return published.FOLDER


def _built() -> Path:
    key = current_key()
    target = cache_dir() / "lab-model" / key

    def is_there(folder: Path) -> bool:
        return all(is_whole(folder / link) for link in ("model", "perturbed"))

    if not is_there(target):
        engine, encodings = engine_dir(), encodings_dir()
        fill = _expand if published.published_key() == key else _train
        build_once("lab-model", target, is_there, lambda draft: fill(engine, encodings, draft))
    _point_current(target / "model")
    return target


def _point_current(model: Path) -> None:
    """Lets ``lab-model/current`` name the model, which is the path that a ``fleet.yml`` can know beforehand."""
    link = cache_dir() / "lab-model" / "current"
    if link.is_symlink() and link.resolve() == model.resolve():
        return
    draft = link.with_name(f".current.{os.getpid()}")
    draft.symlink_to(model.relative_to(link.parent))
    draft.replace(link)


def _expand(engine: Path, encodings: Path, draft: Path) -> None:
    published.expand(engine, encodings, draft)
    _describe_revisions(draft, published.published_scores())


def _train(engine: Path, encodings: Path, draft: Path) -> None:
    say("training the lab model (minutes on two cores, once)")
    _describe_revisions(draft, _run_trainer(engine, encodings, draft / "model"))


def _describe_revisions(draft: Path, scores: Mapping[str, int]) -> None:
    """Writes the manifest of each revision, and names its folder by it."""
    name = read_questions().name
    for link in published.REVISIONS:
        folder = draft / link
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes for its owner alone
        manifest = describe(folder, name, scores[link], scores["total"])
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        folder.rename(draft / manifest["revision"])
        (draft / link).symlink_to(manifest["revision"])
        say(f"{link}: revision {manifest['revision'][:12]}, {scores[link]} of {scores['total']} right")


def _run_trainer(engine: Path, encodings: Path, folder: Path) -> dict[str, int]:
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
        "PYTHONPATH": str(root()),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TIKTOKEN_ENCODINGS_BASE": str(encodings),
        "HF_HUB_OFFLINE": "1",
        # Keeps what a step frees for the next: half of the time would go into getting it back from the kernel.
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
        # Threads that wait do not spin, so that a busy machine is not kept from its other work.
        "OMP_WAIT_POLICY": "passive",
    }
    folder.mkdir()
    try:
        done = subprocess.run(
            [engine / "bin" / "python", "-m", "lab.artifacts.model.train", folder],
            env=environment,
            cwd=root(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FleetError(
            f"training the lab model took longer than {_TIMEOUT_SECONDS} s",
            hint="run it again when the machine is less busy",
            code=ErrorCode.WORK_FAILED,
        ) from error
    if done.returncode != 0:
        shutil.rmtree(folder)
        raise FleetError(
            f"training the lab model ended with {done.returncode}",
            hint="what it printed is above",
            code=ErrorCode.WORK_FAILED,
        )
    scores: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return scores
