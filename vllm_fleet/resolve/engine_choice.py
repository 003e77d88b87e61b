"""Which engine and install form a host class gets when a fleet does not say."""

from __future__ import annotations

from collections.abc import Callable, Collection

from packaging.version import Version

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass, in_range
from vllm_fleet.schema.recipe import Engine, Install, Machine, Model, Support


def refused(message: str, hint: str) -> FleetError:
    """The error for a combination that is spelled correctly and not supported."""
    return FleetError(message, hint, code=ErrorCode.REFUSED)


def supports(model: Model, host: SizedClass, engine: Engine) -> Support | None:
    """The first entry for that family and release; the recipes list the special before the general."""
    for entry in model.support:
        if host.family.name in entry.host_class and in_range(engine.release, entry.engine):
            return entry
    return None


def choose_engine(
    catalog: Catalog,
    host: SizedClass,
    model: Model,
    wanted: str | None,
    is_pinned: Callable[[Engine], bool] = lambda _: True,
) -> tuple[Engine, Support]:
    """The requested engine, or the newest verified one; the newest of all where none is verified.

    Of equally good ones, one that a host can be built from goes before a newer one that is not pinned.

    Args:
        catalog: the recipes.
        host: the class of the host.
        model: what is served.
        wanted: the id of the requested engine.
        is_pinned: whether an engine has a lock, or a digest of its image, here or in the fleet.

    Raises:
        FleetError: unknown engine (``bad-input``), or no engine with a recipe (``refused``).
    """
    candidates = [catalog.engine(wanted)] if wanted else list(catalog.engines.values())
    known: list[tuple[bool, bool, Version, Engine, Support]] = []
    request = f"{model.name} on {host.id} {f'with {wanted}' if wanted else 'with any engine'}"
    reason = f"no recipe for {request}"
    for engine in candidates:
        if not builds_for(engine, host):
            continue
        support = supports(model, host, engine)
        if support and support.status != "unsupported":
            known.append((support.status == "verified", is_pinned(engine), Version(engine.release), engine, support))
        elif support:
            reason = f"{request} is unsupported: {support.evidence}"
    if not known:
        supported = (
            (other.id, supports(model, host, other)) for other in catalog.engines.values() if builds_for(other, host)
        )
        usable = sorted(name for name, support in supported if support and support.status != "unsupported")
        hint = f"there are recipes with {', '.join(usable)}" if usable else "see docs/adding-a-recipe.md to add one"
        raise refused(reason, hint)
    *_, engine, support = max(known, key=lambda entry: entry[:3])
    return engine, support


def builds_for(engine: Engine, host: SizedClass) -> bool:
    """Whether the engine is a build for the devices of that class."""
    return engine.accelerator == host.family.accelerator and (engine.arch is None or host.family.arch in engine.arch)


def installs(engine: Engine) -> list[Install]:
    """The forms that the engine comes in, the preferred one first."""
    forms: list[Install] = ["wheel"] if engine.wheel else []
    return [*forms, "docker"] if engine.docker else forms


def is_locked(engine: Engine, install: Install, machine: Machine, own: Collection[str] = ()) -> bool:
    """Whether what would be installed is pinned by digests, so that a host can be built from it.

    Args:
        engine: the engine, with the fleet's digest of its image.
        install: the form that it is installed in.
        machine: the kind of the host's processors.
        own: the engines that the fleet brings a lock for.
    """
    if install == "docker":
        return engine.docker is not None and engine.docker.digest is not None
    return engine.wheel is not None and (machine in engine.wheel.locks or engine.id in own)


def choose_install(engine: Engine, wanted: Install | None, machine: Machine, own: Collection[str] = ()) -> Install:
    """The requested form; else the preferred one of those that are pinned, or of all where none is.

    What is not pinned can be shown; a fleet with it is refused, with the reason
    (:mod:`vllm_fleet.host.engine_install`).

    Args:
        engine: the engine, with the fleet's digest of its image.
        wanted: the requested form.
        machine: the kind of the host's processors.
        own: the engines that the fleet brings a lock for.

    Raises:
        FleetError: the engine does not come so (``refused``).
    """
    available = installs(engine)
    if wanted is None and available:
        return next((form for form in available if is_locked(engine, form, machine, own)), available[0])
    if wanted not in available:
        raise refused(f"{engine.id} cannot be installed as {wanted!r}", f"it comes as {', '.join(available)}")
    return wanted
