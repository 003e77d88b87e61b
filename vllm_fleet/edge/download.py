"""Downloads over HTTP: resumed after a break, verified by digest, moved into place when complete.

``httpx`` is imported when the first request is sent: most commands download nothing.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from vllm_fleet.base.digests import file_sha1, file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError, InvariantError
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.edge.connection import failure_text
from vllm_fleet.mirror.store import Artifact, Entry

if TYPE_CHECKING:
    import httpx

_PARALLEL = 6
_TRIES = 5
_REDIRECTS = 10
_TIMEOUT_SECONDS = 60.0
#: Of a file that is read into memory. The page of a project in a package index has some megabytes at most.
_LIMIT_MIB = 64
#: Answers that another try does not change.
_FINAL = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_CHECK_NETWORK = "check the network and run it again"
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Access:
    """How to send requests to a server.

    Attributes:
        headers: returns the headers of a request, such as its credentials; not forwarded on redirects.
        context: TLS context; None uses the system trust store.
    """

    headers: Callable[[], Mapping[str, str]] = dict
    context: ssl.SSLContext | None = None


_ANONYMOUS = Access()


@dataclass(frozen=True)
class Fetched:
    """A file that is in place, and how many bytes of it came over the network."""

    entry: Entry
    received: int


class Document(NamedTuple):
    """A small file: its text, its media type in lower case, and its URL after redirects."""

    text: str
    media_type: str
    url: str


class Page(NamedTuple):
    """A small file as bytes, its media type in lower case, and its URL after redirects."""

    body: bytes
    media_type: str
    url: str


class _Position:
    """How much of a file has arrived; reports each change, so that a byte counts once however often it is sent."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._bytes = progress, 0

    def set(self, position: int) -> None:
        """Reports the difference to the last position."""
        self._progress(position - self._bytes)
        self._bytes = position


class _StatusError(Exception):
    """The server answered with an error."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(clean_text(f"HTTP {status} {reason}"))
        self.status = status
        self.headers = headers


class _NetworkError(Exception):
    """No answer came, or only a part of one."""


class _IncompleteError(Exception):
    """A transfer ended early; the partial file is kept."""


def partial_file(path: Path) -> Path:
    """The partial file beside the place of a file, kept until the download is complete."""
    return path.with_name(f".{path.name}.part")


def index_entry(path: Path, sha256: str) -> Entry:
    """The index entry of a file that was just verified."""
    info = path.stat()
    return Entry(sha256, info.st_size, info.st_mtime_ns)


def display_url(url: str) -> str:
    """A URL without user and password, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.rpartition("@")[2]
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def fetch_files(
    jobs: Iterable[tuple[Artifact, Path]], progress: Progress = lambda _: None, access: Access = _ANONYMOUS
) -> Mapping[str, Fetched]:
    """Downloads files, several at a time. The first error stops all transfers; the next run resumes them.

    Args:
        jobs: each file and its place.
        progress: called with the number of bytes by which the downloads advance; negative when one starts again.
        access: how to send requests to their server.

    Returns:
        Path in the mirror -> the file there.

    Raises:
        FleetError: a download failed, or a file does not have its digest.
    """
    jobs = list(jobs)
    stop = threading.Event()
    results: dict[str, Fetched] = {}
    with (
        _transfer((artifact for artifact, _ in jobs), access, progress, stop) as transfer,
        ThreadPoolExecutor(_PARALLEL) as pool,
    ):
        futures = {pool.submit(transfer.fetch, artifact, path): artifact for artifact, path in jobs}
        try:
            for future, artifact in futures.items():
                results[artifact.path] = future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return results


def fetch_file(
    artifact: Artifact, path: Path, progress: Progress = lambda _: None, access: Access = _ANONYMOUS
) -> Fetched:
    """Downloads one file, or resumes its download.

    Args:
        artifact: the file with its size and digest; a source without ``http(s)://`` is a path on this machine.
        path: its place.
        progress: called with the number of bytes by which the downloads advance; negative when one starts again.
        access: how to send requests to its server.

    Raises:
        FleetError: the download failed, or the file does not have its digest.
    """
    with _transfer([artifact], access, progress, threading.Event()) as transfer:
        return transfer.fetch(artifact, path)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


@contextmanager
def _transfer(
    artifacts: Iterable[Artifact], access: Access, progress: Progress, stop: threading.Event
) -> Iterator[_Transfer]:
    """A transfer of these files; without an HTTP client where all of them are on this machine."""
    if any(_is_url(artifact.source) for artifact in artifacts):
        with _http_client(access.context) as client:
            yield _Transfer(client, access, progress, stop)
    else:
        yield _Transfer(None, access, progress, stop)


