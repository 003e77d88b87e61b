"""Images in a mirror: the storage of a registry (Distribution, Debian's docker-registry), as files with digests.

The registry serves the folder as it is, so nothing is pushed, and a list of platforms keeps its digest though only the
platforms that hosts have are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import FleetError

#: The storage in a mirror's folder.
FOLDER = "images"
LISTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
#: Where the names of images without a host are.
PUBLIC = "registry-1.docker.io"
_ROOT = "docker/registry/v2"


_DIGEST = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Blob:
    """What a manifest says of one of its parts."""

    digest: str
    size: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Blob:
        """Reads a descriptor.

        Raises:
            FleetError: it has another kind of digest than registries name files by.
        """
        digest, size = str(record.get("digest")), record.get("size")
        if not _DIGEST.fullmatch(digest) or not isinstance(size, int):
            raise FleetError(f"a manifest names {digest!r} of {size!r} bytes", "choose another image", code="refused")
        return cls(digest, size)


def blob(digest: str) -> str:
    """The place in a storage of what has that digest."""
    number = digest.removeprefix("sha256:")
    return f"{_ROOT}/blobs/sha256/{number[:2]}/{number}/data"


def link(repository: str, kind: str, digest: str) -> str:
    """The place of the file that lets a repository have a blob, whose text is the digest.

    Args:
        repository: the image's name.
        kind: ``_layers``, or ``_manifests/revisions``.
        digest: of the blob.
    """
    return f"{_ROOT}/repositories/{repository}/{kind}/sha256/{digest.removeprefix('sha256:')}/link"


def home(image: str, registry: str | None) -> tuple[str, str]:
    """Which registry has an image, as ``host:port``, and the name that it has there.

    Args:
        image: its name, as docker reads it.
        registry: one that has it under that very name.
    """
    if registry:
        return registry, image
    first, _, rest = image.partition("/")
    if rest and ("." in first or first == "localhost"):
        return first, rest
    return PUBLIC, image if rest else f"library/{image}"


def parse(body: bytes, digest: str, hint: str) -> Mapping[str, Any]:
    """Reads a manifest or a list of them.

    Args:
        body: its bytes.
        digest: what was asked for.
        hint: what to do where they are others.

    Raises:
        FleetError: it does not have its digest, or is neither.
    """
    seen = hashlib.sha256(body).hexdigest()
    if digest != f"sha256:{seen}":
        raise FleetError(f"the manifest {digest} has the SHA-256 {seen}", hint, code="work-failed")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("manifests", found.get("layers")), list):
        raise FleetError(
            f"{digest} is no manifest of an image",
            "give the digest of a manifest or of a list of them",
            code="work-failed",
        )
    return found


def of_platform(listed: Mapping[str, Any], platform: str) -> Blob | None:
    """The manifest of one platform in a list; None for what is no list.

    Args:
        listed: what :func:`parse` gave.
        platform: such as ``linux/amd64``.

    Raises:
        FleetError: the list does not have it.
    """
    if "manifests" not in listed:
        return None
    known: dict[str, Blob] = {}
    for each in listed["manifests"]:
        own = each.get("platform") or {}
        known.setdefault(f"{own.get('os')}/{own.get('architecture')}", Blob.of(each))
    if platform not in known:
        raise FleetError(
            f"the image is not there for {platform}, only for {', '.join(sorted(known))}",
            "give the digest of an image for the hosts' machines in artifacts.images",
            code="refused",
        )
    return known[platform]


def blobs(manifest: Mapping[str, Any]) -> Iterator[Blob]:
    """Configuration and layers of an image, each once.

    Raises:
        FleetError: it is a list of lists, or names its parts as registries do not.
    """
    if "layers" not in manifest:
        raise FleetError(
            "a list of platforms names another list", "give the digest of one image in artifacts.images", code="refused"
        )
    yield from dict.fromkeys(Blob.of(each) for each in (manifest.get("config", {}), *manifest["layers"]))


def links(image: str, digest: str, platform: str, read: Callable[[str], bytes]) -> Iterator[tuple[str, str]]:
    """What makes a repository of blobs that are there: places in the mirror with their texts.

    Args:
        image: its name.
        digest: of its manifest, or of a list of them.
        platform: which of the list.
        read: gives a file of the mirror.

    Raises:
        FleetError: a manifest is not what it was.
    """
    hint = "run 'vllm-fleet mirror --verify', which fetches it again"
    manifest = parse(read(f"{FOLDER}/{blob(digest)}"), digest, hint)
    revisions = [digest]
    if one := of_platform(manifest, platform):
        manifest = parse(read(f"{FOLDER}/{blob(one.digest)}"), one.digest, hint)
        revisions.append(one.digest)
    for each in revisions:
        yield f"{FOLDER}/{link(image, '_manifests/revisions', each)}", each
    for part in blobs(manifest):
        yield f"{FOLDER}/{link(image, '_layers', part.digest)}", part.digest


def config(storage: str, listen: str) -> str:
    """The configuration of a registry that serves a storage and takes nothing.

    Args:
        storage: the folder.
        listen: address and port.
    """
    settings = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "filesystem": {"rootdirectory": storage},
            "maintenance": {"readonly": {"enabled": True}, "uploadpurging": {"enabled": False}},
        },
        "http": {"addr": listen, "headers": {"X-Content-Type-Options": ["nosniff"]}},
    }
    # JSON is YAML.
    return json.dumps(settings, indent=2) + "\n"
