"""The lab's image of the CPU engine, in the storage format of a registry: the hosts' Debian and the locked engine.

It stands in for a published image. Debian's docker-registry serves the folder, so nothing is pushed; docker verifies
the image when it pulls.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lab.artifacts import engine
from lab.artifacts.store import build_once, only_one, remove_unused, say
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.paths import cache_dir
from vllm_fleet.edge.uv import run_uv
from vllm_fleet.mirror import image_store

#: The Python of the hosts' Debian.
PYTHON = "3.11"
NAME = "vllm-fleet/lab"
_PACKAGES = "opt/vllm"
#: A change of the steps here needs a new number, and so a new image.
_STEPS = 2
_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
_PROGRAM = """\
#!/usr/bin/python3
import sys

from vllm.entrypoints.cli.main import main

# vLLM may start its engine as a new process that reads this file again.
if __name__ == "__main__":
    sys.exit(main())
"""


def storage() -> Path:
    """The storage of a registry with the image; built on the first call (minutes, about 3 GB)."""
    identity = f"{tree_digest()} {file_sha256(engine.lock_file())} {_STEPS}"
    target = cache_dir() / "images" / hashlib.sha256(identity.encode()).hexdigest()[:12]
    build_once("image", target, lambda folder: (folder / "digest").is_file(), _build)
    remove_unused(target)
    return target


def digest(folder: Path) -> str:
    """The digest of the image in a storage."""
    return (folder / "digest").read_text(encoding="utf-8").strip()


def variant(folder: Path, label: str) -> str:
    """Adds another image of the same layers, like a later build; returns its digest."""
    with only_one("image"):
        manifest = json.loads(blob(folder, digest(folder)).read_bytes())
        config = json.loads(blob(folder, manifest["config"]["digest"]).read_bytes())
        config["config"]["Labels"] = {"build": label}
        return add_image(folder, config, manifest["layers"])


def _build(folder: Path) -> None:
    say("building the image of the engine (minutes, once)")
    layers: list[dict[str, Any]] = []
    contents: list[str] = []
    scratch = folder / "scratch"
    _install(scratch / _PACKAGES)
    program = scratch / "usr" / "local" / "bin" / "vllm"
    write_atomically(program, _PROGRAM, 0o755)
    for root, exclude in ((ensure_tree(), ("./dev/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")), (scratch, ())):
        layer, content = add_layer(folder, root, exclude)
        layers.append(layer)
        contents.append(content)
    shutil.rmtree(scratch)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [f"PYTHONPATH=/{_PACKAGES}", "PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": contents},
        "history": [{"created_by": "lab/artifacts/image.py"} for _ in layers],
    }
    write_atomically(folder / "digest", add_image(folder, config, layers) + "\n")


def _install(target: Path) -> None:
    """Installs the engine's packages for the Python of the image, which may be missing on this machine."""
    target.mkdir(parents=True)
    # Of the packages of the lock, none is built here: all are wheels.
    run_uv(
        [
            *("pip", "install", "--quiet", "--target", str(target), "--no-deps", "--require-hashes"),
            *("--python-version", PYTHON, "--only-binary", ":all:", "--link-mode", "hardlink"),
            *("-r", str(engine.lock_file())),
        ],
        "installing the engine into the image",
    )
    alias = target / engine.ALIAS_FOLDER
    alias.mkdir()
    for name, text in engine.ALIAS_FILES.items():
        (alias / name).write_text(text)


def add_layer(folder: Path, root: Path, exclude: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """Packs a folder as a layer of a storage; returns its entry in a manifest, and the digest of its content."""
    command = [
        *("tar", "--create", "--sort=name", "--numeric-owner", f"--directory={root}"),
        *(f"--exclude={pattern}" for pattern in exclude),
        ".",
    ]
    content = hashlib.sha256()

    def write(stream: BinaryIO) -> None:
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as tar,
            gzip.GzipFile(filename="", mode="wb", fileobj=stream, compresslevel=1, mtime=0) as packed,
        ):
            assert tar.stdout is not None  # noqa: S101 - narrows a type
            while block := tar.stdout.read(1 << 20):
                content.update(block)
                packed.write(block)
        if tar.returncode:
            raise subprocess.CalledProcessError(tar.returncode, command)

    name, size = _add_blob(folder, write)
    return {"mediaType": _LAYER_TYPE, "size": size, "digest": name}, f"sha256:{content.hexdigest()}"


def add_image(folder: Path, config: Mapping[str, Any], layers: list[dict[str, Any]], repository: str = NAME) -> str:
    """Adds config and manifest to a repository of a storage; returns the digest of the image."""
    name, size = _add_text(folder, json.dumps(config, sort_keys=True))
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "size": size, "digest": name},
        "layers": layers,
    }
    image, _ = _add_text(folder, json.dumps(manifest, sort_keys=True))
    for part in (name, *(layer["digest"] for layer in layers)):
        link(folder, "_layers", part, repository)
    link(folder, "_manifests/revisions", image, repository)
    return image


def _add_text(folder: Path, text: str) -> tuple[str, int]:
    def write(stream: BinaryIO) -> None:
        stream.write(text.encode())

    return _add_blob(folder, write)


def _add_blob(folder: Path, write: Callable[[BinaryIO], None]) -> tuple[str, int]:
    """Writes a blob of a storage under its digest; returns digest and size."""
    draft = folder / f"blob.{os.getpid()}"
    with draft.open("wb") as stream:
        write(stream)
    name = f"sha256:{file_sha256(draft)}"
    size = draft.stat().st_size
    place = blob(folder, name)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft.rename(place)
    return name, size


def blob(folder: Path, name: str) -> Path:
    """The path of the blob with that digest in a storage."""
    return folder / image_store.blob_path(name)


def link(folder: Path, kind: str, name: str, repository: str = NAME) -> None:
    """Links a blob to a repository of a storage."""
    write_atomically(folder / image_store.link_path(repository, kind, name), name)
