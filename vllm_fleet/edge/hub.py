"""The model hub: lists and downloads the files of a revision. The token stays in this process and its environment.

huggingface_hub transfers the files: it resumes, and with hf_xet it downloads each chunk of the weights once. The URL
is its default, or ``HF_ENDPOINT``.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.field_types import model_file_fault
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.base.secret_files import read_secret
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Fetched, Progress
from vllm_fleet.host.model_files import DigestList, FileDigest
from vllm_fleet.mirror.parts import Model
from vllm_fleet.mirror.store import Artifact

_PARALLEL = 4


def read_token(file: Path | None) -> str | None:
    """The hub's token from a file; None without one: huggingface_hub then uses ``HF_TOKEN`` or its own login.

    Raises:
        FleetError: the file is missing, empty, or readable by other users.
    """
    if file is None:
        return None
    try:
        return read_secret(file, "the hub's token", takes_pipe=True)
    except FleetError as fault:
        fault.key = "--hub-token-file"
        raise


def list_files(need: Model, secret: str | None) -> list[Artifact]:
    """The files of a revision with their sizes: large files with their SHA-256, small files with git's digest.

    Raises:
        FleetError: the hub cannot be reached, does not have the revision, or requires a token.
    """
    if need.files:
        # Whatever the hub says, the hosts take no other files.
        return [Artifact(f"{need.path}/{name}", sha256, size, f"hub:{name}") for name, sha256, size in need.files]
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi(_endpoint(), token=secret).model_info(
            need.name, revision=need.revision, files_metadata=True, timeout=60
        )
    except HfHubHTTPError as error:
        raise _refused(need, error) from None
    except (OSError, ValueError) as error:
        raise _unreachable(need, error) from None
    except Exception as error:  # any exception of its HTTP library
        raise _unreachable(need, error) from None
    if info.sha != need.revision:
        raise FleetError(
            f"the hub returns the commit {info.sha} of {need.name} for the revision {need.revision}",
            "pin the full commit in the recipe of the model",
            code=ErrorCode.WORK_FAILED,
        )
    artifacts = []
    for file in info.siblings or ():
        name = file.rfilename
        # Folders hold the same weights for other programs; vLLM reads none of them for the models of the recipes.
        if "/" in name or name.startswith(".") or any(fnmatch(name, pattern) for pattern in need.ignore):
            continue
        digest, size, blob = file.lfs.sha256 if file.lfs else "", file.size or 0, file.blob_id or ""
        if not _is_listed_file(name, digest, size, blob):
            raise FleetError(
                f"the hub lists a file of {need.name} with the name {clean_text(str(name), 80)!r}, the digest "
                f"{clean_text(str(digest or blob), 80)!r} and the size {clean_text(str(size), 40)}",
                "check what answers at HF_ENDPOINT",
                code=ErrorCode.WORK_FAILED,
            )
        if fault := model_file_fault(name):
            raise FleetError(
                f"{need.name}: {fault}",
                "leave it out with 'weights.ignore' in the recipe of the model, or serve another model",
                code=ErrorCode.REFUSED,
            )
        artifacts.append(Artifact(f"{need.path}/{name}", digest, size, f"hub:{name}", blob))
    if not artifacts:
        raise FleetError(f"the hub has no files of {need.name} at {need.revision}", code=ErrorCode.WORK_FAILED)
    return artifacts


def list_digests(name: str, revision: str, ignore: tuple[str, ...], secret: str | None) -> DigestList:
    """The SHA-256 of every file of a revision.

    The hub publishes it for large files. Small ones are downloaded, and verified by git's digest, which it publishes.

    Raises:
        FleetError: the hub cannot be reached, does not have the revision, or requires a token.
    """
    need = Model(name, revision, None, ignore)
    artifacts = list_files(need, secret)
    small = [artifact for artifact in artifacts if not artifact.sha256]
    with tempfile.TemporaryDirectory() as folder:
        fetched = fetch_files(need, small, Path(folder), secret, lambda _: None)
    digests = {artifact.path: artifact.sha256 or fetched[artifact.path].entry.sha256 for artifact in artifacts}
    files = {
        artifact.path.rsplit("/", 1)[1]: FileDigest(digests[artifact.path], artifact.size) for artifact in artifacts
    }
    return DigestList(files, revision, "the hub")


def _is_listed_file(name: object, sha256: object, size: object, blob: object) -> bool:
    """Whether an entry of the hub's list is a file in one folder with a digest and a size."""
    return (
        all(isinstance(text, str) for text in (name, sha256, blob))
        and re.fullmatch(r"[\w.+@ -]{1,255}", str(name)) is not None
        and str(name).isprintable()
        and re.fullmatch(r"[0-9a-f]{64}", str(sha256) or "0" * 64) is not None
        and re.fullmatch(r"[0-9a-f]{40}", str(blob) or "0" * 40) is not None
        and bool(sha256 or blob)
        and type(size) is int
        and 0 <= size < 1 << 50
    )


