"""One host of the To-Be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vllm_fleet.catalogue.rental import Rented
from vllm_fleet.resolve.deployment import Deployment

Kind = Literal["serving", "gateway"]
#: Port of instance 0; instance n listens on the n-th port after it, its readiness 100 above.
FIRST_PORT = 8000
READINESS_OFFSET = 100
GATEWAY_POOL = "gateway"


@dataclass(frozen=True)
class HostPlan:
    """One host of the To-Be.

    ``address`` and ``ssh_host_key`` are known only for static hosts, ``rented`` is there only for rented ones.
    """

    name: str
    kind: Kind
    pool: str
    cloud: str
    placement: Mapping[str, Any]
    host_class: str | None
    ordinal: int
    user: str
    address: str | None = None
    port: int = 22
    ssh_host_key: str | None = None
    deployment: Deployment | None = None
    rented: Rented | None = None

    @property
    def instances(self) -> tuple[tuple[str, int], ...]:
        """Name and port of each vLLM process."""
        count = self.deployment.instances if self.deployment else 0
        return tuple((str(number), FIRST_PORT + number) for number in range(count))
