"""The gateway's configuration in a real HAProxy, in front of stand-ins of vLLM: requests and answers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gateway_on_loopback import KEY, Running, needs_haproxy, running_gateway

pytestmark = needs_haproxy
MODELS = ("openai/gpt-oss-120b", "openai/gpt-oss-20b")
MIB = 1 << 20
#: What the gateway reads itself; longer bodies go through the reader.
SHORT, LONG = 1000, 300_000
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {"type": {"const": "mcp"}}}}


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(
        tmp_path_factory.mktemp("g"), [{"model": model} for model in MODELS], max_body_mib=2
    ) as running:
        yield running


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("g"), [{"model": MODELS[0]}]) as running:
        yield running


@pytest.mark.parametrize("padding", [0, LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"model":"openai/gpt-oss-120b"}', MODELS[0]),
        # PHP's json_encode, and others, escape each slash: RFC 8259, 7 allows it.
        (r'{"model":"openai\/gpt-oss-20b"}', MODELS[1]),
        (r'{"messages":[{"content":"a\/b \" \\/ \\\\"}],"model":"openai\/gpt-oss-20b"}', MODELS[1]),
        (r'{"model":"openai\u002fgpt-oss-20b"}', MODELS[1]),
        (r'{"mod\u0065l":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{ "stop" : ["\\n"],\n  "model" :\t"openai/gpt-oss-20b" }', MODELS[1]),
        # Only the key of the object itself counts.
        ('{"metadata":{"model":"openai/gpt-oss-120b"},"model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"model":"openai/gpt-oss-20b","metadata":{"model":"openai/gpt-oss-120b"}}', MODELS[1]),
        ('{"prompt":"\\"model\\":\\"openai/gpt-oss-120b\\"","model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"prompt":"]}[{ \\\\","tools":[[],{},[{"a":"]"}]],"model":"openai/gpt-oss-20b"}', MODELS[1]),
        # Of two equal keys Python takes the last one.
        ('{"model":"openai/gpt-oss-120b","model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"a":-1.5e+3,"b":null,"c":true,"d":{},"e":[],"f":"","model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"x":"\\ud83d\\ude00 \u00e9","model":"openai/gpt-oss-20b"}', MODELS[1]),
    ],
)
def test_the_model_is_read_as_json(two_models: Running, body: str, model: str, padding: int) -> None:
    if padding:
        body = body.rstrip()[:-1] + ',"padding":"' + "\\\\x\\n" * (padding // 5) + '"}'
    assert json.loads(body)["model"] == model
    answer = two_models.ask("/v1/chat/completions", body.encode())
    assert (answer.status, answer.body["model"], answer.body["length"]) == (200, model, len(body.encode()))


@pytest.mark.parametrize("padding", [SHORT, LONG])
def test_no_key_and_no_header_of_the_gateway_reach_a_server(two_models: Running, padding: int) -> None:
    body = {"model": MODELS[0], "prompt": "x" * padding}
    forged = {"X-Vllm-Fleet-Model": b"c/d".hex(), "X-Vllm-Fleet-Key": "boss:0:0:0:0:9:api", "X-Api-Key": "other"}
    seen = {name.lower() for name in two_models.ask("/v1/completions", body, **forged).body["seen"]}
    assert not seen & {"authorization", "x-api-key"}
    assert not [name for name in seen if name.startswith("x-vllm-fleet-")]


def test_the_list_of_models_has_all_of_them(two_models: Running) -> None:
    answer = two_models.ask("/v1/models")
    assert (answer.status, answer.body["object"]) == (200, "list")
    assert [model["id"] for model in answer.body["data"]] == list(MODELS)
    # Clients require these four keys: openai/openai-openapi, schema Model.
    assert all({"id", "object", "created", "owned_by"} <= set(model) for model in answer.body["data"])


@pytest.mark.parametrize("name", [MODELS[1], MODELS[1].replace("/", "%2F"), MODELS[1].replace("/", "%2f")])
def test_a_model_has_a_page(two_models: Running, name: str) -> None:
    answer = two_models.ask(f"/v1/models/{name}")
    assert (answer.status, answer.body["id"]) == (200, MODELS[1])


def test_aliases_lead_to_their_pool(tmp_path_factory: pytest.TempPathFactory) -> None:
    pools = [
        {"model": "m/m", "names": ("fast", "gpt:latest"), "context_tokens": 8192},
        {"model": "m/m", "names": ("cheap",)},
    ]
    with running_gateway(tmp_path_factory.mktemp("g"), pools) as running:
        servers = {
            name: running.ask("/v1/completions", {"model": name}).server for name in ("fast", "gpt:latest", "cheap")
        }
        assert servers == {"fast": "gpu-0_0", "gpt:latest": "gpu-0_0", "cheap": "gpu-1_0"}
        assert running.ask("/v1/completions", {"model": "m/m"}).code == "model_not_found"
        assert running.ask("/v1/models/gpt:latest").body["max_model_len"] == 8192


def test_one_model_needs_no_name(one_model: Running) -> None:
    assert one_model.ask("/v1/completions", {"prompt": "x"}).body["model"] == MODELS[0]
    assert one_model.ask("/v1/completions", {"model": "other"}).code == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "code"),
    [
        ("/v1/completions", {"model": "gpt-4o"}, KEY, 404, "model_not_found"),
        ("/v1/completions", {"model": "gpt-4o", "prompt": "x" * LONG}, KEY, 404, "model_not_found"),
        ("/v1/completions", b'{"model":"openai/gpt-oss-20b ', KEY, 400, None),
        ("/v1/completions", b'{"prompt":"' + b"x" * LONG, KEY, 400, None),
        ("/v1/completions", b'["model"]', KEY, 400, None),
        ("/v1/completions", b"", KEY, 400, None),
        ("/v1/completions", b'{"model" "openai/gpt-oss-20b"}', KEY, 400, None),
        ("/v1/completions", '{"model":"openai/gpt-oss-20b"}'.encode("utf-16"), KEY, 400, None),
        ("/v1/completions", {"prompt": "x"}, KEY, 400, None),
        ("/v1/completions", {"prompt": "x" * LONG}, KEY, 400, None),
        ("/v1/completions", {"model": 7}, KEY, 404, "model_not_found"),
        ("/v1/completions", {"model": ["openai/gpt-oss-20b"]}, KEY, 404, "model_not_found"),
        ("/v1/completions", {"model": "openai/gpt-oss-20b\0"}, KEY, 404, "model_not_found"),
        ("/v1/models/gpt-4o", None, KEY, 404, "model_not_found"),
        ("/metrics", None, KEY, 403, "insufficient_permissions"),
        ("/metrics/", None, KEY, 404, None),
        ("/v1/models/../../metrics", None, KEY, 404, None),
        ("/v1/audio/speech", {"model": MODELS[0]}, KEY, 404, None),
        ("/v1/embeddings", {"model": MODELS[0], "input": "x"}, KEY, 404, None),
        ("/v1/responses", {"model": MODELS[0], "tools": [FUNCTION, {"type": "mcp"}]}, KEY, 400, "no_tool_server"),
        ("/v1/responses", {"model": MODELS[0], "tools": [{"type": "code_interpreter"}]}, KEY, 400, "no_tool_server"),
        (
            "/v1/responses",
            {"model": MODELS[0], "tools": [{"type": "web_search_preview"}], "input": "x" * LONG},
            KEY,
            400,
            "no_tool_server",
        ),
        ("/v1/responses/resp_1", None, KEY, 404, "response_not_found"),
        ("/v1/responses", {"model": MODELS[0], "previous_response_id": "resp_1"}, KEY, 400, "responses_store_off"),
        ("/v1/responses", {"model": MODELS[0], "background": True}, KEY, 400, "responses_store_off"),
        (
            "/v1/responses",
            {"model": MODELS[0], "background": True, "input": "x" * LONG},
            KEY,
            400,
            "responses_store_off",
        ),
        ("/v1/models", None, "wrong", 401, "invalid_api_key"),
        ("/v1/models", None, None, 401, "invalid_api_key"),
    ],
)
def test_errors_have_the_form_of_the_api(
    two_models: Running, path: str, body: Any, key: str | None, status: int, code: str | None
) -> None:
    answer = two_models.ask(path, body, key)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert answer.code == code
    assert (answer.headers["WWW-Authenticate"] == "Bearer") == (status == 401)


@pytest.mark.parametrize("padding", [SHORT, LONG])
def test_tools_reach_the_servers_that_can_use_them(tmp_path_factory: pytest.TempPathFactory, padding: int) -> None:
    pools = [{"model": MODELS[0], "tool_server": True}, {"model": MODELS[1]}]
    asked: dict[str, Any] = {"tools": [FUNCTION, {"type": "mcp"}], "input": "x" * padding}
    with running_gateway(tmp_path_factory.mktemp("g"), pools) as running:
        assert running.ask("/v1/responses", {"model": MODELS[0], **asked}).status == 200
        assert running.ask("/v1/responses", {"model": MODELS[1], **asked}).code == "no_tool_server"
        only_functions = {"model": MODELS[1], "tools": [FUNCTION, FUNCTION], "input": "x" * padding}
        assert running.ask("/v1/responses", only_functions).status == 200


def test_a_method_that_a_path_does_not_take_is_named_as_such(two_models: Running) -> None:
    for path, method, allowed in (
        ("/v1/chat/completions", "GET", "POST"),
        ("/v1/models", "POST", "GET"),
        (f"/v1/models/{MODELS[0]}", "DELETE", "GET"),
    ):
        answer = two_models.ask(path, method=method)
        assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method_not_allowed", allowed)
    assert two_models.ask("/v1/chat/completions", key=None, method="DELETE").status == 401


@pytest.mark.parametrize("first", ["model", "prompt"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_named_as_such(two_models: Running, first: str, chunked: bool) -> None:
    fields = {"model": MODELS[1], "prompt": "x" * (2 * MIB)}
    body = json.dumps({first: fields[first], **fields}).encode()
    with socket.create_connection(("127.0.0.1", two_models.port), timeout=30) as channel:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{length}\r\n\r\n"
        channel.sendall(head.encode())
        # It may answer and close before the end of the body.
        with suppress(OSError):
            channel.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        answer = http.client.HTTPResponse(channel)
        answer.begin()
        text = answer.read()
    assert answer.status == 413
    assert b'"message":"The body is longer than the 2 MiB' in text


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [SHORT, 50_000, 61_000, 66_000, LONG, 2 * MIB - 100])
def test_a_body_that_fits_is_routed(two_models: Running, size: int, chunked: bool) -> None:
    body = json.dumps({"prompt": "x" * size, "model": MODELS[1]}).replace("/", r"\/").encode()
    with socket.create_connection(("127.0.0.1", two_models.port), timeout=30) as channel:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{length}\r\n"
        channel.sendall(head.encode() + b"Connection: close\r\n\r\n")
        channel.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        head, _, answer = channel.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    assert json.loads(answer)["model"] == MODELS[1]


def test_no_server_is_an_error_of_the_api_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_gateway(tmp_path_factory.mktemp("g"), [{"model": MODELS[0]}]) as running:
        assert running.ask("/healthz", key=None).status == 200
        running.runtime("disable server model_openai_gpt_oss_120b/gpu-0_0")
        answer = running.ask("/v1/completions", {"model": MODELS[0]})
        assert (answer.status, answer.body["error"]["type"]) == (503, "server_error")
        assert answer.headers["Retry-After"] == "1"
        assert running.ask("/healthz", key=None).status == 503


def test_a_gateway_that_is_out_of_traffic_is_not_healthy(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_gateway(tmp_path_factory.mktemp("g"), [{"model": MODELS[0]}]) as running:
        running.runtime("set server itself/this.gateway state drain")
        assert running.ask("/healthz", key=None).status == 503
        # What clients send meanwhile is still served.
        assert running.ask("/v1/completions", {"model": MODELS[0]}).status == 200
        running.runtime("set server itself/this.gateway state ready")
        assert running.ask("/healthz", key=None).status == 200


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("servers", [("::1", "::1"), ("127.0.0.1", "::1")], ids=["ipv6", "mixed"])
def test_ipv6_from_the_client_to_the_server(tmp_path_factory: pytest.TempPathFactory, servers: tuple[str, str]) -> None:
    places = [{"model": model, "address": address} for model, address in zip(MODELS, servers, strict=True)]
    with running_gateway(tmp_path_factory.mktemp("g"), places, listen="::1") as running:
        for model in MODELS:
            assert running.ask("/v1/completions", {"model": model}).body["model"] == model
        # The same port takes IPv4.
        with socket.create_connection(("127.0.0.1", running.port), timeout=30) as channel:
            channel.sendall(f"GET /v1/models HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            assert channel.makefile("rb").readline().startswith(b"HTTP/1.1 200")
