"""``python -m bench.stand_in``: servers that answer as vLLM does, without a model; several ports in one process.

A chat completion streams one chunk for each token of ``max_tokens``. What was read in vLLM 0.32
(``entrypoints/openai/chat_completion/serving.py``): a chunk with the role comes together with the first token, then one
chunk a token, one with ``finish_reason``, and ``data: [DONE]``. ``/health`` has an empty body
(``entrypoints/serve/instrumentator/health.py``). ``/ready/MODEL`` is that of this project's instances.

Every server keeps the requests that it got, and ``GET /stand-in/requests`` lists those of all. A last message "die"
ends that server as a crash does: its connections are reset, and its port refuses new ones. "fail" is answered with 500.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_TOKENS = 16
_CHAT = "/v1/chat/completions"
REQUESTS = "/stand-in/requests"
DIE, FAIL = "die", "fail"
#: The text of every token, so that a client knows the answer beforehand.
WORD = " word"


@dataclass(frozen=True)
class Answers:
    """What all servers of a process share.

    Attributes:
        model: the name of the model.
        token_seconds: the time before each token.
        requests: every completion that was asked for, in the order of their arrival.
    """

    model: str
    token_seconds: float
    requests: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Server:
    """One server.

    Attributes:
        number: its number, from 0.
        shared: what it answers.
        listeners: its open ports.
        writers: its open connections.
    """

    number: int
    shared: Answers
    listeners: list[asyncio.Server] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection, until the client closes it."""
        self.writers.add(writer)
        # A client that goes away in the middle of a stream is no fault of the server.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                method, path, body = await read_request(reader)
                await self._answer(writer, method, path, body)
        self.writers.discard(writer)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> None:
        if method == "POST" and path == _CHAT:
            await self._complete(writer, json.loads(body))
        elif path == "/health" or path == f"/ready/{self.shared.model}":
            _send(writer, 200, b"")
        elif path == "/v1/models":
            _send(writer, 200, json.dumps(_models(self.shared.model)).encode())
        elif path == REQUESTS:
            _send(writer, 200, json.dumps(self.shared.requests).encode())
        else:
            _send(writer, 404, b'{"detail":"Not Found"}')
        await writer.drain()

    async def _complete(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        messages: list[dict[str, Any]] = request.get("messages") or [{}]
        first: dict[str, Any] = next((message for message in messages if message.get("role") == "user"), {})
        self.shared.requests.append({"server": self.number, "session": first.get("content"), "request": request})
        last = messages[-1].get("content")
        if last == DIE:
            self._die()
        elif last == FAIL:
            error = {"message": "EngineCore died.", "type": "InternalServerError", "param": None, "code": 500}
            _send(writer, 500, json.dumps({"error": error}).encode())
        elif request.get("stream"):
            await self._stream(writer, int(request.get("max_tokens") or _TOKENS))
        else:
            tokens = int(request.get("max_tokens") or _TOKENS)
            await asyncio.sleep(self.shared.token_seconds * tokens)
            message = {"role": "assistant", "content": WORD * tokens}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            whole = {**self._head("chat.completion"), "choices": [choice]}
            _send(writer, 200, json.dumps(whole).encode())

    async def _stream(self, writer: asyncio.StreamWriter, tokens: int) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        role, token, last = (
            self._chunk({"role": "assistant", "content": ""}, None),
            self._chunk({"content": WORD}, None),
            self._chunk({}, "length") + _event("[DONE]") + b"0\r\n\r\n",
        )
        for number in range(tokens):
            await asyncio.sleep(self.shared.token_seconds)
            writer.write(role + token if number == 0 else token)
            await writer.drain()
        writer.write(last)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-0", "object": kind, "created": 0, "model": self.shared.model}

    def _chunk(self, delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(json.dumps({**self._head("chat.completion.chunk"), "choices": [choice]}))

    def _die(self) -> None:
        for listener in self.listeners:
            listener.close()
        for writer in self.writers:
            writer.transport.abort()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, bytes]:
    """One request: method, path, body, which has a length or is in chunks.

    Raises:
        asyncio.IncompleteReadError: the connection ended before the end of the request.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if "chunked" in headers.get("transfer-encoding", "").lower():
        return method, path, await read_chunks(reader)
    return method, path, await reader.readexactly(int(headers.get("content-length", "0")))


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks, up to its end.

    Raises:
        asyncio.IncompleteReadError: the connection ended before.
    """
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";", 1)[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = f"HTTP/1.1 {status} Answer\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _event(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


def _models(model: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": "vllm"}]}


def _sockets(port: int, offset: int) -> list[socket.socket]:
    """The socket of the API, and that of the readiness port if there is one; port 0 takes free ones."""
    while True:
        with contextlib.ExitStack() as stack:
            api = stack.enter_context(socket.create_server(("127.0.0.1", port)))
            opened = [api]
            if offset:
                try:
                    also = socket.create_server(("127.0.0.1", api.getsockname()[1] + offset))
                except (OSError, OverflowError):
                    if port:
                        raise
                    continue
                opened.append(stack.enter_context(also))
            stack.pop_all()
            return opened


async def _serve(ports: Sequence[int], offset: int, shared: Answers) -> None:
    numbers = []
    for number, port in enumerate(ports):
        server = Server(number, shared)
        opened = _sockets(port, offset)
        numbers.append(opened[0].getsockname()[1])
        server.listeners += [await asyncio.start_server(server.serve, sock=each, limit=1 << 24) for each in opened]
    print(json.dumps(numbers), flush=True)
    # It ends with the program that started it, which holds the other end of its standard input.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until its standard input ends; prints the ports, in the order of the servers, as a line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.stand_in", description=__doc__)
    parser.add_argument("ports", nargs="*", type=int, default=[0], help="one server for each; 0: a free port")
    parser.add_argument("--readiness-offset", type=int, default=0, help="answer at these ports plus this number too")
    parser.add_argument("--model", default="openai/gpt-oss-20b", help="the model that they serve")
    parser.add_argument("--token-seconds", type=float, default=0.01, help="time before each token (default: 0.01)")
    chosen = parser.parse_args(arguments)
    asyncio.run(_serve(chosen.ports, chosen.readiness_offset, Answers(chosen.model, chosen.token_seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
