"""The gateway's configuration in a real HAProxy, in front of stand-ins of vLLM: requests and answers."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge import keys
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.haproxy import ADMIN_SOCKET, API_KEYS, Backend, haproxy_config
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.fleet import Gateway

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed; tests/infra and tests/e2e run it on lab hosts"
)
KEY = "a-key"
MODELS = ("openai/gpt-oss-120b", "openai/gpt-oss-20b")
LIMIT_BYTES = 4 << 20


class Server(http.server.ThreadingHTTPServer):
    """A stand-in of vLLM: it says which model it is, and that it is ready."""

    def __init__(self, address: str, port: int, model: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.model = model
        super().__init__((address, port), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        body = json.dumps({"model": self.server.model, "authorization": self.headers.get("Authorization")}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The tests read the answers."""


def free_ports(address: str) -> int:
    """A free port whose readiness port is free too."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket(family))
            first.bind((address, 0))
            port = int(first.getsockname()[1])
            try:
                stack.enter_context(socket.socket(family)).bind((address, port + READINESS_OFFSET))
            except (OSError, OverflowError):
                continue
            return port


@contextmanager
def gateway(tmp_path: Path, servers: Mapping[str, str], listen: str = "127.0.0.1") -> Iterator[str]:
    """A running gateway; yields its URL.

    Args:
        tmp_path: a folder for its files.
        servers: model -> the address of its stand-in.
        listen: the address of the gateway.
    """
    with ExitStack() as stack:
        backends = []
        for number, (model, address) in enumerate(servers.items()):
            port = free_ports(address)
            for listening in (port, port + READINESS_OFFSET):
                stack.callback(Server(address, listening, model).shutdown)
            backends.append(Backend(f"gpu-{number}", "0", address, port, model))
        port = free_ports(listen)
        (tmp_path / "keys").write_text(key_map_text(ApiKeys(keys={"me": keys.digest(KEY)})), encoding="utf-8")
        text = haproxy_config(Gateway(hosts=1, port=port), backends, [listen])
        text = text.replace(API_KEYS, str(tmp_path / "keys")).replace(ADMIN_SOCKET, str(tmp_path / "admin.sock"))
        (tmp_path / "haproxy.cfg").write_text(text, encoding="utf-8")
        process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        _wait_until_up(process, tmp_path / "admin.sock")
        yield f"http://{f'[{listen}]' if ':' in listen else listen}:{port}"


def _wait_until_up(process: subprocess.Popen[bytes], admin: Path) -> None:
    while True:
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        with socket.socket(socket.AF_UNIX) as channel:
            try:
                channel.connect(os.fspath(admin))
            except OSError:
                time.sleep(0.02)
                continue
            channel.sendall(b"show stat\n")
            rows = b"".join(iter(lambda: channel.recv(1 << 16), b"")).decode().splitlines()
        states = [row.split(",")[17] for row in rows[1:] if ",gpu-" in row]
        if states and all(state == "UP" for state in states):
            return
        time.sleep(0.02)


def ask(url: str, body: bytes | None = None, key: str = KEY, **headers: str) -> tuple[int, Any, Mapping[str, str]]:
    """Status, parsed body and headers of an answer."""
    request = urllib.request.Request(url, body, {"Authorization": f"Bearer {key}", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, json.load(answer), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), error.headers


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with gateway(tmp_path_factory.mktemp("gateway"), dict.fromkeys(MODELS, "127.0.0.1")) as url:
        yield url


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ('{"model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"model":"openai/gpt-oss-120b"}', MODELS[0]),
        # PHP's json_encode, and others, escape each slash: RFC 8259, 7 allows it.
        (r'{"model":"openai\/gpt-oss-20b"}', MODELS[1]),
        (r'{"messages":[{"content":"a\/b \" \\/ \\\\"}],"model":"openai\/gpt-oss-20b"}', MODELS[1]),
        (r'{"model":"openai\u002fgpt-oss-20b"}', MODELS[1]),
        ('{ "stop" : ["\\n"],\n  "model" :\t"openai/gpt-oss-20b" }', MODELS[1]),
        # Only the key of the object itself counts.
        ('{"metadata":{"model":"openai/gpt-oss-120b"},"model":"openai/gpt-oss-20b"}', MODELS[1]),
        ('{"prompt":"\\"model\\":\\"openai/gpt-oss-120b\\"","model":"openai/gpt-oss-20b"}', MODELS[1]),
    ],
)
def test_the_model_is_read_as_json(two_models: str, body: str, model: str) -> None:
    assert json.loads(body)["model"] == model
    status, answer, _ = ask(f"{two_models}/v1/chat/completions", body.encode())
    assert (status, answer) == (200, {"model": model, "authorization": None})


def test_the_list_of_models_has_all_of_them(two_models: str) -> None:
    status, listing, _ = ask(f"{two_models}/v1/models")
    assert (status, listing["object"], [model["id"] for model in listing["data"]]) == (200, "list", list(MODELS))
    # Clients require these four keys: openai/openai-openapi, schema Model.
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in listing["data"])


def test_one_model_answers_for_itself(tmp_path: Path) -> None:
    with gateway(tmp_path, {MODELS[0]: "127.0.0.1"}) as url:
        assert ask(f"{url}/v1/models")[1]["model"] == MODELS[0]


@pytest.mark.parametrize(
    ("path", "body", "key", "status", "code"),
    [
        ("/v1/completions", b'{"model":"gpt-4o"}', KEY, 404, "model_not_found"),
        ("/v1/completions", b'{"model":"openai/gpt-oss-20b ', KEY, 400, None),
        ("/v1/completions", b'{"prompt":"x"}', KEY, 400, None),
        ("/v1/completions", b'{"model":7}', KEY, 404, "model_not_found"),
        ("/metrics", None, KEY, 404, None),
        ("/v1/models", None, "wrong", 401, "invalid_api_key"),
    ],
)
def test_errors_have_the_form_of_the_api(
    two_models: str, path: str, body: bytes | None, key: str, status: int, code: str | None
) -> None:
    found, answer, headers = ask(f"{two_models}{path}", body, key)
    assert (found, headers["Content-Type"]) == (status, "application/json")
    # openai/openai-openapi, schema Error: all four are required.
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == code
    assert (headers["WWW-Authenticate"] == "Bearer") == (status == 401)


@pytest.mark.parametrize("first", ["model", "prompt"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_named_as_such(two_models: str, first: str, chunked: bool) -> None:
    fields = {"model": MODELS[1], "prompt": "x" * LIMIT_BYTES}
    body = json.dumps({first: fields[first], **fields}).encode()
    with socket.create_connection(("127.0.0.1", int(two_models.rpartition(":")[2])), timeout=30) as channel:
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n{length}\r\n\r\n"
        channel.sendall(head.encode())
        # It may answer and close before the end of the body.
        with suppress(OSError):
            channel.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        answer = channel.makefile("rb").read(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"message":"The body is longer than the 4 MiB' in answer


def test_a_long_body_that_fits_is_routed(two_models: str) -> None:
    body = json.dumps({"prompt": "x" * (LIMIT_BYTES - 100_000), "model": MODELS[1]}).replace("/", r"\/")
    assert ask(f"{two_models}/v1/completions", body.encode())[1]["model"] == MODELS[1]


def test_no_server_is_an_error_of_the_api_too(tmp_path: Path) -> None:
    with gateway(tmp_path, {MODELS[0]: "127.0.0.1"}) as url:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(os.fspath(tmp_path / "admin.sock"))
            channel.sendall(b"disable server model_openai_gpt_oss_120b/gpu-0_0\n")
            channel.recv(64)
        status, answer, _ = ask(f"{url}/v1/completions", b'{"model":"openai/gpt-oss-120b"}')
    assert (status, answer["error"]["type"]) == (503, "server_error")


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
@pytest.mark.parametrize("servers", [("::1", "::1"), ("127.0.0.1", "::1")], ids=["ipv6", "mixed"])
def test_ipv6_from_the_client_to_the_server(tmp_path: Path, servers: tuple[str, str]) -> None:
    with gateway(tmp_path, dict(zip(MODELS, servers, strict=True)), listen="::1") as url:
        for model in MODELS:
            assert ask(f"{url}/v1/completions", json.dumps({"model": model}).encode())[1]["model"] == model
        # The same port takes IPv4.
        assert ask(url.replace("[::1]", "127.0.0.1") + "/v1/models")[0] == 200
