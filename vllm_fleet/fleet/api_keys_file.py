"""``api-keys.yml``: owner -> digests of the keys that the gateways accept, and their limits; read and first written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import raise_all
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.api_keys import ApiKeys

#: Where the stack writes its key.
DEFAULT_FILE = "api-keys.yml"


class _Quoted(str):
    """Text that YAML writes in quotes."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes quoted text too."""


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def api_keys_text(owner: str, digest: str) -> str:
    """A file with one key.

    Args:
        owner: who has the key.
        digest: ``sha256:`` and the digest of the key in hexadecimal digits.
    """
    return block_text({"keys": {owner: digest}})


def block_text(data: Any) -> str:
    """YAML in block style, with digests in quotes."""
    return str(yaml.dump(_quoted(data), Dumper=_Dumper, width=4096, sort_keys=False))


def _quoted(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _quoted(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_quoted(value) for value in data]
    return _Quoted(data) if isinstance(data, str) and data.startswith("sha256:") else data


def file_of(plan: Plan) -> Path:
    """The file of a fleet; it may not exist yet."""
    return plan.directory / plan.gateway.api_keys_file


def read_if_there(file: Path) -> yaml_document.Document | None:
    """The file, whose keys are valid; None without a file.

    Raises:
        FleetError: the file is wrong, or something else is in its place.
    """
    if fault := paths.file_fault(file):
        if fault.is_missing:
            return None
        raise fault.error()
    document = yaml_document.read(file, secret=True)
    parse(document)
    return document


def has_key_of_stack(plan: Plan) -> bool:
    """Whether the stack makes a key, under the name of the fleet, and writes it into the file."""
    return (
        plan.access.api_keys == "generated"
        and plan.gateway.api_keys_file == DEFAULT_FILE
        and any(host.cloud != "static" for host in plan.hosts)
    )


def parse(document: yaml_document.Document) -> ApiKeys:
    """The keys of a file.

    Args:
        document: the file, read as a secret.

    Raises:
        FleetError: the file is wrong, or two owners with limits have one key, so that none of them would be right.
    """
    keys = yaml_document.parse(document, ApiKeys)
    first: dict[str, str] = {}
    errors = []
    for owner, record in keys.records.items():
        for digest in [each.digest for each in record.dated_digests]:
            other = first.setdefault(digest, owner)
            has_limits = not (isinstance(keys.keys[owner], str) and isinstance(keys.keys[other], str))
            if other != owner and has_limits:
                text = "has the digest of another owner, so the gateways could not tell whose limits count"
                errors.append(document.error(("keys", owner), text, "make a key for each owner: 'vllm-fleet key add'"))
    raise_all(errors)
    return keys
