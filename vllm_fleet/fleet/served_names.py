"""The names under which clients reach the models of a fleet: each name leads to one model and one set of pools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.schema.fleet import Fleet, Pool


def names_of(pool: Pool, model: str) -> tuple[str, ...]:
    """The names of a pool's model, the one of its answers first."""
    return tuple(dict.fromkeys(pool.served_model_names)) or (model,)


def name_errors(hosts: Sequence[HostPlan], spec: Fleet, document: Document) -> Iterator[FleetError]:
    """Names that lead to two models, or to pools that share only some of their names.

    Args:
        hosts: the hosts of the plan.
        spec: the fleet.
        document: the fleet's file.
    """
    pools = {host.pool: host for host in hosts if host.deployment}
    owners: dict[str, HostPlan] = {}
    for name, host in pools.items():
        for served in host.names:
            other = owners.setdefault(served, host)
            if host.deployment is None or other.deployment is None or other.pool == name:
                continue
            at = ("pools", name, "served_model_names") if spec.pools[name].served_model_names else ("pools", name)
            if other.deployment.model != host.deployment.model:
                yield document.error(
                    at,
                    f"gives {host.deployment.model} the name {served!r}, and the pool {other.pool!r} gives it to "
                    f"{other.deployment.model}",
                    "give each model names of its own",
                )
            elif set(other.names) != set(host.names):
                yield document.error(
                    at,
                    f"shares the name {served!r} with the pool {other.pool!r}, and not all of its names",
                    "give both pools the same served_model_names, or names that differ",
                )
            else:
                continue
            break
