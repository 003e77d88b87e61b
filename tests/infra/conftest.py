"""Fixtures of the tests of the Pulumi program."""

from __future__ import annotations

import asyncio

import pulumi
import pytest
from pulumi.runtime import settings
from recording import Recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    # Another test of the same process may have closed the loop that the mocks take.
    asyncio.set_event_loop(asyncio.new_event_loop())
    found = Recorder()
    pulumi.runtime.set_mocks(found, project="vllm-fleet", stack="demo")
    # The SDK's mocks know no hooks: these are written down, and the engine's part is left out.
    monkeypatch.setattr(settings.SETTINGS, "callbacks", found, raising=False)
    return found
