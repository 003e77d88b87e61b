"""The benchmark of affinity: its stand-in of vLLM, its conversations, its routers, and what its table says."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from bench import affinity, affinity_client, affinity_report, affinity_routers, stand_in
from bench.affinity import Contender, Load
from bench.affinity_report import DIRECT, Row, Sample
from bench.affinity_routers import MODEL
from lab import local_gateway
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import uv

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed; 'make bench' fetches it"
)
SMALL = Load(sessions=2, turns=2, pause_seconds=0.0, token_seconds=0.0, looks=False)
ROWS = [
    Row(DIRECT, 0, (Sample(1.0, 1.0, 11.0, 0.0, 0.0, 0.02), Sample(1.0, 1.0, 13.0, 0.0, 0.0, 0.02))),
    Row("one", 1, (Sample(0.25, 1.5, 12.0, 0.5, 0.1, 0.02), Sample(0.75, 1.7, 15.0, 0.7, 0.3, 0.02))),
    Row("one", 2, (Sample(1.0, 1.0, 12.5, 0.5, 0.0, 0.02), Sample(1.0, 1.0, 14.5, 0.7, 0.0, 0.02))),
]


@pytest.fixture(scope="module")
def servers() -> Iterator[affinity_routers.Servers]:
    with affinity_routers.servers(3, 0.0) as started:
        yield started


def ask(server: tuple[str, int], text: str, **options: object) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}
    with httpx.Client(trust_env=False) as client:
        return client.post(f"http://{server[0]}:{server[1]}/v1/chat/completions", json=body)


def test_the_openai_client_reads_the_stand_in(servers: affinity_routers.Servers) -> None:
    host, port = servers[0]
    with openai.OpenAI(
        api_key="-", base_url=f"http://{host}:{port}/v1", http_client=httpx.Client(trust_env=False)
    ) as client:
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hello"}], max_tokens=3, stream=True
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == stand_in.WORD * 3
        assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "length")
        assert [model.id for model in client.models.list()] == [MODEL]


def test_the_stand_in_keeps_what_it_was_asked(servers: affinity_routers.Servers) -> None:
    before = len(affinity_routers.served_requests(servers))
    assert ask(servers[1], "kept", odd_key=1).status_code == 200
    assert ask(servers[2], stand_in.FAIL).json()["error"]["code"] == 500
    kept, failed = affinity_routers.served_requests(servers)[before:]
    assert (kept["server"], kept["session"], kept["request"]["odd_key"]) == (1, "kept", 1)
    assert failed["server"] == 2


def test_a_request_ends_one_stand_in_alone() -> None:
    with affinity_routers.servers(2, 0.0) as started:
        with pytest.raises(httpx.TransportError):
            ask(started[0], stand_in.DIE)
        with pytest.raises(httpx.ConnectError):
            ask(started[0], "again")
        assert ask(started[1], "hello").status_code == 200


@pytest.mark.parametrize("named", [True, False])
def test_requests_are_those_of_the_openai_client(named: bool) -> None:
    first, second = affinity_client.conversations(2, 3, MODEL, "a-key", named=named)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in first.requests]
    assert next(iter(bodies[0])) == "messages", "the client writes the messages before all other keys"
    assert [body.get("prompt_cache_key") for body in bodies] == ["session-0" if named else None] * 3
    assert [len(body["messages"]) for body in bodies] == [2, 4, 6]
    assert len(bodies[0]["messages"][0]["content"]) == affinity_client.SYSTEM_BYTES
    assert bodies[2]["messages"][:4] == bodies[1]["messages"]
    assert first.session == bodies[0]["messages"][1]["content"] != second.session
    assert b"authorization: bearer a-key" in first.requests[0].lower()


def served(*pairs: tuple[str, int]) -> list[dict[str, object]]:
    return [{"session": session, "server": server} for session, server in pairs]


def test_turns_that_return_and_the_busiest_server_are_counted() -> None:
    talks = [affinity_client.Conversation(name, (b"",) * 3) for name in ("a", "b")]
    found = served(("a", 0), ("b", 1), ("a", 0), ("b", 0), ("a", 2), ("b", 0))
    assert affinity.judge(talks, found) == (0.5, 2.0)


@pytest.mark.parametrize("found", [served(("a", 0)), served(("a", 0), ("a", 1), ("a", 1))])
def test_a_run_in_which_a_request_was_lost_or_repeated_does_not_count(found: list[dict[str, object]]) -> None:
    with pytest.raises(FleetError, match="session 0 asked 2 times"):
        affinity.judge([affinity_client.Conversation("a", (b"", b""))], found)


@needs_haproxy
@needs_haproxy
@pytest.mark.parametrize("affinity_kind", ["session", "conversation"])
def test_haproxy_returns_every_turn_to_its_server(affinity_kind: str) -> None:
    contender = Contender("own", affinity_routers.haproxy(affinity_kind), named=affinity_kind == "session")
    sample = affinity.measure(contender, 1, SMALL)
    assert sample.returned == 1.0
    assert 1.0 <= sample.spread <= 3.0
    assert sample.first_ms > 0


@needs_haproxy
def test_turns_alternate_between_two_gateways() -> None:
    with (
        affinity_routers.servers(2, 0.0) as servers,
        tempfile.TemporaryDirectory(prefix="vf-", dir="/tmp") as folder,
        affinity_routers.haproxy("session")(servers, 2, Path(folder), "a-key") as router,
    ):
        assert len(set(router.gateways)) == 2
        talks = affinity_client.conversations(2, 2, MODEL, "a-key", named=True)
        asked: list[tuple[str, int]] = []

        def place(session: int, turn: int) -> tuple[str, int]:
            asked.append(router.gateways[(session + turn) % 2])
            return asked[-1]

        assert len(asyncio.run(affinity_client.play(talks, place, 0.0))) == 4
        assert len(affinity_routers.served_requests(servers)) == 4
        assert router.cpu_seconds() >= 0
    assert Counter(asked) == dict.fromkeys(router.gateways, 2)


@pytest.mark.network
@pytest.mark.parametrize("gateways", [1, 2])
def test_smg_is_measured_in_the_same_way(gateways: int) -> None:
    smg = uv.group_environment("routers", "smg") / "bin/smg"
    sample = affinity.measure(Contender("smg", affinity_routers.smg(smg), named=False), gateways, SMALL)
    assert 0 <= sample.returned <= 1
    assert sample.first_ms > 0


@needs_haproxy
def test_a_gateway_that_does_not_start_is_an_error_with_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(FleetError, match="unknown keyword 'nonsense'"),
        local_gateway.running("global\n  nonsense\n", tmp_path),
    ):
        pass


def test_gateways_of_one_machine_have_their_own_files_and_addresses(tmp_path: Path) -> None:
    config = (
        "bind :80\nbind [::]:81 v4v6 ssl crt /etc/haproxy/a.pem\nbind 127.0.0.1:10242\nbind unix@/run/haproxy/s\n"
        "server own 127.0.0.1:10242\nserver other 127.0.0.1:1024\n"
    )
    address = local_gateway.loopback(1)
    assert local_gateway.move(config, tmp_path, address).splitlines() == [
        f"bind {address}:80",
        f"bind {address}:81 ssl crt {tmp_path}/a.pem",
        f"bind {address}:10242",
        f"bind unix@{tmp_path}/s",
        f"server own {address}:10242",
        "server other 127.0.0.1:1024",
    ]
    assert address.startswith("127.")
    assert address != local_gateway.loopback(2)


def test_the_table_compares_each_run_with_the_direct_one() -> None:
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in affinity_report.table(ROWS)]
    assert cells[2:] == [
        ["one", "1", "50 %", "1.60", "1.5", "0.6", "0.20"],
        ["one", "2", "100 %", "1.00", "1.5", "0.6", "0.00"],
    ]


def test_a_row_as_data_says_what_was_counted() -> None:
    assert ROWS[1].record() == {
        "name": "one",
        "gateways": 1,
        "runs": 2,
        "returned": 0.5,
        "spread": 1.6,
        "first_token_ms": 13.5,
        "router_cpu_ms_per_request": 0.6,
        "router_idle_processors": 0.2,
    }


def test_the_section_says_how_the_figures_came_about() -> None:
    blocks = affinity_report.section(ROWS, 60, 5)
    text = " ".join(" ".join(block) for block in blocks)
    assert blocks[0] == [affinity_report.TITLE]
    assert "60 sessions side by side ask 5 times each" in text
    assert "Median of 2 runs" in text
    assert "at most 0.02 processors before each run" in text
    assert all(len(line) <= 120 for block in blocks for line in block if not line.startswith("|"))
