"""Package indexes: finds the files for the lines of a lock. The site's index comes from pip's or uv's settings."""

from __future__ import annotations

import configparser
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import ForeignPart, UnreadableError, parse_record
from vllm_fleet.base.paths import home_dir
from vllm_fleet.edge import download
from vllm_fleet.mirror import wheels
from vllm_fleet.mirror.parts import Wheels
from vllm_fleet.mirror.store import Artifact

PUBLIC = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_PARALLEL = 16
#: Names of wheels and source distributions, by their specifications; neither hidden nor a path.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]{0,254}")
_SHA256 = re.compile("[0-9a-f]{64}")


def configured_index() -> str:
    """The index that this machine uses: from uv's settings, else pip's, else the public index."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := os.environ.get(name):
            return value.rstrip("/")
    home = home_dir()
    uv_files = (home / ".config/uv/uv.toml",) if home else ()
    for file in (*uv_files, Path("/etc/uv/uv.toml")):
        if file.is_file():
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
            if value := settings.get("index-url") or settings.get("pip", {}).get("index-url"):
                return str(value).rstrip("/")
    pip_files = (home / ".config/pip/pip.conf", home / ".pip/pip.conf") if home else ()
    for file in (*pip_files, Path("/etc/pip.conf")):
        if file.is_file():
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            parser.read(file, encoding="utf-8")
            if value := parser.get("global", "index-url", fallback=None):
                return value.rstrip("/")
    return PUBLIC


def list_files(need: Wheels) -> list[Artifact]:
    """The files of a lock for its kind of host.

    Raises:
        FleetError: no index has a compatible file for some lines of the lock; the message names them all.
    """
    indexes = [configured_index(), *need.indexes]
    ranks = wheels.wheel_tags(need.python, need.machine, need.glibc)
    lines = list(wheels.parse_lock(need.lock, need.python, need.machine))
    with ThreadPoolExecutor(_PARALLEL) as pool:
        offered = list(pool.map(lambda line: _find_offers(indexes, line), lines))
    chosen = [wheels.choose_offer(line, offers, ranks) for line, offers in zip(lines, offered, strict=True)]
    missing = [f"{line.project} {line.version}" for line, offer in zip(lines, chosen, strict=True) if offer is None]
    if missing:
        raise FleetError(
            f"no index has a compatible file with a digest of the lock for Python {need.python} on {need.machine} with "
            f"glibc {need.glibc}: {', '.join(missing)}",
            f"the indexes are {', '.join(map(download.display_url, indexes))}; choose an engine for these hosts",
            key=need.name,
            code=ErrorCode.WORK_FAILED,
        )
    return [wheels.offer_artifact(_with_size(offer)) for offer in chosen if offer]


def _find_offers(indexes: Sequence[str], line: wheels.LockedPackage) -> list[wheels.Offer]:
    """The files with a digest of the lock, from the first index that has any."""
    errors = []
    for index in indexes:
        try:
            page = download.fetch_text(f"{index}/{line.project}/", _ACCEPT)
        except FleetError as error:
            errors.append(error)
            continue
        parse = _parse_json if page.media_type.endswith("json") else _parse_html
        try:
            offers = [offer for offer in parse(page.text, page.url) if offer.sha256 in line.sha256]
        except UnreadableError as error:
            text = f"{download.display_url(page.url)} is not a page of a package index: {error}"
            errors.append(FleetError(text, "check the index", code=ErrorCode.WORK_FAILED))
            continue
        if offers:
            return offers
    if len(errors) == len(indexes):
        raise errors[0]
    return []


class _File(ForeignPart):
    """One file of a project's page, as the simple repository API has it."""

    filename: str
    url: str
    hashes: dict[str, str]
    size: int | None = None


class _Project(ForeignPart):
    """A project's page."""

    files: list[_File]


def _parse_json(body: str, base: str) -> Iterator[wheels.Offer]:
    for file in parse_record(_Project, body).files:
        yield from _make_offer(file.filename, file.url, base, file.hashes.get("sha256", ""), file.size or 0)


def _make_offer(filename: str, link: str, base: str, sha256: str, size: int) -> Iterator[wheels.Offer]:
    """The offer of a file; none for a name that no package has, and for a link that is no URL.

    The name becomes a path in the mirror and a line of its index.
    """
    if not _FILE_NAME.fullmatch(filename) or not _SHA256.fullmatch(sha256) or not 0 <= size < 1 << 50:
        return
    try:
        url = urljoin(base, link)
    except ValueError:
        return
    if url.isascii() and url.isprintable():
        yield wheels.Offer(filename, url, sha256, size)


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _parse_html(body: str, base: str) -> Iterator[wheels.Offer]:
    links = _Links()
    links.feed(body)
    for link in links.targets:
        url, _, digest = link.partition("#sha256=")
        filename = unquote(url.partition("?")[0].rpartition("/")[2])
        yield from _make_offer(filename, url, base, digest, 0)


def _with_size(offer: wheels.Offer) -> wheels.Offer:
    """The offer with its size; requested from the server where the index has none."""
    if offer.size:
        return offer
    return wheels.Offer(offer.filename, offer.url, offer.sha256, download.fetch_length(offer.url))
