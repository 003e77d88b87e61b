"""The strict record of ``mirror`` in a fleet.yml: where the hosts of the fleet fetch from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from vllm_fleet.base.addresses import parse_host_port, parse_http_url
from vllm_fleet.schema.recipe import Line, Name, Port, Strict


class Mirror(Strict):
    """The only place that hosts download from: wheels, models, vocabularies, packages, images."""

    url: Annotated[str, AfterValidator(parse_http_url)] | None = Field(
        default=None,
        description="A mirror that is served already, by 'vllm-fleet mirror --serve' or by you.",
    )
    host: Name | None = Field(
        default=None, description="A host of the fleet that becomes the mirror, such as gateway-0."
    )
    port: Port = Field(default=8070, description="Port of the mirror for files.")
    distribution: Line | None = Field(
        default=None,
        description="The distribution whose packages the mirror carries: ID-VERSION_ID of the hosts' /etc/os-release. "
        "Default: packages come from the sources in the hosts' image.",
    )
    packages: list[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+(=[0-9][0-9A-Za-z.+:~-]*)?$")]] = Field(
        default=[],
        description="Further packages to carry, such as the kernel headers that a driver is built for: "
        "linux-headers-6.8.0-79-generic.",
    )
    registry_port: Port | None = Field(
        default=None, description="Port of the mirror for images. Default: it carries no images."
    )
    registry: Annotated[str, AfterValidator(parse_host_port)] | None = Field(
        default=None,
        description="host:port of a registry that has every image under its own name. The mirror downloads them from "
        "there; without registry_port the hosts do. Default: the registries in the images' names.",
    )
    registry_ca_file: Line | None = Field(
        default=None,
        description="PEM file of the CA of that registry, relative to the fleet's folder. Default: no TLS.",
    )

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
