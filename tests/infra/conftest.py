"""Fixtures of the tests of the Pulumi program."""

from __future__ import annotations

import pulumi
import pytest
from recording import Recorder


@pytest.fixture
def recorder() -> Recorder:
    found = Recorder()
    pulumi.runtime.set_mocks(found, project="vllm-fleet", stack="demo")
    return found
