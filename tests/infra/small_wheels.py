"""Wheels that pip and uv take, made from a few lines of text."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence


def pack(file: str, content: Mapping[str, str | bytes], needs: Sequence[str] = (), scripts: str = "") -> bytes:
    """A wheel; the same arguments give the same bytes.

    Args:
        file: its name, which says project, version and tag.
        content: path -> file.
        needs: what it requires.
        scripts: the text of its ``entry_points.txt``.
    """
    name, version, tag = file.removesuffix(".whl").split("-", 2)
    info = f"{name}-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        **content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
        **({f"{info}/entry_points.txt": scripts} if scripts else {}),
    }
    bodies = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
    lines = []
    for path, body in bodies.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")
        lines.append(f"{path},sha256={digest},{len(body)}\n")
    bodies[f"{info}/RECORD"] = "".join([*lines, f"{info}/RECORD,,\n"]).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, body in bodies.items():
            archive.writestr(zipfile.ZipInfo(path), body)
    return out.getvalue()
