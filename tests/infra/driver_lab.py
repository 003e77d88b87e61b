"""Three lab hosts for the driver roles: two with stand-in GPUs that serve through a real HAProxy on the third."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import one_run
from hanging import HANGING_SECONDS

from lab import host, network
from lab.rootfs import File, write_files
from lab.spec import HostSpec, NetworkSpec
from lab.tree import ensure_tree, tree_digest
from vllm_fleet.base import digests, paths
from vllm_fleet.edge import ssh_target
from vllm_fleet.host import firewall, haproxy, instance_files
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.host.manifest_items import Item
from vllm_fleet.operate import probing
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.fleet import Gateway


@dataclass(frozen=True)
class Place:
    """A network of lab hosts.

    Attributes:
        bridge: its name.
        subnet: the first three numbers of its addresses.
        addresses: host -> address; those that are no gateway serve.
    """

    bridge: str
    subnet: str
    addresses: Mapping[str, str]

    @property
    def serving(self) -> tuple[str, ...]:
        return tuple(name for name in self.addresses if not name.startswith("gateway"))

    @property
    def gateways(self) -> tuple[str, ...]:
        return tuple(name for name in self.addresses if name.startswith("gateway"))


BRIDGE = "vf-drivers"
SUBNET = "10.79.251"
ADDRESSES = {"gateway-0": f"{SUBNET}.2", "gpu-0": f"{SUBNET}.11", "gpu-1": f"{SUBNET}.12"}
DRIVERS = Place(BRIDGE, SUBNET, ADDRESSES)
SERVING = DRIVERS.serving
REPOSITORY = "/srv/stand-ins"
KEY = "a-key-of-this-test"
MODEL = "stand-in"
#: The end of a handler that answers in pieces, ten a second until there is /run/enough, and the rest at once then.
_PIECES = """\
        left = asked["pieces"]
        while left:
            count = left if os.path.exists("/run/enough") else 1
            self.wfile.write(b"%x\\r\\n" % (6 * count) + b"piece\\n" * count + b"\\r\\n"); self.wfile.flush()
            time.sleep(0.1)
            left -= count
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *_): pass
"""
#: Serves where vLLM would: an answer in as many pieces as are asked for, and its readiness on a port of its own.
INSTANCE = (
    """\
import http.server, json, os, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200); self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
"""
    + _PIECES
    + """\
