"""Which image a host of Oracle Cloud starts from."""

from __future__ import annotations

import pulumi

from infra.images import Images
from infra.sdk import oci
from vllm_fleet.catalogue.rental import Rented


class OciImages(Images):
    """The images of one compartment; the table names an operating system, and each shape has its own newest image."""

    def __init__(self, compartment: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__(opts)
        self._compartment = compartment

    def _name(self, where: Rented) -> str:
        return f"{super()._name(where)}/{where.shape}"

    def _look_up(self, name: str) -> pulumi.Output[str]:
        system, version, shape = name.split("/")
        newest = oci.core.get_images_output(
            compartment_id=self._compartment,
            operating_system=system,
            operating_system_version=version,
            shape=shape,
            sort_by="TIMECREATED",
            sort_order="DESC",
            opts=self._opts,
        )
        return newest.images.apply(lambda images: str(images[0].id))