@dataclass(frozen=True)
class _Transfer:
    """What the threads of one download share."""

    client: httpx.Client | None
    access: Access
    progress: Progress
    stop: threading.Event

    def fetch(self, artifact: Artifact, path: Path) -> Fetched:
        """Completes the partial file of an artifact, verifies it and moves it into place."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part, received = partial_file(path), 0
        source, position = display_url(artifact.source), _Position(self.progress)
        for attempt in range(_TRIES):
            try:
                received += self._complete(artifact, part, position)
            except _IncompleteError as error:
                if attempt == _TRIES - 1:
                    raise FleetError(
                        f"{source} cannot be downloaded: {error}",
                        f"{_CHECK_NETWORK}: the partial file is kept",
                        code=ErrorCode.WORK_FAILED,
                    ) from None
                _back_off(attempt)
                continue
            sha256 = file_sha256(part)
            if artifact.size and part.stat().st_size != artifact.size:
                mismatch = f"{part.stat().st_size} bytes instead of {artifact.size}"
            elif artifact.sha256 and sha256 != artifact.sha256:
                mismatch = f"the SHA-256 {sha256} instead of {artifact.sha256}"
            elif not artifact.sha256 and (sha1 := file_sha1(part)) != artifact.sha1:
                mismatch = f"the SHA-1 {sha1} instead of {artifact.sha1}"
            else:
                part.chmod(0o644)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                part.replace(path)
                return Fetched(index_entry(path, sha256), received)
            # The partial file may come from an older version of the file: start again, once.
            position.set(0)
            part.unlink()
            if attempt:
                break
        raise FleetError(
            f"{source} has {mismatch}",
            "the server's file is not the pinned one: nothing was stored",
            code=ErrorCode.WORK_FAILED,
        )

    def _complete(self, artifact: Artifact, part: Path, position: _Position) -> int:
        """Completes a partial file; returns the number of bytes that came."""
        if not _is_url(artifact.source):
            shutil.copyfile(artifact.source, part)
            position.set(part.stat().st_size)
            return part.stat().st_size
        have = part.stat().st_size if part.exists() else 0
        if have and have == artifact.size:
            position.set(have)
            return 0
        if artifact.size and have > artifact.size:
            part.unlink()
            have = 0
        try:
            received = self._append(artifact.source, part, have, position)
        except _StatusError as error:
            if error.status in _FINAL:
                raise FleetError(f"{display_url(artifact.source)}: {error}", code=ErrorCode.WORK_FAILED) from None
            if error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
            raise _IncompleteError(str(error)) from None
        except (_NetworkError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise FleetError(
                    f"{part.parent}: the disk is full",
                    "free some space and run it again: the partial file is kept",
                    code=ErrorCode.WORK_FAILED,
                ) from None
            raise _IncompleteError(str(error)) from None
        if artifact.size and part.stat().st_size < artifact.size:
            raise _IncompleteError(f"the connection ended after {part.stat().st_size} of {artifact.size} bytes")
        return received

    def _append(self, url: str, part: Path, have: int, position: _Position) -> int:
        """Appends the bytes from ``have`` on; rewrites the file if the server sends all of it."""
        if self.client is None:
            raise AssertionError("the transfer of a URL has no HTTP client")
        received = 0
        with _send(self.client, "GET", url, self.access, {"Range": f"bytes={have}-"} if have else {}) as response:
            resumed = response.status_code == HTTPStatus.PARTIAL_CONTENT
            begin = have if resumed else 0
            position.set(begin)
            with part.open("ab" if resumed else "wb") as file:
                # Without a chunk size: a broken transfer then loses no byte that came.
                for block in response.iter_raw():
                    if self.stop.is_set():
                        raise FleetError("stopped", code=ErrorCode.WORK_FAILED)
                    file.write(block)
                    received += len(block)
                    position.set(begin + received)
        return received


def fetch_text(url: str, accept: str = "*/*", access: Access = _ANONYMOUS) -> Document:
    """Downloads a small UTF-8 file.

    Args:
        url: its URL.
        accept: the media types, as in the header ``Accept``.
        access: how to send requests to its server; its headers override ``accept``.

    Raises:
        FleetError: the download failed, the file is too large or not UTF-8.
    """
    page = fetch_bytes(url, accept, access)
    try:
        return Document(page.body.decode(), page.media_type, page.url)
    except UnicodeDecodeError:
        raise FleetError(f"{display_url(url)} is not UTF-8 text", code=ErrorCode.WORK_FAILED) from None


def fetch_bytes(url: str, accept: str = "*/*", access: Access = _ANONYMOUS, limit_mib: int = _LIMIT_MIB) -> Page:
    """Downloads a small file into memory.

    Args:
        url: its URL.
        accept: the media types, as in the header ``Accept``.
        access: how to send requests to its server; its headers override ``accept``.
        limit_mib: the size at which the transfer ends, in MiB.

    Raises:
        FleetError: the download failed, or the file is too large.
    """
    with _http_client(access.context) as client:
        for attempt in range(_TRIES):
            try:
                with _send(client, "GET", url, access, {"Accept": accept}) as response:
                    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                    return Page(_read_body(response, limit_mib), media_type, str(response.url))
            except _StatusError as error:
                if error.status < HTTPStatus.INTERNAL_SERVER_ERROR or attempt == _TRIES - 1:
                    raise FleetError(f"{display_url(url)}: {error}", code=ErrorCode.WORK_FAILED) from None
            except _NetworkError as error:
                if attempt == _TRIES - 1:
                    raise _unreachable(url, error) from None
            _back_off(attempt)
    raise InvariantError("the last attempt returns or raises")


def _read_body(response: httpx.Response, limit_mib: int) -> bytes:
    body = bytearray()
    for block in response.iter_bytes():
        body += block
        if len(body) > limit_mib << 20:
            text = f"{display_url(str(response.url))} has more than {limit_mib} MiB"
            raise FleetError(text, "check what answers at this address", code=ErrorCode.WORK_FAILED)
    return bytes(body)


def fetch_length(url: str) -> int:
    """The length of a file in bytes, from the server's header ``Content-Length``.

    Raises:
        FleetError: the request failed, or the server does not send the length.
    """
    try:
        with _http_client() as client, _send(client, "HEAD", url, _ANONYMOUS, {}) as response:
            length = response.headers.get("Content-Length", "")
    except (_StatusError, _NetworkError) as error:
        hint = "this machine must reach it (docs/network.md), or take the parts from a disk (docs/mirror.md)"
        raise FleetError(f"{display_url(url)} cannot be had: {error}", hint, code=ErrorCode.WORK_FAILED) from None
    if re.fullmatch(r"[0-9]{1,15}", length):
        return int(length)
    reason = f"Content-Length is {clean_text(length, 40)!r}" if length else "no Content-Length"
    raise FleetError(f"the length of {display_url(url)} is unknown: {reason}", code=ErrorCode.WORK_FAILED)


def fetch_challenge(url: str, access: Access) -> str:
    """The ``WWW-Authenticate`` header of a server that requires credentials; empty when it requires none.

    Raises:
        FleetError: the server cannot be reached, or answers with another error than 401.
    """
    try:
        with _http_client(access.context) as client, _send(client, "GET", url, access, {}):
            return ""
    except _StatusError as error:
        if error.status != HTTPStatus.UNAUTHORIZED:
            raise FleetError(f"{display_url(url)}: {error}", code=ErrorCode.WORK_FAILED) from None
        return error.headers.get("WWW-Authenticate", "")
    except _NetworkError as error:
        raise _unreachable(url, error) from None


def _unreachable(url: str, error: Exception) -> FleetError:
    return FleetError(f"{display_url(url)} cannot be reached: {error}", _CHECK_NETWORK, code=ErrorCode.WORK_FAILED)


def _back_off(attempt: int) -> None:
    time.sleep(0.5 * 2**attempt)


@cache
def system_trust() -> ssl.SSLContext:
    """The TLS context of the system's trust store."""
    # httpx itself trusts the certificates of the package certifi, which know no CA of a site.
    return ssl.create_default_context()


