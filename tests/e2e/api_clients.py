"""OpenAI's clients for Python and for JavaScript: a call as data -> an answer or the typed error, as data.

The client for JavaScript is a process that takes calls as lines of JSON; ``npm ci`` fetches it into the cache once, by
the digests of ``clients/node/package-lock.json``.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

from hanging import HANGING_SECONDS
from openai import APIError, APIStatusError, BaseModel, OpenAI, Stream

from vllm_fleet.base import paths

#: The folder of the program, its packages and their digests.
NODE = Path(__file__).parent / "clients" / "node"
_PACKAGES = ("package.json", "package-lock.json")


@dataclass(frozen=True)
class Call:
    """A call of a method of a client.

    Attributes:
        method: its name, such as ``chat.completions.create``.
        body: the keys of the body, or of the query of a GET; None where the method takes none.
        arguments: what is in the path, such as the id of a response.
        api_key: another key than the gateway's.
    """

    method: str
    body: Mapping[str, Any] | None = None
    arguments: tuple[str, ...] = ()
    api_key: str | None = None


@dataclass(frozen=True)
class Fault:
    """The exception of a client.

    Attributes:
        name: its class, such as ``NotFoundError``.
        status: of HTTP; None where the error came in a stream.
        message, type, code: of the error object in the body; None where the body has none.
    """

    name: str
    status: int | None
    message: str | None
    type: str | None
    code: str | int | None
    #: Whether the body is an object with message, type, param and code.
    has_form: bool
    text: str = field(default="", compare=False)


#: What came back: the answer as JSON, the events of a stream as a list, or the exception.
Answer = Any | Fault


class Client(Protocol):
    """A client of the gateway."""

    @property
    def name(self) -> str:
        """The client and its version."""

    def send(self, call: Call) -> Answer:
        """Sends a request and returns the answer."""


def fault_of(name: str, status: int | None, body: Any, text: str) -> Fault:
    """The exception as data; both clients give the error object of the body."""
    known = body if isinstance(body, dict) else {}
    has_form = {"message", "type", "param", "code"} <= known.keys() and isinstance(known["message"], str)
    return Fault(name, status, known.get("message"), known.get("type"), known.get("code"), has_form, text)


@dataclass(frozen=True)
class PythonClient:
    """openai-python in this process."""

    url: str
    api_key: str

    @property
    def name(self) -> str:
        return "Python"

    def send(self, call: Call) -> Answer:
        key = self.api_key if call.api_key is None else call.api_key
        with OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=HANGING_SECONDS) as client:
            method = reduce(getattr, call.method.split("."), client)
            # The client takes other keys than those that it knows in a dictionary of their own.
            known = inspect.signature(method).parameters
            body = dict(call.body or {})
            others = {name: body.pop(name) for name in tuple(body) if name not in known}
            extra = {"extra_body": others} if others else {}
            try:
                return _plain(method(*call.arguments, **body, **extra))
            except APIStatusError as error:
                return fault_of(type(error).__name__, error.status_code, error.body, str(error))
            except APIError as error:
                return fault_of(type(error).__name__, None, error.body, str(error))


def _plain(answer: Any) -> Any:
    if isinstance(answer, Stream):
        return [_plain(event) for event in answer]
    return answer.model_dump(mode="json", warnings=False) if isinstance(answer, BaseModel) else answer


@dataclass(frozen=True)
class NodeClient:
    """openai for JavaScript, as a process."""

    process: subprocess.Popen[str]

    @property
    def name(self) -> str:
        return "JavaScript"

    def send(self, call: Call) -> Answer:
        assert self.process.stdin
        assert self.process.stdout
        asked = {"method": call.method, "arguments": call.arguments, "body": call.body}
        if call.api_key is not None:
            asked["api_key"] = call.api_key
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the program of the client has ended with {self.process.wait()} (see its error above)"
        said = json.loads(line)
        if "error" not in said:
            return said["value"]
        error = said["error"]
        return fault_of(error["name"], error["status"], error["body"], error["message"])


@contextmanager
def node_client(url: str, api_key: str) -> Iterator[NodeClient]:
    """The process, for the duration of a block; the key is in its environment only."""
    settings = {
        "CLIENT_MODULES": str(node_modules()),
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": api_key,
        "TIMEOUT_SECONDS": str(HANGING_SECONDS),
    }
    with subprocess.Popen(
        ["node", NODE / "calls.mjs"],
        env={**os.environ, **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield NodeClient(process)
        finally:
            process.kill()


def node_modules() -> Path:
    """The folder with the packages of the client, in the cache; fetches them on the first call (20 MB)."""
    digest = hashlib.sha256(b"".join((NODE / name).read_bytes() for name in _PACKAGES)).hexdigest()[:12]
    place = paths.cache_dir() / "clients" / f"node-{digest}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            print("tests: fetching OpenAI's client for JavaScript (20 MB, once)", file=sys.stderr, flush=True)
            draft = place.with_name(f".{place.name}.{os.getpid()}")
            draft.mkdir()
            try:
                for name in _PACKAGES:
                    shutil.copyfile(NODE / name, draft / name)
                fetched = subprocess.run(
                    ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                    cwd=draft,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=HANGING_SECONDS,
                )
                assert fetched.returncode == 0, fetched.stderr
                draft.rename(place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return place
