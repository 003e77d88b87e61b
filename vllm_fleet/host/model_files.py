"""The files of a model with their digests, from the lists that the controller has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from vllm_fleet.base import paths, text_files, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import model_file_fault
from vllm_fleet.host.adopted_model import AdoptedModel
from vllm_fleet.schema.model_lists import ModelList
from vllm_fleet.schema.recipe import Weights

#: Files that vLLM does not read; a folder that a program has filled may lack them.
DOCUMENTS = frozenset({"LICENSE", "NOTICE", "README.md", "USAGE_POLICY"})
#: The list of a folder, beside its files.
LIST = "model.json"
#: What a user's own list is made by.
_MAKE = "run 'sha256sum *' in the model's folder"
_SUM_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>.+)")


class FileDigest(NamedTuple):
    """A file's SHA-256, and its length in bytes; 0 where the list does not have it."""

    sha256: str
    size: int = 0


@dataclass(frozen=True)
class Download:
    """Where each host downloads a model itself.

    Attributes:
        url: the folder of the files.
        ca: the authority of the server's certificate, PEM; empty: the host's trust store.
        token_file: the file with the hub's token on the controller; None: no token.
    """

    url: str
    ca: str = ""
    token_file: Path | None = None


@dataclass(frozen=True)
class ModelFiles:
    """One revision of a model.

    Attributes:
        directory: its folder on the controller; empty where the controller has none.
        revision: the commit at the hub, or a digest of the list.
        sha256: file name -> SHA-256.
        sizes: file name -> bytes, as far as they are known.
        digests_from: who says that these are the digests, for people.
        adopted: where it is on the hosts already; None: they get files.
        download: where the hosts download it themselves; None: from the mirror or the controller.
    """

    directory: Path
    revision: str
    sha256: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    digests_from: str = ""
    adopted: AdoptedModel | None = None
    download: Download | None = None

    @property
    def bytes(self) -> int:
        """The sum of the known sizes."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class DigestList:
    """A list of digests, and the commit that it is of; None where the list does not say."""

    files: Mapping[str, FileDigest]
    revision: str | None
    source: str

    @property
    def own_revision(self) -> str:
        """A name for what is in the list: the commit, else a digest of the list."""
        text = "".join(f"{digest.sha256}  {name}\n" for name, digest in sorted(self.files.items()))
        return self.revision or hashlib.sha256(text.encode()).hexdigest()[:40]


@cache
def model_files(directory: Path) -> ModelFiles:
    """Reads ``model.json`` of a folder; each host verifies the files after the copy.

    Raises:
        FleetError: the list is missing or wrong.
    """
    file = directory / LIST
    hint = (
        "'make setup' writes the lab's, 'vllm-fleet mirror' writes the hub's; for a folder of yours give 'digests', a "
        "file made by 'sha256sum *'"
    )
    listed = _read_model_list(file, hint)
    if listed.revision is None or not re.fullmatch(r"[\w][\w.-]*", listed.revision):
        raise FleetError(f"names {listed.revision!r}, which is not a plain file name", "", paths.display(file))
    return ModelFiles(
        paths.absolute(directory),
        listed.revision,
        {name: digest.sha256 for name, digest in listed.files.items()},
        {name: digest.size for name, digest in listed.files.items()},
        listed.source,
    )


def recipe_digests(weights: Weights) -> DigestList | None:
    """The digests in a recipe; None where it has none."""
    if not weights.files:
        return None
    files = {name: FileDigest(sha256, size) for name, (size, sha256) in weights.files.items()}
    return DigestList(files, weights.revision, f"the recipe ({weights.files_as_of})")


def read_digests(file: Path) -> DigestList:
    """A list of a user: the output of ``sha256sum``, or a ``model.json``.

    Files in folders below and files whose names begin with a dot are left out: vLLM reads none of them.

    Raises:
        FleetError: it cannot be read, or a line is not of this form; with the line.
    """
    try:
        text = text_files.read_text(file)
    except FleetError as fault:
        raise _no_list(fault, _MAKE) from None
    if text.lstrip().startswith("{"):
        hint = f"{_MAKE}, or give a model.json: 'revision', and below 'files' the 'sha256' of each file by its name"
        return _complete(_read_model_list(file, hint), file)
    files: dict[str, FileDigest] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not (match := _SUM_LINE.fullmatch(line)):
            raise FleetError("is not a line of 'sha256sum'", _MAKE, paths.display(file), number)
        name = match["name"].removeprefix("./")
        if ".." in name.split("/") or name.startswith("/"):
            raise FleetError(
                f"{name!r} leads out of the model's folder", "run 'sha256sum *' in it", paths.display(file), number
            )
        if "/" in name or name.startswith("."):
            continue
        _refuse_name(name, file, number)
        if name in files:
            raise FleetError(f"lists {name!r} twice", "remove one line", paths.display(file), number)
        files[name] = FileDigest(match["digest"])
    files.pop(LIST, None)
    return _complete(DigestList(files, None, f"your own list {file.name}"), file)


def _read_model_list(file: Path, hint: str) -> DigestList:
    """A ``model.json``.

    Args:
        file: the file.
        hint: what to do where it is not one.

    Raises:
        FleetError: it is not one, or a name or a digest in it is wrong; with the line.
    """
    try:
        document = yaml_document.read_json(file)
        listed = yaml_document.parse(document, ModelList)
    except FleetError as fault:
        raise _no_list(fault, hint) from None
    for name, entry in listed.files.items():
        at = ("files", name)
        _refuse_name(name, file, document.line(at))
        if not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
            raise document.error(
                (*at, "sha256"), f"the SHA-256 of {name!r} is {entry.sha256!r}", "it has 64 hexadecimal digits"
            )
    files = {name: FileDigest(entry.sha256, entry.size or 0) for name, entry in listed.files.items()}
    return DigestList(files, listed.revision, f"your own list {file.name}")


def _no_list(fault: FleetError, hint: str) -> FleetError:
    """The error of a file that is not a list, with those found with it."""
    for error in (fault, *fault.others):
        error.message, error.hint = f"is not a list of a model's files: {error.message}", hint
    return fault


def _refuse_name(name: str, file: Path, line: int | None) -> None:
    if fault := model_file_fault(name):
        raise FleetError(fault, "list only the files that vLLM reads", paths.display(file), line)


def _complete(listed: DigestList, file: Path) -> DigestList:
    lacks = [name for name in ("config.json",) if name not in listed.files]
    if not any(name.endswith(".safetensors") for name in listed.files):
        lacks.append("a .safetensors file")
    if lacks:
        raise FleetError(f"lists no {' and no '.join(lacks)}", _MAKE, paths.display(file))
    return listed
