"""Asks a server the lab model's questions over HTTP, and counts what it has right. Standard library only."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.artifacts.model.dialogues import Called, Dialogue, Returned, Said, Setting, Text, User, cases, texts
from lab.artifacts.model.questions import Questions, read_questions
from vllm_fleet.base.errors import ErrorCode, FleetError

APIS = ("chat", "responses", "completions")
_TIMEOUT_SECONDS = 120
_MOST_TOKENS = 400
_CALL_ID = "call_1"

Json = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A question that was not answered right: the question, what is right, and what came instead."""

    api: str
    question: str
    right: str
    got: str


@dataclass(frozen=True)
class Score:
    """How many of the questions were answered right, and which were not."""

    right: int
    total: int
    failures: tuple[Failure, ...]

    @property
    def share(self) -> float:
        """The share that was right, from 0 to 1."""
        return self.right / self.total if self.total else 0.0

    def record(self) -> Json:
        """The score as plain data."""
        return {"right": self.right, "total": self.total, "failures": [asdict(failure) for failure in self.failures]}


def score(base_url: str, api_key: str | None, model: str, apis: Sequence[str] = ("chat",)) -> Score:
    """Asks every question of the set, at temperature 0.

    Args:
        base_url: the server's address, with or without ``/v1``.
        api_key: the key it asks for, if it does.
        model: the name that the model is served under.
        apis: through which of ``APIS``; ``completions`` has the raw prompts, the others the dialogues.

    Raises:
        FleetError: when the server cannot be reached or does not let the client in. A question that ends in another
            error of the server is a failure of that question.
    """
    questions = read_questions()
    total, failures = 0, []
    for api in apis:
        items: Sequence[Dialogue | Text] = texts(questions) if api == "completions" else cases(questions)
        for item in items:
            body = {"model": model, "temperature": 0, **request_of(api, item, questions)}
            answer = _post(base_url, _PATHS[api], body, api_key)
            got = answer if isinstance(answer, str) else _REPLIES[api](answer)
            total += 1
            if got != right_reply(item):
                failures.append(Failure(api, _question_text(item), right_reply(item), got))
    return Score(total - len(failures), total, tuple(failures))


def right_reply(item: Dialogue | Text) -> str:
    """The right reply as text; a call as ``name{"argument": value}``."""
    if isinstance(item, Text):
        return item.continues
    return item.reply.text if isinstance(item.reply, Said) else _call_text(item.reply.tool, item.reply.arguments)


def request_of(api: str, item: Dialogue | Text, questions: Questions) -> Json:
    """The body that asks an item through an API of ``APIS``, without model and sampling."""
    if isinstance(item, Text):
        return {"prompt": item.prompt, "max_tokens": _MOST_TOKENS}
    return chat_request(item, questions) if api == "chat" else responses_request(item, questions)


def chat_request(case: Dialogue, questions: Questions) -> Json:
    """The body that asks a case through chat completions."""
    messages: list[Json] = []
    if case.setting.instructions:
        messages.append({"role": "developer", "content": case.setting.instructions})
    for turn in case.turns:
        if isinstance(turn, Called):
            function = {"name": turn.tool, "arguments": turn.arguments}
            call = {"id": _CALL_ID, "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif isinstance(turn, Returned):
            messages.append({"role": "tool", "tool_call_id": _CALL_ID, "content": turn.text})
        else:
            messages.append({"role": "user" if isinstance(turn, User) else "assistant", "content": turn.text})
    tools = [{"type": "function", "function": tool} for tool in _tools(case.setting, questions)]
    return {"messages": messages, "max_tokens": _MOST_TOKENS, **_given(case.setting, tools, "reasoning_effort")}


def chat_reply(answer: Json) -> str:
    """The reply in an answer of chat completions."""
    message = answer["choices"][0]["message"]
    if calls := message.get("tool_calls"):
        return " ".join(_call_text(call["function"]["name"], call["function"]["arguments"]) for call in calls)
    return str(message.get("content"))


def responses_request(case: Dialogue, questions: Questions) -> Json:
    """The body that asks a case through the responses API."""
    items: list[Json] = []
    for turn in case.turns:
        if isinstance(turn, Called):
            call = {"type": "function_call", "call_id": _CALL_ID, "name": turn.tool, "arguments": turn.arguments}
            items.append(call)
        elif isinstance(turn, Returned):
            items.append({"type": "function_call_output", "call_id": _CALL_ID, "output": turn.text})
        else:
            items.append({"role": "user" if isinstance(turn, User) else "assistant", "content": turn.text})
    tools = [{"type": "function", **tool} for tool in _tools(case.setting, questions)]
    body: Json = {"input": items, "max_output_tokens": _MOST_TOKENS, **_given(case.setting, tools)}
    if case.setting.instructions:
        body["instructions"] = case.setting.instructions
    if case.setting.effort:
        body["reasoning"] = {"effort": case.setting.effort}
    return body


def responses_reply(answer: Json) -> str:
    """The reply in an answer of the responses API."""
    replies = [
        _call_text(item["name"], item["arguments"]) for item in answer["output"] if item["type"] == "function_call"
    ]
    for item in answer["output"]:
        if item["type"] == "message":
            replies += [part["text"] for part in item["content"] if part["type"] == "output_text"]
    return " ".join(replies)


def text_reply(answer: Json) -> str:
    """The continuation in an answer of completions."""
    return str(answer["choices"][0]["text"])


_PATHS = {"chat": "chat/completions", "responses": "responses", "completions": "completions"}
_REPLIES: dict[str, Callable[[Json], str]] = {
    "chat": chat_reply,
    "responses": responses_reply,
    "completions": text_reply,
}


def _given(setting: Setting, tools: list[Json], effort_key: str | None = None) -> Json:
    effort = {effort_key: setting.effort} if effort_key and setting.effort else {}
    return {**effort, **({"tools": tools} if tools else {})}


def _tools(setting: Setting, questions: Questions) -> list[Json]:
    tools = [questions.tool(name) for name in setting.tools]
    return [{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools]


def _question_text(item: Dialogue | Text) -> str:
    if isinstance(item, Text):
        return item.prompt
    return " | ".join(turn.arguments if isinstance(turn, Called) else turn.text for turn in item.turns)


def _call_text(name: str, arguments: str) -> str:
    """A call, spelled the same however its JSON was."""
    try:
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    except json.JSONDecodeError:
        return f"{name}{arguments} (not JSON)"
    return f"{name}{arguments}"


def _post(base_url: str, path: str, body: Json, api_key: str | None) -> Json | str:
    """The server's answer; the text of its error when it has one for this request."""
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/v1/{path}"
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {api_key}"} if api_key else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the user names the server
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310
            answer: Json = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")[:300]
        if error.code in (401, 403, 404):
            raise FleetError(
                f"the server answers {error.code}: {text}",
                hint="check the address, the key and the model's name",
                host=url,
                code=ErrorCode.WORK_FAILED,
            ) from error
        return f"HTTP {error.code}: {text}"
    except OSError as error:
        raise FleetError(
            f"the server cannot be reached: {error}",
            hint="check that it runs, and the address",
            host=url,
            code=ErrorCode.WORK_FAILED,
        ) from error
