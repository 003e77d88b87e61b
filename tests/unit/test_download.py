"""Downloads over HTTP, against servers on the loopback: redirects, credentials, TLS, proxies, resumed transfers."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import https_files
import pytest

from lab import web
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Access
from vllm_fleet.mirror.store import Artifact

SECRET = "Bearer secret"
BODY = os.urandom(300_000)


@dataclass
class Server:
    """A server whose answers a test sets, and the requests that came."""

    #: path -> status, headers, body.
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    pem: str = ""

    def headers(self, path: str) -> dict[str, str]:
        """The headers of the only request for a path."""
        (headers,) = (headers for requested, headers in self.requests if requested == path)
        return headers


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        # A client that stops in the middle of a file resets the connection.
        with suppress(ConnectionResetError):
            super().handle()

    def do_GET(self) -> None:
        self.server_state.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server_state.answers.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server()
    with web.serving(type("Handler", (_Handler,), {"server_state": server}), context=context) as server.url:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    download.system_trust.cache_clear()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    with serving() as started:
        yield started


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[Server]:
    context, pem = https_files.server_context("127.0.0.1", tmp_path / "https.pem")
    with serving(context) as started:
        started.pem = pem
        yield started


def trusting(server: Server) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=server.pem)


def secret_access(context: ssl.SSLContext | None = None) -> Access:
    return Access(lambda: {"Authorization": SECRET, "X-Token": SECRET}, context)


def artifact(server: Server, path: str, body: bytes = BODY) -> Artifact:
    return Artifact(path.strip("/"), sha256(body).hexdigest(), len(body), f"{server.url}{path}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_headers_of_access_are_sent_once_and_not_forwarded_on_redirects(
    server: Server, elsewhere: Server, tmp_path: Path, status: int
) -> None:
    server.answers["/a"] = (status, {"Location": "/b", "Set-Cookie": "session=1"}, b"")
    server.answers["/b"] = (status, {"Location": f"{elsewhere.url}/c"}, b"")
    elsewhere.answers["/c"] = (200, {}, BODY)
    download.fetch_file(artifact(server, "/a"), tmp_path / "a", access=secret_access())
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.headers("/a")["authorization"] == server.headers("/a")["x-token"] == SECRET
    for headers in (server.headers("/b"), elsewhere.headers("/c")):
        assert SECRET not in headers.values()
        assert "cookie" not in headers


def test_a_range_is_requested_of_the_server_after_a_redirect(server: Server, elsewhere: Server, tmp_path: Path) -> None:
    server.answers["/a"] = (302, {"Location": f"{elsewhere.url}/a"}, b"")
    elsewhere.answers["/a"] = (206, {}, BODY[1000:])
    download.partial_file(tmp_path / "a").write_bytes(BODY[:1000])
    result = download.fetch_file(artifact(server, "/a"), tmp_path / "a")
    assert elsewhere.headers("/a")["range"] == "bytes=1000-"
    assert result.received == len(BODY) - 1000
    assert (tmp_path / "a").read_bytes() == BODY


def test_a_loop_of_redirects_is_an_error(server: Server) -> None:
    server.answers["/a"] = (302, {"Location": "/a"}, b"")
    with pytest.raises(FleetError, match="HTTP 302 after too many redirects"):
        download.fetch_text(f"{server.url}/a")
    assert len(server.requests) == 11


def test_a_document_has_its_type_and_the_url_after_redirects(server: Server) -> None:
    server.answers["/a"] = (302, {"Location": "b"}, b"")
    server.answers["/b"] = (200, {"Content-Type": "Text/HTML; charset=latin-1"}, "é".encode())
    assert download.fetch_text(f"{server.url}/a", "text/html") == ("é", "text/html", f"{server.url}/b")
    assert [headers["accept"] for _, headers in server.requests] == ["text/html"] * 2


def test_a_document_has_a_size_at_which_its_transfer_ends(server: Server) -> None:
    server.answers["/a"] = (200, {}, b"a" * (1 << 20))
    assert len(download.fetch_bytes(f"{server.url}/a", limit_mib=1).body) == 1 << 20
    server.answers["/a"] = (200, {}, b"a" * ((1 << 20) + 1))
    with pytest.raises(FleetError, match="/a has more than 1 MiB"):
        download.fetch_bytes(f"{server.url}/a", limit_mib=1)
    server.answers["/a"] = (200, {}, b"\xff\xfe")
    with pytest.raises(FleetError, match="/a is not UTF-8 text"):
        download.fetch_text(f"{server.url}/a")


def test_a_file_comes_as_it_is_stored_and_by_the_url_as_written(server: Server, tmp_path: Path) -> None:
    server.answers["/libc_1%2b2~3+b1.deb"] = (200, {"Content-Encoding": "gzip"}, BODY)
    download.fetch_file(artifact(server, "/libc_1%2b2~3+b1.deb"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert server.headers("/libc_1%2b2~3+b1.deb")["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 416])
def test_a_server_that_does_not_resume_sends_the_file_again(server: Server, tmp_path: Path, status: int) -> None:
    part = download.partial_file(tmp_path / "a")
    part.write_bytes(b"x" * 1000)
    server.answers["/a"] = (status, {}, BODY)
    counted: list[int] = []
    if status == 416:
        with pytest.raises(FleetError, match="HTTP 416"):
            download.fetch_file(artifact(server, "/a"), tmp_path / "a", counted.append)
        assert [headers.get("range") for _, headers in server.requests] == ["bytes=1000-", *[None] * 4]
        assert not part.exists()
    else:
        download.fetch_file(artifact(server, "/a"), tmp_path / "a", counted.append)
        assert (tmp_path / "a").read_bytes() == BODY
        assert sum(counted) == len(BODY)


def test_a_partial_file_of_an_older_version_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    download.partial_file(tmp_path / "a").write_bytes(b"x" * 1000)
    body, served = BODY, Server()

    class Ranged(_Handler):
        server_state = served

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            served.answers[self.path] = (206 if start else 200, {}, body[start:])
            super().do_GET()

    counted: list[int] = []
    with web.serving(Ranged) as served.url:
        download.fetch_file(artifact(served, "/a"), tmp_path / "a", counted.append)
    assert [headers.get("range") for _, headers in served.requests] == ["bytes=1000-", None]
    assert (tmp_path / "a").read_bytes() == BODY
    assert sum(counted) == len(BODY)


def test_a_broken_transfer_is_resumed_and_each_byte_counts_once(tmp_path: Path) -> None:
    """The length of the file is unknown: a wheel of an index without sizes."""
    served = Server()

    class Breaking(_Handler):
        server_state = served

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            served.requests.append((self.path, {"range": self.headers.get("Range", "")}))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(BODY) - start))
            self.end_headers()
            self.wfile.write(BODY[start : start + 123_457])
            self.close_connection = True

    counted: list[int] = []
    with web.serving(Breaking) as served.url:
        wanted = Artifact("a", sha256(BODY).hexdigest(), 0, f"{served.url}/a")
        download.fetch_file(wanted, tmp_path / "a", counted.append)
    assert [headers["range"] for _, headers in served.requests] == ["", "bytes=123457-", "bytes=246914-"]
    assert (tmp_path / "a").read_bytes() == BODY
    assert sum(counted) == len(BODY)
    assert max(counted) <= len(BODY)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_another_try_does_not_change_a_final_status(server: Server, tmp_path: Path, status: int) -> None:
    server.answers["/a"] = (status, {}, b"")
    with pytest.raises(FleetError, match=f"HTTP {status}"):
        download.fetch_file(artifact(server, "/a"), tmp_path / "a")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_status_that_may_pass_is_tried_five_times(server: Server, tmp_path: Path, status: int) -> None:
    server.answers["/a"] = (status, {}, b"")
    with pytest.raises(FleetError, match=f"HTTP {status}.*the partial file is kept"):
        download.fetch_file(artifact(server, "/a"), tmp_path / "a")
    assert len(server.requests) == 5
    assert not (tmp_path / "a").exists()


def test_the_length_is_that_of_the_header(server: Server) -> None:
    server.answers["/a"] = (200, {}, BODY)
    assert download.fetch_length(f"{server.url}/a") == len(BODY)
    with pytest.raises(FleetError, match="HTTP 404"):
        download.fetch_length(f"{server.url}/b")


def test_a_server_says_what_credentials_it_requires(server: Server) -> None:
    server.answers |= {"/open": (200, {}, b""), "/closed": (401, {"WWW-Authenticate": "Bearer realm=x"}, b"")}
    assert download.fetch_challenge(f"{server.url}/open", Access()) == ""
    assert download.fetch_challenge(f"{server.url}/closed", Access()) == "Bearer realm=x"
    with pytest.raises(FleetError, match="HTTP 404"):
        download.fetch_challenge(f"{server.url}/none", Access())


def test_a_silent_server_is_an_error_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.rfile.read()

    monkeypatch.setattr(download, "_TIMEOUT_SECONDS", 0.1)
    with web.serving(Silent) as url, pytest.raises(FleetError, match=r"cannot be reached: .*timed out"):
        download.fetch_text(url)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "http://[::1/a", "/a"])
def test_what_is_no_http_url_is_an_error_at_once(url: str) -> None:
    with pytest.raises(FleetError, match="is not an HTTP URL") as error:
        download.fetch_text(url)
    assert error.value.exit_code == 2


def test_a_certificate_of_an_unknown_signer_is_refused(tls_server: Server) -> None:
    tls_server.answers["/a"] = (200, {}, b"text")
    with pytest.raises(FleetError, match="CERTIFICATE_VERIFY_FAILED"):
        download.fetch_text(f"{tls_server.url}/a", access=secret_access())
    assert tls_server.requests == []
    assert download.fetch_text(f"{tls_server.url}/a", access=secret_access(trusting(tls_server))).text == "text"


def test_the_signers_are_those_of_the_system(
    tls_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import certifi

    def refuse() -> str:
        raise AssertionError("the signers come from a package, not from the system")

    monkeypatch.setattr(certifi, "where", refuse)
    tls_server.answers["/a"] = (200, {}, b"text")
    (tmp_path / "system.pem").write_text(tls_server.pem)
    with pytest.raises(FleetError, match="CERTIFICATE_VERIFY_FAILED"):
        download.fetch_text(f"{tls_server.url}/a")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    download.system_trust.cache_clear()
    assert download.fetch_text(f"{tls_server.url}/a").text == "text"


def test_credentials_of_a_url_are_sent_over_tls_only_and_are_in_no_message(
    server: Server, tls_server: Server, elsewhere: Server
) -> None:
    access = Access(context=trusting(tls_server))
    with_user = tls_server.url.replace("://", "://me:secret@")
    tls_server.answers |= {"/a": (200, {}, b"text"), "/b": (302, {"Location": f"{elsewhere.url}/b"}, b"")}
    elsewhere.answers["/b"] = (200, {}, b"text")
    download.fetch_text(f"{with_user}/a", access=access)
    assert tls_server.headers("/a")["authorization"] == f"Basic {base64.b64encode(b'me:secret').decode()}"
    download.fetch_text(f"{with_user}/b", access=access)
    assert "authorization" not in elsewhere.headers("/b")
    calls: list[Callable[[], object]] = [
        lambda: download.fetch_text(f"{with_user}/none", access=access),
        lambda: download.fetch_text("https://me:secret@127.0.0.1:1/a"),
        lambda: download.fetch_text(server.url.replace("://", "://me:secret@")),
        lambda: download.fetch_text("https://me:secret@[::1/a"),
        lambda: download.fetch_length("https://me:secret@127.0.0.1:1/a"),
        lambda: download.fetch_challenge("https://me:secret@127.0.0.1:1/a", access),
    ]
    for call in calls:
        with pytest.raises(FleetError) as error:
            call()
        assert "secret" not in str(error.value)
    assert server.requests == []


def test_credentials_of_a_url_are_in_no_message_about_a_file(tmp_path: Path) -> None:
    wanted = Artifact("a", "0" * 64, 1, "https://me:secret@127.0.0.1:1/a")
    with pytest.raises(FleetError, match=r"https://127\.0\.0\.1:1/a cannot be downloaded") as error:
        download.fetch_file(wanted, tmp_path / "a")
    assert "secret" not in str(error.value)


def proxied(monkeypatch: pytest.MonkeyPatch, proxy: Server, **more: str) -> None:
    for name, value in {"http_proxy": proxy.url, **more}.items():
        monkeypatch.setenv(name, value)


def test_the_proxy_of_the_environment_is_used(
    server: Server, elsewhere: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The proxy gets the request for a server that does not exist; NO_PROXY names one that is reached directly."""
    proxy = elsewhere
    proxied(monkeypatch, proxy, no_proxy="localhost, 127.0.0.1")
    proxy.answers["http://mirror.invalid/a"] = (200, {}, BODY)
    server.answers["/a"] = (200, {}, b"direct")
    wanted = Artifact("a", sha256(BODY).hexdigest(), len(BODY), "http://mirror.invalid/a")
    download.fetch_files([(wanted, tmp_path / "a")], access=secret_access())
    assert (tmp_path / "a").read_bytes() == BODY
    assert proxy.headers("http://mirror.invalid/a")["host"] == "mirror.invalid"
    assert download.fetch_text(f"{server.url}/a").text == "direct"
    assert [path for path, _ in proxy.requests] == ["http://mirror.invalid/a"]


