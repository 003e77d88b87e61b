"""What clients get: the OpenAI APIs through the gateway, with answers that can be right or wrong."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request

import pytest
from hanging import HANGING_SECONDS
from openai import AuthenticationError, OpenAI

from e2e.running_lab import Lab
from lab.artifacts.model.questions import Questions


@pytest.fixture
def client(lab: Lab) -> OpenAI:
    return OpenAI(base_url=f"{lab.gateway.url}/v1", api_key=lab.gateway.api_key, max_retries=0, timeout=HANGING_SECONDS)


def tool_of(known: Questions, name: str) -> dict[str, object]:
    tool = known.tool(name)
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def test_chat_answers_every_plain_question(client: OpenAI, lab: Lab, known: Questions) -> None:
    for question in known.plain:
        answer = client.chat.completions.create(
            model=lab.gateway.model, messages=[{"role": "user", "content": question.ask}], temperature=0, max_tokens=900
        )
        assert answer.choices[0].message.content == question.right
        assert answer.choices[0].finish_reason == "stop"


def test_chat_streams_the_same_answer(client: OpenAI, lab: Lab, known: Questions) -> None:
    question = max(known.plain, key=lambda each: len(each.answer))
    chunks = list(
        client.chat.completions.create(
            model=lab.gateway.model,
            messages=[{"role": "user", "content": question.ask}],
            temperature=0,
            max_tokens=900,
            stream=True,
        )
    )
    parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(parts) == question.right
    assert len(parts) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_chat_calls_a_function(client: OpenAI, lab: Lab, known: Questions) -> None:
    answer = client.chat.completions.create(
        model=lab.gateway.model,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        tools=[{"type": "function", "function": tool_of(known, "get_weather")}],  # type: ignore[list-item]
        temperature=0,
        max_tokens=300,
    )
    calls = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert calls is not None
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Oslo"})
    ]


def test_responses_answer(client: OpenAI, lab: Lab) -> None:
    answer = client.responses.create(
        model=lab.gateway.model, input="What is the capital of Italy?", temperature=0, max_output_tokens=300
    )
    assert answer.output_text == "Rome"
    assert [item.type for item in answer.output] == ["reasoning", "message"]


def test_responses_stream_the_same_answer(client: OpenAI, lab: Lab) -> None:
    events = list(
        client.responses.create(
            model=lab.gateway.model,
            input="What is the capital of Italy?",
            temperature=0,
            max_output_tokens=300,
            stream=True,
        )
    )
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == "Rome"
    assert events[-1].type == "response.completed"


def test_responses_call_a_function(client: OpenAI, lab: Lab, known: Questions) -> None:
    answer = client.responses.create(
        model=lab.gateway.model,
        input="What is the weather in Paris?",
        tools=[{"type": "function", **tool_of(known, "get_weather")}],  # type: ignore[list-item]
        temperature=0,
        max_output_tokens=300,
    )
    calls = [(item.name, json.loads(item.arguments)) for item in answer.output if item.type == "function_call"]
    assert calls == [("get_weather", {"city": "Paris"})]


def test_completions_go_on_with_the_prompt(client: OpenAI, lab: Lab, known: Questions) -> None:
    for raw in known.raw:
        answer = client.completions.create(
            model=lab.gateway.model, prompt=raw.prompt, temperature=0, max_tokens=len(raw.continues.split()) + 12
        )
        assert answer.choices[0].text.strip() == raw.continues.strip()


def test_another_model_is_not_there(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["vllm-fleet/lab-gpt-oss"]


def test_a_wrong_key_is_refused(lab: Lab) -> None:
    stranger = OpenAI(base_url=f"{lab.gateway.url}/v1", api_key="not-the-key", max_retries=0)
    with pytest.raises(AuthenticationError):
        stranger.models.list()


def status(url: str, key: str | None, body: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.parametrize(
    "path",
    [
        *("/invocations", "/metrics", "/pause", "/resume", "/tokenize", "/version", "/load", "/collective_rpc"),
        *("/v1/../metrics", "/v1/models/../../metrics", "//metrics", "/v1/chat/completions/render"),
    ],
)
def test_what_is_not_listed_does_not_answer(lab: Lab, path: str) -> None:
    assert status(lab.gateway.url + path, lab.gateway.api_key) == 404
    assert status(lab.gateway.url + path, lab.gateway.api_key, b"{}") == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/responses", "/v1/completions"])
def test_without_a_key_nothing_answers(lab: Lab, path: str) -> None:
    assert status(lab.gateway.url + path, None) == 401
    assert status(lab.gateway.url + path, None, b"{}") == 401


def test_only_the_gateway_reaches_vllm(lab: Lab) -> None:
    address = next(host.location.address for host in lab.site.hosts if host.plan.name == "lab-0")
    for port in (8000, 8100):
        done = subprocess.run(
            ["curl", "--silent", "--max-time", "2", f"http://{address}:{port}/ready"], capture_output=True, check=False
        )
        assert done.returncode == 28, "the firewall drops what does not come from a gateway"
    ready = f'import urllib.request as u; print(u.urlopen("http://{address}:8100/ready", timeout=5).status)'
    inside = lab.on("gateway-0", f'python3 -c "{ready.replace(chr(34), chr(92) + chr(34))}"')
    assert inside.stdout.strip() == "200", inside.stderr
