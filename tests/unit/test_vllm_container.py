"""The two programs that run vLLM in a container, with a stand-in for docker's client and daemon."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_fleet.base import paths

FILES = paths.root() / "roles" / "vllm_service" / "files"
#: Behaves as Debian's docker 20.10 was seen to: a client ends with 125 when the daemon goes, the container goes on;
#: attach gives its output and its exit code; signals to a client reach the container.
STAND_IN = """\
#!/bin/sh
echo "$@" >> "$STATE/calls"
serve() {
    trap 'rm -f "$STATE/running"; exit 7' TERM
    echo $$ > "$STATE/client"
    echo an output
    echo a warning >&2
    while [ -e "$STATE/running" ]; do
        [ ! -e "$STATE/restart" ] || { rm "$STATE/restart"; exit 125; }
        sleep 0.05
    done
    [ ! -e "$STATE/much" ] || seq 100000
    exit 3
}
case $1 in
    run) touch "$STATE/running"; env > "$STATE/env"; serve ;;
    attach) serve ;;
    kill|rm) rm -f "$STATE/running" ;;
    container) [ -e "$STATE/running" ] && echo true || { echo "Error: No such container" >&2; exit 1; } ;;
esac
"""
#: The account that the program expects, where the tests run as another one.
AS_THIS_ACCOUNT = """\
import os, pwd, runpy, sys
here = pwd.getpwuid(os.getuid())
pwd.getpwnam = lambda name: here
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Run:
    """Both programs under way, the one with docker started for a connection as systemd does it."""

    def __init__(self, folder: Path, digest: str = "d1") -> None:
        self.folder = folder
        (folder / "docker").write_text(STAND_IN, encoding="utf-8")
        (folder / "docker").chmod(0o755)
        environment = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "STATE": str(folder),
            "HOME": str(folder / "cache"),
            "FLEET_IMAGE": "r/vllm@sha256:0",
            "FLEET_RUN": "--ipc=host '--env=TOKEN'",
            "FLEET_ENV_DIGEST": "d1",
            "TOKEN": "secret",
        }
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(folder / "socket"))
        listening.listen()
        self.root = subprocess.Popen(
            [sys.executable, "-c", AS_THIS_ACCOUNT, FILES / "vllm-container-root"],
            env={**environment, "FLEET_CONTAINER": "vllm-0", "FLEET_CREDENTIALS": "/run/credentials/u"},
            preexec_fn=lambda: os.dup2(listening.fileno(), 3),
            close_fds=False,
            stderr=subprocess.DEVNULL,
        )
        listening.close()
        with (folder / "output").open("w") as output, (folder / "warnings").open("w") as warnings:
            self.process = subprocess.Popen(
                [sys.executable, FILES / "vllm-container", "serve", "--config", "/elsewhere"],
                env={**environment, "FLEET_CONTAINER_SOCKET": str(folder / "socket"), "FLEET_ENV_DIGEST": digest},
                stdout=output,
                stderr=warnings,
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
def run(tmp_path: Path) -> Iterator[Run]:
    found = Run(tmp_path)
    yield found
    for process in (found.process, found.root):
        process.kill()
        process.wait()
    # The stand-in ends with it, and has lost its parent by now.
    (tmp_path / "running").unlink(missing_ok=True)


def test_vllm_gets_its_arguments_and_no_value_stands_in_them(run: Run) -> None:
    words = run.until("run").split()
    (run.folder / "running").unlink()
    assert run.process.wait() == 3
    assert run.root.wait() == 0
    assert words[:4] == ["run", "--init", "--name=vllm-0", "--pull=never"]
    assert f"--user={os.getuid()}:{os.getgid()}" in words
    assert "--volume=/run/credentials/u:/run/credentials/u:ro" in words
    assert words[-5:] == ["--entrypoint=vllm", "r/vllm@sha256:0", "serve", "--config", "/run/credentials/u/vllm.yaml"]
    assert {"--ipc=host", "--env=TOKEN"} <= set(words)
    assert "secret" not in " ".join(run.calls())
    assert "TOKEN=secret" in (run.folder / "env").read_text(encoding="utf-8").splitlines()
    assert (run.folder / "cache").is_dir()
    assert (run.folder / "output").read_text(encoding="utf-8") == "an output\n"
    assert (run.folder / "warnings").read_text(encoding="utf-8") == "a warning\n"


def test_all_that_the_container_wrote_is_there_when_its_client_ends(run: Run) -> None:
    run.until("run")
    (run.folder / "much").touch()
    (run.folder / "running").unlink()
    assert run.process.wait() == 3
    written = (run.folder / "output").read_text(encoding="utf-8").splitlines()
    assert written == ["an output", *map(str, range(1, 100001))]


def test_the_program_with_docker_does_not_write_to_the_output_itself(run: Run) -> None:
    """journald would file the lines of docker's client under the unit of that program."""
    run.until("run")
    client = (run.folder / "client").read_text(encoding="utf-8").strip()
    for number in (1, 2):
        assert str(Path(f"/proc/{client}/fd/{number}").readlink()).startswith("pipe:")


def test_docker_reads_no_settings_that_the_account_can_write(run: Run) -> None:
    """A file in the account's home could name a program that docker's client runs as root."""
    run.until("run")
    environment = dict(line.split("=", 1) for line in (run.folder / "env").read_text().splitlines() if "=" in line)
    assert environment["HOME"] == str(run.folder / "cache")
    assert not Path(environment["DOCKER_CONFIG"]).is_relative_to(environment["HOME"])
    assert environment["DOCKER_CONFIG"].startswith("/run/")


def test_sigterm_reaches_the_container_and_its_code_comes_back(run: Run) -> None:
    run.until("run")
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait() == 7
    assert run.root.wait() == 0


def test_a_client_that_loses_its_daemon_is_followed_by_another(run: Run) -> None:
    run.until("run")
    (run.folder / "restart").touch()
    run.until("attach --no-stdin vllm-0")
    assert run.process.poll() is None
    (run.folder / "running").unlink()
    assert run.process.wait() == 3
    assert len([call for call in run.calls() if call.startswith("run")]) == 1


def test_the_container_ends_with_its_client(run: Run) -> None:
    run.until("run")
    run.process.kill()
    assert run.root.wait() == 0
    assert not (run.folder / "running").exists()
    assert run.calls().count("rm --force vllm-0") >= 2


def test_a_client_whose_root_program_ends_does_not_wait(run: Run) -> None:
    run.until("run")
    run.root.kill()
    assert run.process.wait() == 255


def test_another_release_than_that_of_the_client_is_not_started(tmp_path: Path) -> None:
    found = Run(tmp_path, digest="d2")
    assert found.process.wait() == 75
    assert found.root.wait() == 0
    assert not [call for call in found.calls() if call.startswith("run")]


def test_only_the_root_program_may_use_docker() -> None:
    """A program that listens on the network and has docker's socket makes its attacker root."""
    for name in ("vllm@.service", "vllm-docker@.service", "vllm-container@.socket"):
        text = (FILES / name).read_text(encoding="utf-8")
        assert "/usr/bin/docker" not in text
        assert "docker" not in " ".join(line for line in text.splitlines() if line.startswith("SupplementaryGroups"))
    text = (FILES / "vllm-container@.service").read_text(encoding="utf-8")
    assert {"PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX", "CapabilityBoundingSet="} <= set(text.splitlines())
