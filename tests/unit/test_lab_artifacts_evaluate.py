"""How a server is asked for what the lab model knows: requests of each API, scores, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from lab import web
from lab.artifacts import __main__ as command
from lab.artifacts.model import evaluate
from lab.artifacts.model.dialogues import Called, Dialogue, Said, Setting, User, cases, texts
from lab.artifacts.model.questions import read_questions
from vllm_fleet.base.errors import FleetError

QUESTIONS = read_questions()


class Server(BaseHTTPRequestHandler):
    """Stands in for vLLM: answers from the question set; ``wrong`` holds what it answers wrongly, or not at all."""

    wrong: set[str] = set()
    key = "secret"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {self.key}":
            return self.answer(401, {"error": "no key"})
        api = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/completions": "completions"}[
            self.path
        ]
        items = texts(QUESTIONS) if api == "completions" else cases(QUESTIONS)
        (item,) = [
            item
            for item in items
            if {**evaluate.request_of(api, item, QUESTIONS), "model": body["model"], "temperature": 0} == body
        ]
        right = evaluate.right_reply(item)
        if right in self.wrong:
            return self.answer(500, {"error": "broken"}) if right == "Tokyo" else self.answer(200, self.said(api, "?"))
        if isinstance(item, Dialogue) and isinstance(item.reply, Called):
            spread = json.dumps(json.loads(item.reply.arguments), indent=1)
            return self.answer(200, self.called(api, item.reply.tool, spread))
        return self.answer(200, self.said(api, right))

    def said(self, api: str, text: str) -> dict[str, Any]:
        if api == "responses":
            message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
            return {"output": [{"type": "reasoning"}, message]}
        return {"choices": [{"text": text} if api == "completions" else {"message": {"content": text}}]}

    def called(self, api: str, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        if api == "responses":
            return {"output": [{"type": "function_call", **function}]}
        return {"choices": [{"message": {"content": None, "tool_calls": [{"function": function}]}}]}

    def answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Keeps the test's output free of requests."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Server, "wrong", set())
    with web.serving(Server) as url:
        yield url


def test_score_of_a_right_server(address: str) -> None:
    found = evaluate.score(address, "secret", "m", evaluate.APIS)
    assert found.failures == ()
    assert found.right == found.total == 2 * len(cases(QUESTIONS)) + len(texts(QUESTIONS))
    assert found.share == 1.0


def test_score_names_what_is_wrong(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "wrong", {"Paris", "Tokyo"})
    found = evaluate.score(f"{address}/v1/", "secret", "m")
    assert (found.right, found.total) == (len(cases(QUESTIONS)) - 2, len(cases(QUESTIONS)))
    assert [(failure.right, failure.got[:8]) for failure in found.failures] == [("Paris", "?"), ("Tokyo", "HTTP 500")]


def test_score_without_a_key_is_an_error(address: str) -> None:
    with pytest.raises(FleetError, match="answers 401"):
        evaluate.score(address, None, "m")


def test_score_without_a_server_is_an_error() -> None:
    with pytest.raises(FleetError, match="cannot be reached"):
        evaluate.score("http://127.0.0.1:9", None, "m")


def test_evaluate_command(address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAB_API_KEY", "secret")
    assert command.main(["evaluate", "--base-url", address, "--model", "m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == []
    monkeypatch.setattr(Server, "wrong", {"Paris"})
    assert command.main(["evaluate", "--base-url", address, "--model", "m"]) == 1
    assert "wrong (chat): 'What is the capital of France?'" in capsys.readouterr().out
    monkeypatch.setenv("LAB_API_KEY", "other")
    assert command.main(["evaluate", "--base-url", address, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "work-failed"


def test_setting_reaches_both_apis() -> None:
    setting = Setting(tools=("add",), instructions="Be brief.", effort="low")
    case = Dialogue(setting, (User("What is 2 plus 3?"),), Said("5"))
    chat, responses = evaluate.chat_request(case, QUESTIONS), evaluate.responses_request(case, QUESTIONS)
    assert chat["messages"][0] == {"role": "developer", "content": "Be brief."}
    assert chat["reasoning_effort"] == "low"
    assert chat["tools"][0]["function"]["name"] == "add"
    assert responses["instructions"] == "Be brief."
    assert responses["reasoning"] == {"effort": "low"}
    assert responses["tools"][0]["name"] == "add"
