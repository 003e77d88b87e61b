"""The strict record of ``mirror`` in a fleet.yml: where the hosts of the fleet fetch from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from vllm_fleet.schema.recipe import Name, Strict


class Mirror(Strict):
    """Hosts fetch wheels, models, vocabularies, packages and images here alone; without a mirror, from the origins."""

    #: A mirror that is served already, by 'vllm-fleet mirror --serve' on this machine or by means of your own.
    url: str | None = Field(default=None, pattern=r"^https?://[\w.:\[\]-]+[^/]$")
    #: A host of the fleet that becomes the mirror, such as a gateway.
    host: Name | None = None
    port: int = Field(default=8070, gt=0, lt=65536)
    #: Whose packages it carries, by ID and VERSION_ID of the hosts' /etc/os-release. None: they come from where the
    #: hosts' own image says.
    distribution: str | None = None
    #: Further packages that it carries, such as the headers of the kernel in the hosts' image, which a driver is built
    #: for: linux-headers-6.8.0-79-generic.
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+(=[0-9][0-9A-Za-z.+:~-]*)?$")]] = []
    #: Where the mirror serves images. None: it carries none.
    registry_port: int | None = Field(default=None, gt=0, lt=65536)
    #: ``host:port`` of a registry that has every image under its own name: the mirror fetches them there, or the hosts,
    #: where the mirror carries none. None: they come from where their names say.
    registry: str | None = Field(default=None, pattern=r"^[a-zA-Z0-9.-]+:\d{1,5}$")
    #: PEM file of who signs its certificate, relative to the fleet's folder. None: it is asked without TLS.
    registry_ca_file: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Mirror:
        if self.url and self.host:
            raise ValueError("a mirror is either at 'url' or on 'host'")
        if self.distribution and not self.is_there:
            raise ValueError("a mirror that carries packages is at 'url' or on 'host'")
        if self.packages and not self.distribution:
            raise ValueError("a mirror carries 'packages' of a 'distribution'")
        if self.registry_port and not self.is_there:
            raise ValueError("a mirror that carries images is at 'url' or on 'host'")
        if self.registry_port == self.port:
            raise ValueError("files and images are served at two ports")
        return self

    @property
    def is_there(self) -> bool:
        """Whether the fleet has one."""
        return bool(self.url or self.host)
