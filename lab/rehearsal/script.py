"""What a rehearsal of a fleet plays from: its file under another name, and stand-ins for its artifacts."""

from __future__ import annotations

import hashlib
import json
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from vllm_fleet import paths
from vllm_fleet.catalog import load as load_catalog
from vllm_fleet.errors import FleetError

#: Added to a fleet's name, so that nothing that a real run of it keeps on this controller is touched.
SUFFIX = "-rehearsal"


def copy(fleet: str, most_hosts: int) -> str:
    """The ``fleet.yml`` of a rehearsal.

    Args:
        fleet: the fleet.
        most_hosts: what a pool is cut down to.

    Raises:
        FleetError: there is no such fleet, or none of its hosts is rented.
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
        pool["hosts"] = min(pool["hosts"], most_hosts)
    artifacts = data.setdefault("artifacts", {})
    for model in artifacts.get("models") or {}:
        artifacts["models"][model] = f"artifacts/{model.replace('/', '--')}"
    artifacts["encodings"] = "artifacts/encodings"
    # The rehearsal has the stack's own key, whatever the fleet's people log in with.
    data.setdefault("access", {}).pop("ssh_authorised_keys", None)
    data["access"] |= {"ssh_private_key_file": "ssh/id_ed25519", "api_keys": "generated"}
    text = StringIO()
    yaml.dump(data, text)
    return text.getvalue()


def properties(folder: Path, models: list[str]) -> None:
    """Makes the stand-ins: models of one small file, and encodings of the right names and no content.

    They are for what happens before a file is copied: plan, stack, probe, and roles in check mode.
    """
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
