"""A file on the machine that runs Pulumi, as a resource: a changed or missing one is written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
from pulumi import dynamic


class TextFileProvider(dynamic.ResourceProvider):
    """Writes in one step, reads the truth from the disk, keeps only a digest of the text in its outputs."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Writes the file."""
        return dynamic.CreateResult(props["path"], self._write(props))

    def read(self, id_: str, props: dict[str, Any]) -> dynamic.ReadResult:
        """Looks at the file as it is now."""
        path = Path(props["path"])
        if not path.is_file():
            return dynamic.ReadResult("", {})
        mode = oct(path.stat().st_mode & 0o777)
        return dynamic.ReadResult(id_, {"path": str(path), "mode": mode, "sha256": _digest(path.read_bytes())})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Another path is another file; another text or mode is written in place."""
        replaces = ["path"] if _olds["path"] != _news["path"] else []
        text = _news["text"]
        # In a preview the text may hang on what is not made yet.
        known = isinstance(text, str) and (_news["mode"], _digest(text.encode())) == (_olds["mode"], _olds["sha256"])
        changes = bool(replaces) or not known
        return dynamic.DiffResult(changes=changes, replaces=replaces)

    def update(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.UpdateResult:
        """Writes the file."""
        return dynamic.UpdateResult(self._write(_news))

    def delete(self, _id: str, _props: dict[str, Any]) -> None:
        """Removes the file, and its folder where nothing else is in it."""
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
        path: where it is, absolute.
        text: its content; where that is a secret, it is encrypted in the state.
        mode: its permissions.
        opts: as for every resource.
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
