"""The clients of the benchmark: conversations whose requests the OpenAI client makes, sent side by side.

The OpenAI client makes each request once, ahead of time; what sends them is small, so that it does not take the
processors from the router that is measured.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx
from openai import OpenAI, omit
from openai.types.chat import ChatCompletionMessageParam

from bench.stand_in import WORD, read_chunks
from vllm_fleet.base.errors import ErrorCode, FleetError

#: The length of the prompt that all sessions share.
SYSTEM_BYTES = 4096
TOKENS = 16
_USER_WORDS = 40
_WORDS = ("alpha", "river", "seven", "stone", "green", "paper", "cloud", "north", "metal", "quiet")
Address = tuple[str, int]


@dataclass(frozen=True)
class Conversation:
    """The requests of one session.

    Attributes:
        session: what its first message of the user says.
        requests: each turn as the bytes of a request, without the line that names the host.
    """

    session: str
    requests: tuple[bytes, ...]


def conversations(sessions: int, turns: int, model: str, key: str, *, named: bool) -> list[Conversation]:
    """The conversations of all sessions.

    Args:
        sessions: how many.
        turns: how many questions each asks.
        model: the model that they ask.
        key: the API key.
        named: whether each request names its session, as ``prompt_cache_key``.
    """
    made: list[httpx.Request] = []

    def keep(request: httpx.Request) -> httpx.Response:
        made.append(request)
        return httpx.Response(200, text="data: [DONE]\n\n", headers={"content-type": "text/event-stream"})

    transport = httpx.Client(transport=httpx.MockTransport(keep))
    client = OpenAI(api_key=key, base_url="http://gateway/v1", http_client=transport, max_retries=0)
    shared = _text(random.Random("system"), SYSTEM_BYTES)  # noqa: S311
    found = []
    for session in range(sessions):
        words = random.Random(session)  # noqa: S311
        questions = [" ".join(words.choices(_WORDS, k=_USER_WORDS)) for _ in range(turns)]
        messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": shared}]
        made.clear()
        for question in questions:
            messages.append({"role": "user", "content": question})
            client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=TOKENS,
                stream=True,
                prompt_cache_key=f"session-{session}" if named else omit,
            ).close()
            messages.append({"role": "assistant", "content": WORD * TOKENS})
        found.append(Conversation(questions[0], tuple(map(_bytes, made))))
    return found


def _text(words: random.Random, length: int) -> str:
    return " ".join(words.choices(_WORDS, k=length))[:length]


def _bytes(request: httpx.Request) -> bytes:
    lines = [f"{request.method} {request.url.raw_path.decode()} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request.headers.items() if name.lower() != "host"]
    return "\r\n".join((*lines, "", "")).encode() + request.content


async def play(
    all_of_them: Sequence[Conversation], place: Callable[[int, int], Address], pause_seconds: float
) -> list[float]:
    """Plays all conversations side by side.

    Args:
        all_of_them: the conversations.
        place: (number of the session, number of the turn) -> where the turn is sent.
        pause_seconds: between two turns of a session, on average.

    Returns:
        The seconds from each request to the first byte of its answer's body, in no order.

    Raises:
        FleetError: an answer was not a whole stream.
    """
    times = await asyncio.gather(
        *(_play(number, conversation, place, pause_seconds) for number, conversation in enumerate(all_of_them))
    )
    return [seconds for each in times for seconds in each]


async def _play(
    number: int, conversation: Conversation, place: Callable[[int, int], Address], pause_seconds: float
) -> list[float]:
    pauses = random.Random(number)  # noqa: S311
    opened: dict[Address, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    times = []
    try:
        for turn, request in enumerate(conversation.requests):
            await asyncio.sleep(pause_seconds * pauses.uniform(0 if turn == 0 else 0.5, 1.5))
            address = place(number, turn)
            if address not in opened:
                opened[address] = await asyncio.open_connection(*address, limit=1 << 20)
            times.append(await _ask(*opened[address], request, address))
    except (OSError, asyncio.IncompleteReadError) as fault:
        raise FleetError(f"session {number}: the connection broke: {fault}", code=ErrorCode.WORK_FAILED) from fault
    finally:
        for _, writer in opened.values():
            writer.close()
    return times


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, address: Address) -> float:
    line, rest = request.split(b"\r\n", 1)
    began = time.perf_counter()
    writer.write(line + f"\r\nhost: {address[0]}:{address[1]}\r\n".encode() + rest)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    if " 200 " not in head.split("\r\n", 1)[0] or "chunked" not in head.lower():
        raise FleetError(f"an answer was no stream: {head.splitlines()[0]}", code=ErrorCode.WORK_FAILED)
    size = await reader.readuntil(b"\r\n")
    first = await reader.readexactly(int(size.split(b";", 1)[0], 16) + 2)
    seconds = time.perf_counter() - began
    if b"data: [DONE]" not in first[:-2] + await read_chunks(reader):
        raise FleetError("a stream ended without [DONE]", code=ErrorCode.WORK_FAILED)
    return seconds
