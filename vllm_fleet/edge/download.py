"""Files over HTTP: resumed where they stopped, verified while they come, put in place when they are whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base.errors import FleetError
from vllm_fleet.mirror.store import Artifact, Entry

_AT_A_TIME = 6
_TRIES = 5
_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 60.0
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Access:
    """How a server is asked.

    Attributes:
        headers: gives what each request carries; a server that an answer leads to gets none of it.
        context: whom to believe that it is the server; None: whom this machine believes.
    """

    headers: Callable[[], Mapping[str, str]] = dict
    context: ssl.SSLContext | None = None


_OPEN = Access()


@dataclass(frozen=True)
class Fetched:
    """A file that is in place, and how many bytes of it came over the network."""

    entry: Entry
    received: int


class _IncompleteError(Exception):
    """A transfer that ended early; what came is kept."""


def part_of(path: Path) -> Path:
    """Where the beginning of a file waits for its rest."""
    return path.with_name(f".{path.name}.part")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def entry_of(path: Path, sha256: str) -> Entry:
    """What the index keeps of a file that was just verified."""
    info = path.stat()
    return Entry(sha256, info.st_size, info.st_mtime_ns)


def all_of(
    jobs: Iterable[tuple[Artifact, Path]], progress: Progress = lambda _: None, access: Access = _OPEN
) -> Mapping[str, Fetched]:
    """Fetches files, some at a time; the first fault ends the others where they are, to be resumed.

    Args:
        jobs: each file with the place where it belongs.
        progress: called with the number of bytes as they come.
        access: how their server is asked.

    Returns:
        What there is at each path of the mirror.

    Raises:
        FleetError: a file cannot be had, or not with its digest.
    """
    stop = threading.Event()
    found: dict[str, Fetched] = {}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        waiting = {pool.submit(one, artifact, path, progress, stop, access): artifact for artifact, path in jobs}
        try:
            for future, artifact in waiting.items():
                found[artifact.path] = future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def one(
    artifact: Artifact,
    path: Path,
    progress: Progress = lambda _: None,
    stop: threading.Event | None = None,
    access: Access = _OPEN,
) -> Fetched:
    """Fetches one file, or goes on with it.

    Args:
        artifact: the file with its size and digest; a source without a scheme is a path on this machine.
        path: where it belongs.
        progress: called with the number of bytes as they come.
        stop: ends the transfer where it is.
        access: how its server is asked.

    Raises:
        FleetError: it cannot be had, or not with its digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, received = part_of(path), 0
    for attempt in range(_TRIES):
        try:
            received += _append(artifact, part, progress, stop or threading.Event(), access)
        except _IncompleteError as fault:
            if attempt == _TRIES - 1:
                raise FleetError(
                    f"{artifact.source} cannot be had: {fault}",
                    "look at the network and run it again: what came is kept",
                    code="work-failed",
                ) from None
            time.sleep(0.5 * 2**attempt)
            continue
        if artifact.size and part.stat().st_size != artifact.size:
            seen = f"{part.stat().st_size} bytes instead of {artifact.size}"
        elif (digest := digest_of(part)) != artifact.sha256:
            seen = f"the SHA-256 {digest} instead of {artifact.sha256}"
        else:
            part.chmod(0o644)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
            return Fetched(entry_of(path, artifact.sha256), received)
        # The part may be an older one's: once more, from its beginning.
        progress(-part.stat().st_size)
        part.unlink()
        if attempt:
            break
    raise FleetError(
        f"{artifact.source} has {seen}",
        "the origin serves another file than the one that was pinned: nothing was put in place",
        code="work-failed",
    )


def _request(url: str, access: Access, method: str = "GET", **headers: str) -> urllib.request.Request:
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "vllm-fleet", **headers})  # noqa: S310 - from recipes or the site's own configuration, or looked at before
    for name, value in access.headers().items():
        request.add_unredirected_header(name, value)
    return request


