"""A gateway on this machine: its real configuration in a real HAProxy, before stand-ins of vLLM."""

from __future__ import annotations

import http.server
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.base import paths
from vllm_fleet.edge import keys
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host import haproxy
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.schema.fleet import Gateway

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed; tests/infra and tests/e2e run it on lab hosts"
)
KEY = "a-key"
SCRIPT = paths.root() / "roles/gateway/files/vllm-gateway.lua"


class Server(http.server.ThreadingHTTPServer):
    """A stand-in of vLLM: it reports which server it is, what it got, and keeps responses as vLLM's store does.

    A request's own key ``do`` decides what it does: ``die`` closes the connection without an answer, as vLLM does when
    a request ends its process; ``events`` streams so many; ``wait`` holds the answer until :attr:`go_on` is set. Other
    keys: vllm/entrypoints/openai/responses/serving.py in 0.32.0.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, address: str, port: int, name: str, model: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.name, self.model = name, model
        self.requests: list[Mapping[str, Any]] = []
        # Method, path and headers of each request of any method.
        self.seen: list[tuple[str, str, Mapping[str, str]]] = []
        self.responses: dict[str, Any] = {}
        self.go_on = threading.Event()
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        super().__init__((address, port), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error; any other one is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        self.server.seen.append((self.command, self.path, dict(getattr(self, "headers", {}))))
        return parsed

    def do_GET(self) -> None:
        if self.path.startswith("/v1/responses/"):
            self._stored(self.path.split("/")[3].partition("?")[0])
        else:
            self._answer({"model": self.server.model})

    def do_DELETE(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        text = self._body()
        with self.server.lock:
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            self._post(text)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _post(self, text: bytes) -> None:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = {}
        self.server.requests.append(body)
        asked = body.get("do", {}) if isinstance(body, dict) else {}
        if asked.get("die"):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if asked.get("wait"):
            self.server.go_on.wait(60)
        if self.path == "/v1/responses":
            self._create(body)
        elif self.path.startswith("/v1/responses/"):
            self._stored(self.path.split("/")[3])
        elif "events" in asked:
            self._stream(asked)
        else:
            usage = {"prompt_tokens": 7, "total_tokens": 12, "completion_tokens": 5}
            self._answer({"model": self.server.model, "length": len(text), "usage": usage})

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        text = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            text += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return text

    def _create(self, body: Mapping[str, Any]) -> None:
        previous = body.get("previous_response_id")
        if previous and previous not in self.server.responses:
            self._answer({"error": {"message": f"Response with id '{previous}' not found.", "code": 404}}, 404)
            return
        made = {"id": f"resp_{uuid.uuid4().hex}", "object": "response", "output": "x" * body.get("long", 10)}
        self.server.responses[made["id"]] = made
        if body.get("stream"):
            event = json.dumps({"type": "response.created", "response": made}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"event: response.created\ndata: " + event + b"\n\n")
            self.close_connection = True
        else:
            self._answer(made)

    def _stored(self, name: str) -> None:
        found = self.server.responses.get(name)
        if found:
            self._answer(found)
        else:
            self._answer({"error": {"message": f"Response with id '{name}' not found.", "code": 404}}, 404)

    def _stream(self, asked: Mapping[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Server", self.server.name)
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(asked["events"]):
            self.wfile.write(b"data: %d\n\n" % number)
            self.wfile.flush()
            if number == 0 and asked.get("pause"):
                self.server.go_on.wait(60)
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _answer(self, body: Mapping[str, Any], status: int = 200) -> None:
        text = json.dumps({**body, "seen": dict(self.headers)}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Server", self.server.name)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """The tests read the answers."""


@dataclass
class Running:
    """A gateway that runs.

    Attributes:
        url: where clients reach it.
        servers: the stand-ins, by the names of their servers.
        folder: its files.
        process: its HAProxy.
    """

    url: str
    servers: Mapping[str, Server]
    folder: Path
    process: subprocess.Popen[bytes]
    reader: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def runtime(self, command: str) -> str:
        """The answer of HAProxy's socket to a command."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(30)
            channel.connect(os.fspath(self.folder / "admin.sock"))
            channel.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: channel.recv(1 << 16), b"")).decode()

    def statistics(self) -> list[dict[str, str]]:
        """The rows of HAProxy's statistics."""
        names, *rows = [line.split(",") for line in self.runtime("show stat").lstrip("# ").splitlines() if line]
        return [dict(zip(names, row, strict=False)) for row in rows]

    def ask(self, path: str, body: Any = None, key: str | None = KEY, **headers: str) -> Answer:
        """Sends a request; a body that is no bytes is sent as JSON."""
        return ask(self.url + path, body, key, **headers)


@dataclass(frozen=True)
class Answer:
    """Status, parsed body and headers of an answer."""

    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def server(self) -> str:
        return self.headers["X-Server"]

    @property
    def code(self) -> str | None:
        """The code of an error of the API; all four keys are required (openai/openai-openapi, Error)."""
        assert set(self.body["error"]) == {"message", "type", "param", "code"}, self.body
        return self.body["error"]["code"]


def ask(url: str, body: Any = None, key: str | None = KEY, **headers: str) -> Answer:
    """Sends a request with a key."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    method = headers.pop("method", None)
    request = urllib.request.Request(
        url, data, {**sent, **{name.replace("_", "-"): text for name, text in headers.items()}}, method=method
    )
    trusting = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())  # noqa: S323
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusting)
    try:
        with opener.open(request, timeout=60) as answer:
            return Answer(answer.status, json.load(answer), answer.headers)
    except urllib.error.HTTPError as refused:
        return Answer(refused.code, json.loads(refused.read()), refused.headers)


def free_ports(address: str) -> int:
    """A free port whose readiness port is free too."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.socket(family))
            # Below the ports of clients: one of those may have it before the gateway does.
            port = random.randrange(15_000, 32_000)
            try:
                first.bind((address, port))
                stack.enter_context(socket.socket(family)).bind((address, port + READINESS_OFFSET))
            except (OSError, OverflowError):
                continue
            return port


