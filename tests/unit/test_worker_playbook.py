"""How the controller reads the answers of a worker. A small program replaces ssh and gives the answers."""

from __future__ import annotations

import base64
import io
import json
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.edge import worker
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.edge.worker import SETTINGS, Transmitted, WorkerPlaybook
from vllm_fleet.on_host import run_worker

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIPZbIJrWDJY/rZsXHNmWBMAHIHMMXqvoHuxmNVzWNyE"
EVENT = {"event": "playbook_on_start", "uuid": "1", "counter": 1, "stdout": "hello"}


def run(
    tmp_path: Path, out: bytes, err: str = "", code: int = 0, wait_for: str = ""
) -> tuple[WorkerPlaybook, list[Mapping[str, Any]]]:
    answer = tmp_path / "answer"
    answer.write_bytes(out)
    program = tmp_path / "ssh"
    lines = (
        "#!/usr/bin/python3",
        "import json, sys",
        "line = sys.stdin.buffer.readline()",
        "sent = line + sys.stdin.buffer.read(json.loads(line)['bytes'])",
        f"open({str(tmp_path / 'sent')!r}, 'wb').write(sent)",
        *([f"while sys.stdin.buffer.readline() != {wait_for.encode()!r}: pass"] if wait_for else []),
        f"sys.stdout.buffer.write(open({str(answer)!r}, 'rb').read())",
        f"sys.stderr.write({err!r})",
        f"sys.exit({code})",
    )
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    program.chmod(0o755)
    heard: list[Mapping[str, Any]] = []
    target = Target("worker of east", "10.0.0.2", 22, "fleet", (KEY,), program=str(program))
    playbook = WorkerPlaybook(target, "/opt/python", "/dev/shm/x/y", {"A": "b"}, heard.append)  # noqa: S108
    playbook.start(b"the stream")
    if wait_for == "stop\n":
        playbook.ask_to_stop()
    deadline = time.monotonic() + HANGING_SECONDS
    while playbook.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    playbook.end()
    return playbook, heard


def lines(*records: Mapping[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def test_events_and_the_end_of_a_run(tmp_path: Path) -> None:
    playbook, heard = run(tmp_path, lines({"status": "starting"}, EVENT, {"status": "successful"}, {"eof": True}))
    assert [event["stdout"] for event in heard] == ["hello"]
    assert (playbook.returncode, playbook.error()) == (0, None)
    first, _, rest = (tmp_path / "sent").read_bytes().partition(b"\n")
    assert json.loads(first) == {
        "command": "run",
        "python": "/opt/python",
        "folder": "/dev/shm/x/y",  # noqa: S108
        "bytes": 10,
        "environment": {"A": "b"},
    }
    assert rest == b"the stream"


@pytest.mark.parametrize("word", ["alive\n", "stop\n"])
def test_a_worker_hears_from_the_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    if word == "alive\n":
        monkeypatch.setattr(worker, "_BEAT_SECONDS", 0.05)
    playbook, _ = run(tmp_path, lines({"status": "successful"}, {"eof": True}), wait_for=word)
    assert (playbook.returncode, playbook.error()) == (0, None)


def test_a_failed_playbook_is_no_failed_worker(tmp_path: Path) -> None:
    playbook, _ = run(tmp_path, lines(EVENT, {"status": "failed"}, {"eof": True}))
    assert (playbook.returncode, playbook.error()) == (1, None)


def test_the_archive_of_a_worker_is_not_unpacked(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped", "x")
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, str(tmp_path))
        archive.writestr("link/escaped", "x")
    data = packed.getvalue()
    out = lines(EVENT, {"status": "successful"}, {"zipfile": len(data)}) + base64.b64encode(data)
    playbook, heard = run(tmp_path, out + lines({"eof": True}))
    assert (playbook.returncode, len(heard)) == (0, 1)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("out", "err", "code", "says"),
    [
        (lines({"status": "starting"}, EVENT), "", 0, "Unexpected empty line"),
        (b"not json\n", "", 0, "Failed to JSON parse"),
        (b"", "the folder is not one of this user alone: remove it\n", 78, "of this user alone"),
        (b"", "ssh: connect to host 10.0.0.2 port 22: Connection refused\n", 255, "Connection refused"),
        (b"", "fleet@10.0.0.2: Permission denied (publickey).\n", 255, "refuses"),
    ],
)
def test_a_worker_that_gives_no_whole_answer_is_one_error(
    tmp_path: Path, out: bytes, err: str, code: int, says: str
) -> None:
    playbook, _ = run(tmp_path, out, err, code)
    error = playbook.error()
    assert error
    assert (error.exit_code, error.host) == (1, "worker of east")
    assert says in error.message
    assert playbook.returncode == 1


def test_a_worker_with_another_run_refuses(tmp_path: Path) -> None:
    error = run(tmp_path, b"", "another run of this fleet and region is under way\n", run_worker.BUSY)[0].error()
    assert error
    assert (error.exit_code, error.message) == (2, "another run of this fleet works in the region")


def test_keys_and_passwords_are_in_no_file_of_the_stream(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "env").mkdir(parents=True)
    (folder / "env" / "settings").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (folder / "project").mkdir()
    (folder / "project" / "site.yml").write_text("[]", encoding="utf-8")
    inventory = folder / "project" / "fleet.yml"
    inventory.write_text("{}", encoding="utf-8")
    sent = Transmitted(folder, "site.yml", inventory, ["--limit", "a,b"], "THE KEY", "THE PASSWORD")
    assert "THE" not in repr(sent)
    stream = sent.stream()
    asked = json.loads(stream.partition(b"\n")[0])["kwargs"]
    assert asked["ssh_key"] == "THE KEY"
    assert list(asked["passwords"].values()) == ["THE PASSWORD"]
    assert asked["suppress_env_files"] is True
    assert (asked["playbook"], asked["inventory"]) == ("site.yml", "project/fleet.yml")
    assert asked["cmdline"] == "--limit a,b --ask-become-pass"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"env/settings", "project/site.yml", "project/fleet.yml"}
