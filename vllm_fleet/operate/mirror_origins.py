"""Where each kind of part comes from: what it is made of, and its bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import apt, download, hub, package_index, registry
from vllm_fleet.edge.download import Fetched, Progress
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.parts import Encoding, Image, Model, Need, Wheels
from vllm_fleet.mirror.store import Artifact, Store


def listing(need: Need, token: str | None) -> list[Artifact]:
    """Asks the origin of a part for its files.

    Args:
        need: the part.
        token: the hub's.

    Raises:
        FleetError: the origin cannot be reached or does not have it.
    """
    if isinstance(need, Wheels):
        return package_index.list_files(need)
    if isinstance(need, Debs):
        return apt.list_files(need, paths.cache_dir() / "mirror-apt" / f"{need.distribution}-{need.architecture}")
    if isinstance(need, Encoding):
        return [_encoding(need)]
    if isinstance(need, Model):
        return _folder(need) if need.folder else hub.list_files(need, token)
    return registry.list_files(need)


def _encoding(need: Encoding) -> Artifact:
    copy_here = need.folder / need.name if need.folder else None
    if copy_here and copy_here.is_file() and download.file_sha256(copy_here) == need.sha256:
        return Artifact(f"encodings/{need.name}", need.sha256, copy_here.stat().st_size, str(copy_here))
    return Artifact(f"encodings/{need.name}", need.sha256, download.fetch_length(need.url), need.url)


def _folder(need: Model) -> list[Artifact]:
    folder = need.folder
    if folder is None:
        raise FleetError(f"{need.name} has no folder")
    data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return [
        Artifact(f"{need.path}/{name}", entry["sha256"], (folder / name).stat().st_size, str(folder / name))
        for name, entry in data["files"].items()
    ]


def fetch(
    need: Need, artifacts: Sequence[Artifact], store: Store, token: str | None, count: Progress
) -> Mapping[str, Fetched]:
    """Fetches files of a part to their places in the mirror; verified, resumed.

    Raises:
        FleetError: a file cannot be had, or not with its digest.
    """
    if isinstance(need, Model) and need.folder is None:
        return hub.fetch_files(need, artifacts, store.place(need.path), token, count) if artifacts else {}
    access = registry.image_access(need) if isinstance(need, Image) else download.Access()
    return download.fetch_files([(artifact, store.place(artifact.path)) for artifact in artifacts], count, access)
