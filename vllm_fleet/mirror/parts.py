"""A fleet's plan -> the parts of its mirror, each with a key that changes with its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base import certificates, paths
from vllm_fleet.base.errors import ErrorCode, FleetError, InvariantError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.host import container, engine_install, model_sources
from vllm_fleet.host.host_paths import model_folder
from vllm_fleet.host.model_files import model_files
from vllm_fleet.mirror import apt_packages
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.store import part_key
from vllm_fleet.resolve import image_digest
from vllm_fleet.resolve.deployment import Deployment


@dataclass(frozen=True)
class Wheels:
    """Every package of a hash-locked requirements file, for one Python version and platform."""

    name: str
    lock: str
    python: str
    machine: str
    glibc: str
    #: Package indexes to search after the site's own, in this order.
    indexes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The key of the part."""
        return part_key("wheels", self.name, self.lock, self.python, self.machine, self.glibc)


@dataclass(frozen=True)
class Encoding:
    """A vocabulary file."""

    name: str
    sha256: str
    url: str
    #: A folder on this machine that may already hold it.
    folder: Path | None = None

    @property
    def key(self) -> str:
        """The key of the part."""
        return f"encoding:{self.name}:{self.sha256[:12]}"


@dataclass(frozen=True)
class Model:
    """One revision of a model: from a folder with a ``model.json``, or from the hub."""

    name: str
    revision: str
    folder: Path | None = None
    ignore: tuple[str, ...] = ()
    #: Name, SHA-256 and bytes of each file, where something else than the hub knows them.
    files: tuple[tuple[str, str, int], ...] = ()

    @property
    def key(self) -> str:
        """The key of the part."""
        return f"model:{self.name}:{self.revision}"

    @property
    def path(self) -> str:
        """Its folder in the mirror."""
        return f"models/{model_folder(self.name)}/{self.revision}"


@dataclass(frozen=True)
class Image:
    """A container image by digest, for one platform."""

    name: str
    digest: str
    #: Docker's name, such as ``linux/amd64``; other platforms of an image list are left out.
    platform: str
    #: ``host:port`` of a registry that has it under this name; None derives the registry from the name.
    registry: str | None = None
    #: The CA file of that registry; None: it has no TLS.
    ca: Path | None = None

    @property
    def key(self) -> str:
        """The key of the part."""
        return f"image:{self.name}@{self.digest}:{self.platform}"

    @staticmethod
    def from_key(key: str) -> Image:
        """The image of a key, without its registry."""
        name, _, rest = key.removeprefix("image:").partition("@")
        digest, _, platform = rest.rpartition(":")
        return Image(name, digest, platform)


Need = Wheels | Encoding | Model | Debs | Image


def list_parts(plan: Plan, catalog: Catalog) -> tuple[Need, ...]:
    """The parts that the hosts of a plan download, without duplicates.

    Raises:
        FleetError: a model is neither pinned nor in a folder, or an engine cannot be installed.
    """
    needs: dict[str, Need] = {}
    for host in plan.hosts:
        for need in (*_engine(host, catalog, plan), *_model(host, catalog, plan)):
            needs[need.key] = need
    for need in apt_packages.list_packages(plan, catalog):
        needs[need.key] = need
    return tuple(needs.values())


def _engine(host: HostPlan, catalog: Catalog, plan: Plan) -> Iterable[Need]:
    deployment = host.deployment
    if deployment is None:
        return
    if deployment.install == "docker":
        if plan.spec.mirror.registry_port:
            yield _image(host, deployment, catalog, plan)
        return
    lock = engine_install.host_lock(plan, catalog, host)
    if lock is None:
        return
    chosen = apt_packages.mirrored_distribution(plan, catalog)
    glibc = chosen[1].glibc if chosen else lock.header["glibc"]
    machine = apt_packages.host_machine(host, catalog)
    uv = (paths.root() / "roles" / "vllm_engine" / "files" / "uv-requirements.txt").read_text("utf-8")
    indexes = tuple(lock.header.get("index", "").split())
    # Without a distribution the Python version of the hosts is unknown: take all of the lock.
    for python in (chosen[1].python,) if chosen else lock.python:
        yield Wheels(deployment.engine.id, lock.text, python, machine, glibc, indexes)
        yield Wheels("uv", uv, python, machine, glibc)


def _image(host: HostPlan, deployment: Deployment, catalog: Catalog, plan: Plan) -> Image:
    image = deployment.engine.docker
    if refusal := image_digest.refusal(deployment.engine, plan.spec.mirror.registry):
        raise plan.document.error(("pools", host.pool), *refusal, ErrorCode.REFUSED)
    if image is None or image.digest is None:
        raise InvariantError(f"{host.name}: an image without a digest was not refused")
    platform = container.PLATFORMS[apt_packages.host_machine(host, catalog)]
    return Image(image.image, image.digest, platform, plan.spec.mirror.registry, registry_ca(plan))


def registry_ca(plan: Plan) -> Path | None:
    """The CA file of the fleet's own registry; None for a registry without TLS, or without a registry.

    Raises:
        FleetError: the file does not exist, or has no certificate.
    """
    given = plan.spec.mirror.registry_ca_file
    if plan.spec.mirror.registry is None or given is None:
        return None
    file = plan.directory / given
    try:
        certificates.read_authority(file)
    except FleetError as fault:
        raise plan.document.error_about(("mirror", "registry_ca_file"), fault) from None
    return file


def find_wrong_authority(plan: Plan) -> Iterator[FleetError]:
    """What is wrong with the CA file of the fleet's own registry, if it is there."""
    given = plan.spec.mirror.registry_ca_file
    if given is None or not paths.is_there(plan.directory / given):
        return
    try:
        registry_ca(plan)
    except FleetError as fault:
        yield fault


def _model(host: HostPlan, catalog: Catalog, plan: Plan) -> Iterable[Need]:
    if host.deployment is None:
        return
    model = catalog.model(host.deployment.model)
    given = plan.spec.artifacts.encodings
    folder = plan.artifact("encodings", given) if given else None
    for name in model.encodings:
        entry = catalog.encodings.encodings[name]
        yield Encoding(name, entry.sha256, entry.url, folder)
    if model_sources.is_fetched_by_controller(model_sources.model_source(plan, model.name)):
        yield model_need(model.name, catalog, plan)


def model_need(name: str, catalog: Catalog, plan: Plan) -> Model:
    """The source of a model: the folder in fleet.yml, else the hub at the pinned commit.

    Raises:
        FleetError: the fleet names no folder, and the recipe pins no commit.
    """
    source = model_sources.model_source(plan, name)
    known = model_sources.known_digests(plan, catalog, name)
    if source.controller:
        folder = plan.artifact(f"models.{name}", source.controller)
        files = model_sources.confirm_digests(model_files(folder), known)
        return Model(name, files.revision, files.directory)
    weights = catalog.model(name).weights
    listed = known.files.items() if known else ()
    return Model(
        name,
        model_sources.pinned_revision(plan, catalog, name),
        None,
        tuple(weights.ignore) if weights else (),
        tuple((file, row.sha256, row.size) for file, row in sorted(listed)),
    )