def test_https_goes_through_a_tunnel_of_its_proxy(elsewhere: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy sees the name of the server, and neither the path nor the credentials."""
    monkeypatch.setenv("https_proxy", elsewhere.url.replace("://", "://me:password@"))
    tunnels: list[tuple[str, str]] = []

    def do_connect(handler: _Handler) -> None:
        tunnels.append((handler.path, handler.headers.get("Proxy-Authorization", "")))
        handler.send_error(403)

    monkeypatch.setattr(_Handler, "do_CONNECT", do_connect, raising=False)
    with pytest.raises(FleetError, match=r"https://mirror\.invalid/a cannot be reached: 403"):
        download.fetch_text("https://mirror.invalid/a", access=secret_access())
    account = base64.b64encode(b"me:password").decode()
    assert set(tunnels) == {("mirror.invalid:443", f"Basic {account}")}


@pytest.mark.parametrize(
    ("value", "reason"),
    [("socks5://me:password@127.0.0.1:1", "SOCKS"), ("nonsense://me:password@127.0.0.1:1", "not a URL of a proxy")],
)
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises(FleetError, match=reason) as error:
        download.fetch_text("http://127.0.0.1:1/a")
    assert error.value.exit_code == 2
    assert "password" not in str(error.value)


def test_a_full_disk_keeps_the_partial_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/a"] = (200, {}, BODY)
    part = download.partial_file(tmp_path / "a")
    part.symlink_to("/dev/full")
    with pytest.raises(FleetError, match="the disk is full"):
        download.fetch_file(artifact(server, "/a"), tmp_path / "a")
    assert part.is_symlink()
    assert len(server.requests) == 1


def test_files_are_downloaded_several_at_a_time_over_kept_connections(tmp_path: Path) -> None:
    connections: list[object] = []
    served = Server(answers={f"/{number}": (200, {}, BODY) for number in range(30)})

    class Counting(_Handler):
        server_state = served

        def setup(self) -> None:
            connections.append(self)
            super().setup()

    counted: list[int] = []
    with web.serving(Counting) as served.url:
        jobs = [(artifact(served, f"/{number}"), tmp_path / str(number)) for number in range(30)]
        results = download.fetch_files(jobs, counted.append)
    assert {path: fetched.received for path, fetched in results.items()} == dict.fromkeys(
        (str(number) for number in range(30)), len(BODY)
    )
    assert sum(counted) == 30 * len(BODY)
    assert len(connections) <= download._PARALLEL


@pytest.mark.parametrize("words", ["--help", "mirror --help", "recipe --help"])
def test_a_command_that_downloads_nothing_does_not_import_the_http_library(words: str) -> None:
    """The same holds for the library of Debian's lists, and for the inventory."""
    code = (
        "import sys\nfrom vllm_fleet import cli, inventory\nfrom vllm_fleet.edge import apt, registry\n"
        f"sys.argv = ['vllm-fleet', *{words.split()}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code, end\n"
        "loaded = {'httpx', 'debian.deb822'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
