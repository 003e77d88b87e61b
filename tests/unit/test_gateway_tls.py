"""TLS of the gateways: what a fleet.yml may say, the port for challenges, the program on a host, and drift."""

from __future__ import annotations

import http.client
import http.server
import importlib.machinery
import importlib.util
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hanging import HANGING_SECONDS
from made_certificates import certificate_text
from plugin_modules import plugin_module

from infra.hosts import gateway_ports
from vllm_fleet.base.errors import FleetError
from vllm_fleet.facts.states import DriftState
from vllm_fleet.fleet import plan
from vllm_fleet.host import acme, haproxy
from vllm_fleet.host.manifest import Manifest, gateway_items
from vllm_fleet.host.manifest_items import certificate_item
from vllm_fleet.on_host import probe
from vllm_fleet.operate import drift, probing
from vllm_fleet.schema.acme import CERTBOT_PORT, CHALLENGE_PORT, LETS_ENCRYPT
from vllm_fleet.schema.fleet import Gateway

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJGEww12LWK28O7pjfTtapz2FPAxItRAyzYDc3krl7mM"
ASKED: Mapping[str, Any] = {"email": "me@example.com", "names": ["api.example.com"], "accept_terms": True}
PROGRAM = Path(__file__).parents[2] / "roles" / "gateway" / "files" / "vllm-certificate"
needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="HAProxy is not installed; tests/infra runs it on lab hosts"
)


def load(folder: Path, gateway: Mapping[str, Any], hosts: int = 1) -> plan.Plan:
    folder = folder / "inventories" / "rack"
    folder.mkdir(parents=True)
    gpu = {"address": "10.0.0.5", "ssh_host_key": KEY}
    static = {f"gw-{number}": {"address": f"10.0.1.{number}", "ssh_host_key": KEY} for number in range(1, hosts + 1)}
    spec = {
        "fleet": "rack",
        "pools": {
            "h100": {
                **{"host_class": "h100-8", "model": "openai/gpt-oss-120b", "cloud": "static"},
                "static": {"gpu-1": gpu},
            }
        },
        "gateway": {"static": static, "port": 443, **gateway},
    }
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


def asked(**changes: Any) -> dict[str, Any]:
    return {"tls": {"acme": {**ASKED, **changes}}}


# -- What a fleet.yml may say --------------------------------------------------------------------------------------


def test_a_fleet_asks_lets_encrypt_unless_it_names_another_ca(tmp_path: Path) -> None:
    tls = load(tmp_path, asked()).gateway.tls
    assert tls and tls.acme
    assert tls.acme.directory == LETS_ENCRYPT


