"""API keys of the gateways: the map of HAProxy, and the program that gives a running HAProxy another one."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.machinery
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gateway_on_loopback import local
from pydantic import ValidationError

from vllm_fleet.base import paths
from vllm_fleet.edge import keys
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy import haproxy_config
from vllm_fleet.host.manifest_items import keys_item
from vllm_fleet.on_host import probe
from vllm_fleet.schema.api_keys import ApiKeys, end_seconds
from vllm_fleet.schema.fleet import Gateway

NEEDS_HAPROXY = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed; tests/infra run it on lab hosts"
)
ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
EVENTS = 40


def text_of(**owners: Any) -> str:
    return key_map_text(ApiKeys.model_validate({"keys": owners}))


# -- The map ------------------------------------------------------------------------------------------------------


def test_a_line_of_the_map_has_owner_end_limits_priority_and_scope() -> None:
    record = {
        "digest": TWO,
        "ends": "2027-01-31",
        "requests_per_second": 5,
        "in_flight": 8,
        "tokens_per_minute": 20000,
        "priority": 9,
        "scope": "metrics",
    }
    assert text_of(b=record, a=ONE) == f"{'1' * 64} a:0:0:0:0:5:api\n{'2' * 64} b:1801440000:5:8:20000:9:metrics\n"


def test_the_map_has_no_key_and_each_digest_once() -> None:
    # Files of before the limits may name one key twice: the first owner counts.
    assert text_of(b=TWO, a=ONE, c=ONE) == f"{'1' * 64} a:0:0:0:0:5:api\n{'2' * 64} b:0:0:0:0:5:api\n"


def test_each_digest_of_an_owner_ends_with_the_owner_or_before() -> None:
    digests = [ONE, {"digest": TWO, "ends": "2026-12-01"}, {"digest": THREE, "ends": "2029-01-01"}]
    rows = text_of(a={"digests": digests, "ends": "2027-01-31T12:00:00+02:00"}).splitlines()
    assert [row.split(":")[1] for row in rows] == ["1801389600", "1796169600", "1801389600"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 172800),
        # 0 is no end.
        ("1969-12-31", 1),
        ("2027-01-31T18:00:00Z", 1801418400),
        ("2027-01-31 18:00+01:00", 1801414800),
        ("9999-12-31", 253402300800),
    ],
)
def test_an_end_is_a_day_or_a_time_with_its_zone(text: str, seconds: int) -> None:
    assert end_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "20270131", "2027-02-30", "2027-03-31T18:00:00", "2027-W01-1", "0-1-1"])
def test_another_text_is_no_end(text: str) -> None:
    with pytest.raises(ValueError, match="is not a date") as refused:
        end_seconds(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("owner", ["a:b", "a b", "a\nb", "a\n", "A", "-a", "a-", "ä", "a#", "", "a" * 43, "${a}", "9a"])
def test_an_owner_whose_name_would_break_the_map_is_refused(owner: str) -> None:
    with pytest.raises(ValidationError, match="is not the name of an owner"):
        ApiKeys.model_validate({"keys": {owner: ONE}})


# -- A running HAProxy --------------------------------------------------------------------------------------------


class _Streams(http.server.BaseHTTPRequestHandler):
    """Readiness, and an answer in events; the test decides when the next one comes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(EVENTS):
            self.server.turn.acquire()  # type: ignore[attr-defined]
            event = f"data: {number}\n\n"
            self.wfile.write(f"{len(event):x}\r\n{event}\r\n".encode())
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """The tests read the answers."""


