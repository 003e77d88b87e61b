"""The input of a rehearsal: a copy of the fleet's file under another name, and stand-ins for its artifacts."""

from __future__ import annotations

import hashlib
import json
from io import StringIO
from pathlib import Path
from typing import get_args

from ruamel.yaml import YAML

from vllm_fleet.base import paths
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import load as load_catalog
from vllm_fleet.schema.recipe import Engine, Machine

#: Added to a fleet's name, so that the files of a real run on this controller stay untouched.
SUFFIX = "-rehearsal"
#: The version of the wheels in the stand-in locks: 7.0.0.
ROCM = "700"


def copy(fleet: str, most_hosts: int) -> str:
    """The ``fleet.yml`` of a rehearsal.

    Args:
        fleet: the fleet.
        most_hosts: the most hosts of a pool.

    Raises:
        FleetError: there is no such fleet, or no host of it is rented.
    """
    file = paths.inventories_dir() / fleet / "fleet.yml"
    yaml = YAML()
    try:
        data = yaml.load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FleetError(
            f"there is no fleet {fleet!r}", "FLEET=example-aws, for example", paths.display(file)
        ) from None
    data["fleet"] = f"{fleet}{SUFFIX}"
    for name, pool in data["pools"].items():
        if pool["cloud"] in ("lab", "static"):
            raise FleetError(f"the pool {name} is {pool['cloud']}: only rented hosts are rehearsed", "make lab", fleet)
        hosts = pool["hosts"]
        pool["hosts"] = hosts[:most_hosts] if isinstance(hosts, list) else min(hosts, most_hosts)
    # Its origins are not emulated: the models are on the controller.
    data.pop("mirror", None)
    artifacts = data.setdefault("artifacts", {})
    named = [data.get("defaults") or {}, *data["pools"].values()]
    models = dict.fromkeys(part["model"] for part in named if "model" in part)
    artifacts["models"] = {model: f"artifacts/{model.replace('/', '--')}" for model in models}
    artifacts["encodings"] = "artifacts/encodings"
    locks = artifacts.setdefault("locks", {})
    for engine in _unlocked():
        locks[engine.id] = f"artifacts/locks/{engine.id}-{{machine}}.txt"
    # The rehearsal uses the stack's own key instead of the fleet's keys.
    data.setdefault("access", {}).pop("ssh_authorised_keys", None)
    data["access"] |= {"ssh_private_key_file": "ssh/id_ed25519", "api_keys": "generated"}
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def properties(folder: Path, models: list[str]) -> None:
    """Creates the stand-ins: models of one small file, encodings, and locks for engines without one.

    They are enough for everything before a file is copied: plan, stack, probe, and roles in check mode.
    """
    for engine in _unlocked():
        for machine in get_args(Machine):
            write_atomically(folder / "artifacts" / "locks" / f"{engine.id}-{machine}.txt", _lock(engine, machine))
    for model in models:
        directory = folder / "artifacts" / model.replace("/", "--")
        directory.mkdir(parents=True)
        files = {"config.json": '{"architectures": ["GptOssForCausalLM"]}\n', "model.safetensors": "no weights\n"}
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
        listed = {name: {"sha256": hashlib.sha256(text.encode()).hexdigest()} for name, text in files.items()}
        record = {"revision": "rehearsal", "files": listed}
        (directory / "model.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    encodings = folder / "artifacts" / "encodings"
    encodings.mkdir(parents=True)
    for name in load_catalog().encodings.encodings:
        kept = paths.cache_dir() / "encodings" / name
        (encodings / name).write_bytes(kept.read_bytes() if kept.is_file() else b"")


def _unlocked() -> list[Engine]:
    """The engines without a lock: their index cannot be reached from everywhere."""
    return [engine for engine in load_catalog().engines.values() if engine.wheel and not engine.wheel.locks]


def _lock(engine: Engine, machine: Machine) -> str:
    """A lock in the right form, with made-up digests: enough for a plan, and not for an installation."""
    build = f"+rocm{ROCM}" if engine.accelerator == "rocm" else ""
    head = {
        "engine": engine.id,
        "machine": machine,
        # The Python of the lab's hosts, which stand in for the cloud's.
        "python": "3.11",
        "glibc": (engine.wheel.glibc_min if engine.wheel else None) or "2.28",
        "inputs": engine_locks.inputs_digest(engine, machine),
        "source": "a rehearsal; it names no file that exists",
    }
    lines = [f"# {engine_locks.FORM}", *(f"# {key}: {value}" for key, value in head.items())]
    needed = [
        engine_locks.EXTRAS[extra]
        for extra in (engine.wheel.extras if engine.wheel else [])
        if extra in engine_locks.EXTRAS
    ]
    pins = {"vllm": f"{engine.release}{build}", "triton": "3.0", "nvidia-cuda-runtime": "12.8.0"}
    for name, version in {**pins, **dict.fromkeys(needed, "0")}.items():
        if name != "nvidia-cuda-runtime" or engine.accelerator == "cuda":
            lines += [f"{name}=={version} \\", f"    --hash=sha256:{'0' * 64}"]
    return "\n".join(lines) + "\n"
