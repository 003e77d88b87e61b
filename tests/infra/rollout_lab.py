"""Lab hosts behind two gateways for rollouts: real HAProxy, systemd and sshd, and a small engine in place of vLLM."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import driver_lab
from driver_lab import KEY, MODEL, UNIT_FILES, DriverLab, Place
from hanging import HANGING_SECONDS
from stand_in_gates import QUESTIONS

from lab import cleanup, state
from lab.rootfs import File, write_files
from vllm_fleet.base import digests, paths
from vllm_fleet.host import firewall, haproxy, instance_files
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.fleet import Gateway

BOOK = paths.root() / "playbooks" / "rollout.yml"


def place_at(bridge: str, subnet: str) -> Place:
    """Two gateways and three hosts that serve.

    Args:
        bridge: the name of their network.
        subnet: the first three numbers of its addresses.
    """
    numbers = {"gateway-0": 2, "gateway-1": 3, "gpu-0": 11, "gpu-1": 12, "gpu-2": 13}
    return Place(bridge, subnet, {name: f"{subnet}.{number}" for name, number in numbers.items()})


PLACE = place_at("vf-rollout", "10.79.21")
#: Groups of the playbook for gateways.
GATEWAYS: dict[str, tuple[str, ...]] = {"needs_image_ports": (), "needs_host_baseline": (), "gateway": PLACE.gateways}
#: Its instances follow one after the other.
PAIR = "gpu-2"
ENGINE = Path(__file__).with_name("rollout_engine.py")
#: What the log of the engine must say.
PROMISE = {"line": "Using '([A-Z]+)' Mxfp4 MoE backend", "names": ["CPU"], "what": "the kernel of the experts"}


#: What serves after the first rollout, at each gateway.
SERVERS = ("gpu-0_0", "gpu-1_0", f"{PAIR}_0", f"{PAIR}_1")


def ports(name: str) -> list[int]:
    return [8000, 8001] if name == PAIR else [8000]


def start(folder: Path, place: Place = PLACE) -> DriverLab:
    """The hosts with the engine; nothing of it runs yet."""
    lab = driver_lab.boot(folder, place)
    for name in place.serving:
        root = state.host_dir(place.bridge, name) / "root"
        engine = File(ENGINE.read_text(encoding="utf-8"), 0o755)
        write_files(root, {"opt/vllm/engines/stand-in/bin/vllm": engine})
    backends = [
        Backend(name, str(number), place.addresses[name], port, MODEL)
        for name in place.serving
        for number, port in enumerate(ports(name))
    ]
    digest = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    for name in place.gateways:
        lab.variables[name] = {
            "gateway_config": haproxy.haproxy_config(Gateway(), backends),
            "gateway_reader_config": reader_config(Gateway(), backends),
            "gateway_api_key_digests": key_map_text(ApiKeys(keys={"test": digest})),
        }
    return lab


@contextmanager
def opened(folder: Path, place: Place = PLACE) -> Iterator[DriverLab]:
    """The hosts with configured gateways, as long as the tests need them; one such lab at a time."""
    with (paths.cache_dir() / "test-rollout.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if place.bridge in state.labs():
            cleanup.down(place.bridge)
        try:
            found = start(folder, place)
            configure_gateways(found)
            yield found
        finally:
            cleanup.down(place.bridge)


def set_release(lab: DriverLab, name: str, *knobs: str, note: str = "", patience: int = 60, **gates: Any) -> str:
    """Gives a host's variables a release; another note, or other knobs, are another release.

    Args:
        lab: the lab.
        name: the host.
        knobs: what is wrong with it, as the engine reads it.
        note: its name, which the engine tells those who ask.
        patience: seconds after which a start has failed.
        gates: what its gates have otherwise than those of every release here.

    Returns:
        The digest of the release.
    """
    at = lab.place.addresses[name]
    cache = "/var/cache/vllm/stand-in"
    instances = []
    for number, port in enumerate(ports(name)):
        env = instance_files.env_text(
            {
                "HOME": cache,
                "FLEET_ENGINE": "/opt/vllm/engines/stand-in",
                "FLEET_MODEL": MODEL,
                "FLEET_URL": f"http://{at}:{port}",
                "FLEET_READINESS": f"{at}:{port + 100}",
                "FLEET_START_TIMEOUT_SECONDS": str(patience),
            }
        )
        env += f'FLEET_ENV_DIGEST="{digests.text_sha256(env)}"\n'
        lines = [f"# knob: {knob}\n" for knob in (f"release={note}", *knobs)]
        config = "".join(lines) + f"host: {at}\nport: {port}\nmodel: {MODEL}\n"
        instances.append(instance_files.InstanceFiles(str(number), port, config, env))
    release = instance_files.Release(tuple(instances))
    gateways = [lab.place.addresses[each] for each in lab.place.gateways]
    peers = firewall.Peers((at,), tuple(gateways))
    lab.variables[name] = {
        "vllm_firewall_rules": firewall.firewall_rules(
            [port + more for port in ports(name) for more in (0, 100)], peers
        ),
        "vllm_firewall_unit_filter": firewall.unit_filter(peers),
        "vllm_service_files": [{"name": each, "content": text} for each, text in release.files.items()],
        "vllm_service_release": release.digest,
        "vllm_service_unit_files": list(UNIT_FILES),
        "vllm_service_promises": [PROMISE],
        "vllm_service_gates": {
            **QUESTIONS,
            **gates,
            "reference": str(lab.folder / "references" / f"cpu-2--stand-in--{note}.json"),
        },
        "vllm_service_instances": [
            {
                "unit": f"vllm@{each.name}.service",
                "runtime_directory": f"/run/vllm-{each.name}",
                "loaded": each.loaded,
            }
            for each in release.instances
        ],
        "vllm_service_start_cache": cache,
        "vllm_service_start_cache_store": str(lab.folder / "caches"),
        "gateway_traffic_servers": [f"{name}_{each.name}={at}:{each.port}" for each in release.instances],
    }
    return release.digest


def batches(*names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The groups of a rollout, as the inventory plugin makes them: one batch after the other."""
    found: dict[str, Sequence[str]] = {f"rollout_{number:04d}": tuple(each) for number, each in enumerate(names)}
    every = tuple(name for each in names for name in each)
    roles = ("needs_vllm_firewall", "needs_vllm_service")
    return {**found, "rollout": every, **dict.fromkeys(roles, every)}


