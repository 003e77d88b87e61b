"""No request ends an engine: odd ones are answered or refused, and the same processes answer right afterwards."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from hanging import HANGING_SECONDS

from e2e.running_lab import Lab
from e2e.unusual_requests import CHAT, COMPLETIONS, RESPONSES, RIGHT, Unusual, body_of, requests_to, texts

#: As many as the two engines of the lab run side by side without a queue.
SIDE_BY_SIDE = 16
HOSTS = ("lab-0", "lab-1")


def groups() -> list[Any]:
    """The rows of each API, in the order of the table, as many to a test as are sent side by side."""
    parameters = []
    for path in (COMPLETIONS, CHAT, RESPONSES):
        rows = list(requests_to(path))
        for start in range(0, len(rows), SIDE_BY_SIDE):
            parameters.append(pytest.param(rows[start : start + SIDE_BY_SIDE], id=f"{path[4:]}-{start}"))
    return parameters


@dataclass
class Engines:
    """The processes of the engines: host -> what systemd knows of its unit, and whether that is still so."""

    lab: Lab
    seen: dict[str, str]

    @staticmethod
    def units(lab: Lab) -> dict[str, str]:
        show = "systemctl show --property=MainPID,InvocationID,ActiveState,NRestarts vllm@0.service"
        return {host: lab.on(host, show).stdout for host in HOSTS}

    def changed(self) -> list[str]:
        """The hosts whose engine is another one than at the last call."""
        before, self.seen = self.seen, self.units(self.lab)
        return [host for host in HOSTS if self.seen[host] != before[host]]


@pytest.fixture(scope="module")
def engines(lab: Lab) -> Engines:
    units = Engines.units(lab)
    assert all("ActiveState=active" in unit for unit in units.values()), units
    return Engines(lab, units)


def send(lab: Lab, path: str, body: bytes) -> tuple[int, str]:
    """Status and body of an answer; a gateway that answers before it has read the whole body is no error."""
    at = urlsplit(lab.gateway.url)
    assert at.hostname
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=HANGING_SECONDS)
    try:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {lab.gateway.api_key}"}
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def read(text: str) -> Any:
    """An answer; the events of a stream as a list."""
    if not text.startswith(("data:", "event:")):
        return json.loads(text)
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [json.loads(event) for event in data if event != "[DONE]"]


def fault(request: Unusual, status: int, text: str) -> str | None:
    """What is wrong with an answer; None if it is right."""
    shown = f"{request.path}, {request.name}: {status} {text[:600]}"
    if (400 if 400 <= status < 500 else status) != request.status:
        return shown
    # The answers of what fails in vLLM have no form.
    if status >= 500:
        return None
    try:
        return None if request.holds(read(text)) else shown
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return f"{shown}: {error!r}"


@pytest.mark.parametrize("rows", groups())
def test_odd_requests_are_answered_and_end_no_engine(lab: Lab, engines: Engines, rows: list[Unusual]) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        said = list(pool.map(lambda row: send(lab, row.path, row.body), rows))
        # The gateway sends each to the host that has fewer to do.
        plain = list(pool.map(lambda _: send(lab, CHAT, body_of(CHAT, {})), range(2 * len(HOSTS))))
    names = ", ".join(row.name for row in rows)
    assert engines.changed() == [], f"an engine ended at one of: {names}"
    assert [(status, texts(read(text))) for status, text in plain] == [(200, [RIGHT])] * len(plain), names
    faults = [wrong for row, (status, text) in zip(rows, said, strict=True) if (wrong := fault(row, status, text))]
    assert faults == []


def test_every_api_gets_fifty_odd_requests_with_names_of_their_own() -> None:
    for path in (COMPLETIONS, CHAT, RESPONSES):
        names = [(row.name, row.status) for row in requests_to(path)]
        assert len(names) >= 50
        assert len(names) == len(set(names)), path
