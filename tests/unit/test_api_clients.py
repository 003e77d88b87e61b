"""The two clients of the conformance tests give the same data for the same answers of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from e2e.api_clients import Call, Client, Fault, PythonClient, node_client
from e2e.conformance_cells import Different, Refused, Right, fault

from lab import web

pytestmark = pytest.mark.network

CHAT = "chat.completions.create"
CHUNKS = [{"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]} for text in ("a", "b")]
ERROR = {"message": "It is refused.", "type": "invalid_request_error", "param": None, "code": "why"}
#: The model that is asked for -> status and body of the answer.
ANSWERS: dict[str, tuple[int, Any]] = {
    "right": (200, {"id": "c", "choices": [], "own": 1}),
    "refused": (400, {"error": ERROR}),
    "none": (404, {"error": ERROR}),
    "method": (405, {"error": ERROR}),
    "limit": (429, {"error": ERROR}),
    "formless": (404, {"detail": "Not Found"}),
    "incomplete": (400, {"error": {"message": "x"}}),
}


class Server(BaseHTTPRequestHandler):
    """Answers by the model; a stream has an error in its middle if the model is ``broken``."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer key"
        self._send(200 if known else 401, {"object": "list", "data": [{"id": "m"}]} if known else {"error": ERROR})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not asked.get("stream"):
            self._send(*ANSWERS[asked["model"]])
            return
        events = [CHUNKS[0], {"error": ERROR} if asked["model"] == "broken" else CHUNKS[1], "[DONE]"]
        text = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        self._answer(200, "text/event-stream", text)

    def log_message(self, *arguments: Any) -> None:
        """Prints nothing."""

    def _send(self, status: int, body: Any) -> None:
        self._answer(status, "application/json", json.dumps(body))

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def clients() -> Iterator[list[Client]]:
    with web.serving(Server) as url, node_client(f"{url}/v1", "key") as node:
        yield [PythonClient(f"{url}/v1", "key"), node]


def chat(model: str, **fields: Any) -> Call:
    return Call(CHAT, {"model": model, "messages": [], **fields})


@pytest.mark.parametrize(
    ("model", "name", "has_form"),
    [
        ("refused", "BadRequestError", True),
        ("none", "NotFoundError", True),
        ("method", "APIStatusError", True),
        ("limit", "RateLimitError", True),
        ("formless", "NotFoundError", False),
        ("incomplete", "BadRequestError", False),
    ],
)
def test_a_refusal_is_the_typed_exception(clients: list[Client], model: str, name: str, has_form: bool) -> None:
    for client in clients:
        answer = client.send(chat(model))
        assert isinstance(answer, Fault)
        assert (answer.name, answer.status, answer.has_form) == (name, ANSWERS[model][0], has_form)
        assert not has_form or (answer.message, answer.code) == (ERROR["message"], "why")


def test_answers_streams_and_lists_are_data(clients: list[Client]) -> None:
    for client in clients:
        answer = client.send(chat("right", a_key_that_is_not_known=1))
        assert (answer["id"], answer["choices"], answer["own"]) == ("c", [], 1)
        events = client.send(chat("right", stream=True))
        assert [event["choices"][0]["delta"]["content"] for event in events] == ["a", "b"]
        assert [model["id"] for model in client.send(Call("models.list"))["data"]] == ["m"]


def test_an_error_in_a_stream_has_no_status(clients: list[Client]) -> None:
    for client in clients:
        answer = client.send(chat("broken", stream=True))
        assert isinstance(answer, Fault)
        assert (answer.name, answer.status) == ("APIError", None)


def test_another_key_is_sent_where_a_call_has_one(clients: list[Client]) -> None:
    for client in clients:
        answer = client.send(Call("models.list", api_key="wrong"))
        assert isinstance(answer, Fault)
        assert (answer.name, answer.status) == ("AuthenticationError", 401)


def test_only_the_expected_outcome_is_no_fault(clients: list[Client]) -> None:
    refused = Refused("BadRequestError", 400, "refused", "a reason", "why")
    answer, right = (clients[0].send(chat(model)) for model in ("refused", "right"))
    assert fault(refused, answer) is None
    for other in (
        Refused("NotFoundError", 404, "refused", "a reason"),
        Refused("BadRequestError", 400, "other words", "a reason"),
        Refused("BadRequestError", 400, "refused", "a reason", "another code"),
    ):
        assert fault(other, answer)
    assert fault(refused, right)
    assert fault(Right(lambda value: value["own"] == 1), right) is None
    assert fault(Different(lambda value: value["own"] == 1, "a reason"), right) is None
    assert fault(Right(lambda value: value["own"] == 2), right)
    assert fault(Right(lambda value: bool(value["not there"])), right)
    assert fault(Right(lambda _: True), answer)
    assert fault(Refused("BadRequestError", 400, "x", "a reason"), clients[0].send(chat("incomplete")))