def configure_gateways(lab: DriverLab) -> None:
    done = lab.playbook(paths.root() / "playbooks" / "gateways.yml", {**GATEWAYS, "needs_gateway": lab.place.gateways})
    assert done.returncode == 0, done.stdout + done.stderr


def look(lab: DriverLab, gateway: str = "gateway-0") -> dict[str, Any]:
    """Server -> what the gateway knows of it."""
    question = json.dumps({"owner": "the tests", "servers": ["*"]})
    said = lab.on(gateway, f"echo '{question}' | /usr/local/libexec/vllm-gateway look")
    return {row["name"]: row for row in json.loads(said)["servers"].values()}


def up(lab: DriverLab, gateway: str = "gateway-0") -> dict[str, str]:
    """Server -> its status."""
    servers = look(lab, gateway).items()
    return {name: row["status"] for name, row in servers if row["backend"].startswith("model_")}


def accepted(lab: DriverLab, name: str) -> str:
    return lab.on(name, "basename $(readlink /opt/vllm/accepted)").strip()


def served(lab: DriverLab, name: str, port: int = 8000) -> str:
    """The name of the release that answers on a host."""
    url = f"http://{lab.place.addresses[name]}:{port}/"
    ask = f"import urllib.request as u; print(u.urlopen('{url}').read().decode())"
    return str(json.loads(lab.on(name, f'python3 -c "{ask}"'))["release"])


def everything_serves(lab: DriverLab) -> None:
    """All servers get traffic at both gateways, and no drain or trial is left."""
    for gateway in lab.place.gateways:
        assert up(lab, gateway) == dict.fromkeys(SERVERS, "UP")
        assert "drains.json" not in lab.on(gateway, "ls /var/lib/vllm-gateway")
    for name in lab.place.serving:
        assert "trial.json" not in lab.on(name, "ls /opt/vllm")


@contextmanager
def clients(lab: DriverLab, streams: int = 24, kept: int = 24, pieces: int = 40) -> Iterator[dict[str, Any]]:
    """Clients of both gateways meanwhile; afterwards the result says how it went."""
    urls = [f"http://{lab.place.addresses[name]}:8080" for name in lab.place.gateways]
    program = Path(__file__).with_name("rollout_clients.py")
    words = [sys.executable, str(program), KEY, str(streams), str(kept), str(pieces), *urls]
    result: dict[str, Any] = {}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield result
        finally:
            out, _ = process.communicate("", timeout=HANGING_SECONDS)
    result |= json.loads(out)


def told(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())
