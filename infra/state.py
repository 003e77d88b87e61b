"""What the state of a stack has before a run: the hosts that live, and what ``stack.json`` said last.

The engine deletes after the program has ended, and a program does not see what it no longer names. So the program reads
the state itself. The state is the same for everybody who shares the stack; files in one checkout are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra import backend
from vllm_fleet.fleet import replacement

_TEXT_FILE = "pulumi-python:dynamic/fleet:TextFile"
_KEY_PAIR = "pulumi-python:dynamic/fleet:SshKeyPair"


@dataclass(frozen=True)
class State:
    """The state of a stack, as far as the program needs it.

    Attributes:
        protected: host that lives -> whether the engine will refuse to delete it.
        stack: the last ``stack.json``; empty where none was written.
        key_pairs: the names of the SSH keys that the stack made.
        creating: the hosts whose creation was interrupted, so that they may exist.
        begun: everything else whose creation was interrupted.
    """

    protected: Mapping[str, bool] = field(default_factory=dict)
    stack: Mapping[str, Any] = field(default_factory=dict)
    key_pairs: frozenset[str] = frozenset()
    creating: frozenset[str] = frozenset()
    begun: frozenset[str] = frozenset()

    @property
    def blocks(self) -> Mapping[str, Any]:
        """Pool -> the capacity block that was bought for it last."""
        found: Mapping[str, Any] = self.stack.get("blocks", {})
        return found

    def record(self, host: str) -> Mapping[str, Any] | None:
        """The last entry of a host in ``stack.json``; None where it had none."""
        found: Mapping[str, Any] | None = self.stack.get("hosts", {}).get(host)
        return found


def read(stack: str) -> State:
    """Reads the state of a stack, without its secrets; the engine keeps its lock meanwhile.

    Raises:
        FleetError: ``pulumi`` failed.
    """
    return parse(backend.deployment(os.environ.get("PULUMI_BACKEND_URL", ""), stack), stack)


def parse(deployment: Mapping[str, Any], stack: str) -> State:
    """The state in a deployment, as ``pulumi stack export`` prints it.

    Args:
        deployment: the deployment.
        stack: the name of the stack, which is the fleet's.
    """
    resources = [row for row in deployment.get("resources") or [] if not row.get("delete")]
    begun = [row["resource"] for row in deployment.get("pending_operations") or [] if row["type"] == "creating"]
    inventory: Mapping[str, Any] = next((row for row in resources if _is(row, _TEXT_FILE, f"{stack}-inventory")), {})
    return State(
        protected={_name(row): bool(row.get("protect")) for row in resources if replacement.is_host(row["type"])},
        stack=_json(inventory.get("inputs") or {}),
        key_pairs=frozenset(_name(row) for row in resources if row["type"] == _KEY_PAIR),
        creating=frozenset(_name(row) for row in begun if replacement.is_host(row["type"])),
        begun=frozenset(_name(row) for row in begun if not replacement.is_host(row["type"])),
    )


def _name(row: Mapping[str, Any]) -> str:
    return str(row["urn"]).split("::", 3)[3]


def _is(row: Mapping[str, Any], kind: str, name: str) -> bool:
    return row["type"] == kind and _name(row) == name


def _json(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    text = inputs.get("meanwhile") or inputs.get("text")
    # A secret would be a mapping here; nothing in stack.json is one.
    data = json.loads(text) if isinstance(text, str) else {}
    return data if isinstance(data, dict) else {}
