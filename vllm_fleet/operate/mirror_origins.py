"""The origin of each kind of part: the list of its files, and their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_fleet.base import paths
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import InvariantError
from vllm_fleet.edge import apt, download, hub, package_index, registry
from vllm_fleet.edge.download import Fetched, Progress
from vllm_fleet.host.model_files import model_files
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.parts import Encoding, Image, Model, Need, Wheels
from vllm_fleet.mirror.store import Artifact, Store


def list_files(need: Need, token: str | None) -> list[Artifact]:
    """Lists the files of a part by its origin.

    Args:
        need: the part.
        token: the token of the hub.

    Raises:
        FleetError: the origin cannot be reached or does not have the part.
    """
    if isinstance(need, Wheels):
        return package_index.list_files(need)
    if isinstance(need, Debs):
        return apt.list_files(need, paths.cache_dir() / "mirror-apt" / f"{need.distribution}-{need.architecture}")
    if isinstance(need, Encoding):
        return [_encoding_file(need)]
    if isinstance(need, Model):
        return _folder_files(need) if need.folder else hub.list_files(need, token)
    return registry.list_files(need)


def _encoding_file(need: Encoding) -> Artifact:
    local_copy = need.folder / need.name if need.folder else None
    if local_copy and local_copy.is_file() and file_sha256(local_copy) == need.sha256:
        return Artifact(f"encodings/{need.name}", need.sha256, local_copy.stat().st_size, str(local_copy))
    return Artifact(f"encodings/{need.name}", need.sha256, download.fetch_length(need.url), need.url)


def _folder_files(need: Model) -> list[Artifact]:
    folder = need.folder
    if folder is None:
        raise InvariantError(f"{need.name} has no folder")
    return [
        Artifact(f"{need.path}/{name}", sha256, (folder / name).stat().st_size, str(folder / name))
        for name, sha256 in model_files(folder).sha256.items()
    ]


def fetch_files(
    need: Need, artifacts: Sequence[Artifact], store: Store, token: str | None, count: Progress
) -> Mapping[str, Fetched]:
    """Fetches files of a part to their places in the mirror; verifies each one and resumes partial downloads.

    Raises:
        FleetError: a file cannot be fetched, or has another digest.
    """
    if isinstance(need, Model) and need.folder is None:
        return hub.fetch_files(need, artifacts, store.place(need.path), token, count) if artifacts else {}
    access = registry.image_access(need) if isinstance(need, Image) else download.Access()
    return download.fetch_files([(artifact, store.place(artifact.path)) for artifact in artifacts], count, access)
