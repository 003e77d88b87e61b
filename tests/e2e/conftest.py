"""Labs for the end-to-end tests: real hosts, real vLLM, a real gateway; needs root and package registries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS
from openai import OpenAI

from e2e.running_lab import Lab, folder_of
from lab import job
from lab.artifacts.model.questions import Questions, read_questions

FLEET = "labtest"
BRIDGE = "vf-test"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.network)


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """The lab, made from nothing and removed after the last test of this folder: other tests have their own fleets."""
    with folder_of(FLEET, BRIDGE) as folder:
        job.stack_up(FLEET)
        job.roll_out(FLEET)
        yield Lab(folder, job.endpoint(FLEET))


@pytest.fixture
def client(lab: Lab) -> OpenAI:
    return OpenAI(base_url=f"{lab.gateway.url}/v1", api_key=lab.gateway.api_key, max_retries=0, timeout=HANGING_SECONDS)


@pytest.fixture(scope="session")
def known() -> Questions:
    return read_questions()
