"""Which image a host of AWS starts from."""

from __future__ import annotations

import pulumi

from infra.sdk import aws
from vllm_fleet.clouds import Rented


class AwsImages:
    """The images of one region; each is looked up once, however many hosts take it."""

    def __init__(self, opts: pulumi.ResourceOptions) -> None:
        self._opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._found: dict[str, pulumi.Output[str]] = {}

    def of(self, where: Rented) -> pulumi.Input[str]:
        """The fleet's own image, or what the parameter of the cloud's table names today.

        Args:
            where: how the host is rented.
        """
        image = where.placement.image
        if image and image != "latest":
            return image
        name = where.table.images[where.image_kind]
        if name not in self._found:
            parameter = aws.ssm.get_parameter_output(name=name, opts=self._opts)
            self._found[name] = parameter.apply(lambda found: str(found.value))
        return self._found[name]
