"""Where the state of a stack is, and what is in it: a file is read in milliseconds, for the rest Pulumi is asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge.pulumi_cli import pulumi_output

#: Of the file of a state, with PULUMI_DIY_BACKEND_GZIP or PULUMI_DIY_BACKEND_ZSTD.
_COMPRESSED = (".gz", ".zst")


def folder(backend_url: str) -> Path | None:
    """The folder of a ``file://`` backend; None for other backends.

    Args:
        backend_url: as ``PULUMI_BACKEND_URL``; empty where ``pulumi login`` has noted the backend.
    """
    url = urlparse(backend_url)
    return paths.expand_user(unquote(f"{url.netloc}{url.path}")) / ".pulumi" if url.scheme == "file" else None


def deployment(backend_url: str, stack: str) -> Mapping[str, Any]:
    """The resources and the open operations of a stack, with its secrets encrypted; empty where there is no stack.

    Args:
        backend_url: as for :func:`folder`.
        stack: the stack's name.

    Raises:
        FleetError: ``pulumi`` failed.
    """
    backend = folder(backend_url)
    if backend is None:
        return _exported(stack)
    file = _file(backend, stack)
    if _is_compressed(file):
        return _exported(stack)
    if not file.is_file():
        return {}
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("checkpoint", {}).get("latest") or {}
    return found


def check_stack(backend_url: str, stack: str) -> None:
    """Refuses a name that no stack in a folder has; of another backend, Pulumi says it with each command.

    Args:
        backend_url: as for :func:`folder`.
        stack: the stack's name.

    Raises:
        FleetError: there is no such stack.
    """
    backend = folder(backend_url)
    if backend and not (file := _file(backend, stack)).is_file() and not _is_compressed(file):
        hint = "'pulumi stack ls --all' shows those that are there"
        raise FleetError(f"there is no stack {stack!r} in {backend_url}", hint)


def _file(backend: Path, stack: str) -> Path:
    return backend / "stacks" / _project() / f"{stack}.json"


def _is_compressed(file: Path) -> bool:
    return any(file.with_name(f"{file.name}{suffix}").is_file() for suffix in _COMPRESSED)


def _exported(stack: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(pulumi_output("stack", "export", "--stack", stack)).get("deployment") or {}
    return found


def _project() -> str:
    return str(yaml_document.read(paths.root() / "Pulumi.yaml").data["name"])
