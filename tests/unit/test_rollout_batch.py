"""A batch of a rollout against gateways and hosts that answer from a table: how often each is asked, and who waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_fleet.edge.connection import JumpHosts
from vllm_fleet.edge.remote_answer import NO_FILES, Files
from vllm_fleet.facts.rollout_answer import Gated, parse_answer
from vllm_fleet.operate.rollout.batch import Batch
from vllm_fleet.operate.rollout.hosts import Progress, RolloutHost
from vllm_fleet.operate.rollout.programs import Answer, CommandError, Programs

NAMES = ("gpu-0", "gpu-1", "gpu-2")
GATEWAY = "gateway-0"
CACHE = "/var/cache/vllm/0123456789abcdef"
BEGUN = {"stale": ["0"], "surplus": [], "running": ["vllm@0.service"], "accepted": "0" * 16, "on_trial": True}


def server(name: str) -> dict[str, Any]:
    """A server of a backend as a gateway reports it."""
    known = {"name": f"{name}_0", "backend": "m", "place": f"{name}_0=192.0.2.1:8000", "sessions": 0}
    return {**known, "drained": False, "status": "UP", "drain": None}


class Table(Programs):
    """Programs whose answers are given; ``asked`` has each call: host, command and the servers that it names."""

    def __init__(self, **answers: Any) -> None:
        super().__init__({}, JumpHosts())
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.answers: dict[str, Any] = {
            "look": {"haproxy": True, "servers": {f"m/{name}_0": server(name) for name in (*NAMES, "other")}},
            "begin": {**BEGUN, "wrote": True},
            "drain": {"haproxy": True, "changed": True, "servers": []},
            "ready": {"haproxy": True, "changed": True, "servers": []},
            "stop": {"stopped": []},
            "back": {"to": "0" * 16, "restarted": []},
            "accept": {"accepted": "1" * 16, "removed": []},
            "start": {"seconds": 4.5},
            "pack": {"exists": False},
            "remove": {"removed": True},
            "gates": {"results": []},
            **answers,
        }

    async def call(
        self, host: str, program: str, command: str, question: Mapping[str, Any], kind: type[Answer]
    ) -> Answer:
        del program
        self.asked.append((host, command, tuple(question.get("servers", ()))))
        answer = self.answers[command]
        found = answer(host, question) if callable(answer) else answer
        if isinstance(found, Exception):
            raise found
        return parse_answer(kind, json.dumps(found))  # type: ignore[return-value]

    async def run_packed(
        self,
        host: str,
        source: str,
        question: Mapping[str, Any],
        kind: type[Answer],
        files: Files = NO_FILES,
    ) -> Answer:
        del source, files
        return await self.call(host, "", "gates" if kind is Gated else question["work"], question, kind)

    def calls(self, command: str) -> list[tuple[str, ...]]:
        """The servers of each call of a command."""
        return [servers for _, each, servers in self.asked if each == command]


def hosts() -> list[RolloutHost]:
    instances = (
        {"name": "0", "unit": "vllm@0.service", "runtime_directory": "/run/vllm-0", "loaded": "", "files": []},
    )
    return [
        RolloutHost(
            name, "1" * 16, {"0.env": ""}, instances, (GATEWAY,), {"0": f"{name}_0=192.0.2.1:8000"}, cache=CACHE
        )
        for name in NAMES
    ]


def start(table: Table, store: Path, **known: Any) -> dict[str, tuple[str, ...]]:
    """Starts the batch; host -> the commands that it was asked, in their order."""
    chosen = [replace(each, cache_store=str(store)) for each in hosts()]
    stopped = {name: Progress("stopped", changed=True, **known) for name in NAMES}
    asyncio.run(Batch(chosen, table, "the tests").start(stopped))
    return {name: tuple(command for host, command, _ in table.asked if host == name) for name in NAMES}


def stop(table: Table) -> Mapping[str, Progress]:
    return asyncio.run(Batch(hosts(), table, "the tests").stop())


def finish(table: Table) -> Mapping[str, Progress]:
    started = {name: Progress("started", changed=True) for name in NAMES}
    return asyncio.run(Batch(hosts(), table, "the tests").finish(started))


ALL = tuple(f"{name}_*" for name in NAMES)


def test_a_batch_leaves_the_traffic_with_one_call() -> None:
    table = Table()
    assert {name: progress.state for name, progress in stop(table).items()} == dict.fromkeys(NAMES, "stopped")
    assert table.calls("drain") == [ALL]


def test_a_host_with_requests_in_flight_waits_for_its_own() -> None:
    def drain(_host: str, question: Mapping[str, Any]) -> dict[str, Any]:
        busy = {} if question.get("wait_seconds") else {"m/gpu-1_0": 2}
        return {"haproxy": True, "changed": True, "servers": [], "busy": busy}

    table = Table(drain=drain)
    assert {progress.state for progress in stop(table).values()} == {"stopped"}
    assert table.calls("drain") == [ALL, ("gpu-1_*",), ("gpu-1_*",)]


def test_a_host_that_another_run_drains_does_not_keep_the_others() -> None:
    def drain(host: str, question: Mapping[str, Any]) -> Any:
        if any(name in question["servers"] for name in ("gpu-2_*",)):
            return CommandError(host, "gpu-2_0 is drained by another run")
        return {"haproxy": True, "changed": True, "servers": []}

    done = stop(Table(drain=drain))
    assert {name: progress.state for name, progress in done.items()} == {
        **dict.fromkeys(NAMES[:2], "stopped"),
        "gpu-2": "untouched",
    }


@pytest.mark.parametrize("cached", [True, False])
def test_a_host_says_whether_it_has_the_start_cache(cached: bool) -> None:
    def answer(_host: str, question: Mapping[str, Any]) -> dict[str, Any]:
        return {"stopped": [], "cached": cached and question["cache"] == CACHE}

    assert {progress.cached for progress in stop(Table(stop=answer)).values()} == {cached}


def test_a_start_from_nothing_is_packed_after_the_gates_by_one_of_equal_hosts(tmp_path: Path) -> None:
    asked = start(Table(), tmp_path / "store")
    assert sorted(asked.values()) == [("start", "gates"), ("start", "gates"), ("start", "gates", "pack")]


def test_a_host_that_has_the_cache_is_not_asked_for_it(tmp_path: Path) -> None:
    assert set(start(Table(), tmp_path / "store", cached=True).values()) == {("start", "gates")}


@pytest.mark.parametrize("cached", [True, False])
def test_what_a_failed_start_has_compiled_is_removed_when_its_instances_are_gone(tmp_path: Path, cached: bool) -> None:
    table = Table(start=lambda host, _question: CommandError(host, "did not start"))
    asked = start(table, tmp_path / "store", cached=cached)
    assert set(asked.values()) == {("start", "back", *(() if cached else ("remove",)))}


def test_a_host_with_an_older_program_has_no_start_cache() -> None:
    assert {progress.cached for progress in stop(Table(stop={"stopped": []})).values()} == {False}


@pytest.mark.parametrize(("work", "state"), [(stop, "untouched"), (finish, "failed")])
def test_a_gateway_that_gives_no_answer_is_asked_once_for_all(
    work: Callable[[Table], Mapping[str, Progress]], state: str
) -> None:
    command = "drain" if work is stop else "ready"
    table = Table(**{command: lambda host, _question: CommandError(host, "gives no answer", silent=True)})
    assert {progress.state for progress in work(table).values()} == {state}
    assert table.calls(command) == [ALL]


def test_a_batch_gets_its_traffic_back_with_one_call() -> None:
    table = Table()
    assert {name: progress.state for name, progress in finish(table).items()} == dict.fromkeys(NAMES, "serving")
    assert table.calls("ready") == [ALL]


def test_a_server_that_is_late_is_its_own_hosts() -> None:
    def ready(_host: str, question: Mapping[str, Any]) -> dict[str, Any]:
        late = {"m/gpu-1_0": "DOWN"} if "gpu-1_*" in question["servers"] else {}
        return {"haproxy": True, "changed": True, "servers": [], "late": late}

    done = finish(Table(ready=ready))
    assert {name: progress.state for name, progress in done.items()} == {
        "gpu-0": "serving",
        "gpu-1": "failed",
        "gpu-2": "serving",
    }


def test_a_host_that_does_not_accept_gets_no_traffic() -> None:
    table = Table(
        accept=lambda host, _question: (
            CommandError(host, "no") if host == "gpu-0" else {"accepted": "1" * 16, "removed": []}
        )
    )
    assert finish(table)["gpu-0"].state == "failed"
    assert table.calls("ready") == [("gpu-1_*", "gpu-2_*")]
