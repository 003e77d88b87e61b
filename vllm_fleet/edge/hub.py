"""The model hub: what a revision holds, and its files. The token stays in this process and its environment.

huggingface_hub does the transfer: it resumes, and with hf_xet it gets each chunk of the weights once. The address is
its own, or what ``HF_ENDPOINT`` says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Fetched, Progress
from vllm_fleet.mirror.parts import Model
from vllm_fleet.mirror.store import Artifact

_AT_A_TIME = 4


def token(file: Path | None) -> str | None:
    """The hub's token: from a file, else what huggingface_hub finds by itself (``HF_TOKEN``, its own login).

    Raises:
        FleetError: the file is missing, empty, or others may read it.
    """
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except OSError as fault:
        raise FleetError(
            f"the token cannot be read: {fault.strerror}", "give the file that holds it", str(file)
        ) from None
    if not text:
        raise FleetError("holds no token", "put the hub's token into it", str(file))
    if mode & 0o077:
        raise FleetError("is readable for others", f"chmod 600 {file}", str(file))
    return text


def listing(need: Model, secret: str | None) -> list[Artifact]:
    """The files of a revision with their sizes; large ones with their SHA-256, small ones with git's digest.

    Raises:
        FleetError: the hub cannot be reached, does not have the revision, or wants a token.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi(_endpoint(), token=secret).model_info(
            need.name, revision=need.revision, files_metadata=True, timeout=60
        )
    except HfHubHTTPError as fault:
        raise _refused(need, fault) from None
    except (OSError, ValueError) as fault:
        raise _unreachable(need, fault) from None
    except Exception as fault:  # whatever its HTTP library raises
        raise _unreachable(need, fault) from None
    if info.sha != need.revision:
        raise FleetError(
            f"the hub gives the commit {info.sha} of {need.name} for {need.revision}",
            "pin it again",
            code="work-failed",
        )
    found = []
    for file in info.siblings or ():
        name = file.rfilename
        # Files of folders are the same weights for other programs; no vLLM model of the recipes has any of its own.
        if "/" in name or name.startswith(".") or any(fnmatch(name, pattern) for pattern in need.ignore):
            continue
        digest = file.lfs.sha256 if file.lfs else ""
        found.append(Artifact(f"{need.path}/{name}", digest, int(file.size or 0), f"hub:{name}", file.blob_id or ""))
    if not found:
        raise FleetError(f"the hub has no files of {need.name} at {need.revision}", code="work-failed")
    return found


def fetch(
    need: Model, artifacts: Iterable[Artifact], folder: Path, secret: str | None, progress: Progress
) -> Mapping[str, Fetched]:
    """Fetches files of a revision into its folder, resumed where they stopped, and verifies each.

    Args:
        need: the revision.
        artifacts: the files that are missing.
        folder: the folder of the revision in the mirror.
        secret: the token.
        progress: called with the number of bytes of each file as it is done.

    Raises:
        FleetError: a file cannot be had, or is not what the hub's list says.
    """
    wanted = list(artifacts)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        done = list(pool.map(lambda artifact: _one(need, artifact, folder, secret, progress), wanted))
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return {artifact.path: each for artifact, each in zip(wanted, done, strict=True)}


def _one(need: Model, artifact: Artifact, folder: Path, secret: str | None, progress: Progress) -> Fetched:
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
        except HfHubHTTPError as fault:
            raise _refused(need, fault) from None
        except Exception as fault:  # whatever its HTTP library raises
            raise _unreachable(need, fault) from None
        digest = download.digest_of(path)
        if digest == artifact.sha256 or (not artifact.sha256 and git_blob(path) == artifact.blob):
            path.chmod(0o644)
            progress(artifact.size)
            return Fetched(download.entry_of(path, digest), artifact.size)
        path.unlink()
    raise FleetError(
        f"{need.name}: {name} has the SHA-256 {digest}, the hub's list says {artifact.sha256 or artifact.blob}",
        "nothing was put in place",
        code="work-failed",
    )


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def git_blob(path: Path) -> str:
    """The digest that git, and so the hub, gives to a small file."""
    body = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()


def _refused(need: Model, fault: Exception) -> FleetError:
    status = getattr(getattr(fault, "response", None), "status_code", None)
    if status in (401, 403):
        text, hint = "the hub wants a token that may read it", "set HF_TOKEN, or give its file with --hub-token-file"
    elif status == 404:
        text, hint = f"the hub does not have the revision {need.revision}", "correct the recipe of the model"
    else:
        text, hint = f"the hub answers with HTTP {status}", "run it again: what came is kept"
    return FleetError(f"{need.name}: {text}", hint, code="work-failed")


def _unreachable(need: Model, fault: Exception) -> FleetError:
    where = os.environ.get("HF_ENDPOINT", "the hub")
    return FleetError(
        f"{need.name}: {where} cannot be reached: {type(fault).__name__}",
        "look at the network and run it again: what came is kept",
        code="work-failed",
    )