def key_lines(lines: Mapping[str, str]) -> str:
    """The file of the keys: key -> what it may do."""
    return "".join(f"{keys.digest(key).removeprefix('sha256:')} {line}\n" for key, line in lines.items())


DEFAULT_KEYS = {KEY: "me:0:0:0:0:5:api"}


@contextmanager
def running_gateway(
    folder: Path,
    servers: Sequence[Mapping[str, Any]],
    listen: str = "127.0.0.1",
    lines: Mapping[str, str] = DEFAULT_KEYS,
    **gateway: Any,
) -> Iterator[Running]:
    """A running gateway with its reader, before servers of its own."""
    with (
        stand_ins(servers) as (backends, found),
        running_gateways({"": folder}, backends, found, listen, lines, **gateway) as (running,),
    ):
        yield running


@contextmanager
def stand_ins(servers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[list[Backend], dict[str, Server]]]:
    """Servers that run, as backends and by their names.

    Args:
        servers: the fields of each server's :class:`Backend` that are not chosen here; ``address`` defaults to
            127.0.0.1.
    """
    with ExitStack() as stack:
        backends, found = [], {}
        for number, fields in enumerate(servers):
            place = {"host": f"gpu-{number}", "instance": "0", "address": "127.0.0.1", **fields}
            port = free_ports(place["address"])
            backend = Backend(port=port, **place)
            backends.append(backend)
            for listening in (port + READINESS_OFFSET, port):
                server = Server(backend.address, listening, backend.server, backend.model)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
                stack.callback(server.go_on.set)
            found[backend.server] = server
        yield backends, found


@contextmanager
def running_gateways(
    folders: Mapping[str, Path],
    backends: Sequence[Backend],
    servers: Mapping[str, Server],
    listen: str = "127.0.0.1",
    lines: Mapping[str, str] = DEFAULT_KEYS,
    **gateway: Any,
) -> Iterator[tuple[Running, ...]]:
    """Gateways of one fleet with their readers.

    Args:
        folders: gateway -> a folder for its files, with a short path; several share their tables.
        backends: the servers, as backends.
        servers: the same by their names.
        listen: the address of the gateways.
        lines: key -> its line.
        gateway: keys of ``gateway`` in a fleet.yml.
    """
    with ExitStack() as stack:
        found = []
        # What each gateway listens on for itself differs here, where all have one address.
        tables = {name: free_ports(listen) for name in folders}
        for name, folder in folders.items():
            settings = Gateway(hosts=len(folders), port=free_ports(listen), **gateway)
            (folder / "keys").write_text(key_lines(lines), encoding="utf-8")
            members = haproxy.Members(name, dict.fromkeys(folders, listen), [listen]) if len(folders) > 1 else None
            config = haproxy.haproxy_config(settings, backends, [listen], members)
            config = config.replace(f"bind :{haproxy.TABLES_PORT}", f"bind :{tables[name]}")
            for other, port in tables.items():
                config = config.replace(
                    f"server {other} {listen}:{haproxy.TABLES_PORT}", f"server {other} {listen}:{port}"
                )
            if settings.tls:
                _make_certificate(folder / "certificate.pem")
            process = _start(stack, folder, "haproxy.cfg", config)
            reader = _start(stack, folder, "reader.cfg", reader_config(settings, backends))
            url = (
                f"{'https' if settings.tls else 'http'}://{f'[{listen}]' if ':' in listen else listen}:{settings.port}"
            )
            found.append(Running(url, servers, folder, process, reader))
        for running in found:
            _wait_until_up(running)
        yield tuple(found)


def local(text: str, folder: Path) -> str:
    """A configuration with all its paths in a folder."""
    for path, name in (
        (haproxy.API_KEYS, "keys"),
        (haproxy.ADMIN_SOCKET, "admin.sock"),
        (haproxy.READER_SOCKET, "reader.sock"),
        (haproxy.RETURN_SOCKET, "read.sock"),
        (haproxy.CERTIFICATE, "certificate.pem"),
    ):
        text = text.replace(path, str(folder / name))
    for port in (haproxy.HEALTH_PORT, haproxy.OWN_TABLES_PORT):
        text = text.replace(f":{port}", f":{free_ports('127.0.0.1')}")
    return text.replace(haproxy.SCRIPT, str(SCRIPT))


def _make_certificate(file: Path) -> None:
    """A certificate with its key, for 127.0.0.1; openssl needs no network for it."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=gateway"
    parts = [file.with_name("tls.key"), file.with_name("tls.crt")]
    subprocess.run([*command.split(), "-keyout", *parts[:1], "-out", *parts[1:]], check=True, capture_output=True)
    file.write_bytes(b"".join(part.read_bytes() for part in parts))


def _start(stack: ExitStack, folder: Path, name: str, config: str) -> subprocess.Popen[bytes]:
    (folder / name).write_text(local(config, folder), encoding="utf-8")
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / name)], stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process


def _wait_until_up(running: Running) -> None:
    while True:
        for process, name in ((running.process, "haproxy.cfg"), (running.reader, "reader.cfg")):
            assert process.poll() is None, (running.folder / f"{name}.log").read_text(encoding="utf-8")
        try:
            states = [row["status"] for row in running.statistics() if row["svname"] in running.servers]
        except OSError:
            states = []
        if states and all(state == "UP" for state in states) and (running.folder / "reader.sock").exists():
            return
        time.sleep(0.02)
