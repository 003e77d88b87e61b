"""Where the gateway sends requests: sessions, stored responses, limits of keys, queues, and engines that end."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gateway_on_loopback import KEY, Answer, Running, needs_haproxy, running_gateway, running_gateways, stand_ins

from vllm_fleet.host.haproxy import Members, haproxy_config
from vllm_fleet.schema.fleet import Gateway

pytestmark = needs_haproxy
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
THREE = [{"model": "m"}] * 3
IN_FLIGHT = 'vllm_gateway_key_in_flight{key="me"}'
LONG = "x" * 100_000


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts gateways that end with the test."""
    opened = []

    def one(servers: list[dict[str, Any]], **settings: Any) -> Running:
        context = running_gateway(tmp_path_factory.mktemp("g"), servers, **settings)
        opened.append(context)
        return context.__enter__()

    yield one
    for context in opened:
        context.__exit__(None, None, None)


def turns(gateway: Running, count: int, body: Mapping[str, Any], **headers: str) -> Counter[str]:
    """Which servers had the turns of a session, between turns of others."""
    servers: Counter[str] = Counter()
    for number in range(count):
        answer = gateway.ask(CHAT, {"model": "m", "turn": number, **body}, **headers)
        assert answer.status == 200, answer.body
        servers[answer.server] += 1
        for _ in range(number % 3 + 1):
            gateway.ask(CHAT, {"model": "m"})
    return servers


@pytest.mark.parametrize("long", ["", LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"user": "ann"}, {}),
        ({"prompt_cache_key": "c1"}, {}),
        ({}, {"X-Session-ID": "s1"}),
        # The header is asked before the body, and the cache key before the user.
        ({"prompt_cache_key": "c1", "user": "USER"}, {}),
        ({"prompt_cache_key": "USER", "user": "USER"}, {"X-Session-ID": "s1"}),
    ],
)
def test_a_session_returns_to_its_server(
    start: Callable[..., Running], body: dict[str, str], headers: dict[str, str], long: str
) -> None:
    gateway = start(THREE, affinity="session")
    servers: Counter[str] = Counter()
    for number in range(6):
        own = {key: str(number) if value == "USER" else value for key, value in body.items()}
        servers += turns(gateway, 1, {**own, "messages": long}, **headers)
    assert len(servers) == 1


def test_sessions_are_spread_over_all_servers(start: Callable[..., Running]) -> None:
    gateway = start(THREE, affinity="session")
    busy = Counter(gateway.ask(CHAT, {"model": "m", "user": f"u{number}"}).server for number in range(30))
    assert sorted(busy.values()) == [10, 10, 10]


def test_two_keys_may_name_their_sessions_alike(start: Callable[..., Running]) -> None:
    gateway = start(THREE, affinity="session", lines={KEY: "me:0:0:0:0:5:api", "other": "you:0:0:0:0:5:api"})
    first = {gateway.ask(CHAT, {"model": "m", "user": "1"}).server for _ in range(4)}
    second = {gateway.ask(CHAT, {"model": "m", "user": "1"}, key="other").server for _ in range(4)}
    assert (len(first), len(second)) == (1, 1)
    assert first != second


def test_without_a_name_the_beginning_of_a_conversation_names_it(start: Callable[..., Running]) -> None:
    gateway = start(THREE, affinity="conversation")
    system = {"role": "system", "content": "Answer briefly."}
    talks: list[list[dict[str, str]]] = [[system, {"role": "user", "content": f"Question {n}"}] for n in range(6)]
    servers: dict[int, set[str]] = {number: set() for number in range(6)}
    for turn in range(5):
        for number, talk in enumerate(talks):
            for text in ("", LONG)[: 1 + turn % 2]:
                answer = gateway.ask(CHAT, {"messages": [*talk, {"role": "user", "content": text}], "model": "m"})
                servers[number].add(answer.server)
            talk += [{"role": "assistant", "content": "So."}, {"role": "user", "content": f"And {turn}?"}]
    assert all(len(each) == 1 for each in servers.values()), servers
    assert len({server for each in servers.values() for server in each}) == 3


