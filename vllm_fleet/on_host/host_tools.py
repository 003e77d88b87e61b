"""Runs the tools of a host within limits of time and output, and reads what they print as text of a stranger.

Standard library only, for the Python that the host has (3.8 or later). An unknown value is ``None``.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from typing import Any

#: The time limit of a tool. One that hangs on a broken GPU cannot always be killed.
TOOL_SECONDS = 40.0
#: The time limit of all tools of one program. The controller waits two minutes for the whole answer.
TOTAL_SECONDS = 90.0
#: The limit of a tool's output. The JSON of 64 partitions is 0.3 MiB.
OUTPUT_BYTES = 4 << 20
#: The limit of a file in /sys, /proc or /etc.
FILE_BYTES = 1 << 20
ROCM = os.environ.get("ROCM_PATH", "/opt/rocm")
#: A shell without a login, and sudo, may have no such folder in PATH.
MORE_FOLDER = os.path.join(ROCM, "bin")
#: What tools print in place of a value that they do not have, in lower case and without brackets.
NO_VALUES = frozenset(
    {"", "-", "n/a", "na", "none", "null", "no data", "not available", "not found", "not supported"}
    | {"unknown", "unknown error", "err!", "error", "gpu is lost", "gpu requires reset", "insufficient permissions"}
    | {"requested functionality has been deprecated"}
)
_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,7}(?:[-+~.][0-9A-Za-z.+~_-]{0,48})?")
#: When the time of all tools is over; no limit before :func:`start_clock`.
_clock = {"ends": float("inf")}


class Answer:
    """The answer of a tool.

    Attributes:
        state: empty for an answer, else ``no_driver`` (the tool is missing), ``tool_hangs`` or ``tool_failed``.
        out: its standard output.
        message: the first line of output of a tool that failed.
        text: what it printed on both channels, for the states that a tool reports by text alone.
    """

    def __init__(self, state: str = "", out: str = "", message: str = "", text: str = "") -> None:
        self.state, self.out, self.message, self.text = state, out, message, text

    @property
    def ok(self) -> bool:
        """Whether the tool is installed, ended in time and succeeded."""
        return not self.state


def start_clock() -> None:
    """Begins the time of all tools of this program."""
    _clock["ends"] = time.monotonic() + TOTAL_SECONDS


def start_tool(*words: str) -> subprocess.Popen[bytes] | None:
    """Starts a tool; None if the host does not have it, or cannot start it."""
    folders = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    path = shutil.which(words[0], path=os.pathsep.join([*folders, MORE_FOLDER]))
    if path is None:
        return None
    environment = dict(os.environ, LC_ALL="C", LANGUAGE="C")
    pipe = subprocess.PIPE
    # Its own group, so that what it has started ends with it.
    try:
        return subprocess.Popen(
            [path, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            start_new_session=True,
        )
    except OSError:
        return None


def wait_for_tool(process: subprocess.Popen[bytes] | None, limit: int = OUTPUT_BYTES) -> Answer:
    """Waits for a tool that :func:`start_tool` began, as long as it prints no more than ``limit`` bytes."""
    if process is None:
        return Answer("no_driver")
    now = time.monotonic()
    # What has begun gets a second, so that the facts that files tell are not lost with a tool.
    ends = min(now + TOOL_SECONDS, max(_clock["ends"], now + 1))
    printed, state = _read_output(process, ends, limit)
    if not state:
        try:
            process.wait(timeout=max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            state = "tool_hangs"
    if state:
        end_tool(process)
    for channel in (process.stdout, process.stderr):
        if channel:
            channel.close()
    out, err = (block.decode("utf-8", "replace") for block in printed)
    if not state and process.returncode == 0:
        return Answer(out=out)
    text = (out[: 1 << 16] + "\n" + err[: 1 << 16]).lstrip("\ufeff")
    lines = [line for line in map(clean_text, text.splitlines()) if line]
    if state == "too_long":
        lines = ["more than %d MiB of output" % (limit >> 20)]
    elif not lines:
        lines = ["exit status %s" % process.returncode]
    return Answer("tool_hangs" if state == "tool_hangs" else "tool_failed", out, lines[0], text)


def _read_output(process: subprocess.Popen[bytes], ends: float, limit: int) -> tuple[list[bytes], str]:
    """What a tool prints on its two channels, and ``tool_hangs`` or ``too_long`` if it goes beyond its limits."""
    blocks: list[list[bytes]] = [[], []]
    size, state = 0, ""
    with selectors.DefaultSelector() as selector:
        for number, channel in enumerate((process.stdout, process.stderr)):
            if channel:
                selector.register(channel, selectors.EVENT_READ, number)
        while selector.get_map() and not state:
            left = ends - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                state = "tool_hangs"
            for key, _ in ready:
                block = os.read(key.fd, 1 << 16)
                if not block:
                    selector.unregister(key.fileobj)
                blocks[key.data].append(block)
                size += len(block)
            if size > limit:
                state = "too_long"
    return [b"".join(part) for part in blocks], state


def end_tool(process: subprocess.Popen[bytes] | None) -> None:
    """Ends a tool and what it has started."""
    if process is None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        process.kill()


def run_tool(*words: str) -> Answer:
    """Starts a tool and waits for it."""
    return wait_for_tool(start_tool(*words))


def clean_text(text: Any, length: int = 300) -> str:
    """A text in one line, with a blank for each character that a terminal does not print, no longer than ``length``."""
    shown = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 4 * length])
    return shown.strip()[:length]


def parse_text(text: Any) -> str | None:
    """A text as tools print it; None for ``N/A``, ``ERR!`` and similar, and for what is no text."""
    if not isinstance(text, (str, int, float)) or isinstance(text, bool):
        return None
    value = clean_text(text, 128)
    return None if value.strip("[]<> ").lower() in NO_VALUES else value


def parse_version(text: Any) -> str | None:
    """A version as tools print it; None for what does not begin with a number."""
    value = parse_text(text)
    return value if value and _VERSION.fullmatch(value) else None


def parse_number(text: Any) -> int | None:
    """A number from 0 on as tools print it, decimal or hexadecimal; None for ``[N/A]`` and similar."""
    value = str(text).strip() if isinstance(text, (str, int, float)) and not isinstance(text, bool) else ""
    if not re.fullmatch(r"0[xX][0-9a-fA-F]{1,13}|[0-9]{1,15}(?:\.0{1,6})?", value):
        return None
    return int(value, 16) if value[:2] in ("0x", "0X") else int(value.split(".")[0])


def parse_json(text: str) -> Any:
    """The first JSON mapping, or list of mappings, in an answer; None without one. Tools print text around it."""
    decoder = json.JSONDecoder()
    # A warning may have brackets as well. A few tries are enough, and a hostile answer must not take minutes.
    for begin in [match.start() for match, _ in zip(re.finditer(r"[\[{]", text), range(32))]:
        try:
            value = decoder.raw_decode(text, begin)[0]
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value:
            return value
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            return value
    return None


def as_mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping; an empty one for ``N/A``, null and all else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value if it is a list; an empty one for ``N/A``, null and all else."""
    return value if isinstance(value, list) else []


def read_file(*parts: str) -> str | None:
    """The text of a small file such as those in /sys, without blanks around it; None if it cannot be read."""
    block = read_bytes(*parts)
    return None if block is None else block.decode("utf-8", "replace").strip()


def read_bytes(*parts: str, limit: int = FILE_BYTES) -> bytes | None:
    """The first ``limit`` bytes of a file; None if it cannot be read, or is no regular file."""
    path = os.path.join(*parts)
    try:
        # A named pipe would wait for ever.
        if not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError:
        return None


def list_folder(*parts: str) -> list[str]:
    """The names in a folder, sorted; empty if it cannot be read."""
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []
