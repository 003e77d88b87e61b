"""Which image a host of Google Cloud starts from."""

from __future__ import annotations

import pulumi

from infra.sdk import gcp
from vllm_fleet.clouds import Rented


class GcpImages:
    """The images of one provider; each is looked up once, however many hosts take it."""

    def __init__(self, opts: pulumi.ResourceOptions) -> None:
        self._opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._found: dict[str, pulumi.Output[str]] = {}

    def of(self, where: Rented) -> pulumi.Input[str]:
        """The fleet's own image, or the newest of the family that the cloud's table names.

        Args:
            where: how the host is rented.
        """
        image = where.placement.image
        if image and image != "latest":
            return image
        name = where.table.images[where.image_kind]
        if name not in self._found:
            project, family = name.split("/")
            newest = gcp.compute.get_image_output(project=project, family=family, opts=self._opts)
            self._found[name] = newest.apply(lambda found: str(found.self_link))
        return self._found[name]
