"""Which files of a package index a lock asks for on one kind of host, and the index that a mirror serves."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import InvalidSdistFilename, InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from vllm_fleet.base.errors import FleetError
from vllm_fleet.mirror.store import Artifact

_OLDEST_GLIBC_MINOR = 5


@dataclass(frozen=True)
class Locked:
    """One line of a lock."""

    project: str
    version: str
    sha256: frozenset[str]


@dataclass(frozen=True)
class Offer:
    """A file that an index has; ``size`` is 0 where the index does not tell it."""

    filename: str
    url: str
    sha256: str
    size: int


def locked(text: str, python: str, machine: str) -> Iterator[Locked]:
    """The packages of a lock that a host with this Python needs.

    Raises:
        FleetError: a line that pins no version or no hash.
    """
    joined = re.sub(r"\\\n", " ", text)
    environment: dict[str, str] = {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "platform_machine": machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    for line in joined.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        words, *rest = re.split(r"\s--hash=sha256:", line)
        requirement = Requirement(words.strip())
        pins = [each.version for each in requirement.specifier if each.operator in ("==", "===")]
        digests = frozenset(each.split()[0] for each in rest)
        if len(pins) != 1 or not digests:
            raise FleetError(f"{words.strip()!r} pins no version or no sha256", "compile the lock with hashes")
        if requirement.marker is None or _holds(requirement.marker, environment):
            yield Locked(canonicalize_name(requirement.name), pins[0], digests)


def _holds(marker: Marker, environment: Mapping[str, str]) -> bool:
    return marker.evaluate(dict(environment))


def tags(python: str, machine: str, glibc: str) -> Mapping[Tag, int]:
    """What a host can install -> how much it prefers it, the lowest first.

    Args:
        python: its Python, such as 3.11.
        machine: x86_64 or aarch64.
        glibc: the newest C library that a wheel may ask for.
    """
    minor = int(glibc.split(".")[1])
    legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for number in range(minor, _OLDEST_GLIBC_MINOR - 1, -1):
        platforms.append(f"manylinux_2_{number}_{machine}")
        if number in legacy:
            platforms.append(f"{legacy[number]}_{machine}")
    platforms.append(f"linux_{machine}")
    major, number = (int(part) for part in python.split("."))
    version, interpreter = (major, number), f"cp{major}{number}"
    found = [*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)]
    return {tag: rank for rank, tag in reversed(list(enumerate(found)))}


def choose(wanted: Locked, offers: Iterable[Offer], ranks: Mapping[Tag, int]) -> Offer | None:
    """The file that a host would take: the wheel that it prefers, else the source distribution.

    Args:
        wanted: the line of the lock.
        offers: the files of its project.
        ranks: what :func:`tags` gives.
    """
    fitting = [
        (rank, offer) for offer in offers if offer.sha256 in wanted.sha256 and (rank := _rank(offer, ranks)) is not None
    ]
    return min(fitting, key=lambda each: (each[0], each[1].filename), default=(0, None))[1]


def _rank(offer: Offer, ranks: Mapping[Tag, int]) -> int | None:
    if not offer.filename.endswith(".whl"):
        return len(ranks) if offer.filename.endswith((".tar.gz", ".zip")) else None
    try:
        own = parse_wheel_filename(offer.filename)[3]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    known = [ranks[tag] for tag in own if tag in ranks]
    return min(known) if known else None


def artifact(offer: Offer) -> Artifact:
    """A file of an index at its place in the mirror: by digest, as two indexes may give one name to two files."""
    path = f"wheels/files/{offer.sha256[:2]}/{offer.sha256}/{offer.filename}"
    return Artifact(path, offer.sha256, offer.size, offer.url)


def pages(files: Mapping[str, str]) -> Mapping[str, str]:
    """The simple index that pip and uv read: path in the mirror -> text.

    Args:
        files: path in the mirror -> SHA-256 of every file; those that are no wheels are left out.
    """
    projects: dict[str, list[tuple[str, str, str]]] = {}
    for path, sha256 in sorted(files.items()):
        parts = PurePosixPath(path).parts
        if parts[:2] == ("wheels", "files"):
            name = parts[-1]
            projects.setdefault(_project(name), []).append((name, "/".join(parts[2:]), sha256))
    found = {"wheels/simple/index.html": _page("Index", [(f"{name}/", name) for name in sorted(projects)])}
    for project, entries in projects.items():
        links = [(f"../../files/{place}#sha256={sha256}", name) for name, place, sha256 in entries]
        found[f"wheels/simple/{project}/index.html"] = _page(project, links)
    return found


def _project(filename: str) -> str:
    if filename.endswith(".whl"):
        return canonicalize_name(filename.split("-")[0])
    return canonicalize_name(re.sub(r"\.(tar\.gz|zip)$", "", filename).rsplit("-", 1)[0])


def _page(title: str, links: Sequence[tuple[str, str]]) -> str:
    body = "".join(f'<a href="{html.escape(target)}">{html.escape(text)}</a><br>\n' for target, text in links)
    return f"<!DOCTYPE html>\n<html><head><title>{html.escape(title)}</title></head><body>\n{body}</body></html>\n"
