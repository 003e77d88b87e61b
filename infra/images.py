"""The boot image of a rented host: the one that the fleet names, else the one of the cloud's table."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pulumi

from vllm_fleet.catalogue.rental import Rented


def named_image(where: Rented) -> str | None:
    """The image that the fleet names; None for the one of the cloud's table."""
    image = where.placement.image
    return None if image == "latest" else image or None


class Images(ABC):
    """The images of one provider in a cloud with a lookup for the newest image; each is looked up once."""

    def __init__(self, opts: pulumi.ResourceOptions) -> None:
        self._opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._newest: dict[str, pulumi.Output[str]] = {}

    def image(self, where: Rented) -> pulumi.Input[str]:
        """The image that the fleet names, or the newest of the cloud's table.

        Args:
            where: how the host is rented.
        """
        if named := named_image(where):
            return named
        name = self._name(where)
        if name not in self._newest:
            self._newest[name] = self._look_up(name)
        return self._newest[name]

    def _name(self, where: Rented) -> str:
        """The image in the cloud's table."""
        return where.image

    @abstractmethod
    def _look_up(self, name: str) -> pulumi.Output[str]:
        """Looks up the id of the newest image of that name."""