def _http_client(context: ssl.SSLContext | None = None) -> httpx.Client:
    """A client that threads may share. Proxies come from the environment; cookies are not kept."""
    from http.cookiejar import CookieJar, DefaultCookiePolicy

    import httpx

    headers = {"User-Agent": "vllm-fleet", "Accept-Encoding": "identity"}
    try:
        return httpx.Client(
            verify=context or system_trust(),
            timeout=_TIMEOUT_SECONDS,
            headers=headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        # The message does not repeat the proxy's URL, which may hold a password.
        kind = "is a SOCKS proxy" if isinstance(error, ImportError) else "is not a URL of a proxy"
        raise FleetError(
            f"the environment's HTTP_PROXY, HTTPS_PROXY, ALL_PROXY or NO_PROXY cannot be used: a value {kind}",
            "set http://host:port",
        ) from None


@contextmanager
def _send(
    client: httpx.Client, method: str, url: str, access: Access, headers: Mapping[str, str]
) -> Iterator[httpx.Response]:
    """Sends a request and follows redirects; the body is read in the block.

    Raises:
        FleetError: the URL is no HTTP URL, or holds credentials without TLS.
        _StatusError: the answer is an error.
        _NetworkError: no answer came, or its body is incomplete.
    """
    import httpx

    # First: it may send a request of its own, for a token.
    own = access.headers()
    try:
        request = client.build_request(method, url, headers={**headers, **own})
        for _ in range(_REDIRECTS + 1):
            if request.url.userinfo and request.url.scheme != "https":
                raise FleetError(f"{display_url(url)} has credentials in its URL but no TLS", "use https://")
            response = client.send(request, stream=True)
            if response.next_request is None:
                break
            # What a redirect sends beside its target is not read.
            response.close()
            # A new request: it carries none of the headers of ``access``.
            request = client.build_request(method, response.next_request.url, headers=headers)
        try:
            if not response.is_success:
                reason = "after too many redirects" if response.next_request else response.reason_phrase
                raise _StatusError(response.status_code, reason, response.headers)
            yield response
        finally:
            response.close()
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise FleetError(f"{display_url(url)} is not an HTTP URL", "use http:// or https://") from None
    except httpx.HTTPError as error:
        raise _NetworkError(failure_text(error)) from None
