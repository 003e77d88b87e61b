"""Selects the files of a lock for one kind of host, and renders the package index of a mirror."""

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
class LockedPackage:
    """One package of a lock: name, version and permitted digests."""

    project: str
    version: str
    sha256: frozenset[str]


@dataclass(frozen=True)
class Offer:
    """A file of a package index; ``size`` is 0 where the index has none."""

    filename: str
    url: str
    sha256: str
    size: int


def parse_lock(text: str, python: str, machine: str) -> Iterator[LockedPackage]:
    """The packages of a lock that a host with this Python needs.

    Raises:
        FleetError: a line pins no version or no digest.
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
        pins = [clause.version for clause in requirement.specifier if clause.operator in ("==", "===")]
        digests = frozenset(option.split()[0] for option in rest)
        if len(pins) != 1 or not digests:
            raise FleetError(f"{words.strip()!r} pins no version or no sha256", "compile the lock with hashes")
        if requirement.marker is None or _is_true(requirement.marker, environment):
            yield LockedPackage(canonicalize_name(requirement.name), pins[0], digests)


def _is_true(marker: Marker, environment: Mapping[str, str]) -> bool:
    return marker.evaluate(dict(environment))


def wheel_tags(python: str, machine: str, glibc: str) -> Mapping[Tag, int]:
    """The wheel tags that a host can install -> their rank; the host prefers the lowest.

    Args:
        python: its Python, such as 3.11.
        machine: x86_64 or aarch64.
        glibc: the version of its C library.
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
    supported = [*cpython_tags(version, platforms=platforms), *compatible_tags(version, interpreter, platforms)]
    return {tag: rank for rank, tag in reversed(list(enumerate(supported)))}


def choose_offer(wanted: LockedPackage, offers: Iterable[Offer], ranks: Mapping[Tag, int]) -> Offer | None:
    """The file that a host installs: its preferred wheel, else the source distribution; None if neither exists.

    Args:
        wanted: the package of the lock.
        offers: the files of its project.
        ranks: the result of :func:`wheel_tags`.
    """
    compatible = [
        (rank, offer) for offer in offers if offer.sha256 in wanted.sha256 and (rank := _rank(offer, ranks)) is not None
    ]
    return min(compatible, key=lambda ranked: (ranked[0], ranked[1].filename), default=(0, None))[1]


def _rank(offer: Offer, ranks: Mapping[Tag, int]) -> int | None:
    if not offer.filename.endswith(".whl"):
        return len(ranks) if offer.filename.endswith((".tar.gz", ".zip")) else None
    try:
        file_tags = parse_wheel_filename(offer.filename)[3]
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
    return min((ranks[tag] for tag in file_tags if tag in ranks), default=None)


def offer_artifact(offer: Offer) -> Artifact:
    """A file with its path in the mirror; the path contains the digest: two indexes may have two files of one name."""
    path = f"wheels/files/{offer.sha256[:2]}/{offer.sha256}/{offer.filename}"
    return Artifact(path, offer.sha256, offer.size, offer.url)


def index_pages(files: Mapping[str, str]) -> Mapping[str, str]:
    """The pages of the simple index for pip and uv: path in the mirror -> text.

    Args:
        files: path in the mirror -> SHA-256 of every file; other files than packages are ignored.
    """
    projects: dict[str, list[tuple[str, str, str]]] = {}
    for path, sha256 in sorted(files.items()):
        parts = PurePosixPath(path).parts
        if parts[:2] == ("wheels", "files"):
            name = parts[-1]
            projects.setdefault(_project(name), []).append((name, "/".join(parts[2:]), sha256))
    pages = {"wheels/simple/index.html": _page("Index", [(f"{name}/", name) for name in sorted(projects)])}
    for project, entries in projects.items():
        links = [(f"../../files/{place}#sha256={sha256}", name) for name, place, sha256 in entries]
        pages[f"wheels/simple/{project}/index.html"] = _page(project, links)
    return pages


def _project(filename: str) -> str:
    if filename.endswith(".whl"):
        return canonicalize_name(filename.split("-")[0])
    return canonicalize_name(re.sub(r"\.(tar\.gz|zip)$", "", filename).rsplit("-", 1)[0])


def _page(title: str, links: Sequence[tuple[str, str]]) -> str:
    body = "".join(f'<a href="{html.escape(target)}">{html.escape(text)}</a><br>\n' for target, text in links)
    return f"<!DOCTYPE html>\n<html><head><title>{html.escape(title)}</title></head><body>\n{body}</body></html>\n"
