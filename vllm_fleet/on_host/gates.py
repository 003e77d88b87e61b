"""Runs on a host: asks instances that have started what their release must pass before it gets traffic.

Standard library only, for the Python that the host has (3.8 or later). The question is JSON on standard input. The
answer is JSON on standard output: the gates in their order, up to the first that does not pass. What only a comparison
can judge, numerics and speed, is measured here and judged on the controller.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, Mapping, Sequence

#: Characters of a line that an answer repeats, and how many lines.
SHOWN, LINES = 300, 20
#: A model that thinks before it answers may take this long for one answer.
TIMEOUT_SECONDS = 300
#: The longest answer that is read.
MOST_BYTES = 16 << 20
CURRENT = "/opt/vllm/current"
#: vLLM runs on this host: a proxy in the environment is not for it.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Json = Mapping[str, Any]


class RefusedError(Exception):
    """A gate does not pass; the lines show it."""

    def __init__(self, why: str, lines: Sequence[str] = ()) -> None:
        super().__init__(why)
        self.lines = list(lines)


class Server:
    """The API of an instance."""

    def __init__(self, instance: Json) -> None:
        """Reads where it listens from its release."""
        self.unit = instance["unit"]
        path = "%s/%s/%s.env" % (CURRENT, instance["name"], instance["name"])
        try:
            with open(path, encoding="utf-8") as file:
                env = dict(re.findall(r'^(FLEET_\w+)="(.*)"$', file.read(), re.MULTILINE))
            self.url, self.model = env["FLEET_URL"], env["FLEET_MODEL"]
        except (OSError, KeyError) as fault:
            raise RefusedError("%s does not say where the instance listens: %r" % (path, fault)) from None

    def open(self, path: str, body: Json) -> Any:
        """The answer to a request, as a file."""
        data = json.dumps({"model": self.model, **body}).encode()
        words = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, words)  # noqa: S310 - its release names the address
        try:
            return OPENER.open(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as fault:
            said = fault.read(SHOWN).decode("utf-8", "replace")
            raise RefusedError("%s answers %d" % (path, fault.code), [said]) from None
        except (OSError, http.client.HTTPException) as fault:
            raise RefusedError("%s gives no answer: %s" % (path, fault)) from None

    def ask(self, path: str, body: Json) -> Any:
        """The answer to a request, as JSON."""
        with self.open(path, body) as answer:
            try:
                return json.loads(answer.read(MOST_BYTES))
            except (ValueError, OSError, http.client.HTTPException) as fault:
                raise RefusedError("%s gives no answer that can be read: %s" % (path, fault)) from None

    def stream(self, path: str, body: Json) -> Iterator[Any]:
        """The events of a streamed answer.

        Raises:
            RefusedError: an event is an error, or the stream ends before its end.
        """
        with self.open(path, {**body, "stream": True}) as answer:
            try:
                for line in answer:
                    if not line.startswith(b"data:"):
                        continue
                    text = line[5:].strip()
                    if text == b"[DONE]":
                        return
                    event = json.loads(text)
                    if "error" in event:
                        raise RefusedError("a stream of %s ends with an error" % path, [text.decode()[:SHOWN]])
                    yield event
            except (ValueError, OSError, http.client.HTTPException) as fault:
                raise RefusedError("a stream of %s breaks off: %s" % (path, fault)) from None
        raise RefusedError("a stream of %s ends before its end" % path)


def said(answer: Any, *path: Any) -> Any:
    """A part of an answer; None where it has no such part."""
    for key in path:
        try:
            answer = answer[key]
        except (LookupError, TypeError):
            return None
    return answer


def check_completion(_question: Json, server: Server) -> dict[str, Any]:
    """A completion of one token comes back."""
    answer = server.ask("/v1/completions", {"prompt": "1 2 3", "max_tokens": 1, "temperature": 0})
    if said(answer, "usage", "completion_tokens") != 1:
        raise RefusedError("a completion of one token has another number", [json.dumps(answer)[:SHOWN]])
    return {}


def check_stream(question: Json, server: Server) -> dict[str, Any]:
    """A chat comes piece by piece, to its end."""
    body = {"messages": [{"role": "user", "content": question["questions"][0]["ask"]}], "temperature": 0}
    limit = {"max_completion_tokens": 64, "stream_options": {"include_usage": True}}
    pieces, reason, usage = 0, None, None
    for event in server.stream("/v1/chat/completions", {**body, **limit}):
        delta = said(event, "choices", 0, "delta") or {}
        pieces += any(delta.get(key) for key in ("content", "reasoning", "reasoning_content"))
        reason = said(event, "choices", 0, "finish_reason") or reason
        usage = event.get("usage") or usage
    if pieces < 1 or not reason or not usage:
        text = "a stream has %d pieces of text, the end %r and the usage %r" % (pieces, reason, usage)
        raise RefusedError(text)
    return {"pieces": pieces}


def reply_of(server: Server, one: Json) -> Any:
    """The message that answers a question of the question set."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": one["ask"]}], "temperature": 0}
    body["max_completion_tokens"] = one.get("tokens") or 1024
    if one.get("tools"):
        body["tools"] = [{"type": "function", "function": tool} for tool in one["tools"]]
    return said(server.ask("/v1/chat/completions", body), "choices", 0)