def _append(artifact: Artifact, part: Path, progress: Progress, stop: threading.Event, access: Access) -> int:
    """Gets what a part lacks; returns how many bytes came."""
    if not artifact.source.startswith(("http://", "https://")):
        shutil.copyfile(artifact.source, part)
        progress(part.stat().st_size)
        return part.stat().st_size
    have = part.stat().st_size if part.exists() else 0
    if have and have == artifact.size:
        progress(have)
        return 0
    if artifact.size and have > artifact.size:
        part.unlink()
        have = 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    request = _request(artifact.source, access, **headers)
    received = 0
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=access.context) as answer:  # noqa: S310 - the scheme was looked at above
            goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            progress(have if goes_on else 0)
            with part.open("ab" if goes_on else "wb") as file:
                while block := answer.read(_BLOCK):
                    if stop.is_set():
                        raise FleetError("was ended", code="work-failed")
                    file.write(block)
                    received += len(block)
                    progress(len(block))
    except urllib.error.HTTPError as fault:
        if fault.code in (404, 403, 401, 410):
            raise FleetError(f"{artifact.source}: HTTP {fault.code} {fault.reason}", code="work-failed") from None
        if fault.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
        raise _IncompleteError(f"HTTP {fault.code} {fault.reason}") from None
    except (OSError, http.client.HTTPException) as fault:
        if isinstance(fault, OSError) and fault.errno == 28:  # no space left
            raise FleetError(
                f"{part.parent}: the disk is full",
                "free some space, then run it again: what came is kept",
                code="work-failed",
            ) from None
        raise _IncompleteError(str(fault) or type(fault).__name__) from None
    if artifact.size and part.stat().st_size < artifact.size:
        raise _IncompleteError(f"the connection ended after {part.stat().st_size} of {artifact.size} bytes")
    return received


def text(url: str, accept: str = "*/*", access: Access = _OPEN) -> tuple[str, str, str]:
    """A small file: its text, its type and the URL that it came from in the end.

    Args:
        url: where it is.
        accept: which types of it.
        access: how its server is asked; goes before the types.

    Raises:
        FleetError: it cannot be had.
    """
    for attempt in range(_TRIES):
        request = _request(url, access, Accept=accept)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=access.context) as answer:  # noqa: S310 - as in _request
                return answer.read().decode(), answer.headers.get_content_type(), answer.url
        except urllib.error.HTTPError as fault:
            if fault.code < http.HTTPStatus.INTERNAL_SERVER_ERROR or attempt == _TRIES - 1:
                raise FleetError(f"{url}: HTTP {fault.code} {fault.reason}", code="work-failed") from None
        except (OSError, http.client.HTTPException) as fault:
            if attempt == _TRIES - 1:
                raise FleetError(
                    f"{url} cannot be reached: {fault}", "look at the network, then run it again", code="work-failed"
                ) from None
        time.sleep(0.5 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def size(url: str) -> int:
    """The length of a file that its server tells before it sends it.

    Raises:
        FleetError: it cannot be had, or the server does not tell.
    """
    try:
        with urllib.request.urlopen(_request(url, _OPEN, "HEAD"), timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - as in _request
            return int(answer.headers["Content-Length"])
    except (OSError, http.client.HTTPException, TypeError, ValueError) as fault:
        raise FleetError(f"the length of {url} is not told: {fault}", code="work-failed") from None


def challenge(url: str, access: Access) -> str:
    """What a server wants of those who ask it, as it says in ``WWW-Authenticate``; empty: nothing.

    Raises:
        FleetError: it cannot be reached, or answers with another fault.
    """
    try:
        with urllib.request.urlopen(_request(url, access), timeout=_TIMEOUT_SECONDS, context=access.context):  # noqa: S310 - as in _request
            return ""
    except urllib.error.HTTPError as fault:
        if fault.code != http.HTTPStatus.UNAUTHORIZED:
            raise FleetError(f"{url}: HTTP {fault.code} {fault.reason}", code="work-failed") from None
        return str(fault.headers.get("WWW-Authenticate", ""))
    except (OSError, http.client.HTTPException) as fault:
        raise FleetError(
            f"{url} cannot be reached: {fault}", "look at the network, then run it again", code="work-failed"
        ) from None
