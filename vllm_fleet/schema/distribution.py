"""The strict records of ``recipes/distributions.yml``: operating systems whose packages a mirror can carry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vllm_fleet.schema.recipe import Strict

_Word = Annotated[str, Field(pattern=r"^[\w./-]+$")]


class Source(Strict):
    """A package archive, as apt's sources name it."""

    uri: str = Field(pattern=r"^https?://\S+[^/]$")
    suites: list[_Word] = Field(min_length=1)
    components: list[_Word] = Field(min_length=1)


class Distribution(Strict):
    """One operating system."""

    #: The keys that sign its archive, at the same place on the controller and on hosts.
    keyring: str = Field(pattern=r"^/\S+$")
    #: The package that brings them to a controller of another distribution.
    keyring_package: str
    #: Of its C library; wheels for newer ones do not run on it.
    glibc: str = Field(pattern=r"^\d+\.\d+$")
    #: Its own Python, which engines are built with.
    python: str = Field(pattern=r"^3\.\d+$")
    #: Its own HAProxy, which gateways run.
    haproxy: str = Field(pattern=r"^\d+\.\d+$")
    sources: list[Source] = Field(min_length=1)
    source: str = Field(min_length=3)


class Distributions(Strict):
    """``recipes/distributions.yml``, by ID and VERSION_ID of ``/etc/os-release``."""

    distributions: dict[str, Distribution]
