"""The program that runs an instance: real, with a stand-in of vLLM, at addresses of both families."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_instance_is_ready_at_its_address_and_asks_no_proxy(address: str, tmp_path: Path) -> None:
    if ":" in address and not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    port, ready = free_port(address), free_port(address)
    (tmp_path / "vllm.yaml").write_text("model: m\n", encoding="utf-8")
    (tmp_path / "vllm.py").write_text(VLLM, encoding="utf-8")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        environment = {
            # As DefaultEnvironment of a host's systemd may have it: nothing listens there.
            **dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), f"http://127.0.0.1:{free_port('127.0.0.1')}"),
            "PATH": os.environ["PATH"],
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "RUNTIME_DIRECTORY": str(tmp_path),
            "AT": address,
            "PORT": str(port),
            "FLEET_URL": f"http://{host_port(address, port)}",
            "FLEET_READINESS": host_port(address, ready),
            "FLEET_MODEL": "m",
            "FLEET_START_TIMEOUT_SECONDS": str(instance_files.START_TIMEOUT_SECONDS),
            "FLEET_ENV_DIGEST": "0",
        }
        command = [sys.executable, "-IS", str(PROGRAM), sys.executable, str(tmp_path / "vllm.py")]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        try:
            while b"READY=1" not in systemd.recv(4096):
                assert process.poll() is None
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            url = f"http://{host_port(address, ready)}"
            assert opener.open(f"{url}/ready", timeout=10).status == 200
            with pytest.raises(urllib.error.HTTPError, match="404"):
                opener.open(f"{url}/other", timeout=10)
        finally:
            process.terminate()
            process.communicate(timeout=60)
