"""Lab hosts behind two gateways for rollouts: real HAProxy, systemd and sshd, and a small engine in place of vLLM."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import driver_lab
from driver_lab import KEY, MODEL, UNIT_FILES, DriverLab, Place
from stand_in_gates import QUESTIONS

from lab import state
from lab.rootfs import File, write_files
from vllm_fleet.base import digests
from vllm_fleet.host import firewall, haproxy, instance_files
from vllm_fleet.schema.fleet import Gateway

SUBNET = "10.79.21"
PLACE = Place(
    "vf-rollout",
    SUBNET,
    {
        "gateway-0": f"{SUBNET}.2",
        "gateway-1": f"{SUBNET}.3",
        "gpu-0": f"{SUBNET}.11",
        "gpu-1": f"{SUBNET}.12",
        "gpu-2": f"{SUBNET}.13",
    },
)
#: Its instances follow one after the other.
PAIR = "gpu-2"
ENGINE = Path(__file__).with_name("rollout_engine.py")
#: What the log of the engine must say.
PROMISE = {"line": "Using '([A-Z]+)' Mxfp4 MoE backend", "names": ["CPU"], "what": "the kernel of the experts"}


def ports(name: str) -> list[int]:
    return [8000, 8001] if name == PAIR else [8000]


def start(folder: Path) -> DriverLab:
    """The hosts with the engine; nothing of it runs yet."""
    lab = driver_lab.boot(folder, PLACE)
    for name in PLACE.serving:
        root = state.host_dir(PLACE.bridge, name) / "root"
        engine = File(ENGINE.read_text(encoding="utf-8"), 0o755)
        write_files(root, {"opt/vllm/engines/stand-in/bin/vllm": engine})
    backends = [
        haproxy.Backend(name, str(number), PLACE.addresses[name], port, MODEL)
        for name in PLACE.serving
        for number, port in enumerate(ports(name))
    ]
    digest = f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}"
    for name in PLACE.gateways:
        lab.variables[name] = {
            "gateway_config": haproxy.haproxy_config(Gateway(), backends),
            "gateway_api_key_digests": haproxy.key_digests_text({"test": digest}),
        }
    return lab


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
    at = PLACE.addresses[name]
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
    gateways = [PLACE.addresses[each] for each in PLACE.gateways]
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
        "vllm_start_cache_path": cache,
        "vllm_start_cache_store": str(lab.folder / "caches"),
        "gateway_traffic_servers": [f"{name}_{each.name}={at}:{each.port}" for each in release.instances],
    }
    return release.digest


def batches(*names: Sequence[str]) -> dict[str, Sequence[str]]:
    """The groups of a rollout, as the inventory plugin makes them: one batch after the other."""
    found: dict[str, Sequence[str]] = {f"rollout_{number:04d}": tuple(each) for number, each in enumerate(names)}
    every = tuple(name for each in names for name in each)
    roles = ("needs_vllm_firewall", "needs_vllm_service")
    return {**found, "rollout": every, **dict.fromkeys(roles, every)}
