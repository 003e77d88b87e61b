"""The lock that each host's engine is installed from, and the reasons why an engine cannot be installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, raise_all
from vllm_fleet.catalogue.engine_locks import Lock
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.resolve import image_digest
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.recipe import Engine, Machine


def host_lock(plan: Plan, catalog: Catalog, host: HostPlan) -> Lock | None:
    """The lock that a host's engine is installed from; None if it is an image, or the host is a gateway.

    Raises:
        FleetError: there is no lock or no pinned image (``refused``), or the lock does not fit the engine or the class.
    """
    deployment = host.deployment
    if deployment is None:
        return None
    if deployment.install == "docker":
        if fault := image_digest.refusal(deployment.engine, plan.spec.mirror.registry):
            raise plan.document.error(("pools", host.pool), *fault, ErrorCode.REFUSED)
        return None
    engine, sized = deployment.engine, catalog.host_class(deployment.host_class)
    at = ("pools", host.pool)
    own = _own(plan, engine, sized.machine)
    if own and (wrong := list(engine_locks.lock_errors(own, engine, sized.machine))):
        raise plan.document.error(
            ("artifacts", "locks", engine.id),
            f"{own.file} {'; '.join(wrong)}",
            f"run {lock_command(engine, sized.machine)} again",
        )
    lock = own or catalog.lock(engine, sized.machine)
    if lock is None:
        reason = engine.wheel.unlocked.get(sized.machine, "no lock was made") if engine.wheel else "it has no wheel"
        image = ", or give the digest of its image in artifacts.images" if engine.docker else ""
        raise plan.document.error(
            at,
            f"{engine.id} is not locked for {sized.machine}, so its packages cannot be verified: {reason}",
            f"run {lock_command(engine, sized.machine, '--index URL --output FILE')} where its index is reachable, "
            f"and name that file in artifacts.locks of the fleet{image}",
            ErrorCode.REFUSED,
        )
    for message, hint in lock_misfits(lock, engine, sized):
        raise plan.document.error(at, message, hint, ErrorCode.REFUSED)
    return lock


def with_engine_locks(plan: Plan, catalog: Catalog) -> Plan:
    """The plan with engine directories that are named by the locks of the fleet and the recipes.

    Raises:
        FleetError: as :func:`host_lock`, or the fleet has a lock for an unknown engine.
    """
    raise_all(list(lock_faults(plan, catalog)))
    return replace(plan, hosts=tuple(_with_directory(plan, catalog, host) for host in plan.hosts))


def lock_faults(plan: Plan, catalog: Catalog) -> Iterator[FleetError]:
    """The errors in the locks that a fleet names, each once."""
    for name in plan.spec.artifacts.locks:
        if name not in catalog.engines:
            known = ", ".join(sorted(catalog.engines))
            yield plan.document.error(
                ("artifacts", "locks", name), f"there is no engine {name!r}", f"known engines: {known}"
            )
    own = plan.spec.artifacts.locks
    yield from _refused(
        plan,
        catalog,
        (host for host in plan.hosts if (it := host.deployment) and it.install == "wheel" and it.engine.id in own),
    )


def unpinned_engines(plan: Plan, catalog: Catalog) -> tuple[FleetError, ...]:
    """The engines that are not pinned yet: their hosts can be planned and created, but ``site.yml`` refuses them."""
    return tuple(_refused(plan, catalog, plan.hosts))


def _refused(plan: Plan, catalog: Catalog, hosts: Iterable[HostPlan]) -> Iterator[FleetError]:
    messages = set()
    for host in hosts:
        try:
            host_lock(plan, catalog, host)
        except FleetError as fault:
            if fault.message not in messages:
                yield fault
            messages.add(fault.message)


def _with_directory(plan: Plan, catalog: Catalog, host: HostPlan) -> HostPlan:
    lock = host_lock(plan, catalog, host)
    if lock is None or host.deployment is None:
        return host
    named = engine_locks.directory_id(host.deployment.engine, lock)
    return replace(host, deployment=replace(host.deployment, engine_directory_id=named))


def _own(plan: Plan, engine: Engine, machine: Machine) -> Lock | None:
    """The lock that the fleet names for an engine."""
    name = plan.spec.artifacts.locks.get(engine.id)
    if name is None:
        return None
    hint = f"run {lock_command(engine, machine, '--index URL --output FILE')}"
    file = plan.artifact(f"locks.{engine.id}", name.replace("{machine}", machine), hint)
    return engine_locks.read(paths.absolute(file))


def lock_misfits(lock: Lock, engine: Engine, sized: SizedClass) -> Iterator[tuple[str, str]]:
    """The reasons why a class cannot use a lock, each with what to do."""
    floor = sized.family.facts.cuda_min
    if engine.accelerator == "cuda" and floor and version_key(lock.cuda or "0") < version_key(floor):
        yield (
            f"{engine.id} is locked for CUDA {lock.cuda}, and {sized.id} needs {floor} or newer",
            f"make a lock from an index with builds for CUDA {floor}: "
            f"{lock_command(engine, sized.machine, '--index URL')}",
        )


def lock_command(engine: Engine, machine: Machine, options: str = "") -> str:
    """The command that makes a lock, in quotation marks.

    Args:
        engine: the engine.
        machine: the architecture of the processor.
        options: further options.
    """
    return f"'python -m tools.locks --engine {engine.id} --machine {machine}{f' {options}' if options else ''}'"


def engine_variables(deployment: Deployment, lock: Lock) -> dict[str, Any]:
    """The variables of the role vllm_engine."""
    engine = deployment.engine
    platform, release = lock.platform if engine.accelerator != "cpu" else ("cpu", "")
    return {
        "vllm_engine_directory_id": deployment.engine_directory_id,
        "vllm_engine_lock_file": str(lock.path),
        "vllm_engine_release": engine.release,
        "vllm_engine_platform": {"name": platform, "version": release},
        "vllm_engine_machine": lock.header["machine"],
        "vllm_engine_python_versions": list(lock.python),
        "vllm_engine_glibc_min": lock.header["glibc"],
        "vllm_engine_rocm_min": (engine.wheel.rocm_min if engine.wheel else None) or "",
        "vllm_engine_index_urls": lock.header.get("index", "").split(),
        "vllm_engine_packages": list(deployment.packages),
        "vllm_engine_alias": dict(engine.wheel.alias) if engine.wheel else {},
    }
