"""Images in a mirror: files in the storage layout of a registry (Distribution, Debian's docker-registry).

The registry serves the folder as it is: nothing is pushed, and an image list keeps its digest although only the
platforms of the hosts are in the mirror.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import clean_text

#: The folder of the storage in a mirror.
FOLDER = "images"
LISTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
#: The registry of image names without a host.
PUBLIC = "registry-1.docker.io"
_ROOT = "docker/registry/v2"


_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_LIMIT_BYTES = 1 << 50


@dataclass(frozen=True)
class Blob:
    """The digest and size of one part of a manifest."""

    digest: str
    size: int

    @classmethod
    def from_descriptor(cls, record: object) -> Blob:
        """Reads a descriptor.

        Raises:
            FleetError: it has no SHA-256 digest or no size.
        """
        entry = record if isinstance(record, dict) else {}
        digest, size = str(entry.get("digest")), entry.get("size")
        if not _DIGEST.fullmatch(digest) or type(size) is not int or not 0 <= size < _LIMIT_BYTES:
            raise FleetError(
                f"a manifest has a part with the digest {clean_text(digest, 80)!r} and the size "
                f"{clean_text(str(size), 40)!r}",
                "choose another image",
                code=ErrorCode.REFUSED,
            )
        return cls(digest, size)


def blob_path(digest: str) -> str:
    """The path of a blob in the storage."""
    number = digest.removeprefix("sha256:")
    return f"{_ROOT}/blobs/sha256/{number[:2]}/{number}/data"


def link_path(repository: str, kind: str, digest: str) -> str:
    """The path of the file that links a blob into a repository; its text is the digest.

    Args:
        repository: the image's name.
        kind: ``_layers`` or ``_manifests/revisions``.
        digest: the digest of the blob.
    """
    return f"{_ROOT}/repositories/{repository}/{kind}/sha256/{digest.removeprefix('sha256:')}/link"


def locate_image(image: str, registry: str | None) -> tuple[str, str]:
    """The registry of an image (``host:port``), and the name of the image there.

    Args:
        image: its name, as for docker.
        registry: a registry that has it under this name; None derives the registry from the name.
    """
    if registry:
        return registry, image
    first, _, rest = image.partition("/")
    if rest and ("." in first or first == "localhost"):
        return first, rest
    return PUBLIC, image if rest else f"library/{image}"


def parse_manifest(body: bytes, digest: str, hint: str) -> Mapping[str, Any]:
    """Parses a manifest or an image list, after its digest is verified.

    Args:
        body: its bytes.
        digest: the expected digest.
        hint: the hint of the error for another digest.

    Raises:
        FleetError: it has another digest, or is neither a manifest nor an image list.
    """
    actual = hashlib.sha256(body).hexdigest()
    if digest != f"sha256:{actual}":
        raise FleetError(f"the manifest {digest} has the SHA-256 {actual}", hint, code=ErrorCode.WORK_FAILED)
    try:
        record = json.loads(body)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("manifests", record.get("layers")), list):
        raise FleetError(
            f"{digest} is not the manifest of an image",
            "give the digest of a manifest or of an image list",
            code=ErrorCode.WORK_FAILED,
        )
    return record


def select_platform(listed: Mapping[str, Any], platform: str) -> Blob | None:
    """The manifest of one platform in an image list; None for a manifest, which is no list.

    Args:
        listed: the result of :func:`parse_manifest`.
        platform: such as ``linux/amd64``.

    Raises:
        FleetError: the list has no manifest for the platform.
    """
    if "manifests" not in listed:
        return None
    manifests: dict[str, Blob] = {}
    for descriptor in listed["manifests"]:
        part = Blob.from_descriptor(descriptor)
        entry = descriptor.get("platform")
        known = entry if isinstance(entry, dict) else {}
        manifests.setdefault(clean_text(f"{known.get('os')}/{known.get('architecture')}", 80), part)
    if platform not in manifests:
        raise FleetError(
            f"the image has no manifest for {platform}, only for {', '.join(sorted(manifests))}",
            "give the digest of an image for the platform of the hosts in artifacts.images",
            code=ErrorCode.REFUSED,
        )
    return manifests[platform]


def image_blobs(manifest: Mapping[str, Any]) -> Iterator[Blob]:
    """The configuration and layers of an image, without duplicates.

    Raises:
        FleetError: it is an image list in an image list, or a part has no SHA-256 digest.
    """
    if not isinstance(manifest.get("layers"), list):
        raise FleetError(
            "an image list contains another image list",
            "give the digest of one image in artifacts.images",
            code=ErrorCode.REFUSED,
        )
    yield from dict.fromkeys(map(Blob.from_descriptor, (manifest.get("config", {}), *manifest["layers"])))


def repository_links(image: str, digest: str, platform: str, read: Callable[[str], bytes]) -> Iterator[tuple[str, str]]:
    """The link files that make a repository of blobs in the mirror: path in the mirror and text of each.

    Args:
        image: its name.
        digest: the digest of its manifest or of its image list.
        platform: the platform to select from an image list.
        read: reads a file of the mirror.

    Raises:
        FleetError: a manifest in the mirror does not have its digest.
    """
    hint = "run 'vllm-fleet mirror --verify', which downloads it again"
    manifest = parse_manifest(read(f"{FOLDER}/{blob_path(digest)}"), digest, hint)
    revisions = [digest]
    if selected := select_platform(manifest, platform):
        manifest = parse_manifest(read(f"{FOLDER}/{blob_path(selected.digest)}"), selected.digest, hint)
        revisions.append(selected.digest)
    for revision in revisions:
        yield f"{FOLDER}/{link_path(image, '_manifests/revisions', revision)}", revision
    for part in image_blobs(manifest):
        yield f"{FOLDER}/{link_path(image, '_layers', part.digest)}", part.digest


def registry_config(storage: str, listen: str) -> str:
    """The configuration of a read-only registry.

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