def test_a_session_leaves_a_drained_server_and_stays_away(start: Callable[..., Running]) -> None:
    gateway = start(THREE, affinity="session")
    (old,) = turns(gateway, 3, {"user": "ann"})
    gateway.runtime(f"set server model_m/{old} state drain")
    (new,) = turns(gateway, 4, {"user": "ann"})
    gateway.runtime(f"set server model_m/{old} state ready")
    assert new != old
    assert set(turns(gateway, 4, {"user": "ann"})) == {new}


def test_a_session_leaves_a_server_where_many_wait(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m", "seats": 4}] * 2, affinity="session")
    (home,) = turns(gateway, 2, {"user": "ann"})
    other = next(server for server in gateway.servers if server != home)
    body = {"model": "m", "user": "ann", "do": {"wait": True}}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(gateway.ask, CHAT, body) for _ in range(8)]
        wait_until(lambda: sum(server.in_flight for server in gateway.servers.values()) >= 7)
        assert gateway.servers[home].in_flight == 4
        assert gateway.servers[other].in_flight >= 3
        for server in gateway.servers.values():
            server.go_on.set()
        assert {answer.result().status for answer in answers} == {200}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [10, 500_000], ids=["short", "long"])
def test_a_response_is_found_on_its_server(start: Callable[..., Running], stream: bool, size: int) -> None:
    gateway = start(THREE, responses_store=True)
    for _ in range(5):
        body = {"model": "m", "stream": stream, "long": size}
        name = streamed_response(gateway, body) if stream else gateway.ask(RESPONSES, body).body["id"]
        home = next(server.name for server in gateway.servers.values() if name in server.responses)
        before = {server: len(each.requests) for server, each in gateway.servers.items()}
        assert gateway.ask(f"{RESPONSES}/{name}").server == home
        assert gateway.ask(f"{RESPONSES}/{name}?stream=true&starting_after=3").server == home
        assert gateway.ask(f"{RESPONSES}/{name}/cancel", b"").server == home
        answer = gateway.ask(RESPONSES, {"model": "m", "previous_response_id": name, "input": LONG})
        assert (answer.status, answer.server) == (200, home)
        asked = {server for server, each in gateway.servers.items() if len(each.requests) > before[server]}
        assert asked == {home}


