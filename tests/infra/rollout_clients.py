"""Clients of a gateway for as long as a test wants: streams, and connections that stay open. Run as a program.

Arguments: key, number of streams, number of connections, tokens of a stream, then the addresses of the gateways. It
ends with its standard input, and prints how it went as JSON.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import urllib.parse
from collections import Counter

key, streams, kept, pieces = sys.argv[1], *map(int, sys.argv[2:5])
gateways = [urllib.parse.urlsplit(url) for url in sys.argv[5:]]
end, lock = threading.Event(), threading.Lock()
count: Counter[str] = Counter(whole=0, cut=0, failed=0, answers=0)
why: Counter[str] = Counter()
releases: Counter[str] = Counter()


def note(kind: str, reason: str = "") -> None:
    with lock:
        count[kind] += 1
        if reason:
            why[reason] += 1


def ask(connection: http.client.HTTPConnection, body: dict[str, object]) -> http.client.HTTPResponse:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    return connection.getresponse()


def stream(number: int) -> None:
    at = gateways[number % len(gateways)]
    while not end.is_set():
        connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=120)
        try:
            answer = ask(connection, {"prompt": "1", "max_tokens": pieces, "stream": True})
            text = answer.read()
        except http.client.IncompleteRead:
            note("cut", "incomplete")
            continue
        except OSError as fault:
            note("failed", repr(fault))
            continue
        finally:
            connection.close()
        if answer.status != 200:
            note("failed", f"{answer.status} {text[:100]!r}")
        elif text.count(b'"piece"') != pieces or b"[DONE]" not in text:
            note("cut", f"{text.count(b'piece')} of {pieces}")
        else:
            note("whole")
            with lock:
                releases[str(json.loads(text.split(b"\n")[0][6:])["release"])] += 1


def keep_alive(number: int) -> None:
    at = gateways[number % len(gateways)]
    connection = http.client.HTTPConnection(str(at.hostname), at.port, timeout=120)
    while not end.is_set():
        try:
            answer = ask(connection, {"prompt": "1", "max_tokens": 1})
            text = answer.read()
        except (OSError, http.client.HTTPException) as fault:
            note("failed", repr(fault))
            connection.close()
            continue
        if answer.status == 200:
            note("answers")
        else:
            note("failed", f"{answer.status} {text[:100]!r}")
        end.wait(0.05)
    connection.close()


threads = [threading.Thread(target=stream, args=(number,)) for number in range(streams)]
threads += [threading.Thread(target=keep_alive, args=(number,)) for number in range(kept)]
for thread in threads:
    thread.start()
sys.stdin.read()
end.set()
for thread in threads:
    thread.join()
print(json.dumps({**count, "why": why, "releases": releases}))
