"""The client surface of the gateway, with two of OpenAI's clients: each answer is right, or refused with a reason."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from hanging import HANGING_SECONDS

from e2e.api_clients import Client, PythonClient, node_client
from e2e.conformance_cells import MODEL, Case, cases, fault
from e2e.conformance_table import FAILED, PROPERTY, shown
from e2e.running_lab import Lab

CLIENTS = ("Python", "JavaScript")


@pytest.fixture(scope="module")
def clients(lab: Lab) -> Iterator[dict[str, Client]]:
    """The clients by name, all with the gateway's key."""
    url, key = f"{lab.gateway.url}/v1", lab.gateway.api_key
    with node_client(url, key) as node:
        yield {client.name: client for client in (PythonClient(url, key), node)}


@pytest.fixture(scope="module")
def responses_store(lab: Lab) -> bool:
    """Whether the fleet keeps responses."""
    return lab.site.plan.gateway.responses_store


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("case", cases(), ids=[case.title for case in cases()])
def test_the_answer_is_right_or_refused_with_the_reason(
    clients: dict[str, Client],
    responses_store: bool,
    case: Case,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    outcome = case.outcome(responses_store)
    record_property(PROPERTY, (name, case.title, FAILED, ""))
    assert fault(outcome, case.ask(clients[name])) is None
    # The table takes the last one.
    record_property(PROPERTY, (name, case.title, *shown(outcome)))


@pytest.mark.parametrize("path", [MODEL, MODEL.replace("/", "%2F"), MODEL.replace("/", "%2f")])
def test_the_name_of_a_model_may_be_encoded(lab: Lab, path: str) -> None:
    asked = urllib.request.Request(
        f"{lab.gateway.url}/v1/models/{path}", headers={"Authorization": f"Bearer {lab.gateway.api_key}"}
    )
    with urllib.request.urlopen(asked, timeout=HANGING_SECONDS) as answer:
        assert json.load(answer)["id"] == MODEL
