"""A file in the fleet's folder, as a resource: written where it is missing or another one.

The state knows the file by its path below the folder of the inventories, never by the path of one checkout. Several
people, each with a checkout of their own, share a stack: each run writes the files that its own checkout lacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi import dynamic


class TextFileProvider(dynamic.ResourceProvider):
    """Writes atomically, and keeps a digest of the text in its outputs.

    The digest is in plain in the state. That gives nothing away: the secrets among the texts are generated keys, which
    cannot be guessed. The state keeps the name of this class, and of no function: a change of the code here is
    no difference of a stack.
    """

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Writes the file."""
        return dynamic.CreateResult(props["path"], _write(props))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Leaves the state as it is: that this checkout has no such file says nothing about the stack."""
        return dynamic.ReadResult(id_, props)

    def diff(self, _id: str, olds: dict[str, Any], news: dict[str, Any]) -> dynamic.DiffResult:
        """Compares with the file in this checkout. A state of before 0.1.0 has an absolute path, and is updated."""
        if not Path(olds["path"]).is_absolute() and olds["path"] != news["path"]:
            return dynamic.DiffResult(changes=True, replaces=["path"])
        return dynamic.DiffResult(changes=olds["path"] != news["path"] or not _is_written(news))

    def update(self, _id: str, _olds: dict[str, Any], news: dict[str, Any]) -> dynamic.UpdateResult:
        """Writes the file."""
        return dynamic.UpdateResult(_write(news))

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        """Removes the file from this checkout, and its empty folder; not a file that the stack did not write."""
        path = _path(props)
        if path is None or not path.is_file() or _digest(path.read_bytes()) != props["sha256"]:
            return
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def _path(props: dict[str, Any]) -> Path | None:
    """The file in this checkout; None for one in another checkout, which an old state may name."""
    from os.path import normpath

    from vllm_fleet.base.paths import absolute, inventories_dir

    folder = absolute(inventories_dir())
    # By its words: the folder of a fleet may be a link to another place.
    path = Path(normpath(folder / props["path"]))
    return path if path.is_relative_to(folder) else None


def _text(props: dict[str, Any]) -> Any:
    return props.get("meanwhile") or props["text"]


def _is_written(props: dict[str, Any]) -> bool:
    path, text = _path(props), _text(props)
    # In a preview the text may depend on resources that do not exist yet.
    if path is None or not isinstance(text, str) or not path.is_file():
        return False
    is_mode = path.stat().st_mode & 0o777 == int(props["mode"], 8)
    return is_mode and _digest(path.read_bytes()) == _digest(text.encode())


def _write(props: dict[str, Any]) -> dict[str, Any]:
    from vllm_fleet.base.atomic_files import write_atomically

    path = _path(props)
    if path is None:
        raise ValueError(f"{props['path']} is no path below the folder of the inventories")
    write_atomically(path, _text(props), int(props["mode"], 8))
    return {"path": props["path"], "mode": props["mode"], "sha256": _digest(props["text"].encode())}


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Content:
    """What a file contains.

    Attributes:
        text: a secret is encrypted in the state.
        mode: its permissions.
        meanwhile: what it contains until the resources that leave the stack in this run are gone; None: the text.
    """

    text: pulumi.Input[str]
    mode: int
    meanwhile: pulumi.Input[str] | None = None


class TextFile(dynamic.Resource, module="fleet", name="TextFile"):
    """A text file that the stack owns. ``destroy`` removes it from the checkout that runs it.

    Args:
        name: the resource's name.
        path: the path of the file, below the folder of the inventories.
        content: what it contains.
        opts: the options of the resource.
    """

    def __init__(self, name: str, path: Path, content: Content, opts: pulumi.ResourceOptions | None = None) -> None:
        props = {
            "path": path.as_posix(),
            "text": content.text,
            "mode": oct(content.mode),
            "meanwhile": content.meanwhile,
            "sha256": None,
        }
        super().__init__(TextFileProvider(), name, props, opts)
