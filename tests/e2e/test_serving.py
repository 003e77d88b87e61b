"""What clients get: the OpenAI APIs through the gateway, with answers that can be right or wrong."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI

from e2e.running_lab import Lab
from lab.artifacts.model.questions import Questions
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import ssh
from vllm_fleet.resolve import start_promises


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
        *("/invocations", "/metrics/", "/pause", "/resume", "/tokenize", "/version", "/load", "/collective_rpc"),
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


def test_the_log_of_a_real_start_is_as_its_recipe_says(lab: Lab, catalog: Catalog) -> None:
    deployment = next(host.plan.deployment for host in lab.site.hosts if host.plan.name == "lab-0")
    assert deployment
    promised = [each.record() for each in start_promises.promises(catalog, deployment)]
    assert promised[0]["names"] == ["CPU"]

    def judge(promises: list[dict[str, Any]]) -> dict[str, Any]:
        instance = {"name": "0", "unit": "vllm@0.service"}
        question = json.dumps({"gates": ["log"], "promises": promises, "instances": [instance]})
        command = f"echo {shlex.quote(question)} | /usr/bin/python3 -IS -c {ssh.pack_program('gates')}"
        said = lab.on("lab-0", f"echo {base64.b64encode(command.encode()).decode()} | base64 -d | sh")
        (result,) = json.loads(said.stdout)["results"]
        return dict(result)

    result = judge(promised)
    assert result["passed"], result
    assert "MoE backend" in result["figures"]["lines"][0], "the release logs what it has chosen"
    result = judge([{**promised[0], "names": ["MARLIN"]}])
    assert not result["passed"]
    assert result["why"].startswith("vLLM serves, and not as its recipe says: the kernel of the experts, which the")


def test_the_printed_benchmark_measures_an_instance(lab: Lab) -> None:
    """The line of ``recipe --show bench`` with fewer and shorter prompts, and with a tokenizer that needs no hub."""
    asked = ("recipe", "--host-class", "cpu-2", "--model", lab.gateway.model, "--show", "bench")
    printed = subprocess.run(
        ["vllm-fleet", *asked], cwd=paths.root(), capture_output=True, text=True, check=True
    ).stdout
    words = shlex.split(printed.splitlines()[-1])
    host = next(each for each in lab.site.hosts if each.plan.name == "lab-0")
    model, engine = host.variables["model_store_models"][0]["directory"], host.variables["vllm_engine_directory_id"]
    for option, value in (
        *(("--host", host.location.service_address), ("--random-input-len", "32"), ("--random-output-len", "8")),
        *(("--max-concurrency", "4"), ("--num-prompts", "8"), ("--result-filename", "/run/bench.json")),
    ):
        words[words.index(option) + 1] = value
    assert words[0] == "vllm"
    command = shlex.join([*words[1:], "--tokenizer", model])
    done = lab.on("lab-0", f"HF_HUB_OFFLINE=1 /opt/vllm/engines/{engine}/bin/vllm {command}")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(lab.on("lab-0", "cat /run/bench.json && rm /run/bench.json").stdout)
    assert (result["completed"], result["total_output_tokens"]) == (8, 64)
    assert result["mean_ttft_ms"] > 0
