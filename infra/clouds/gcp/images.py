"""Which image a host of Google Cloud starts from."""

from __future__ import annotations

import pulumi

from infra.images import Images
from infra.sdk import gcp


class GcpImages(Images):
    """The images of one provider; the table names a project and a family, which has a newest one."""

    def _look_up(self, name: str) -> pulumi.Output[str]:
        project, family = name.split("/")
        newest = gcp.compute.get_image_output(project=project, family=family, opts=self._opts)
        return newest.apply(lambda image: str(image.self_link))
