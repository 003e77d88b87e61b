"""The name of the caches that an engine compiles at its first start; hosts that can share them have the same name."""

from __future__ import annotations

import hashlib
import json

from vllm_fleet.resolve.deployment import Deployment


def start_cache_key(deployment: Deployment, revision: str, arch: str, driver: str | None) -> str:
    """The name of the caches of a start: hosts with the same name compile the same code.

    Args:
        deployment: engine, arguments and environment.
        revision: the model's revision.
        arch: the architecture of the devices.
        driver: the version of their driver, whose compiler makes a part of the code; None if it is
            unknown.
    """
    parts = {
        "engine": deployment.engine_directory_id,
        "model": [deployment.model, revision],
        "args": dict(deployment.args),
        "env": dict(deployment.env),
        "arch": arch,
        "driver": driver,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
