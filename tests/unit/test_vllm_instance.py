"""The program that runs an instance: real, with a stand-in of vLLM, at addresses of both families."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanging import HANGING_SECONDS

from vllm_fleet.base import paths
from vllm_fleet.base.addresses import host_port
from vllm_fleet.host import instance_files

PROGRAM = paths.root() / "roles" / "vllm_service" / "files" / "vllm-instance"
#: It listens as vLLM does at its 'host', and answers a completion and the metrics.
VLLM = """\
import http.server, json, os, socket, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"vllm:num_requests_running 0.0\\nvllm:generation_tokens_total 1.0\\n")
    def do_POST(self):
        if self.path == "/die":
            os._exit(41)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(json.dumps({"choices": [{"text": "1"}]}).encode())
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in os.environ["AT"] else socket.AF_INET
    server_bind = socketserver.TCPServer.server_bind
Server((os.environ["AT"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


#: Looks at its engine once an hour: what happens earlier was not found by looking.
SELDOM = f"""\
import importlib.machinery, sys
sys.argv = sys.argv[1:]
program = importlib.machinery.SourceFileLoader("vllm_instance", {str(PROGRAM)!r}).load_module()
program.INTERVAL = 3600.0
sys.exit(program.main())
"""


class Run:
    """The program with an engine, ready; it ends with the test.

    Attributes:
        url: of its readiness.
        engine: the URL of vLLM.
        process: the program.
    """

    def __init__(self, address: str, folder: Path, systemd: socket.socket) -> None:
        port, ready = free_port(address), free_port(address)
        self.engine, self.url = (f"http://{host_port(address, one)}" for one in (port, ready))
        (folder / "vllm.yaml").write_text("model: m\n", encoding="utf-8")
        (folder / "vllm.py").write_text(VLLM, encoding="utf-8")
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(60)
        environment = {
            # As DefaultEnvironment of a host's systemd may have it: nothing listens there.
            **dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), f"http://127.0.0.1:{free_port('127.0.0.1')}"),
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(folder / "notify"),
            "CREDENTIALS_DIRECTORY": str(folder),
            "RUNTIME_DIRECTORY": str(folder),
            "AT": address,
            "PORT": str(port),
            "FLEET_URL": self.engine,
            "FLEET_READINESS": host_port(address, ready),
            "FLEET_MODEL": "m",
            "FLEET_START_TIMEOUT_SECONDS": str(instance_files.START_TIMEOUT_SECONDS),
            "FLEET_ENV_DIGEST": "0",
        }
        command = [sys.executable, "-ISc", SELDOM, "vllm-instance", sys.executable, str(folder / "vllm.py")]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        try:
            while b"READY=1" not in systemd.recv(4096):
                assert self.process.poll() is None
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=HANGING_SECONDS)


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    address = getattr(request, "param", "127.0.0.1")
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        found = Run(address, tmp_path, systemd)
        yield found
        found.end()


@pytest.mark.parametrize("run", ["127.0.0.1", "::1"], indirect=True)
def test_an_instance_is_ready_at_its_address_and_asks_no_proxy(run: Run) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    assert opener.open(f"{run.url}/ready", timeout=10).status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        opener.open(f"{run.url}/other", timeout=10)


def test_the_end_of_the_engine_is_not_waited_for(run: Run) -> None:
    with pytest.raises(OSError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{run.engine}/die", data=b"", timeout=10)
    assert run.process.wait(timeout=HANGING_SECONDS) == 41


def test_a_stop_ends_with_the_engine(run: Run) -> None:
    run.process.terminate()
    assert run.process.wait(timeout=HANGING_SECONDS) == 128 + signal.SIGTERM
