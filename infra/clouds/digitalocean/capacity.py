"""The regions that offer a size, looked up at every preview: DigitalOcean changes them from day to day."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_digitalocean as do


class Sizes:
    """The sizes of one account; each is looked up once per region."""

    def __init__(self, opts: pulumi.ResourceOptions) -> None:
        self._opts = pulumi.InvokeOptions(parent=opts.parent, provider=opts.provider)
        self._sizes: dict[tuple[str, str], pulumi.Output[str]] = {}

    def offered(self, size: str, region: str) -> pulumi.Output[str]:
        """The size, known after a lookup has shown that the region offers it.

        Args:
            size: the slug of the size.
            region: the slug of the region.
        """
        if (size, region) not in self._sizes:
            answer = do.get_sizes_output(filters=[{"key": "slug", "values": [size]}], opts=self._opts)
            self._sizes[size, region] = answer.sizes.apply(
                lambda sizes: check_offer(size, region, sizes[0].regions if sizes else None)
            )
        return self._sizes[size, region]


def check_offer(size: str, region: str, offered: Any) -> str:
    """Returns the size if a region offers it.

    Args:
        size: the slug of the size.
        region: the slug of the region.
        offered: the regions that offer it; None where the account does not see the size.

    Raises:
        pulumi.RunError: the region does not offer it; the message names those that do.
    """
    if offered is None:
        raise pulumi.RunError(f"DigitalOcean shows this account no size {size} (contract sizes need one: ask for it)")
    if region not in offered:
        regions = ", ".join(sorted(offered)) or "no region at the moment"
        raise pulumi.RunError(f"DigitalOcean offers {size} not in {region} but in: {regions}")
    return size
