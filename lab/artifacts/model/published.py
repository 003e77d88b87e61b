"""The lab model as this repository carries it: trained once, named by the digests of its files.

Nearly all rows of the model's two tables are zero, so 50 MB of weights are 0.4 MB when compressed. The tokenizer of
28 MB is not carried: the engine writes it from the vocabulary, the same on every machine.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.paths import display, root

FOLDER = Path(__file__).parent / "published"
WEIGHTS = "model.safetensors"
#: The files of a model that are carried as they are, the same for both revisions.
CONFIGS = ("config.json", "generation_config.json")
REVISIONS = ("model", "perturbed")
_WRITE_TOKENIZER = (
    "import sys; from pathlib import Path; from lab.artifacts.model.tokenizer import write_tokenizer; "
    "write_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]))"
)
_TOKENIZER_SECONDS = 600
_RECORD = "published.json"


def published_key() -> str:
    """The key of the build that was published, or an empty text if there is no published model."""
    return str(_read_record()["key"]) if (FOLDER / _RECORD).is_file() else ""


def published_scores() -> dict[str, int]:
    """The scores of the published model, as the trainer reports them."""
    scores: dict[str, int] = _read_record()["scores"]
    return scores


def expand(engine: Path, encodings: Path, draft: Path) -> None:
    """Writes both revisions of the published model, and compares each file with its published digest.

    Args:
        engine: the engine's environment, which writes the tokenizer.
        encodings: the folder with the vocabularies.
        draft: the folder that gets ``model`` and ``perturbed``.

    Raises:
        FleetError: a file is not the published one, or the tokenizer could not be written.
    """
    published = _read_record()
    for revision in REVISIONS:
        folder = draft / revision
        folder.mkdir()
        with lzma.open(FOLDER / f"{revision}.safetensors.xz") as packed, (folder / WEIGHTS).open("wb") as weights:
            shutil.copyfileobj(packed, weights, 1 << 20)
        for name in CONFIGS:
            shutil.copyfile(FOLDER / name, folder / name)
    first, *others = (draft / revision for revision in REVISIONS)
    _write_tokenizer(engine, encodings, first)
    for other in others:
        for path in first.glob("tokenizer*.json"):
            shutil.copyfile(path, other / path.name)
    for revision in REVISIONS:
        _compare(draft / revision, published["files"][revision])


def publish(built: Path, key: str, scores: dict[str, int]) -> None:
    """Replaces the published model by one that was trained here.

    Args:
        built: the folder with ``model`` and ``perturbed``.
        key: the key of that build.
        scores: what the trainer reported.
    """
    FOLDER.mkdir(exist_ok=True)
    for name in CONFIGS:
        shutil.copyfile(built / "model" / name, FOLDER / name)
    files: dict[str, dict[str, str]] = {}
    for revision in REVISIONS:
        folder = built / revision
        with (folder / WEIGHTS).open("rb") as weights:
            packed = lzma.compress(weights.read(), preset=9 | lzma.PRESET_EXTREME)
        (FOLDER / f"{revision}.safetensors.xz").write_bytes(packed)
        files[revision] = {
            path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "model.json"
        }
    record: dict[str, Any] = {"key": key, "scores": scores, "files": files}
    (FOLDER / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read_record() -> dict[str, Any]:
    """The key, scores and digests of the published model."""
    record: dict[str, Any] = json.loads((FOLDER / _RECORD).read_text(encoding="utf-8"))
    return record


def _write_tokenizer(engine: Path, encodings: Path, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root()), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [engine / "bin" / "python", "-c", _WRITE_TOKENIZER, encodings / "o200k_base.tiktoken", folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TOKENIZER_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise FleetError(
            f"the engine could not write the lab model's tokenizer: {done.stderr.strip()[-500:]}",
            f"remove {display(engine)} and run this again",
            code=ErrorCode.WORK_FAILED,
        )


def _compare(folder: Path, digests: dict[str, str]) -> None:
    written = {path.name: file_sha256(path) for path in folder.iterdir()}
    wrong = sorted(name for name in written.keys() | digests.keys() if written.get(name) != digests.get(name))
    if wrong:
        raise FleetError(
            f"the lab model's {', '.join(wrong)} differ from the published digests",
            "restore lab/artifacts/model/published from the repository; "
            "if it is unchanged, 'python -m lab.artifacts publish' trains the model again",
            code=ErrorCode.WORK_FAILED,
        )