def streamed_response(gateway: Running, body: Mapping[str, Any]) -> str:
    request = urllib.request.Request(
        gateway.url + RESPONSES, json.dumps(body).encode(), {"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.loads(answer.read().partition(b"data: ")[2])["response"]["id"])


def test_a_response_that_is_not_known_is_looked_for(start: Callable[..., Running]) -> None:
    gateway = start(THREE, responses_store=True)
    name = gateway.ask(RESPONSES, {"model": "m"}).body["id"]
    for _ in range(6):
        gateway.runtime("clear table responses")
        assert gateway.ask(f"{RESPONSES}/{name}").status == 200
        gateway.runtime("clear table responses")
        answer = gateway.ask(RESPONSES, {"model": "m", "previous_response_id": name})
        assert answer.status == 200, answer.body


def test_vllm_has_no_other_pages_of_a_response(start: Callable[..., Running]) -> None:
    gateway = start(THREE, responses_store=True)
    name = gateway.ask(RESPONSES, {"model": "m"}).body["id"]
    for method, path, status in (
        ("DELETE", name, 405),
        ("POST", name, 405),
        ("GET", f"{name}/cancel", 405),
        ("GET", f"{name}/input_items", 404),
        ("GET", f"{name}/", 404),
        ("GET", f"{name}/cancel/x", 404),
    ):
        answer = gateway.ask(f"{RESPONSES}/{path}", method=method)
        assert (answer.status, answer.body["error"]["type"]) == (status, "invalid_request_error"), path


def test_a_response_that_is_gone_is_not_found(start: Callable[..., Running]) -> None:
    gateway = start(THREE, responses_store=True)
    answer = gateway.ask(f"{RESPONSES}/resp_gone")
    assert (answer.status, answer.body["error"]["message"]) == (404, "Response with id 'resp_gone' not found.")


def test_a_response_of_a_drained_server_gets_no_more_requests(start: Callable[..., Running]) -> None:
    """A rollout waits for the end of its requests: new ones would be cut."""
    gateway = start(THREE, responses_store=True)
    answer = gateway.ask(RESPONSES, {"model": "m"})
    for backend in ("model_m", "any_response"):
        gateway.runtime(f"set server {backend}/{answer.server} state drain")
    assert gateway.ask(f"{RESPONSES}/{answer.body['id']}").status == 404
    assert gateway.ask(RESPONSES, {"model": "m", "previous_response_id": answer.body["id"]}).status == 404


def test_a_request_that_ends_an_engine_ends_only_one(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m"}] * 4)
    for path in (CHAT, RESPONSES):
        for text in ("", LONG):
            for server in gateway.servers.values():
                server.requests = []
            answer = gateway.ask(path, {"model": "m", "do": {"die": True}, "messages": text})
            assert (answer.status, answer.body["error"]["type"]) == (502, "server_error")
            assert sum(len(server.requests) for server in gateway.servers.values()) == 1


def test_a_request_to_a_server_that_refuses_connections_goes_to_another(start: Callable[..., Running]) -> None:
    gateway = start(THREE)
    gone = gateway.servers["gpu-1_0"]
    gone.shutdown()
    gone.server_close()
    # Its health check, at the other port, is green still.
    assert [gateway.ask(CHAT, {"model": "m"}).status for _ in range(9)] == [200] * 9


def limits(**values: str) -> dict[str, str]:
    """A line of a key with limits."""
    fields = {"owner": "me", "ends": "0", "per_second": "0", "in_flight": "0", "tokens": "0", "priority": "5"}
    return {KEY: ":".join([*{**fields, **values}.values(), "api"]), "watch": "watch:0:0:0:0:5:metrics"}


def places(gateway: Running) -> int:
    """How many places the key takes."""
    (line,) = (each for each in page(gateway, "/metrics/keys").splitlines() if each.startswith(IN_FLIGHT))
    return int(line.split()[1])


def test_a_key_has_so_many_requests_a_second(start: Callable[..., Running]) -> None:
    gateway = start(THREE, lines={**limits(per_second="2"), "other": "you:0:0:0:0:5:api"})
    began = time.monotonic()
    answers = [gateway.ask(CHAT, {"model": "m"}) for _ in range(40)]
    passed = sum(answer.status == 200 for answer in answers)
    assert 2 <= passed <= 3 + 2 * (time.monotonic() - began)
    refused = next(answer for answer in answers if answer.status == 429)
    assert (refused.code, refused.headers["Retry-After"]) == ("rate_limit_exceeded", "1")
    assert gateway.ask(CHAT, {"model": "m"}, key="other").status == 200


@pytest.mark.parametrize("text", ["", LONG], ids=["short", "long"])
def test_a_key_has_so_many_answers_in_flight(start: Callable[..., Running], text: str) -> None:
    gateway = start(THREE, lines=limits(in_flight="5"))
    held = {"model": "m", "n": 3, "do": {"wait": True}, "messages": text}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(gateway.ask, CHAT, held)
        wait_until(lambda: any(server.in_flight for server in gateway.servers.values()))
        assert gateway.ask(CHAT, {"model": "m", "n": 3}).status == 429
        assert gateway.ask(CHAT, {"model": "m", "n": 2}).status == 200
        for server in gateway.servers.values():
            server.go_on.set()
        assert first.result().status == 200
    assert gateway.ask(CHAT, {"model": "m", "n": 5}).status == 200
    assert gateway.ask(CHAT, {"model": "m", "n": 6}).status == 429


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"n": "3"}, 3),
        ({"n": 2, "prompt": ["a", "b, [", "c"]}, 6),
        ({"prompt": [[1, 2, 3], [4]]}, 2),
        ({"prompt": [1, 2, 3, 4]}, 1),
        ({"prompt": "[1,2]"}, 1),
        ({"n": 1e9}, 1000000),
    ],
)
def test_each_answer_to_each_prompt_counts(start: Callable[..., Running], fields: dict[str, Any], most: int) -> None:
    for limit, status in ((most, 200), (most - 1, 429)):
        if limit:
            gateway = start(THREE, lines=limits(in_flight=str(limit)))
            assert gateway.ask("/v1/completions", {"model": "m", **fields}).status == status


