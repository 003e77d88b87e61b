"""The fleet's HTTP proxy: what fleet.yml may say, and real clients that use what hosts get."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from vllm_fleet.edge import uv
from vllm_fleet.host.proxy import HostProxy, host_proxy
from vllm_fleet.schema.proxy import Proxy


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://proxy.example.org:3128", "http://proxy.example.org:3128"),
        ("http://Proxy:3128/", "http://proxy:3128"),
        ("http://10.0.0.1:03128", "http://10.0.0.1:3128"),
        ("http://[FD00::1]:3128", "http://[fd00::1]:3128"),
    ],
)
def test_the_url_of_a_proxy(given: str, meant: str) -> None:
    assert Proxy(http=given).http == meant


@pytest.mark.parametrize(
    ("given", "says"),
    [
        # The variables of a task are in the list of processes of the host.
        ("http://me:secret@proxy:3128", "account is not supported"),
        ("proxy:3128", "write it such as http://"),
        ("https://proxy:3128", "write it such as http://"),
        ("socks5://proxy:1080", "write it such as http://"),
        ("http://proxy", "write it such as http://"),
        ("http://proxy:0", "write it such as http://"),
        ("http://proxy:70000", "write it such as http://"),
        ("http://proxy:3128/path", "write it such as http://"),
        ("http://pro_xy:3128", "no '_'"),
        ("http://10.0.0.999:3128", "not an IPv4 address"),
        ('http://proxy:3128"; Acquire::x "', "write it such as http://"),
        ("http://proxy:3128\nX=y", "write it such as http://"),
    ],
)
def test_what_is_no_url_of_a_proxy_is_refused(given: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Proxy(http=given)
    assert says in str(refused.value)
    if "@" in given:
        assert "secret" not in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize("given", ["a,b", "a b", 'a"', "*", "a\n", "", "%h"])
def test_each_item_of_no_proxy_is_one_host(given: str) -> None:
    with pytest.raises(ValidationError, match="is not a domain, an address or a network"):
        Proxy(http="http://proxy:3128", no_proxy=[given])


def test_no_proxy_is_no_variable() -> None:
    none = host_proxy(None, ["10.0.0.4"])
    assert (dict(none.environment), none.apt_config) == ({}, "")
    assert "Environment" not in none.drop_in


class _Seen(http.server.BaseHTTPRequestHandler):
    """A server that writes down what it is asked, and knows a few files."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        body = self.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        """The tests read ``asked``."""


@pytest.fixture
def serve() -> Iterator[object]:
    """A function that starts a server: files -> (its URL, what it is asked)."""
    servers = []

    def start(files: dict[str, bytes]) -> tuple[str, list[str]]:
        handler = type("Handler", (_Seen,), {"files": files, "asked": []})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def through(url: str, *inside: str) -> HostProxy:
    return host_proxy(Proxy(http=url, https=url), inside)


FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())"


def test_python_and_curl_download_through_it_and_not_inside_the_fleet(serve) -> None:
    # No resolver knows a name below 'invalid': only the proxy can have answered.
    outside, asked = serve({"http://hub.invalid/a": b"from outside"})
    mirror, direct = serve({"/b": b"from the mirror"})
    environment = {"PATH": "/usr/bin:/bin", **through(outside, "127.0.0.1").environment}
    clients = [[sys.executable, "-c", FETCH], *([["curl", "-sS"]] if shutil.which("curl") else [])]
    for client in clients:
        for url, text in (("http://hub.invalid/a", "from outside"), (f"{mirror}/b", "from the mirror")):
            done = subprocess.run([*client, url], env=environment, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == text
        secure = subprocess.run([*client, "https://hub.invalid/a"], env=environment, capture_output=True, check=False)
        assert secure.returncode
    assert set(asked) == {"http://hub.invalid/a", "CONNECT hub.invalid:443"}
    assert set(direct) == {"/b"}


def test_uv_downloads_through_it_and_not_from_the_mirror(serve, tmp_path: Path) -> None:
    outside, asked = serve({})
    mirror, direct = serve({})
    for index in ("http://index.invalid/simple", f"{mirror}/simple"):
        command = [uv.uv_program(), "pip", "install", "--target", str(tmp_path / "t"), "--no-cache", "some-package"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **through(outside, "127.0.0.1").environment}
        environment |= {"UV_DEFAULT_INDEX": index, "UV_PYTHON": sys.executable, "UV_HTTP_RETRIES": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert "some-package" in done.stderr
    assert set(asked) == {"http://index.invalid/simple/some-package/"}
    assert set(direct) == {"/simple/some-package/"}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed here")
def test_apt_downloads_through_it_and_not_from_the_mirror(serve, tmp_path: Path) -> None:
    outside, asked = serve({})
    mirror, direct = serve({})
    sources = [f"deb [trusted=yes] {url} stable main" for url in ("http://archive.invalid/debian", mirror)]
    sources.append("deb [trusted=yes] https://secure.invalid/debian stable main")
    (tmp_path / "sources.list").write_text("\n".join(sources) + "\n", encoding="utf-8")
    (tmp_path / "proxy.conf").write_text(through(outside, "127.0.0.1").apt_config, encoding="utf-8")
    (tmp_path / "lists" / "partial").mkdir(parents=True)
    options = {
        "Dir::Etc::SourceList": tmp_path / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": tmp_path / "lists",
        "Dir::Cache": tmp_path,
        "Acquire::Retries": 0,
        "APT::Sandbox::User": "",
    }
    words = [f"-o{name}={value}" for name, value in options.items()]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "APT_CONFIG": str(tmp_path / "proxy.conf")}
    subprocess.run(["apt-get", *words, "update"], env=environment, capture_output=True, check=False)
    assert {path for path in asked if path.endswith("/InRelease") or path.startswith("CONNECT")} == {
        "http://archive.invalid/debian/dists/stable/InRelease",
        "CONNECT secure.invalid:443",
    }
    assert "/dists/stable/InRelease" in direct
    assert not [path for path in asked if "127.0.0.1" in path]
