"""Two lab hosts as gateways, and on the controller a real ACME server with its DNS (Debian's pebble)."""

from __future__ import annotations

import fcntl
import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import driver_lab
from driver_lab import INSTANCE, KEY, MODEL, DriverLab, Place
from hanging import HANGING_SECONDS
from made_certificates import certificate_text

from lab import cleanup, packages, state
from lab.rootfs import File, write_files
from vllm_fleet.base import paths
from vllm_fleet.edge import keys
from vllm_fleet.host import acme, haproxy
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.fleet import Gateway

SUBNET = "10.79.26"
PLACE = Place("vf-acme", SUBNET, {"gateway-0": f"{SUBNET}.2", "gateway-1": f"{SUBNET}.3"})
CONTROLLER = f"{SUBNET}.1"
NAME = "api.example.com"
#: A name that joins it later.
OTHER = "llm.example.com"
PORT = 8443
BOOK = paths.root() / "playbooks" / "gateways.yml"
#: Where the models are: the program of the drivers' lab, on the second gateway.
SERVING = "gateway-1"
UNIT = "[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/instance.py\n"


@dataclass
class Authority:
    """The ACME server; :meth:`start` and :meth:`stop` are what its operator does."""

    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = certificate_text(names=(CONTROLLER,))
        at = text.index("-----BEGIN PRIVATE")
        (self.folder / "ca.pem").write_text(text[:at], encoding="utf-8")
        (self.folder / "ca.key").write_text(text[at:], encoding="utf-8")
        record = {
            "listenAddress": f"{CONTROLLER}:14000",
            "managementListenAddress": f"{CONTROLLER}:15000",
            "certificate": str(self.folder / "ca.pem"),
            "privateKey": str(self.folder / "ca.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "certificateValidityPeriod": 90 * 86400,
        }
        (self.folder / "pebble.json").write_text(json.dumps({"pebble": record}), encoding="utf-8")

    @property
    def directory(self) -> str:
        return f"https://{CONTROLLER}:14000/dir"

    @property
    def certificate(self) -> str:
        """What signs the certificate of its server."""
        return (self.folder / "ca.pem").read_text(encoding="utf-8")

    def start(self) -> None:
        """Starts the server and its DNS, and waits until both answer."""
        program = packages.pebble()
        dns = [str(program.with_name("pebble-challtestsrv")), "-dns01", f"{CONTROLLER}:8053", "-http01", ""]
        dns += ["-https01", "", "-tlsalpn01", "", "-management", f"{CONTROLLER}:8055", "-defaultIPv6", ""]
        server = [str(program), "-config", str(self.folder / "pebble.json"), "-dnsserver", f"{CONTROLLER}:8053"]
        # By default it refuses one of twenty requests, to try its clients, and certbot 2.1 fails at some of these.
        knobs = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        for words in (dns, server):
            log = (self.folder / f"{Path(words[0]).name}.log").open("ab")
            self.running.append(subprocess.Popen(words, stdout=log, stderr=log, env=knobs))
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        while not self._answers(context):
            assert [process.poll() for process in self.running] == [None, None]
            time.sleep(0.05)

    def _answers(self, context: ssl.SSLContext) -> bool:
        try:
            urllib.request.urlopen(self.directory, context=context, timeout=HANGING_SECONDS).close()
            self.resolve(*PLACE.addresses.values())
        except OSError:
            return False
        return True

    def resolve(self, *addresses: str) -> None:
        """What the CA finds for the names."""
        for path, record in (
            (path, record)
            for name in (NAME, OTHER)
            for path, record in (
                ("clear-a", {"host": f"{name}."}),
                ("add-a", {"host": f"{name}.", "addresses": list(addresses)}),
            )
        ):
            body = json.dumps(record).encode()
            request = urllib.request.Request(f"http://{CONTROLLER}:8055/{path}", body)
            urllib.request.urlopen(request, timeout=HANGING_SECONDS).close()

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
            process.wait(timeout=HANGING_SECONDS)
        self.running.clear()


@contextmanager
def opened(folder: Path) -> Iterator[tuple[DriverLab, Authority]]:
    """The hosts, not configured yet, and the server, not started yet."""
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / f"test-{PLACE.bridge}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if PLACE.bridge in state.labs():
            cleanup.down(PLACE.bridge)
        authority = Authority(folder)
        try:
            lab = driver_lab.boot(folder, PLACE)
            root = state.host_dir(PLACE.bridge, SERVING) / "root"
            files = {"usr/local/lib/instance.py": File(INSTANCE), "etc/systemd/system/instance.service": File(UNIT)}
            write_files(root, files)
            lab.on(SERVING, "systemctl daemon-reload; systemctl start instance")
            yield lab, authority
        finally:
            authority.stop()
            cleanup.down(PLACE.bridge)


def asked(authority: Authority) -> dict[str, Any]:
    return {
        "directory": authority.directory,
        "email": "me@example.com",
        "names": [NAME],
        "ca_file": str(authority.folder / "ca.pem"),
        "accept_terms": True,
    }


def plan_tls(lab: DriverLab, tls: Mapping[str, Any]) -> acme.Certificate:
    """Gives the gateways the variables of a plan.

    Returns:
        What their manifests are made of.
    """
    gateway = Gateway.model_validate({"hosts": 2, "port": PORT, "tls": tls})
    assert gateway.tls
    found = gateway.tls.acme
    if found and found.ca_file:
        certificate = acme.Certificate(account=acme.AcmeAccount(found, Path(found.ca_file).read_text(encoding="utf-8")))
    else:
        certificate = acme.Certificate(Path(str(gateway.tls.certificate_file)))
    backends = [Backend(SERVING, "0", PLACE.addresses[SERVING], 8000, MODEL)]
    config = haproxy.haproxy_config(gateway, backends, list(PLACE.addresses.values()))
    for name in PLACE.gateways:
        lab.variables[name] = {
            "gateway_config": config,
            "gateway_reader_config": reader_config(gateway, backends),
            "gateway_api_key_digests": key_map_text(ApiKeys(keys={"test": keys.digest(KEY)})),
            "gateway_certificate_file": str(certificate.file or ""),
            "gateway_acme": certificate.settings,
            "gateway_traffic_servers": [],
        }
    return certificate


def configure(lab: DriverLab, names: Sequence[str] = PLACE.gateways) -> subprocess.CompletedProcess[str]:
    """Runs the plays of the gateways."""
    groups = {"needs_image_ports": (), "needs_host_baseline": (), "gateway": PLACE.gateways, "needs_gateway": names}
    return lab.playbook(BOOK, groups)


def served(name: str) -> str:
    """The certificate that a gateway shows to clients now, PEM."""
    return ssl.get_server_certificate((PLACE.addresses[name], PORT), timeout=HANGING_SECONDS).strip()


#: Asks for an answer in pieces without looking at the certificate, and prints how many came.
CLIENT = f"""\
import json, ssl, sys, urllib.request
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
body = json.dumps({{"model": "{MODEL}", "pieces": 6000}}).encode()
request = urllib.request.Request(sys.argv[1], body, {{"Authorization": "Bearer {KEY}"}})
with urllib.request.urlopen(request, context=context) as answer:
    print(answer.read(6).decode().strip(), flush=True)
    print(answer.read().count(b"piece"), flush=True)
"""
