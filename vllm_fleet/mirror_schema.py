"""The strict record of ``mirror`` in a fleet.yml: where the hosts of the fleet fetch from."""

from __future__ import annotations

from pydantic import Field, model_validator

from vllm_fleet.schema import Name, Strict


class Mirror(Strict):
    """Hosts fetch wheels, models, vocabularies and packages here and from nowhere else."""

    #: A mirror that is served already, by 'vllm-fleet mirror --serve' on this machine or by means of your own.
    url: str | None = Field(default=None, pattern=r"^https?://[\w.:\[\]-]+[^/]$")
    #: A host of the fleet that becomes the mirror, such as a gateway.
    host: Name | None = None
    port: int = Field(default=8070, gt=0, lt=65536)
    #: Whose packages it carries, by ID and VERSION_ID of the hosts' /etc/os-release. None: they come from where the
    #: hosts' own image says.
    distribution: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Mirror:
        if (self.url is None) == (self.host is None):
            raise ValueError("a mirror has either 'url' or 'host'")
        return self
