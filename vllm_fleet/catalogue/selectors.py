"""Whether a rule holds for a combination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_fleet.catalogue.catalogue import SizedClass, in_range
from vllm_fleet.schema.recipe import Engine, Feature, Install, Profile, When


@dataclass(frozen=True)
class Combination:
    """What the selectors of a rule look at. ``args`` and ``env`` are None until they are final."""

    host: SizedClass
    engine: Engine
    install: Install
    model: str
    profile: Profile
    features: tuple[Feature, ...] = ()
    tensor_parallel: int | None = None
    args: Mapping[str, Any] | None = None
    env: Mapping[str, Any] | None = None


def selects(when: When, combination: Combination) -> bool:
    """Whether a rule holds for a combination: every given selector must.

    A selector of a value that is not known yet (``tensor_parallel``, final values) does not hold. A fact is not a
    selector: only the host answers it.
    """
    family = combination.host.family
    return (
        (when.accelerator is None or when.accelerator == family.accelerator)
        and (when.arch is None or family.arch in when.arch)
        and (when.host_class is None or family.name in when.host_class)
        and (when.devices is None or combination.host.devices in when.devices)
        and (when.engine is None or in_range(combination.engine.release, when.engine))
        and (when.install is None or when.install == combination.install)
        and (when.profile is None or combination.profile in when.profile)
        and (when.model is None or combination.model in when.model)
        and (when.feature is None or when.feature in combination.features)
        and (when.with_feature is None or when.with_feature in combination.features)
        and (when.tensor_parallel is None or combination.tensor_parallel in when.tensor_parallel)
        and (when.at_least is None or _reach(combination.args, when.at_least))
        and (
            when.env_set is None
            or (combination.env is not None and all(name in combination.env for name in when.env_set))
        )
    )


def _reach(args: Mapping[str, Any] | None, limits: Mapping[str, float]) -> bool:
    """Whether every number is at least its limit; a missing value, or one that is not a number, is not."""
    return args is not None and all(
        isinstance(value := args.get(name), int | float) and value >= limit for name, limit in limits.items()
    )
