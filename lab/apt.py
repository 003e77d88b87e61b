"""A signed apt repository of stand-in packages, for vendors' archives that the lab cannot reach.

A stand-in has the name, the version and the relations of the real package, and none of its content. It needs only
dpkg-deb and gpg.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import shell
from lab.rootfs import File, write_files


@dataclass(frozen=True)
class Package:
    """One stand-in.

    Attributes:
        name: its name.
        version: its Debian version.
        files: path on the host -> file.
        relations: further fields, such as ``Depends``.
    """

    name: str
    version: str
    files: Mapping[str, File] = field(default_factory=dict)
    relations: Mapping[str, str] = field(default_factory=dict)


def build(folder: Path, packages: Iterable[Package]) -> Path:
    """Creates a flat repository, signed with a new key; the private key is deleted after that.

    Args:
        folder: the folder of the repository; its content is replaced.
        packages: its packages; it may have several versions of one package.

    Returns:
        The public key.

    Raises:
        FleetError: dpkg-deb or gpg is missing or failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not the folder itself: hosts may have it mounted.
    for old in folder.iterdir():
        old.unlink()
    folder.chmod(0o755)
    index = "\n".join(_add(folder, package) for package in packages)
    (folder / "Packages").write_text(index, encoding="utf-8")
    release = (
        f"Label: stand-ins\nSHA256:\n {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    )
    (folder / "Release").write_text(f"Date: Thu, 01 Jan 2026 00:00:00 UTC\n{release}", encoding="utf-8")
    return _sign(folder)


def _add(folder: Path, package: Package) -> str:
    fields = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": "all",
        "Maintainer": "the lab <lab@localhost>",
        "Description": "stand-in of the lab; it has no content of the real package",
        **package.relations,
    }
    control = "".join(f"{name}: {value}\n" for name, value in fields.items())
    file = folder / f"{package.name}_{package.version.replace(':', '_')}_all.deb"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        write_files(root, {**package.files, "DEBIAN/control": File(control)})
        shell.run("dpkg-deb", "--root-owner-group", "-Znone", "--build", root, file)
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return f"{control}Filename: ./{file.name}\nSize: {len(content)}\nSHA256: {digest}\n"


def _sign(folder: Path) -> Path:
    key = folder / "key.asc"
    # A short path: gpg's agent listens on a socket in it.
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        gpg = ("gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", "")
        shell.run(*gpg, "--quick-generate-key", "stand-ins", "ed25519", "sign", "never")
        key.write_text(shell.run(*gpg, "--armor", "--export"), encoding="utf-8")
        shell.run(*gpg, "--clearsign", "--output", folder / "InRelease", folder / "Release")
        shell.run("gpgconf", "--homedir", home, "--kill", "all")
    return key