def raw_request(gateway: Running, body: Mapping[str, Any]) -> socket.socket:
    """A connection that has sent a request and reads nothing."""
    channel = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    text = json.dumps({"model": "m", **body}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(text)}\r\n\r\n"
    channel.sendall(head.encode() + text)
    return channel


@pytest.mark.parametrize("kind", ["waits", "streams", "queues", "long"])
def test_a_client_that_leaves_gives_its_places_back(start: Callable[..., Running], kind: str) -> None:
    gateway = start([{"model": "m", "seats": 1}], lines=limits(in_flight="4"))
    server = gateway.servers["gpu-0_0"]
    body: dict[str, Any] = {"do": {"wait": True}}
    if kind == "streams":
        body = {"do": {"events": 2000, "pause": True}}
    if kind == "long":
        body["messages"] = LONG
    if kind == "queues":
        blocker = raw_request(gateway, {"do": {"wait": True}})
        wait_until(lambda: server.in_flight == 1)
    channels = [raw_request(gateway, body) for _ in range(4 if kind != "queues" else 3)]
    wait_until(lambda: places(gateway) == 4)
    assert gateway.ask(CHAT, {"model": "m"}).status == 429
    if kind == "streams":
        assert channels[0].recv(1024).startswith(b"HTTP/1.1 200")
    for channel in channels:
        channel.close()
    server.go_on.set()
    wait_until(lambda: places(gateway) == 0)
    if kind == "queues":
        blocker.close()


def test_a_key_has_so_many_tokens_a_minute(start: Callable[..., Running]) -> None:
    gateway = start(THREE, lines=limits(tokens="30"))
    answers = [gateway.ask(CHAT, {"model": "m"}) for _ in range(6)]
    # Each costs 12: after three the 30 of this minute are used.
    assert [answer.status for answer in answers] == [200] * 3 + [429] * 3
    assert int(answers[-1].headers["Retry-After"]) > 5


