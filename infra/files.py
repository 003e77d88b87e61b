"""A file on the machine that runs Pulumi, as a resource: written again when it is changed or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
from pulumi import dynamic


class TextFileProvider(dynamic.ResourceProvider):
    """Writes atomically, reads the file itself, and keeps only a digest of the text in its outputs."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Writes the file."""
        return dynamic.CreateResult(props["path"], self._write(props))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Reads the file as it is now."""
        path = Path(props["path"])
        if not path.is_file():
            return dynamic.ReadResult("", {})
        mode = oct(path.stat().st_mode & 0o777)
        return dynamic.ReadResult(id_, {"path": str(path), "mode": mode, "sha256": _digest(path.read_bytes())})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Replaces the resource for another path; updates it for another text or mode."""
        replaces = ["path"] if _olds["path"] != _news["path"] else []
        text = _news["text"]
        # In a preview the text may depend on resources that do not exist yet.
        known = isinstance(text, str) and (_news["mode"], _digest(text.encode())) == (_olds["mode"], _olds["sha256"])
        changes = bool(replaces) or not known
        return dynamic.DiffResult(changes=changes, replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Writes the file."""
        return dynamic.UpdateResult(self._write(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Removes the file, and its folder when that is empty."""
        path = Path(_props["path"])
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()

    @staticmethod
    def _write(props: dict[str, Any]) -> dict[str, Any]:
        from vllm_fleet.base.atomic_files import write_atomically

        write_atomically(Path(props["path"]), props["text"], int(props["mode"], 8))
        return {"path": props["path"], "mode": props["mode"], "sha256": _digest(props["text"].encode())}


def _digest(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


class TextFile(dynamic.Resource, module="fleet", name="TextFile"):
    """A text file that the stack owns.

    Args:
        name: the resource's name.
        path: the path of the file.
        text: its content; a secret is encrypted in the state.
        mode: its permissions.
        opts: the options of the resource.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        text: pulumi.Input[str],
        mode: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        props = {"path": str(path.resolve()), "text": text, "mode": oct(mode), "sha256": None}
        super().__init__(TextFileProvider(), name, props, opts)