def wrong(one: Json, choice: Any) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if one.get("call"):
        call = said(choice, "message", "tool_calls", 0, "function") or {}
        try:
            given = json.loads(call.get("arguments") or "{}")
        except ValueError:
            given = {}
        right = call.get("name") == one["call"]["name"] and all(
            re.search(pattern, str(said(given, name))) for name, pattern in one["call"]["arguments"].items()
        )
        if right and said(choice, "finish_reason") == "tool_calls":
            return ""
    else:
        text = said(choice, "message", "content")
        if isinstance(text, str) and re.search(one["answer"], text):
            return ""
    return "%s -> %s" % (one["ask"], json.dumps(choice)[:SHOWN])


def check_tools(question: Json, server: Server) -> dict[str, Any]:
    """A question that needs a function ends in a call of it."""
    asked = [one for one in question["questions"] if one.get("call")][:1]
    faults = [fault for fault in (wrong(one, reply_of(server, one)) for one in asked) if fault]
    if faults:
        raise RefusedError("a function was not called as it must be", faults)
    return {"asked": len(asked)}


def check_vocabulary(question: Json, server: Server) -> dict[str, Any]:
    """Text becomes the tokens of gpt-oss, and the tokens become that text."""
    for each in question["vocabulary"]:
        answer = server.ask("/tokenize", {"prompt": each["prompt"], "add_special_tokens": False})
        if said(answer, "tokens") != each["tokens"]:
            shown = "%r -> %s, not %s" % (each["prompt"], said(answer, "tokens"), each["tokens"])
            raise RefusedError("a text becomes other tokens", [shown[:SHOWN]])
        answer = server.ask("/detokenize", {"tokens": each["tokens"]})
        if said(answer, "prompt") != each["prompt"]:
            shown = "%s -> %r, not %r" % (each["tokens"], said(answer, "prompt"), each["prompt"])
            raise RefusedError("tokens become another text", [shown[:SHOWN]])
    return {"texts": len(question["vocabulary"])}


def judge(lines: Sequence[str], promises: Sequence[Json]) -> Iterator[tuple[Json, str, bool]]:
    """Each line that a promise speaks of, and whether it is as promised.

    Args:
        lines: what a unit has logged.
        promises: each with ``line``, a regular expression, ``names``, what its first group may be, and ``what``.
    """
    for promise in promises:
        pattern = re.compile(promise["line"])
        for line in lines:
            if found := pattern.search(line):
                yield promise, line[:SHOWN], bool(promise["names"]) and found[1] in promise["names"]


def read_log(unit: str) -> list[str]:
    """What a unit has logged since its start."""
    show = ["systemctl", "show", "--property=InvocationID", "--value", unit]
    invocation = subprocess.run(show, stdout=subprocess.PIPE, encoding="utf-8").stdout.strip()
    if not invocation:
        raise RefusedError("%s has no start whose journal could be read" % unit)
    words = ["journalctl", "--no-pager", "--output=cat", "_SYSTEMD_INVOCATION_ID=%s" % invocation]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise RefusedError("the journal of %s cannot be read: %s" % (unit, done.stderr.strip()))
    return done.stdout.splitlines()


def check_log(question: Json, server: Server) -> dict[str, Any]:
    """VLLM has chosen what its recipe says."""
    seen: list[str] = []
    faults: list[str] = []
    for promise, line, kept in judge(read_log(server.unit), question["promises"]):
        (seen if kept else faults).append(line if kept else "%s: %s" % (promise["what"], line))
    if faults:
        raise RefusedError("vLLM serves, and not as its recipe says: " + faults[0], faults[:LINES])
    return {"lines": seen[:LINES]}


