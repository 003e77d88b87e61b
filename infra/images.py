"""Which image a rented host starts from, where a cloud must be asked for the newest one."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pulumi

from vllm_fleet.catalogue.rental import Rented


class Images(ABC):
    """The images of one provider; each is looked up once, however many hosts take it."""

    def __init__(self, opts: pulumi.ResourceOptions) -> None:
        self._opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._found: dict[str, pulumi.Output[str]] = {}

    def of(self, where: Rented) -> pulumi.Input[str]:
        """The fleet's own image, or the newest of what the cloud's table names.

        Args:
            where: how the host is rented.
        """
        image = where.placement.image
        if image and image != "latest":
            return image
        name = where.table.images[where.image_kind]
        if name not in self._found:
            self._found[name] = self._newest(name)
        return self._found[name]

    @abstractmethod
    def _newest(self, name: str) -> pulumi.Output[str]:
        """Asks the cloud for the newest image of a name of its table."""
