#!/usr/bin/python
"""Removes the images of one name that no release on the host names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: unused_images
short_description: Remove old images of an engine
description:
  - Removes the images that have the name of I(reference), except that one and those that a release names.
  - >-
    A module of its own because it joins docker's list with the releases on the host. community.docker asks the
    daemon for a digest as if it were a tag, and finds none.
  - Idempotent; supports check mode and diff.
options:
  reference:
    description: The image in use, as name@sha256:digest.
    type: str
    required: true
  releases:
    description: The folder of the releases; their environment files name images by digest.
    type: path
    required: true
author: [vllm-fleet]
"""
EXAMPLES = r"""
- unused_images:
    reference: 192.0.2.1:5000/vllm/vllm-openai@sha256:0123...
    releases: /opt/vllm/releases
"""
RETURN = r"""
removed:
  description: The images that were removed, or in check mode would be.
  type: list
  returned: success
"""
DIGEST = re.compile(r"@(sha256:[0-9a-f]{64})")


def named_digests(releases: str) -> set[str]:
    """The digests in the environment files of all releases."""
    digests: set[str] = set()
    for folder, _, files in os.walk(releases):
        for name in files:
            if name.endswith(".env"):
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    digests.update(DIGEST.findall(file.read()))
    return digests


def unused(images: Iterable[str], reference: str, digests: Iterable[str]) -> list[str]:
    """The images to remove.

    Args:
        images: all images of the host, as name@digest.
        reference: the image in use.
        digests: those that releases name.
    """
    name = reference.split("@")[0]
    kept = {reference, *(f"{name}@{digest}" for digest in digests)}
    return sorted({image for image in images if image.startswith(f"{name}@sha256:")} - kept)


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "reference": {"type": "str", "required": True},
            "releases": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    listing = ["docker", "image", "ls", "--digests", "--no-trunc", "--format={{.Repository}}@{{.Digest}}"]
    images = module.run_command(listing, check_rc=True)[1].splitlines()
    old = unused(images, module.params["reference"], named_digests(module.params["releases"]))
    for image in [] if module.check_mode else old:
        module.run_command(["docker", "image", "rm", image], check_rc=True)
    diff = {"before": "".join(f"{image}\n" for image in old), "after": ""}
    module.exit_json(changed=bool(old), removed=old, diff=diff)


if __name__ == "__main__":
    main()