ready = http.server.ThreadingHTTPServer(("", 8100), Handler)
threading.Thread(target=ready.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
)
#: The same under the project's own unit and program: a vLLM that ends at once when it is told to.
ENGINE = (
    """\
#!/usr/bin/python3
import http.server, json, os, time
os.makedirs(os.environ["HOME"], exist_ok=True)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        if asked.get("max_tokens") == 1:
            self.send_header("Content-Length", "18"); self.end_headers(); self.wfile.write(b'{"choices": ["a"]}')
            return
        self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
"""
    + _PIECES
    + """\
http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
)
UNIT_FILES = tuple(f"/etc/systemd/system/vllm@.service{rest}" for rest in ("", ".d/addresses.conf"))
UNIT = "[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/instance.py\n[Install]\nWantedBy=multi-user.target\n"


class Play(NamedTuple):
    """Roles on a host, by its name or, with variables of its own, by another name ``of`` it."""

    name: str
    roles: tuple[str, ...]
    of: str = ""


@dataclass
class DriverLab:
    """The hosts, their keys, and what a playbook is run with."""

    folder: Path
    key_file: Path
    host_keys: Mapping[str, str]
    place: Place = DRIVERS
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    def target(self, name: str) -> ssh_target.Target:
        at = self.place.addresses[name]
        return ssh_target.Target(name, at, 22, "deploy", (self.host_keys[name],), self.key_file)

    def probe(self, name: str, items: tuple[Item, ...], facts: Mapping[str, Any]) -> probing.Report:
        report = probing.probe_hosts([(self.target(name), Manifest(name, items, facts))])[name]
        # asyncio.run leaves the thread without a loop, and the mocks of Pulumi in the next module want one.
        asyncio.set_event_loop(asyncio.new_event_loop())
        return report

    def on(self, name: str, command: str) -> str:
        """The output of a command that root runs on a host."""
        done = subprocess.run(
            [
                "ssh",
                *self._options().split(),
                "-i",
                str(self.key_file),
                f"deploy@{self.place.addresses[name]}",
                "sudo sh",
            ],
            input=command,
            capture_output=True,
            text=True,
            timeout=HANGING_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def play(self, name: str, *roles: str, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Runs roles on one host, as the rollout does."""
        return self.plays(Play(name, roles), arguments=arguments)

    def plays(self, *plays: Play, arguments: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Runs plays one after the other; one that fails does not stop the next."""
        book = self.folder / "play.yml"
        book.write_text(json.dumps([one_run.play({each.name: each.roles for each in plays})]), encoding="utf-8")
        aliases = {each.name: each.of for each in plays if each.of}
        return self.playbook(book, {}, *one_run.ARGUMENTS, *arguments, aliases=aliases)

    def playbook(
        self, book: Path, groups: Mapping[str, Sequence[str]], *arguments: str, aliases: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        """Runs a playbook with hosts in groups, as the inventory of a fleet would put them there."""
        process = self.begin(book, groups, *arguments, aliases=aliases)
        out, err = process.communicate(timeout=HANGING_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def begin(
        self, book: Path, groups: Mapping[str, Sequence[str]], *arguments: str, aliases: Mapping[str, str] = {}
    ) -> subprocess.Popen[str]:
        """As :meth:`playbook`, and does not wait for its end."""
        inventory = self.write_inventory(groups, aliases)
        return subprocess.Popen(
            ["ansible-playbook", "-i", str(inventory), str(book), *arguments],
            cwd=paths.root(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write_inventory(self, groups: Mapping[str, Sequence[str]], aliases: Mapping[str, str] = {}) -> Path:
        """The file with the hosts in groups, and their variables."""
        common = {
            "ansible_user": "deploy",
            "ansible_ssh_private_key_file": str(self.key_file),
            "ansible_ssh_common_args": self._options(),
            "gateway_traffic_gateways": list(self.place.gateways),
        }
        addresses = self.place.addresses
        hosts = {
            each: {
                "ansible_host": at,
                "fleet_ssh_host_keys": [self.host_keys[aliases.get(each, each)]],
                "gateway_traffic_servers": [f"{each}_0={at}:8000"],
                **self.variables.get(each, {}),
            }
            for each, at in {**{alias: addresses[name] for alias, name in aliases.items()}, **addresses}.items()
        }
        inventory = self.folder / "hosts.yml"
        children = {
            group: {"hosts": dict.fromkeys(members)}
            for group, members in {"serving": self.place.serving, "idle": (), **groups}.items()
        }
        data = {"all": {"hosts": hosts, "vars": common, "children": children}}
        inventory.write_text(json.dumps(data), encoding="utf-8")
        return inventory

    def _options(self) -> str:
        known = self.folder / "known_hosts"
        known.write_text("".join(f"{self.place.addresses[name]} {key}\n" for name, key in self.host_keys.items()))
        return (
            f"-F none -o BatchMode=yes -o StrictHostKeyChecking=yes -o ConnectTimeout=10 -o UserKnownHostsFile={known}"
        )


def boot(folder: Path, place: Place) -> DriverLab:
    """Makes the network and the hosts, with the account of the instances on those that serve."""
    network.create(NetworkSpec(place.bridge, f"{place.subnet}.0/24", str(folder), 2))
    ensure_tree()
    keys = {name: make_key(folder / name) for name in ("login", *place.addresses)}
    lab = DriverLab(folder, folder / "login", {name: keys[name] for name in place.addresses}, place)
    (folder / "repository").mkdir()
    for name, address in place.addresses.items():
        boot_host(lab, name, address, {str(folder / "repository"): REPOSITORY})
    for name in place.serving:
        lab.on(name, "groupadd -f render; useradd -r vllm; mkdir -p /var/lib/vllm")
    return lab


def boot_host(lab: DriverLab, name: str, address: str, binds: Mapping[str, str]) -> None:
    """Makes a host beside the others of the lab; :func:`make_key` has made its key."""
    spec = HostSpec.from_properties(
        {
            "bridge": lab.place.bridge,
            "name": name,
            "address": address,
            "subnet": f"{lab.place.subnet}.0/24",
            "user": "deploy",
            "authorised_key": public_key(lab.key_file),
            "host_key": public_key(lab.folder / name),
            "tree": tree_digest(),
            "peers": dict(lab.place.addresses),
            "binds": dict(binds),
            "disk_gib": 1,
        }
    )
    host.create(spec, (lab.folder / name).read_text(encoding="utf-8"))


def start(folder: Path) -> DriverLab:
    """The hosts for drivers: their instances are enabled, and the gateway knows both of them."""
    lab = boot(folder, DRIVERS)
    for name in SERVING:
        files = {"usr/local/lib/instance.py": File(INSTANCE), "etc/systemd/system/vllm@.service": File(UNIT)}
        write_files(paths.cache_dir() / "lab" / "state" / BRIDGE / name / "root", files)
        lab.on(name, "systemctl daemon-reload; systemctl enable --now vllm@0")
    backends = [Backend(name, "0", ADDRESSES[name], 8000, MODEL) for name in SERVING]
    lab.variables["gateway-0"] = {
        "gateway_config": haproxy.haproxy_config(Gateway(), backends),
        "gateway_reader_config": reader_config(Gateway(), backends),
        "gateway_api_key_digests": key_map_text(
            ApiKeys(keys={"test": f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"})
        ),
    }
    return lab


def release(lab: DriverLab, name: str, note: str) -> dict[str, Any]:
    """What the roles of the rollout get for a release with the stand-in engine; another note is another release."""
    return release_at(ADDRESSES[name], ADDRESSES["gateway-0"], lab.folder / "caches", note)


def release_at(at: str, gateway: str, caches: Path, note: str) -> dict[str, Any]:
    """As :func:`release`, for a host and its gateway by their addresses, and the folder of start caches."""
    cache = "/var/cache/vllm/stand-in"
    env = instance_files.env_text(
        {
            "HOME": cache,
            "FLEET_ENGINE": "/opt/vllm/engines/stand-in",
            "FLEET_MODEL": MODEL,
            "FLEET_URL": f"http://{at}:8000",
            "FLEET_READINESS": f"{at}:8100",
            "FLEET_START_TIMEOUT_SECONDS": "60",
        }
    )
    digest = f'FLEET_ENV_DIGEST="{digests.text_sha256(env)}"\n'
    files = instance_files.InstanceFiles("0", 8000, f"# {note}\nmodel: {MODEL}\n", env + digest)
    content = {"0.yaml": files.config, "0.env": files.env}
    peers = firewall.Peers((at,), (gateway,))
    return {
        "vllm_firewall_rules": firewall.firewall_rules([8000, 8100], peers),
        "vllm_firewall_unit_filter": firewall.unit_filter(peers),
        "vllm_service_files": [{"name": each, "content": text} for each, text in content.items()],
        "vllm_service_release": instance_files.release_digest(content),
        "vllm_service_unit_files": list(UNIT_FILES),
        "vllm_service_instances": [
            {"unit": "vllm@0.service", "runtime_directory": "/run/vllm-0", "loaded": files.loaded}
        ],
        "vllm_service_start_cache": cache,
        "vllm_service_start_cache_store": str(caches),
    }


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return public_key(path)


def public_key(path: Path) -> str:
    """The public key beside a private one, without its comment."""
    return " ".join(path.with_name(f"{path.name}.pub").read_text(encoding="utf-8").split()[:2])


CLIENT = """\
import json, sys, threading, time, urllib.request
url, key, pieces, end = sys.argv[1], sys.argv[2], int(sys.argv[3]), threading.Event()
count = {"whole": 0, "cut": 0, "failed": 0}
def stream():
    while not end.is_set():
        body = json.dumps({"pieces": pieces}).encode()
        request = urllib.request.Request(url, body, {"Authorization": "Bearer " + key})
        try:
            with urllib.request.urlopen(request) as answer:
                text = answer.read()
            count["whole" if text.count(b"piece") == pieces else "cut"] += 1
        except Exception as fault:
            count["cut" if "IncompleteRead" in repr(fault) else "failed"] += 1
            time.sleep(0.1)
threads = [threading.Thread(target=stream) for _ in range(8)]
[thread.start() for thread in threads]
sys.stdin.read()
end.set()
[thread.join() for thread in threads]
print(json.dumps(count))
"""


class Streams:
    """Eight clients that ask through the gateway without a pause; afterwards ``count`` says how it went.

    Args:
        pieces: of each answer, ten a second.
    """

    def __init__(self, pieces: int = 30) -> None:
        self._pieces = pieces

    def __enter__(self) -> Streams:
        url = f"http://{ADDRESSES['gateway-0']}:8080/v1/completions"
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, url, KEY, str(self._pieces)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count: dict[str, int] = {}
        return self

    def __exit__(self, *_: object) -> None:
        out, _err = self._process.communicate("")
        self.count = json.loads(out)