def measure_numerics(question: Json, server: Server) -> dict[str, Any]:
    """The log-probabilities that the model gives to the tokens of fixed prompts: nothing is drawn, so none diverges."""
    found = []
    for prompt in question["prompts"]:
        body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        answer = server.ask("/v1/completions", body)
        places = said(answer, "choices", 0, "prompt_logprobs")
        if not isinstance(places, list) or len(places) < 2:
            raise RefusedError("no log-probabilities of a prompt come back", [json.dumps(answer)[:SHOWN]])
        try:
            # The first token has none. The others have one each, under their number.
            found.append([round(float(next(iter(place.values()))["logprob"]), 4) for place in places[1:]])
        except (AttributeError, StopIteration, LookupError, TypeError, ValueError) as fault:
            raise RefusedError("log-probabilities of a prompt cannot be read: %r" % fault) from None
    return {"logprobs": found}


def load(server: Server, speed: Json, number: int) -> tuple[float, float, int]:
    """One stream of the load: seconds to its first token, seconds after it, tokens after it."""
    # Another beginning for each, so that no cache knows it.
    prompt = "%d %.6f " % (number, time.time()) + "one two three four " * (speed["prompt_tokens"] // 4)
    body = {"prompt": prompt, "max_tokens": speed["tokens"], "temperature": 0, "ignore_eos": True}
    begun, first, last, pieces, usage = time.monotonic(), 0.0, 0.0, 0, None
    for event in server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}):
        if event.get("choices"):
            last, pieces = time.monotonic(), pieces + 1
            first = first or last
        usage = said(event, "usage", "completion_tokens") or usage
    if pieces < 2 or not isinstance(usage, int):
        raise RefusedError("a stream of the load has %d pieces and %r tokens" % (pieces, usage))
    return first - begun, last - first, usage - 1


def spread(values: Sequence[float]) -> float:
    """How far values lie apart, as a share of their median."""
    return (max(values) - min(values)) / max(statistics.median(values), 1e-9)


def measure_speed(question: Json, server: Server) -> dict[str, Any]:
    """Seconds to the first token and tokens per second under a short load, round by round until they agree."""
    speed = question["speed"]
    streams = range(speed["streams"])
    rounds: list[tuple[float, float]] = []
    with ThreadPoolExecutor(len(streams)) as pool:
        while True:
            done = list(pool.map(lambda number: load(server, speed, number), streams))
            seconds = statistics.mean(after for _, after, _ in done)
            tokens = sum(count for _, _, count in done)
            rounds.append((statistics.median(first for first, _, _ in done), tokens / max(seconds, 1e-9)))
            # The first one warms up.
            last = rounds[1:][-speed["rounds"] :]
            quiet = len(last) == speed["rounds"] and spread([rate for _, rate in last]) <= speed["noise"]
            if quiet or len(rounds) > 3 * speed["rounds"]:
                break
    firsts, rates = zip(*last)
    return {
        "ttft_seconds": statistics.median(firsts),
        "tokens_per_second": statistics.median(rates),
        "noise": spread(rates),
        "rounds": len(rounds),
    }


def check_questions(question: Json, server: Server) -> dict[str, Any]:
    """The model answers enough of its question set right."""
    asked = question["questions"]
    with ThreadPoolExecutor(4) as pool:
        faults = [fault for fault in pool.map(lambda one: wrong(one, reply_of(server, one)), asked) if fault]
    right = len(asked) - len(faults)
    if right < question["share"] * len(asked):
        raise RefusedError("%d of %d questions are answered right" % (right, len(asked)), faults[:LINES])
    return {"right": right, "asked": len(asked)}


#: Gate -> what it asks of one instance; it returns figures.
GATES: dict[str, Callable[[Json, Server], dict[str, Any]]] = {
    "completion": check_completion,
    "stream": check_stream,
    "tools": check_tools,
    "vocabulary": check_vocabulary,
    "log": check_log,
    "numerics": measure_numerics,
    "speed": measure_speed,
    "questions": check_questions,
}


def run_gates(question: Json) -> dict[str, Any]:
    """The results of the gates, in their order, up to the first that does not pass."""
    results = []
    for gate in question["gates"]:
        for instance in question["instances"]:
            begun = time.monotonic()
            result = {"gate": gate, "instance": instance["name"], "passed": True, "why": "", "lines": [], "figures": {}}
            try:
                result["figures"] = GATES[gate](question, Server(instance))
            except RefusedError as refused:
                result.update(passed=False, why=str(refused), lines=refused.lines)
            except (LookupError, TypeError, ValueError, AttributeError) as fault:
                result.update(passed=False, why="the gate cannot be run: %r" % fault)
            result["seconds"] = time.monotonic() - begun
            results.append(result)
            if not result["passed"]:
                return {"results": results}
    return {"results": results}


if __name__ == "__main__":
    print(json.dumps(run_gates(json.loads(sys.stdin.read()))))