@pytest.mark.parametrize(
    ("gateway", "key", "says"),
    [
        ({"tls": {}}, "gateway.tls", "either from 'certificate_file' or from 'acme'"),
        (
            {"tls": {"acme": ASKED, "certificate_file": "a.pem"}},
            "gateway.tls",
            "either from 'certificate_file' or from 'acme'",
        ),
        (asked(accept_terms=False), "gateway.tls.acme.accept_terms", "must be true: read the terms"),
        (asked(accept_terms="yes"), "gateway.tls.acme.accept_terms", "must be true: read the terms"),
        (asked(names=["*.example.com"]), "gateway.tls.acme.names.0", "is a wildcard, which a CA signs by DNS-01 only"),
        (asked(names=["192.0.2.4"]), "gateway.tls.acme.names.0", "is an IP address: give the DNS name"),
        (asked(names=["api_1.example.com"]), "gateway.tls.acme.names.0", "is neither an IP address nor a DNS name"),
        (asked(names=["a.example.com", "A.example.com"]), "gateway.tls.acme", "the same name twice"),
        (asked(names=[]), "gateway.tls.acme.names", "must have at least one entry"),
        (asked(email="me"), "gateway.tls.acme.email", "is not an e-mail address"),
        (asked(directory="http://ca.example.com/d"), "gateway.tls.acme.directory", "must begin with https://"),
        (asked(directory="https://me@ca.example.com/d"), "gateway.tls.acme.directory", "must not contain an account"),
        (asked(directory="https://[ca/d"), "gateway.tls.acme.directory", "is not a URL"),
        ({**asked(), "port": 80}, "gateway.port", "80 for the API, and gw-1 has that port for the challenges"),
        ({**asked(), "port": CERTBOT_PORT}, "gateway.port", "and gw-1 has that port for certbot"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, gateway: dict[str, Any], key: str, says: str) -> None:
    with pytest.raises(FleetError, match=says) as refused:
        load(tmp_path, gateway)
    assert (refused.value.key, refused.value.exit_code) == (key, 2)
    assert refused.value.line


def test_more_gateways_than_lets_encrypt_signs_for_are_refused(tmp_path: Path) -> None:
    assert load(tmp_path / "four", asked(), hosts=4).hosts
    assert load(tmp_path / "own", asked(directory="https://ca.example.com/d"), hosts=5).hosts
    with pytest.raises(FleetError, match="signs 5 with the same names in a week") as refused:
        load(tmp_path / "five", asked(), hosts=5)
    assert (refused.value.key, refused.value.exit_code) == ("gateway", 2)


def test_rented_gateways_open_port_80_to_the_ca_and_the_api_to_clients(tmp_path: Path) -> None:
    found = load(tmp_path / "file", {"tls": {"certificate_file": "a.pem"}})
    assert [(each.name, each.port) for each in gateway_ports(found)] == [("api", 443)]
    found = load(tmp_path / "acme", asked(challenge_from=["198.51.100.0/24"]))
    assert [(each.name, each.port, list(each.networks)) for each in gateway_ports(found)] == [
        ("api", 443, []),
        ("acme", CHALLENGE_PORT, ["198.51.100.0/24"]),
    ]


# -- The port for challenges ---------------------------------------------------------------------------------------


def gateway_of(**changes: Any) -> Gateway:
    return Gateway.model_validate({"hosts": 1, "port": 443, **asked(**changes)})


def test_port_80_is_open_only_where_a_ca_is_asked() -> None:
    assert acme.challenge_lines(Gateway(hosts=1), ["192.0.2.1"]) == []
    text = haproxy.haproxy_config(gateway_of(), [], ["192.0.2.1"])
    assert "\n  bind :80\n" in text
    assert f"\n  server here 127.0.0.1:{CERTBOT_PORT}\n  server gateway_0 192.0.2.1:80\n" in text
    assert "\n  bind [::]:80 v4v6\n" in haproxy.haproxy_config(gateway_of(), [], ["2001:db8::1"])


class Certbot(http.server.ThreadingHTTPServer):
    """What certbot listens with while the CA asks it: it knows one token."""

    def __init__(self, port: int, token: str) -> None:
        self.token = token
        super().__init__(("127.0.0.1", port), _Token)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Token(http.server.BaseHTTPRequestHandler):
    server: Certbot

    def do_GET(self) -> None:
        is_known = self.path == f"/.well-known/acme-challenge/{self.server.token}"
        body = f"{self.server.token}.thumbprint".encode() if is_known else b""
        self.send_response(200 if is_known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """The tests read the answers."""


def free_port(address: str = "127.0.0.1") -> int:
    with socket.socket() as bound:
        bound.bind((address, 0))
        return int(bound.getsockname()[1])


@contextmanager
def running(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["haproxy", "-db", "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=HANGING_SECONDS)


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Status and body of an answer; asked again until the port listens."""
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGING_SECONDS)
        try:
            connection.request(method, path, headers={"Host": "api.example.com"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionRefusedError:
            time.sleep(0.02)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[int, int]]]:
    """Three gateways on this machine: their ports for challenges, and those of their certbots."""
    folder = tmp_path_factory.mktemp("g")
    ports = [(free_port(), free_port()) for _ in range(3)]
    with ExitStack() as stack:
        for number, (port, certbot) in enumerate(ports):
            lines = acme.challenge_lines(gateway_of(), [f"192.0.2.{each}" for each in range(3)])
            text = "defaults\n  mode http\n  timeout client 5s\n  timeout connect 2s\n  timeout server 5s\n"
            text += (
                "\n".join(lines)
                .replace("bind :80", f"bind 127.0.0.1:{port}")
                .replace(f"127.0.0.1:{CERTBOT_PORT}", f"127.0.0.1:{certbot}")
            )
            for each, (other, _) in enumerate(ports):
                text = text.replace(f"192.0.2.{each}:80", f"127.0.0.1:{other}")
            (folder / f"{number}.cfg").write_text(f"{text}\n", encoding="utf-8")
            stack.enter_context(running(folder / f"{number}.cfg"))
        for port, _ in ports:
            assert get(port, "/")[0] == 404
        yield ports


@needs_haproxy
@pytest.mark.parametrize("asking", range(3))
def test_the_gateway_that_the_ca_asks_finds_the_one_that_knows(three: list[tuple[int, int]], asking: int) -> None:
    """The certbot of another gateway is at work for another order meanwhile, and knows other tokens."""
    own, other = Certbot(three[asking][1], "own"), Certbot(three[(asking + 1) % 3][1], "other")
    try:
        for _ in range(4):
            for port, _ in three:
                assert get(port, "/.well-known/acme-challenge/own") == (200, b"own.thumbprint")
                assert get(port, "/.well-known/acme-challenge/other") == (200, b"other.thumbprint")
        # From the last one asked: it does not know the token, or its certbot does not listen.
        assert get(three[0][0], "/.well-known/acme-challenge/third")[0] in (404, 503)
    finally:
        for server in (own, other):
            server.shutdown()
            server.server_close()
    assert get(three[0][0], "/.well-known/acme-challenge/own")[0] == 503


@needs_haproxy
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/responses"), ("POST", "/.well-known/acme-challenge/x"), ("GET", "/healthz")],
)
def test_port_80_serves_nothing_but_challenges(three: list[tuple[int, int]], method: str, path: str) -> None:
    status, body = get(three[0][0], path, method)
    assert status == 404
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


# -- The program on a host -----------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program with its files in a folder of the test."""
    folder = tmp_path_factory.mktemp("p")
    loader = importlib.machinery.SourceFileLoader("vllm_certificate", str(PROGRAM))
    spec = importlib.util.spec_from_loader("vllm_certificate", loader)
    assert spec
    module: Any = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    module.PEM = str(folder / "vllm-fleet.pem")
    module.SETTINGS = str(folder / "acme.json")
    module.FOLDER = str(folder / "certbot")
    module.SOCKET = str(folder / "s")
    module.CERTBOT = str(folder / "certbot-program")
    module.RELOAD = ("touch", str(folder / "reloaded"))
    module.GROUP = None
    Path(module.SETTINGS).write_text(acme.Certificate(account=acme.AcmeAccount(account())).settings, encoding="utf-8")
    return module


def account(**changes: Any) -> Any:
    tls = gateway_of(**changes).tls
    assert tls
    return tls.acme


def give(module: Any, text: str) -> None:
    """What certbot leaves."""
    live = Path(module.FOLDER) / "config" / "live" / "vllm-fleet"
    live.mkdir(parents=True, exist_ok=True)
    at = text.index("-----BEGIN PRIVATE")
    (live / "fullchain.pem").write_text(text[:at], encoding="utf-8")
    (live / "privkey.pem").write_text(text[at:], encoding="utf-8")


STAND_IN = """\
#!/bin/sh
echo "$@" >> {folder}/asked
echo "bundle=$REQUESTS_CA_BUNDLE proxy=$https_proxy" >> {folder}/asked
test ! -e {folder}/down || {{ echo 'Saving debug log to x'; echo '  Detail: the CA is down'; exit 1; }}
"""


def stand_in(module: Any) -> Path:
    """A certbot that notes how it was called."""
    folder = Path(module.PEM).parent
    Path(module.CERTBOT).write_text(STAND_IN.format(folder=folder), encoding="utf-8")
    Path(module.CERTBOT).chmod(0o755)
    return folder


def test_the_first_certificate_is_made_once_and_is_drift(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert [program.main(["first"]), program.main(["first"])] == [0, 0]
    assert capsys.readouterr().out == "changed\nunchanged\n"
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(program.PEM)
    assert Path(program.PEM).stat().st_mode & 0o777 == 0o600
    assert [file.name for file in Path(program.PEM).parent.iterdir() if file.name.startswith(".")] == []
    found = probe.check_certificate(certificate_item("gateway", program.PEM, ["api.example.com"]))
    assert found and found[0] == "self_signed"


def test_a_ca_that_is_down_leaves_the_certificate_and_is_named(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stand_in(program)
    (folder / "down").touch()
    assert program.main(["first"]) == 0
    before = Path(program.PEM).read_bytes()
    assert program.main(["issue"]) == 1
    told = capsys.readouterr().err
    assert told.endswith("Detail: the CA is down\n")
    assert "Saving debug log" not in told
    assert Path(program.PEM).read_bytes() == before
    (folder / "down").unlink()
    give(program, certificate_text())
    assert [program.main(["issue"]), program.main(["issue"])] == [0, 0]
    assert capsys.readouterr().out == "changed\nunchanged\n"
    assert "BEGIN PRIVATE KEY" in Path(program.PEM).read_text()


def test_certbot_is_asked_for_all_names_behind_the_gateway(program: Any) -> None:
    folder = stand_in(program)
    names = ["api.example.com", "llm.example.com"]
    certificate = acme.Certificate(
        account=acme.AcmeAccount(account(names=names), "AUTHORITY"), environment={"https_proxy": "http://p:1"}
    )
    Path(program.SETTINGS).write_text(certificate.settings, encoding="utf-8")
    give(program, certificate_text())
    assert program.main(["issue"]) == 0
    words = (folder / "asked").read_text()
    assert f"--server {LETS_ENCRYPT} " in words
    assert (
        f"--standalone --preferred-challenges http --http-01-address 127.0.0.1 --http-01-port {CERTBOT_PORT}" in words
    )
    assert "--keep-until-expiring" in words
    assert "-d api.example.com -d llm.example.com" in words
    assert f"bundle={program.FOLDER}/authority.pem proxy=http://p:1" in words
    assert Path(program.FOLDER, "authority.pem").read_text() == "AUTHORITY"


def test_another_address_and_another_ca_are_told_to_certbot(program: Any) -> None:
    folder = stand_in(program)
    give(program, certificate_text())
    calls = []
    for changes in ({}, {"email": "you@example.com"}, {"directory": "https://ca.example.com/d"}):
        certificate = acme.Certificate(account=acme.AcmeAccount(account(**changes)))
        Path(program.SETTINGS).write_text(certificate.settings, encoding="utf-8")
        assert program.main(["issue"]) == 0
        calls.append((folder / "asked").read_text())
        (folder / "asked").unlink()
    assert ["update_account" in call for call in calls] == [False, True, False]
    assert ["--force-renewal" in call for call in calls] == [False, False, True]


def test_without_a_plan_or_a_certificate_it_says_what_is_missing(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["deploy"]) == 1
    assert "has no certificate of the CA" in capsys.readouterr().err
    Path(program.SETTINGS).unlink()
    assert program.main(["issue"]) == 1
    assert "the plan of this gateway has no gateway.tls.acme" in capsys.readouterr().err
    assert program.main(["other"]) == 2


class Pieces(http.server.ThreadingHTTPServer):
    """A server whose answer ends when the test says so."""

    def __init__(self) -> None:
        self.enough = threading.Event()
        super().__init__(("127.0.0.1", 0), _Pieces)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Pieces(http.server.BaseHTTPRequestHandler):
    server: Pieces
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.server.enough.wait()
        self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """The tests read the answers."""


def serial(port: int) -> str:
    """The certificate that a client gets now."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=HANGING_SECONDS).strip()


@needs_haproxy
def test_a_new_certificate_is_loaded_under_a_stream_without_a_reload(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = certificate_text(), certificate_text()
    Path(program.PEM).write_text(first, encoding="utf-8")
    server, port, folder = Pieces(), free_port(), Path(program.PEM).parent
    config = folder / "haproxy.cfg"
    config.write_text(
        f"global\n  stats socket {program.SOCKET} level admin\n"
        "defaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n  timeout connect 1s\n"
        f"frontend api\n  bind 127.0.0.1:{port} ssl crt {program.PEM}\n  default_backend b\n"
        f"backend b\n  server s 127.0.0.1:{server.server_port}\n",
        encoding="utf-8",
    )
    assert program.main(["load"]) == 0  # HAProxy does not run yet
    with running(config) as process:
        while not Path(program.SOCKET).exists():
            assert process.poll() is None
            time.sleep(0.02)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=HANGING_SECONDS)
        stream.request("GET", "/")
        answer = stream.getresponse()
        assert answer.read(5) == b"first"
        assert first.startswith(serial(port))
        give(program, second)
        capsys.readouterr()
        assert [program.main([word]) for word in ("deploy", "deploy", "load")] == [0, 0, 0]
        assert capsys.readouterr().out == "changed\nunchanged\nunchanged\n"
        assert second.startswith(serial(port))
        server.enough.set()
        assert answer.read() == b"last"
        stream.close()
        assert not (folder / "reloaded").exists()
        # What HAProxy refuses leaves the old one loaded, and is what a reload must tell.
        broken = certificate_text()
        Path(program.PEM).write_text(broken[: broken.index("-----BEGIN PRIVATE")], encoding="utf-8")
        assert program.main(["load"]) == 0
        assert (folder / "reloaded").exists()
        assert "HAProxy refuses the certificate" in capsys.readouterr().err
        assert second.startswith(serial(port))
    server.shutdown()
    server.server_close()


# -- Drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "by_acme", "state", "says"),
    [
        ((-60, 30), False, None, ""),
        ((-60, 30), True, None, ""),
        ((-70, 20), False, "renewal_due", "ends at 20"),
        ((-70, 20), True, "not_renewed", "and was not renewed"),
        ((-90, -1), False, "renewal_due", "has ended at 20"),
        ((-90, -1), True, "not_renewed", "has ended at 20"),
        # A CA that signs for six days.
        ((-3, 3), True, None, ""),
        ((-5, 1), True, "not_renewed", "ends at 20"),
    ],
)
def test_a_certificate_that_ends_soon_is_drift(
    tmp_path: Path, days: tuple[int, int], by_acme: bool, state: str | None, says: str
) -> None:
    path = tmp_path / "a.pem"
    path.write_text(certificate_text(days, issuer="a CA"), encoding="utf-8")
    found = probe.check_certificate(certificate_item("gateway", str(path), ["api.example.com"] if by_acme else None))
    assert (found[0] if found else None) == state
    assert says in (found[1] if found else "")


def test_a_certificate_for_other_names_or_none_is_drift(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    path.write_text(certificate_text(names=("api.example.com", "b.example.com"), issuer="a CA"), encoding="utf-8")
    assert probe.check_certificate(certificate_item("gateway", str(path), ["b.example.com", "api.example.com"])) is None
    assert probe.check_certificate(certificate_item("gateway", str(path), ["api.example.com", "c.example.com"])) == (
        "wrong_names",
        "is not for c.example.com",
    )
    path.write_text("no certificate", encoding="utf-8")
    found = probe.check_certificate(certificate_item("gateway", str(path)))
    assert found and found[0] == "wrong_type"
    assert probe.check_certificate(certificate_item("gateway", str(tmp_path / "none.pem"))) is None


def test_a_run_goes_on_with_a_file_that_the_user_must_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    def roles(*states: str) -> frozenset[str]:
        items = [{"role": "gateway", "state": state} for state in states]
        monkeypatch.setattr(drift, "_load_drift", lambda _: {"gateway-0": items})
        return drift.roles_to_run("rack")["gateway-0"]

    assert roles("renewal_due") == frozenset()
    assert roles("renewal_due", "missing") == {"gateway"}
    assert roles("not_renewed") == roles("self_signed") == roles("wrong_names") == {"gateway"}


@pytest.mark.parametrize(("state", "fails"), [("renewal_due", False), ("not_renewed", True), ("missing", True)])
def test_a_run_ends_well_with_a_file_that_the_user_must_renew(
    monkeypatch: pytest.MonkeyPatch, state: str, fails: bool
) -> None:
    module = plugin_module("action/fleet_probe.py")
    found = probing.Drift("gateway-0", "gateway", "certificate", haproxy.CERTIFICATE, DriftState(state), "ends")
    site = SimpleNamespace(plan=SimpleNamespace(fleet="rack"))
    monkeypatch.setattr(module.ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(module.ansible_options, "hosts_by_fleet", lambda *_: [(site, {})])
    monkeypatch.setattr(module.drift, "probe_site", lambda *_: {"gateway-0": probing.Report("gateway-0", (found,))})
    monkeypatch.setattr(module.drift, "save_drift", lambda *_: None)
    monkeypatch.setattr(module.record, "find_left_hosts", lambda *_: ())
    plugin = object.__new__(module.ActionModule)
    plugin._task = SimpleNamespace(args={"expect_clean": True}, check_mode=True)
    plugin._targets = lambda *_: {}
    result = plugin.run(None, {"ansible_play_hosts_all": ["gateway-0"], "hostvars": {}})
    assert bool(result.get("failed")) == fails
    assert [item["state"] for item in result["drift"]] == [state]


def test_a_gateway_gets_the_module_that_reads_certificates(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.write_text(certificate_text(days=(-80, 10)), encoding="utf-8")
    item = certificate_item("gateway", str(file))
    command = probing.remote_command("root", Manifest("gateway-0", (item,), {}))
    question = json.dumps({"items": [item], "facts": {}})
    done = subprocess.run(["sh", "-c", command], input=question, capture_output=True, text=True, check=True)
    assert [row["state"] for row in json.loads(done.stdout)["drift"]] == ["renewal_due"]


def test_the_manifest_has_what_the_source_of_the_certificate_needs(tmp_path: Path) -> None:
    file = tmp_path / "a.pem"
    file.write_text(certificate_text(), encoding="utf-8")

    def names(certificate: acme.Certificate) -> set[str]:
        bare = {str(item.get("path") or item.get("name")) for item in gateway_items("", "", "")}
        return {str(item.get("path") or item.get("name")) for item in gateway_items("", "", "", certificate)} - bare

    assert names(acme.NO_CERTIFICATE) == set()
    own = {"openssl", acme.PROGRAM, haproxy.CERTIFICATE}
    assert names(acme.Certificate(file)) == own
    units = {f"/etc/systemd/system/vllm-certificate.{kind}" for kind in ("service", "timer")}
    assert names(acme.Certificate(account=acme.AcmeAccount(account()))) == own | units | {
        *("certbot", acme.SETTINGS, "vllm-certificate.timer"),
    }


def test_no_secret_is_in_the_unit_or_a_command(program: Any) -> None:
    """The variables of a proxy may have a password: they are in a file of root, and no program gets them as words."""
    folder = stand_in(program)
    certificate = acme.Certificate(
        account=acme.AcmeAccount(account()), environment={"https_proxy": "http://me:word@p:1"}
    )
    Path(program.SETTINGS).write_text(certificate.settings, encoding="utf-8")
    give(program, certificate_text())
    assert program.main(["issue"]) == 0
    words: Sequence[str] = (folder / "asked").read_text().splitlines()
    assert not any("word" in line for line in words if not line.startswith("bundle="))
