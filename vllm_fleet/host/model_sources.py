"""fleet.yml and recipes -> where each model comes from, and the digests that its files must have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vllm_fleet.base import certificates, paths, yaml_document
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.secret_files import read_secret
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host.adopted_model import AdoptedModel
from vllm_fleet.host.host_paths import model_folder
from vllm_fleet.host.model_files import (
    DOCUMENTS,
    LIST,
    DigestList,
    Download,
    FileDigest,
    ModelFiles,
    model_files,
    read_digests,
    recipe_digests,
)
from vllm_fleet.schema.model_lists import ModelLock
from vllm_fleet.schema.model_source import ModelSource

#: Where models come from that a fleet does not name.
DEFAULT = ModelSource(hub="mirror")
HUB = "https://huggingface.co"
#: The digests that 'vllm-fleet lock' has asked the hub for, in the fleet's folder.
LOCK = "models.lock.json"
#: The choices, for messages.
CHOICES = (
    "run 'vllm-fleet mirror --fleet {fleet}' to download it from the hub once; or give artifacts.models.{model} a "
    "source: a folder on the controller, 'hub: hosts', 'on_host', 'huggingface_cache' or 'url' (docs/models.md)"
)


def model_source(plan: Plan, name: str) -> ModelSource:
    """The source of a model: what fleet.yml says, else the hub through the mirror of the controller."""
    return plan.spec.artifacts.models.get(name, DEFAULT)


def is_fetched_by_controller(source: ModelSource) -> bool:
    """Whether the controller has the files and gives them to the hosts or to the mirror."""
    return source.controller is not None or source.hub == "mirror"


def served_models(plan: Plan) -> tuple[str, ...]:
    """The models that the hosts of a plan serve."""
    return tuple(sorted({host.deployment.model for host in plan.hosts if host.deployment}))


def known_digests(plan: Plan, catalog: Catalog, name: str) -> DigestList | None:
    """The digests of a model, from another place than its files; None where they are unknown.

    The order: the list that fleet.yml names, the fleet's lock, the recipe.

    Raises:
        FleetError: a list cannot be read, or is wrong.
    """
    source = model_source(plan, name)
    weights = catalog.model(name).weights
    recipe = recipe_digests(weights) if weights else None
    if source.digests:
        hint = f"run 'sha256sum *' in the folder of {name} and write its output there"
        listed = _read_list(plan, name, plan.artifact(f"models.{name}", source.digests, hint))
        if recipe and _agrees(listed, recipe):
            return replace(listed, revision=recipe.revision, source=f"{listed.source}, which agrees with the recipe")
        return listed
    wanted = source.revision or (weights.revision if weights else None)
    if (locked := read_lock(plan).get(name)) and wanted in (None, locked.revision):
        return locked
    return recipe if recipe and wanted == recipe.revision else None


def _read_list(plan: Plan, name: str, file: Path) -> DigestList:
    """The list of a user. What cannot be read at all has no line: the error names that of fleet.yml."""
    try:
        return read_digests(file)
    except FleetError as fault:
        if fault.line is None:
            raise plan.document.error_about(("artifacts", "models", name, "digests"), fault) from None
        raise


def _agrees(listed: DigestList, recipe: DigestList) -> bool:
    """Whether a list has every file of the recipe that vLLM reads, with the same digest."""
    digests = {name: digest.sha256 for name, digest in listed.files.items()}
    return all(digests.get(name) == digest.sha256 for name, digest in recipe.files.items() if name not in DOCUMENTS)


def pinned_revision(plan: Plan, catalog: Catalog, name: str) -> str:
    """The commit of a model at the hub.

    Raises:
        FleetError: neither fleet.yml nor the recipe pins one.
    """
    weights = catalog.model(name).weights
    revision = model_source(plan, name).revision or (weights.revision if weights else None)
    if revision is None:
        raise plan.document.error(
            ("artifacts", "models", name) if name in plan.spec.artifacts.models else ("artifacts", "models"),
            f"has no copy of {name!r}, and its recipe pins no revision",
            "give the folder that holds its files, or 'revision', a commit at the hub",
        )
    return revision


def host_model(plan: Plan, catalog: Catalog, name: str) -> ModelFiles:
    """A model that the hosts have or download themselves.

    Raises:
        FleetError: its digests or its revision are not known, or a file that fleet.yml names is missing or wrong.
    """
    source = model_source(plan, name)
    at = ("artifacts", "models", name)
    listed = known_digests(plan, catalog, name)
    if listed is None:
        hint = (
            "give 'controller', a folder on this machine with a model.json; or 'on_host', a folder on the hosts, with "
            "'digests', a file made by 'sha256sum *' in it"
        )
        if source.revision or catalog.model(name).weights:
            hint = (
                f"run 'vllm-fleet lock --fleet {plan.fleet}' where the hub can be reached, or give 'digests', a file "
                "made by 'sha256sum *' in the model's folder"
            )
        raise plan.document.error(at, f"the digests of {name} are unknown: its recipe has none", hint)
    files = listed.files
    if source.hub is None:
        files = {file: digest for file, digest in files.items() if file not in DOCUMENTS}
    adopted = download = None
    if source.on_host:
        adopted = AdoptedModel(name, source.on_host, "", source.mount or "")
    elif source.huggingface_cache:
        tree = f"{source.huggingface_cache}/models--{model_folder(name)}"
        inside = f"snapshots/{pinned_revision(plan, catalog, name)}"
        adopted = AdoptedModel(name, tree, inside, source.mount or "")
    else:
        download = _download(plan, catalog, name, source)
    return ModelFiles(
        directory=Path(),
        revision=listed.own_revision,
        sha256={file: digest.sha256 for file, digest in files.items()},
        sizes={file: digest.size for file, digest in files.items()},
        digests_from=listed.source,
        adopted=adopted,
        download=download,
    )


def _download(plan: Plan, catalog: Catalog, name: str, source: ModelSource) -> Download:
    key = f"models.{name}"
    ca = _read_authority(plan, name, source.ca_file) if source.ca_file else ""
    if source.url:
        return Download(source.url, ca)
    token = plan.artifact(key, source.token_file, "write the hub's token into it") if source.token_file else None
    if token:
        read_secret(token, "the hub's token")
    revision = pinned_revision(plan, catalog, name)
    return Download(f"{source.endpoint or HUB}/{name}/resolve/{revision}", ca, token)


def _read_authority(plan: Plan, name: str, given: str) -> str:
    file = plan.artifact(f"models.{name}", given, "correct the path")
    try:
        return certificates.read_authority(file)
    except FleetError as fault:
        raise plan.document.error_about(("artifacts", "models", name, "ca_file"), fault) from None


def find_wrong_files(plan: Plan) -> Iterator[FleetError]:
    """What is wrong with the files of models that are there: the lock, lists of digests, authorities."""
    checks: list[Callable[[], object]] = [lambda: read_lock(plan)]
    for name, source in plan.spec.artifacts.models.items():
        digests, ca_file, folder = source.digests, source.ca_file, source.controller
        if digests and paths.is_there(plan.artifact_path(digests)):
            checks.append(partial(_read_list, plan, name, plan.artifact_path(digests)))
        if ca_file and paths.is_there(plan.artifact_path(ca_file)):
            checks.append(partial(_read_authority, plan, name, ca_file))
        if folder and paths.is_there(plan.artifact_path(folder) / LIST):
            checks.append(partial(model_files, plan.artifact_path(folder)))
    for check in checks:
        try:
            check()
        except FleetError as fault:
            yield from (fault, *fault.others)


def confirm_digests(files: ModelFiles, known: DigestList | None) -> ModelFiles:
    """The files of a folder of the controller, after a comparison with digests from elsewhere.

    Raises:
        FleetError: the folder says that it has the revision, and a file has another digest.
    """
    if known is None or known.revision != files.revision:
        return files
    for name, digest in sorted(known.files.items()):
        if files.sha256.get(name, digest.sha256) != digest.sha256:
            raise FleetError(
                f"{name} has the SHA-256 {files.sha256[name]}, but {known.source} has {digest.sha256} for the revision "
                f"{files.revision}",
                "the folder is damaged or holds another model: fetch it again",
                paths.display(files.directory / "model.json"),
            )
    return replace(files, digests_from=known.source)


def read_lock(plan: Plan) -> Mapping[str, DigestList]:
    """The digests that the fleet has locked: model -> list.

    Raises:
        FleetError: the file is not a lock.
    """
    file = plan.directory / LOCK
    if not os.path.lexists(file):
        return {}
    try:
        document = yaml_document.read_json(file)
        if not isinstance(document.data, dict):
            raise document.error((), "is not a lock of models")
        lock = yaml_document.parse(document, ModelLock)
    except FleetError as fault:
        for error in (fault, *fault.others):
            error.hint = f"remove it and run 'vllm-fleet lock --fleet {plan.fleet}'"
        raise
    return {
        name: DigestList(
            {path: FileDigest(row.sha256, row.bytes) for path, row in entry.files.items()},
            entry.revision,
            f"the hub, by {LOCK} ({entry.as_of})",
        )
        for name, entry in lock.models.items()
    }


def write_lock(plan: Plan, digests: Mapping[str, DigestList], as_of: str) -> Path:
    """Writes the fleet's lock.

    Args:
        plan: the fleet.
        digests: model -> its files.
        as_of: the date on which the hub was asked.

    Returns:
        The file.
    """
    models = {
        name: {
            "revision": listed.revision,
            "as_of": as_of,
            "files": {file: {"bytes": row.size, "sha256": row.sha256} for file, row in sorted(listed.files.items())},
        }
        for name, listed in sorted(digests.items())
    }
    file = plan.directory / LOCK
    write_atomically(file, json.dumps({"version": 1, "models": models}, indent=1) + "\n")
    return file


@dataclass(frozen=True)
class ModelReport:
    """One model of a plan, for people.

    Attributes:
        model: its name.
        source: where it comes from, in words.
        digests: who says what its digests are.
        bytes: its size; 0: not known.
        moves: how many bytes cross a network or are copied, for all hosts that serve it.
        hosts: how many hosts serve it.
    """

    model: str
    source: str
    digests: str
    bytes: int
    moves: int
    hosts: int


def describe_source(source: ModelSource, fleet_has_mirror: bool) -> str:
    """Where a model comes from, in words."""
    if source.controller:
        return f"{source.controller} on the controller, {'through the mirror' if fleet_has_mirror else 'copied'}"
    if source.hub == "mirror":
        return f"the hub, {'through the mirror' if fleet_has_mirror else 'by the controller, copied'}"
    if source.hub:
        return f"{source.endpoint or 'the hub'}, by each host"
    if source.url:
        return f"{source.url}, by each host"
    if source.on_host:
        return f"{source.on_host} on each host, not copied"
    return f"the Hugging Face cache {source.huggingface_cache} on each host, not copied"


def report_models(plan: Plan, catalog: Catalog) -> Iterator[ModelReport]:
    """Each model of a plan with its source and the bytes that it moves. Faults are not judged here."""
    for name in served_models(plan):
        source = model_source(plan, name)
        try:
            listed = known_digests(plan, catalog, name)
        except FleetError:
            listed = None
        hosts = sum(1 for host in plan.hosts if host.deployment and host.deployment.model == name)
        size = sum(row.size for row in listed.files.values()) if listed else 0
        size = size or int(catalog.model(name).shape.weights_gib * 2**30)
        copies = 0 if source.adopted else hosts + (1 if source.hub == "mirror" else 0)
        digests = listed.source if listed else "model.json of the folder" if source.controller else "not known yet"
        yield ModelReport(name, describe_source(source, plan.spec.mirror.is_there), digests, size, copies * size, hosts)