def _serve(port: int) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Streams)
    server.turn = threading.Semaphore(0)  # type: ignore[attr-defined]
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def _program(folder: Path) -> ModuleType:
    """The program of the role, with the files of a test."""
    file = paths.root() / "roles" / "gateway" / "files" / "vllm-gateway"
    loader = importlib.machinery.SourceFileLoader("vllm_gateway", str(file))
    spec = importlib.util.spec_from_loader("vllm_gateway", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    vars(module).update(SOCKET=str(folder / "admin.sock"), KEYS=str(folder / "keys"), FOLDER=str(folder / "state"))
    return module


class Running:
    """An HAProxy with its files, a stand-in of vLLM behind it, and the program beside it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int, server: Any) -> None:
        self.folder, self.process, self.port, self.server = folder, process, port, server
        self.program = _program(folder)

    def write(self, **owners: Any) -> None:
        (self.folder / "keys").write_text(text_of(**owners), encoding="utf-8")

    def load(self) -> Any:
        return self.program.keys({})

    def ask(self, command: str) -> str:
        return str(self.program.ask(command))

    def status(self, key: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            return connection.getresponse().status

    def stream(self, key: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("POST", "/v1/completions", b"{}", {"Authorization": f"Bearer {key}"})
        return connection.getresponse()

    def drift(self) -> tuple[str, str] | None:
        return probe.check_keys(keys_item("gateway", str(self.folder / "keys"), str(self.folder / "admin.sock")))


def _two_ports() -> tuple[int, int, int]:
    """A free port for the gateway, and one of a server with the port of its readiness."""
    from vllm_fleet.fleet.host_plan import READINESS_OFFSET

    while True:
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in found[:2]:
                each.bind(("127.0.0.1", 0))
            ports = [int(each.getsockname()[1]) for each in found[:2]]
            with contextlib.suppress(OSError, OverflowError):
                found[2].bind(("127.0.0.1", ports[1] + READINESS_OFFSET))
                return ports[0], ports[1], ports[1] + READINESS_OFFSET


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An HAProxy that knows the key 'one' of the owner a."""
    folder = tmp_path_factory.mktemp("g")
    port, server_port, readiness = _two_ports()
    servers = [_serve(each) for each in (server_port, readiness)]
    (folder / "keys").write_text(text_of(a=keys.digest("one")), encoding="utf-8")
    text = haproxy_config(Gateway(hosts=1, port=port), [Backend("gpu-0", "0", "127.0.0.1", server_port, "a/b")])
    text = local(text, folder)
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stdout=subprocess.DEVNULL)
    found = Running(folder, process, port, servers[0])
    try:
        while not _is_up(found):
            assert process.poll() is None, "HAProxy has ended"
            time.sleep(0.02)
        yield found
        assert process.poll() is None
        # It was neither reloaded nor restarted.
        assert f"Pid: {process.pid}\n" in found.ask("show info")
    finally:
        process.terminate()
        process.wait()
        for server in servers:
            server.shutdown()
            server.server_close()


def _is_up(found: Running) -> bool:
    with contextlib.suppress(OSError):
        return any("UP" in row.split(",")[17:18] for row in found.ask("show stat").splitlines() if ",gpu-0_0," in row)
    return False


@NEEDS_HAPROXY
def test_a_new_key_works_without_a_reload(running: Running) -> None:
    assert (running.status("one"), running.status("two")) == (200, 401)
    running.write(a=keys.digest("one"), b=keys.digest("two"))
    assert running.drift() == ("other_keys", "is not what HAProxy has loaded")
    answer = running.load()
    assert (answer["changed"], answer["keys"]) == (True, 2)
    assert answer["added"] == {"count": 1, "keys": [f"b {keys.digest('two')[7:19]}"]}
    assert (answer["removed"]["count"], answer["altered"]["count"]) == (0, 0)
    assert (running.status("one"), running.status("two")) == (200, 200)
    assert running.drift() is None
    assert running.load()["changed"] is False


@NEEDS_HAPROXY
def test_a_revoked_key_is_refused_while_streams_go_on(running: Running) -> None:
    running.write(a=keys.digest("one"), b=keys.digest("two"))
    running.load()
    streams = [running.stream(key) for key in ("one", "two")]
    running.server.turn.release(2)
    running.write(b=keys.digest("two"))
    assert running.load()["removed"] == {"count": 1, "keys": [f"a {keys.digest('one')[7:19]}"]}
    assert (running.status("one"), running.status("two")) == (401, 200)
    running.server.turn.release(2 * EVENTS)
    wanted = "".join(f"data: {number}\n\n" for number in range(EVENTS))
    assert [stream.read().decode() for stream in streams] == [wanted, wanted]


@NEEDS_HAPROXY
def test_two_keys_of_an_owner_overlap_and_limits_change_in_place(running: Running) -> None:
    both = {"digests": [keys.digest("new"), {"digest": keys.digest("one"), "ends": "2099-01-01"}]}
    running.write(a=both)
    answer = running.load()
    assert (answer["added"]["count"], answer["altered"]["count"]) == (1, 1)
    assert (running.status("one"), running.status("new")) == (200, 200)
    running.write(a=keys.digest("new"))
    assert running.load()["removed"]["count"] == 1
    assert (running.status("one"), running.status("new")) == (401, 200)


