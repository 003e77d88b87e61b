"""Which image a host of AWS starts from."""

from __future__ import annotations

import pulumi

from infra.images import Images
from infra.sdk import aws


class AwsImages(Images):
    """The images of one region; the table names a parameter, which says today's."""

    def _look_up(self, name: str) -> pulumi.Output[str]:
        return aws.ssm.get_parameter_output(name=name, opts=self._opts).apply(lambda parameter: str(parameter.value))