def fetch_files(
    need: Model, artifacts: Iterable[Artifact], folder: Path, secret: str | None, progress: Progress
) -> Mapping[str, Fetched]:
    """Downloads files of a revision into its folder, resumes partial files, and verifies each.

    Args:
        need: the revision.
        artifacts: the missing files.
        folder: the folder of the revision in the mirror.
        secret: the token.
        progress: called with the size of each complete file, in bytes.

    Raises:
        FleetError: a download failed, or a file does not have the digest of the hub's list.
    """
    missing = list(artifacts)
    with ThreadPoolExecutor(_PARALLEL) as pool:
        results = list(pool.map(lambda artifact: _fetch_file(need, artifact, folder, secret, progress), missing))
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {artifact.path: fetched for artifact, fetched in zip(missing, results, strict=True)}


def _fetch_file(need: Model, artifact: Artifact, folder: Path, secret: str | None, progress: Progress) -> Fetched:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    name = artifact.path.rsplit("/", 1)[1]
    for force in (False, True):
        try:
            path = Path(
                hf_hub_download(
                    need.name,
                    name,
                    revision=need.revision,
                    local_dir=folder,
                    token=secret,
                    endpoint=_endpoint(),
                    force_download=force,
                )
            )
        except HfHubHTTPError as error:
            raise _refused(need, error) from None
        except Exception as error:  # any exception of its HTTP library
            raise _unreachable(need, error) from None
        digest = file_sha256(path)
        if digest == artifact.sha256 or (not artifact.sha256 and git_blob(path) == artifact.blob):
            path.chmod(0o644)
            progress(artifact.size)
            return Fetched(download.index_entry(path, digest), artifact.size)
        path.unlink()
    raise FleetError(
        f"{need.name}: {name} has the SHA-256 {digest} instead of {artifact.sha256 or artifact.blob}",
        "nothing was stored",
        code=ErrorCode.WORK_FAILED,
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def git_blob(path: Path) -> str:
    """The digest of a small file in git, which the hub lists."""
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _refused(need: Model, error: Exception) -> FleetError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        text, hint = "the hub requires a token that may read it", "set HF_TOKEN, or give a file with --hub-token-file"
    elif status == 404:
        text, hint = (
            f"the hub does not have the revision {need.revision}",
            "correct the revision in the recipe of the model",
        )
    else:
        text, hint = f"the hub answers with HTTP {status}", "run it again: partial files are kept"
    return FleetError(f"{need.name}: {text}", hint, code=ErrorCode.WORK_FAILED)


def _unreachable(need: Model, error: Exception) -> FleetError:
    where = os.environ.get("HF_ENDPOINT", "the hub")
    return FleetError(
        f"{need.name}: {where} cannot be reached: {type(error).__name__}",
        "check the network and run it again: partial files are kept",
        code=ErrorCode.WORK_FAILED,
    )