@NEEDS_HAPROXY
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "secret\n",
        f"{'1' * 63} a:0:0:0:0:5:api\n",
        f"{'1' * 64}\n",
        f"{'1' * 64} a:0:0:0:0:5\n",
        f"{'1' * 64} a b:0:0:0:0:5:api\n",
        f"{'1' * 64} a:0:0:0:0:5:api; disable frontend api\n",
        f"{'1' * 64} a:0:0:0:0:5:api\n" * 2,
        f"{'1' * 64} a:0:0:0:0:5:api\n\n{'2' * 64} b:0:0:0:0:5:api\n",
    ],
)
def test_a_file_that_is_no_map_changes_nothing(running: Running, text: str) -> None:
    (running.folder / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(running.program.Fault, match=r"keys(:\d+:)? (is not|has)") as fault:
        running.load()
    assert not any(word in str(fault.value) for word in ("secret", "1111", "disable"))
    assert running.status("one") == 200


@NEEDS_HAPROXY
def test_ten_thousand_keys_are_loaded_at_once(running: Running) -> None:
    owners = {f"owner-{number}": keys.digest(f"key-{number}") for number in range(10_000)}
    running.write(a=keys.digest("one"), **owners)
    seen, stop = set(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add(running.status("one"))

    with ThreadPoolExecutor() as pool:
        watching = pool.submit(watch)
        began = time.monotonic()
        answer = running.load()
        took = time.monotonic() - began
        stop.set()
        watching.result()
    print(f"10,000 keys: {took:.1f} s")
    assert (answer["added"]["count"], len(answer["added"]["keys"])) == (10_000, 20)
    assert seen == {200}, "the known key works meanwhile"
    assert {running.status(f"key-{number}") for number in (0, 5000, 9999)} == {200}
    assert running.drift() is None
    running.write(a=keys.digest("one"))
    assert running.load()["removed"]["count"] == 10_000
    assert running.status("key-5000") == 401


@NEEDS_HAPROXY
def test_two_loads_at_the_same_time_leave_the_keys_of_the_file(running: Running) -> None:
    for turn in range(5):
        running.write(**{f"o{turn}-{number}": keys.digest(f"{turn}-{number}") for number in range(300)})
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda _: running.load(), range(4)))
        assert sorted(answer["changed"] for answer in answers) == [False, False, False, True]
        assert running.drift() is None


@NEEDS_HAPROXY
def test_a_load_that_fails_half_way_is_never_used(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = running.program.ask

    def ask(command: str) -> str:
        if command.startswith("add map") and keys.digest("key-299")[7:] in command:
            raise OSError("the host is out of files")
        return str(asked(command))

    running.write(**{f"owner-{number}": keys.digest(f"key-{number}") for number in range(300)})
    monkeypatch.setattr(running.program, "ask", ask)
    with pytest.raises(OSError, match="out of files"):
        running.load()
    monkeypatch.undo()
    assert (running.status("one"), running.status("key-0")) == (200, 401)
    assert running.load()["changed"] is True
    assert (running.status("one"), running.status("key-0")) == (401, 200)


@NEEDS_HAPROXY
def test_a_process_with_another_configuration_is_a_fault(running: Running) -> None:
    other = running.folder / "other"
    shutil.copy(running.folder / "keys", other)
    vars(running.program).update(KEYS=str(other))
    with pytest.raises(running.program.Fault, match="does not use"):
        running.load()
    assert probe.check_keys(keys_item("gateway", str(other), str(running.folder / "admin.sock"))) is not None


def test_without_haproxy_its_unit_is_the_drift(tmp_path: Path) -> None:
    program = _program(tmp_path)
    (tmp_path / "keys").write_text(text_of(a=ONE), encoding="utf-8")
    assert program.keys({}) == {"haproxy": False, "changed": False}
    assert probe.check_keys(keys_item("gateway", str(tmp_path / "keys"), str(tmp_path / "admin.sock"))) is None


def test_the_program_answers_in_json_and_exits_with_1_for_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = _program(tmp_path)
    assert program.main(["keys"]) == 0
    assert json.loads(capsys.readouterr().out) == {"haproxy": False, "changed": False}
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(tmp_path / "admin.sock"))  # of a process that has ended
    (tmp_path / "keys").write_text(text_of(a=ONE), encoding="utf-8")
    assert program.main(["keys"]) == 1
    assert "HAProxy does not answer" in json.loads(capsys.readouterr().out)["fault"]
