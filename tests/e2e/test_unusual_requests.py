"""No request ends an engine: what clients send seldom, by mistake or to do harm is answered or refused."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from e2e.running_lab import Lab
from e2e.unusual_requests import MODEL, PATHS, PLAIN, Request, requests

HOSTS = ("lab-0", "lab-1")


def send(lab: Lab, path: str, body: Any) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {lab.gateway.api_key}", "Content-Type": "application/json"}
    data = json.dumps({"model": MODEL, **body}).encode()
    request = urllib.request.Request(f"{lab.gateway.url}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=HANGING_SECONDS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as fault:
        return fault.code, fault.read()


def wrong(lab: Lab, request: Request) -> str:
    """What is wrong with the answer to a request; empty if nothing is."""
    status, text = send(lab, request.path, request.body)
    told = f"{request.api}, {request.name[:200]}: {status} {text[:300]!r}"
    if status == 200:
        if request.body.get("stream"):
            return "" if b'"error"' not in text and text.rstrip().endswith((b"[DONE]", b"}")) else told
        answer = json.loads(text)
        return "" if request.answered is None or request.answered(answer) else told
    refused = 400 <= status < 500 and "error" in json.loads(text)
    return "" if refused and request.answered is None else told


def starts(lab: Lab) -> list[str]:
    return [lab.on(host, "systemctl show -P InvocationID vllm@0").stdout for host in HOSTS]


@pytest.mark.parametrize("api", PATHS)
def test_no_request_ends_an_engine(lab: Lab, api: str) -> None:
    asked = [request for request in requests() if request.api == api]
    assert len(asked) >= 50
    before = starts(lab)
    with ThreadPoolExecutor(8) as pool:
        faults = [fault for fault in pool.map(lambda request: wrong(lab, request), asked) if fault]
    assert not faults, "\n".join(faults)
    for _ in HOSTS:
        status, text = send(lab, PATHS[api], PLAIN[api])
        assert status == 200
        assert b"Paris" in text
    assert starts(lab) == before
