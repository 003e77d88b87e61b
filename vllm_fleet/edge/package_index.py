"""Package indexes: which files they have for the lines of a lock; the site's own comes from pip's or uv's settings."""

from __future__ import annotations

import configparser
import json
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download
from vllm_fleet.mirror import wheels
from vllm_fleet.mirror.parts import Wheels
from vllm_fleet.mirror.store import Artifact

PUBLIC = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
_AT_A_TIME = 16


def own() -> str:
    """The index that this machine is set up to use: uv's settings, else pip's, else the public one."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        if value := os.environ.get(name):
            return value.rstrip("/")
    for file in (Path.home() / ".config/uv/uv.toml", Path("/etc/uv/uv.toml")):
        if file.is_file():
            settings = tomllib.loads(file.read_text(encoding="utf-8"))
            if value := settings.get("index-url") or settings.get("pip", {}).get("index-url"):
                return str(value).rstrip("/")
    for file in (Path.home() / ".config/pip/pip.conf", Path.home() / ".pip/pip.conf", Path("/etc/pip.conf")):
        if file.is_file():
            parser = configparser.ConfigParser(interpolation=None, strict=False)
            parser.read(file, encoding="utf-8")
            if value := parser.get("global", "index-url", fallback=None):
                return value.rstrip("/")
    return PUBLIC


def listing(need: Wheels) -> list[Artifact]:
    """The files of a lock for its kind of host.

    Raises:
        FleetError: with every line that no index has a fitting file for.
    """
    indexes = [own(), *need.indexes]
    ranks = wheels.tags(need.python, need.machine, need.glibc)
    lines = list(wheels.locked(need.lock, need.python, need.machine))
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        offered = list(pool.map(lambda line: _offers(indexes, line), lines))
    chosen = [wheels.choose(line, offers, ranks) for line, offers in zip(lines, offered, strict=True)]
    missing = [f"{line.project} {line.version}" for line, offer in zip(lines, chosen, strict=True) if offer is None]
    if missing:
        raise FleetError(
            f"no index has a file with a hash of the lock for Python {need.python} on {need.machine} with glibc "
            f"{need.glibc}: {', '.join(missing)}",
            f"the indexes are {', '.join(indexes)}; choose an engine that fits the hosts",
            key=need.name,
            code="work-failed",
        )
    return [wheels.artifact(_sized(offer)) for offer in chosen if offer]


def _offers(indexes: Sequence[str], line: wheels.Locked) -> list[wheels.Offer]:
    """The files of the first index that has one with a hash of the lock."""
    faults = []
    for index in indexes:
        try:
            body, kind, base = download.text(f"{index}/{line.project}/", _ACCEPT)
        except FleetError as fault:
            faults.append(fault)
            continue
        parse = _from_json if kind.endswith("json") else _from_html
        found = [offer for offer in parse(body, base) if offer.sha256 in line.sha256]
        if found:
            return found
    if len(faults) == len(indexes):
        raise faults[0]
    return []


def _from_json(body: str, base: str) -> Iterator[wheels.Offer]:
    for file in json.loads(body)["files"]:
        digest = file["hashes"].get("sha256", "")
        yield wheels.Offer(file["filename"], urljoin(base, file["url"]), digest, int(file.get("size") or 0))


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _from_html(body: str, base: str) -> Iterator[wheels.Offer]:
    links = _Links()
    links.feed(body)
    for link in links.found:
        url, fragment = urldefrag(urljoin(base, link))
        if digest := re.fullmatch(r"sha256=([0-9a-f]{64})", fragment):
            yield wheels.Offer(unquote(urlsplit(url).path.rsplit("/", 1)[1]), url, digest[1], 0)


def _sized(offer: wheels.Offer) -> wheels.Offer:
    """The offer with its size, asked from the server where the index does not tell it."""
    if offer.size:
        return offer
    return wheels.Offer(offer.filename, offer.url, offer.sha256, download.size(offer.url))