def test_events_of_a_stream_without_a_usage_count_as_tokens(start: Callable[..., Running]) -> None:
    gateway = start(THREE, lines=limits(tokens="30"))
    for expected in (200, 429):
        request = urllib.request.Request(
            gateway.url + CHAT,
            json.dumps({"model": "m", "do": {"events": 40}}).encode(),
            {"Authorization": f"Bearer {KEY}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status = answer.status
                assert answer.read().count(b"data:") == 41
        except urllib.error.HTTPError as refused:
            status = refused.code
        assert status == expected


def test_one_key_with_many_answers_does_not_starve_the_others(start: Callable[..., Running]) -> None:
    """Ten streams of eight answers each, on servers with 16 seats in all."""
    gateway = start(
        [{"model": "m", "seats": 8}] * 2, lines={KEY: "greedy:0:0:0:0:5:api", "small": "small:0:0:0:0:5:api"}
    )
    channels = [raw_request(gateway, {"n": 8, "do": {"wait": True}}) for _ in range(10)]
    wait_until(lambda: sum(server.in_flight for server in gateway.servers.values()) == 2)
    small = [gateway.ask(CHAT, {"model": "m"}, key="small").status for _ in range(20)]
    assert small == [200] * 20
    asked = [request for server in gateway.servers.values() for request in server.requests]
    assert len([request for request in asked if request.get("n") == 8]) == 2
    for server in gateway.servers.values():
        server.go_on.set()
    # The others have waited for places, and have them now.
    assert [status_of(channel) for channel in channels] == [200] * 10


def status_of(channel: socket.socket) -> int:
    """The status of the answer that a connection gets."""
    answer = http.client.HTTPResponse(channel)
    answer.begin()
    channel.close()
    return answer.status


def test_a_request_for_more_answers_than_there_are_places_waits_its_time(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m", "seats": 4}], queue_seconds=1)
    with raw_request(gateway, {"do": {"wait": True}}):
        wait_until(lambda: gateway.servers["gpu-0_0"].in_flight == 1)
        refused = gateway.ask(CHAT, {"model": "m", "n": 4})
        assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
        assert gateway.ask(CHAT, {"model": "m", "n": 3}).status == 200
    gateway.servers["gpu-0_0"].go_on.set()
    # More than there will ever be: when all others have ended.
    wait_until(lambda: gateway.ask(CHAT, {"model": "m", "n": 9}).status == 200)


def test_in_the_queue_a_key_with_few_requests_comes_before_one_with_many(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m", "seats": 1}], lines={KEY: "many:0:0:0:0:5:api", "few": "few:0:0:0:0:5:api"})
    order = finished_in_order(gateway, [(KEY, 6), ("few", 1)])
    assert order.index("few") <= 2


def test_in_the_queue_a_key_of_a_higher_priority_comes_first(start: Callable[..., Running]) -> None:
    lines = {KEY: "plain:0:0:0:0:5:api", "few": "plain2:0:0:0:0:5:api", "first": "first:0:0:0:0:9:api"}
    gateway = start([{"model": "m", "seats": 1}], lines=lines)
    order = finished_in_order(gateway, [(KEY, 2), ("few", 1), ("first", 3)])
    assert order[1:4] == ["first"] * 3


def finished_in_order(gateway: Running, requests: list[tuple[str, int]]) -> list[str]:
    """Fills the one seat of a server, then queues requests of keys; the keys as their requests reach the server."""
    server = gateway.servers["gpu-0_0"]
    total = sum(count for _, count in requests)
    with concurrent.futures.ThreadPoolExecutor(total) as pool:
        answers = []
        for key, count in requests:
            for _ in range(count):
                body = {"model": "m", "of": key, "do": {"wait": True}}
                answers.append(pool.submit(gateway.ask, CHAT, body, key))
                wait_until(lambda: waiting(gateway) == len(answers) - 1)
        server.go_on.set()
        assert {answer.result().status for answer in answers} == {200}
    return [request["of"] for request in server.requests]


def waiting(gateway: Running) -> int:
    """How many requests wait at the gateway, where one is served."""
    rows = gateway.statistics()
    served = sum(int(row["scur"]) for row in rows if row["svname"] == "gpu-0_0" and row["pxname"] == "model_m")
    queued = sum(int(row["qcur"]) for row in rows if row["svname"] in ("gpu-0_0", "BACKEND"))
    return queued if served else -1


def test_a_queue_has_an_end(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m", "seats": 1}], queue_seconds=1)
    with raw_request(gateway, {"do": {"wait": True}}):
        wait_until(lambda: gateway.servers["gpu-0_0"].in_flight == 1)
        answer = gateway.ask(CHAT, {"model": "m"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


def test_a_key_that_has_ended_is_refused_by_its_date(start: Callable[..., Running]) -> None:
    soon = int(time.time()) + 2
    gateway = start(THREE, lines={KEY: f"me:{soon}:0:0:0:5:api", "old": "old:1:0:0:0:5:api"})
    assert gateway.ask("/v1/models", key="old").code == "invalid_api_key"
    wait_until(lambda: gateway.ask("/v1/models").status == 401)
    assert time.time() >= soon


def test_keys_come_in_either_header(start: Callable[..., Running]) -> None:
    gateway = start(THREE)
    assert gateway.ask("/v1/models", key=None, X_API_Key=KEY).status == 200
    assert gateway.ask("/v1/models", key=None, Authorization=f"bearer {KEY}").status == 200
    assert gateway.ask("/v1/models", key=None, Authorization=f"Basic {KEY}").status == 401
    assert gateway.ask("/v1/models", key=None, Authorization=KEY).status == 401


def test_guesses_of_keys_are_slowed_and_known_clients_are_not(start: Callable[..., Running]) -> None:
    gateway = start(THREE, lines={KEY: "me:0:0:0:0:5:api", "unused": "you:0:0:0:0:5:api"})
    assert gateway.ask("/v1/models").status == 200
    statuses = [gateway.ask("/v1/models", key=f"guess-{number}").status for number in range(100)]
    assert statuses[:60] == [401] * 60
    assert statuses[-30:] == [429] * 30
    # A right guess from there is refused too; a key that has come from there before is not.
    assert gateway.ask("/v1/models", key="unused").status == 429
    assert gateway.ask("/v1/models").status == 200


def test_pages_of_other_origins_use_the_api_where_the_fleet_names_them(start: Callable[..., Running]) -> None:
    allowed = {"Origin": "https://chat.example.com"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    gateway = start(THREE, cors_origins=["https://chat.example.com"])
    before = headers_of(gateway, "OPTIONS", CHAT, {**allowed, **asked})
    assert before["access-control-allow-origin"] == "https://chat.example.com"
    assert before["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert headers_of(gateway, "GET", "/v1/models", allowed)["access-control-allow-origin"] == allowed["Origin"]
    for origin in ("https://evil.example.com", "null", "https://chat.example.com.evil.org"):
        for method, path in (("OPTIONS", CHAT), ("GET", "/v1/models"), ("GET", "/other")):
            found = headers_of(gateway, method, path, {"Origin": origin, **asked})
            assert not [name for name in found if name.startswith("access-control-")]


def headers_of(gateway: Running, method: str, path: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of an answer to a request without a key."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.request(method, path, headers=dict(headers))
    found = {name.lower(): text for name, text in connection.getresponse().getheaders()}
    connection.close()
    return found


def test_metrics_need_a_key_of_their_own(start: Callable[..., Running]) -> None:
    gateway = start(THREE, lines={KEY: "me:0:1:0:0:5:api", "watch": "watch:0:0:0:0:5:metrics"})
    gateway.ask(CHAT, {"model": "m"})
    gateway.ask(CHAT, {"model": "m"})
    assert gateway.ask("/metrics").status == 403
    assert gateway.ask("/v1/models", key="watch").status == 403
    pages = [page(gateway, path) for path in ("/metrics", "/metrics/keys")]
    assert 'haproxy_server_status{proxy="model_m",server="gpu-0_0",state="UP"} 1' in pages[0]
    assert {
        'vllm_gateway_key_answers_total{key="me",status="200"} 1',
        'vllm_gateway_key_refused_total{key="me",limit="requests"} 1',
        'vllm_gateway_key_tokens_total{key="me",kind="prompt"} 7',
        'vllm_gateway_key_tokens_total{key="me",kind="answered"} 5',
        'vllm_gateway_key_in_flight{key="me"} 0',
    } <= set(pages[1].splitlines())


def page(gateway: Running, path: str) -> str:
    request = urllib.request.Request(gateway.url + path, headers={"Authorization": "Bearer watch"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def test_a_thousand_streams_take_little_memory(start: Callable[..., Running]) -> None:
    gateway = start([{"model": "m"}] * 2, affinity="session", responses_store=True)
    body = {"do": {"events": 3, "pause": True}, "messages": "x" * 40_000}
    channels = []
    for _ in range(1000):
        channel = raw_request(gateway, body)
        assert channel.recv(4096).startswith(b"HTTP/1.1 200")
        channels.append(channel)
    assert resident_mib(gateway.process.pid) < 300
    for server in gateway.servers.values():
        server.go_on.set()
    ends = [channel.makefile("rb").read()[-16:] for channel in channels]
    assert all(b"[DONE]" in end for end in ends)
    for channel in channels:
        channel.close()


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Running]]:
    """Two gateways before three servers."""
    folders = {name: tmp_path_factory.mktemp("g") for name in ("gateway-0", "gateway-1")}
    settings = {"affinity": "session", "responses_store": True}
    with stand_ins(THREE) as (backends, servers), running_gateways(folders, backends, servers, **settings) as both:
        first, second = both
        # Each connects to the other; what one has learned before is not lost.
        wait_until(lambda: all(" last_status=ESTA" in each.runtime("show peers") for each in both))
        yield first, second


def test_two_gateways_share_their_sessions(pair: tuple[Running, Running]) -> None:
    servers: dict[str, set[str]] = {str(number): set() for number in range(12)}
    for turn in range(4):
        for user, found in servers.items():
            gateway = pair[(turn + int(user)) % 2]
            found.add(gateway.ask(CHAT, {"model": "m", "user": user}).server)
            wait_until(lambda: known(pair[0], "sessions") == known(pair[1], "sessions"))
    assert all(len(found) == 1 for found in servers.values()), servers
    assert len({name for found in servers.values() for name in found}) == 3


def known(gateway: Running, table: str) -> set[tuple[str, str]]:
    """The keys of a table, with the server of each."""
    rows = [dict(word.split("=", 1) for word in row.split() if "=" in word) for row in lines_of(gateway, table)]
    return {(row["key"], row.get("server_key") or row["gpt0"]) for row in rows if "key" in row}


def lines_of(gateway: Running, table: str) -> list[str]:
    return gateway.runtime(f"show table {table}").splitlines()


def test_two_gateways_share_their_responses(pair: tuple[Running, Running]) -> None:
    for number in range(8):
        one, other = pair[number % 2], pair[1 - number % 2]
        made = one.ask(RESPONSES, {"model": "m"})
        wait_until(lambda: known(pair[0], "responses") == known(pair[1], "responses"))
        assert other.ask(f"{RESPONSES}/{made.body['id']}").server == made.server
        assert other.ask(RESPONSES, {"model": "m", "previous_response_id": made.body["id"]}).server == made.server


def test_a_drained_server_is_not_taught_back(pair: tuple[Running, Running]) -> None:
    old = pair[0].ask(CHAT, {"model": "m", "user": "ann"}).server
    for gateway in pair:
        gateway.runtime(f"set server model_m/{old} state drain")
    new = pair[1].ask(CHAT, {"model": "m", "user": "ann"}).server
    assert new != old
    wait_until(lambda: known(pair[0], "sessions") == known(pair[1], "sessions"))
    assert pair[0].ask(CHAT, {"model": "m", "user": "ann"}).server == new


def test_only_gateways_reach_the_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    members = Members("gateway-0", {"gateway-0": "192.0.2.1", "gateway-1": "192.0.2.2"}, ["192.0.2.1", "192.0.2.2"])
    config = haproxy_config(Gateway(hosts=2, affinity="session"), [], (), members)
    frontend = config.partition("frontend tables\n")[2].partition("backend ")[0]
    assert "tcp-request connection reject unless { src 192.0.2.1 192.0.2.2 }\n" in frontend
    assert "peers gateways\n  bind 127.0.0.1:10241\n" in config


def test_many_clients_at_once_lose_nothing(start: Callable[..., Running]) -> None:
    gateway = start(THREE, affinity="session")

    def client(number: int) -> list[Answer]:
        body = {"model": "m", "user": str(number), "messages": "x" * (number * 7000 % 150_000)}
        return [gateway.ask(CHAT, body) for _ in range(20)]

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = [answer for each in pool.map(client, range(16)) for answer in each]
    assert Counter(answer.status for answer in answers) == {200: 320}
    assert threading.active_count() < 200
