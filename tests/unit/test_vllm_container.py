"""The program that runs vLLM in a container, with a stand-in for docker's client and daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_fleet.base import paths

PROGRAM = paths.root() / "roles" / "vllm_service" / "files" / "vllm-container"
#: Behaves as Debian's docker 20.10 was seen to: a client ends with 125 when the daemon goes, the container goes on;
#: attach gives its output and its exit code; signals to a client reach the container.
STAND_IN = """\
#!/bin/sh
echo "$@" >> "$STATE/calls"
serve() {
    trap 'rm -f "$STATE/running"; exit 7' TERM
    echo $$ > "$STATE/client"
    while [ -e "$STATE/running" ]; do
        [ ! -e "$STATE/restart" ] || { rm "$STATE/restart"; exit 125; }
        sleep 0.05
    done
    exit 3
}
case $1 in
    run) touch "$STATE/running"; env > "$STATE/env"; serve ;;
    attach) serve ;;
    kill) rm -f "$STATE/running" ;;
    container) [ -e "$STATE/running" ] && echo true || { echo "Error: No such container" >&2; exit 1; } ;;
esac
"""


class Run:
    """The program under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "docker").write_text(STAND_IN, encoding="utf-8")
        (folder / "docker").chmod(0o755)
        environment = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "STATE": str(folder),
            "HOME": str(folder / "cache"),
            "CREDENTIALS_DIRECTORY": "/run/credentials/u",
            "FLEET_CONTAINER": "vllm-0",
            "FLEET_IMAGE": "r/vllm@sha256:0",
            "FLEET_RUN": "--ipc=host '--env=TOKEN'",
            "TOKEN": "secret",
        }
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, "serve", "--config", "/run/credentials/u/vllm.yaml"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def until(self, word: str) -> str:
        """Waits for docker to be called so, and for the client to be up."""
        for _ in range(600):
            found = [call for call in self.calls() if call.startswith(word)]
            if found and (self.folder / "client").exists():
                return found[-1]
            time.sleep(0.05)
        pytest.fail(f"docker {word} was not called: {self.calls()}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_vllm_gets_its_arguments_and_no_value_stands_in_them(run: Run) -> None:
    words = run.until("run").split()
    (run.folder / "running").unlink()
    assert run.process.wait() == 3
    assert words[:4] == ["run", "--init", "--name=vllm-0", "--pull=never"]
    assert f"--user={os.getuid()}:{os.getgid()}" in words
    assert "--volume=/run/credentials/u:/run/credentials/u:ro" in words
    assert words[-5:] == ["--entrypoint=vllm", "r/vllm@sha256:0", "serve", "--config", "/run/credentials/u/vllm.yaml"]
    assert {"--ipc=host", "--env=TOKEN"} <= set(words)
    assert "secret" not in " ".join(run.calls())
    assert "TOKEN=secret" in (run.folder / "env").read_text(encoding="utf-8").splitlines()
    assert (run.folder / "cache").is_dir()


def test_sigterm_reaches_the_container_and_its_code_comes_back(run: Run) -> None:
    run.until("run")
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait() == 7


def test_a_client_that_loses_its_daemon_is_followed_by_another(run: Run) -> None:
    run.until("run")
    (run.folder / "restart").touch()
    run.until("attach --no-stdin vllm-0")
    assert run.process.poll() is None
    (run.folder / "running").unlink()
    assert run.process.wait() == 3
    assert len([call for call in run.calls() if call.startswith("run")]) == 1
