"""What the lab's Pulumi providers decide, without a machine to work on."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from pulumi.dynamic import ResourceProvider
from pulumi.dynamic.dynamic import serialize_provider

from infra.files import TextFileProvider
from infra.keys import ApiKeyProvider, SshKeyPairProvider
from lab import cleanup, host, network, provider
from vllm_fleet.edge.keys import digest, ssh_key_pair

NETWORK = {"bridge": "vf-a", "subnet": "10.70.0.0/24", "owner": "/fleets/a", "disk_gib": 1.0, "damage": ""}
HOST: dict[str, Any] = {
    "bridge": "vf-a",
    "name": "lab-0",
    "address": "10.70.0.11",
    "subnet": "10.70.0.0/24",
    "user": "deploy",
    "authorised_key": "ssh-ed25519 A",
    "host_key": "ssh-ed25519 B",
    "tree": "t",
    "peers": {"lab-0": "10.70.0.11"},
    "binds": {},
    "disk_gib": 7.0,
}


@pytest.mark.parametrize(
    ("olds", "news", "changes", "replaces"),
    [
        ({}, {}, False, []),
        ({}, {"subnet": "10.71.0.0/24"}, True, ["subnet"]),
        ({}, {"bridge": "vf-b"}, True, ["bridge"]),
        ({}, {"owner": "/moved"}, True, []),
        ({}, {"disk_gib": 2.0}, False, []),
        ({"damage": "nat missing"}, {}, True, []),
    ],
)
def test_network_diff(olds: dict[str, Any], news: dict[str, Any], changes: bool, replaces: list[str]) -> None:
    wanted = {key: value for key, value in {**NETWORK, **news}.items() if key != "damage"}
    found = provider.NetworkProvider().diff("vf-a", {**NETWORK, **olds}, wanted)
    assert (found.changes, found.replaces, found.delete_before_replace) == (changes, replaces, True)


@pytest.mark.parametrize(
    ("change", "changes", "replaces"),
    [
        ({}, False, []),
        ({"private_host_key": "secret"}, False, []),
        ({"authorised_key": "ssh-ed25519 C"}, True, []),
        ({"peers": {}}, True, []),
        *(({key: "other"}, True, [key]) for key in ("address", "tree", "host_key", "user", "name")),
        ({"binds": {"/a": "/b"}}, True, ["binds"]),
        ({"containers": False}, False, []),
        ({"containers": True}, True, ["containers"]),
        ({"disk_gib": 9.0}, False, []),
    ],
)
def test_host_diff(change: dict[str, Any], changes: bool, replaces: list[str]) -> None:
    found = provider.HostProvider().diff("id", HOST, {**HOST, **change})
    assert (found.changes, found.replaces, found.delete_before_replace) == (changes, replaces, True)


def test_a_host_that_does_not_answer_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "alive", lambda _spec, machine_id: machine_id == "there")
    assert provider.HostProvider().read("there", HOST).id == "there"
    gone = provider.HostProvider().read("not-there", HOST)
    assert (gone.id, gone.outs) == ("", {})


@pytest.mark.parametrize(
    ("damage", "id_", "noted"), [(None, "vf-a", ""), ("nat missing", "vf-a", "nat missing"), ("gone", "", None)]
)
def test_a_network_is_read_as_it_is(monkeypatch: pytest.MonkeyPatch, damage: str, id_: str, noted: str | None) -> None:
    monkeypatch.setattr(network, "damage", lambda _spec: damage)
    found = provider.NetworkProvider().read("vf-a", NETWORK)
    assert (found.id, found.outs.get("damage")) == (id_, noted)


def test_a_network_goes_with_all_its_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    monkeypatch.setattr(cleanup, "down", gone.append)
    provider.NetworkProvider().delete("vf-a", NETWORK)
    assert gone == ["vf-a"]


@pytest.mark.parametrize("made", [SshKeyPairProvider, ApiKeyProvider])
def test_keys_are_made_once(made: type[ResourceProvider]) -> None:
    first, second = made().create({}), made().create({})
    assert first.outs != second.outs
    assert made().diff(first.id, first.outs or {}, {}).changes is False


def test_a_key_pair_is_what_ssh_reads(tmp_path: Path) -> None:
    private, public = ssh_key_pair()
    assert private.startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    kind, data = public.split()
    assert kind == "ssh-ed25519"
    assert base64.b64decode(data)[4:15] == b"ssh-ed25519"


def test_the_digest_of_an_api_key_is_its_sha256() -> None:
    assert digest("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "made",
    [
        provider.NetworkProvider,
        provider.HostProvider,
        SshKeyPairProvider,
        ApiKeyProvider,
        TextFileProvider,
    ],
)
def test_the_state_names_a_provider_and_does_not_hold_its_code(made: type[ResourceProvider]) -> None:
    held = base64.b64decode(serialize_provider(made()))
    assert made.__name__.encode() in held
    assert len(held) < 100, "an edit of the code must not change the state"


def test_a_file_is_kept_as_the_stack_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path))
    files = TextFileProvider()
    wanted = {"path": "demo/ssh/key", "text": "one", "mode": "0o600"}
    made = files.create(dict(wanted))
    outs = made.outs or {}
    path = tmp_path / made.id
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777) == ("one", 0o600)
    assert "one" not in str(outs)
    assert files.diff(made.id, files.read(made.id, outs).outs, wanted).changes is False

    path.write_text("edited by hand", encoding="utf-8")
    assert files.diff(made.id, outs, wanted).changes is True
    files.update(made.id, outs, dict(wanted))
    assert path.read_text(encoding="utf-8") == "one"

    path.chmod(0o644)
    assert files.diff(made.id, outs, wanted).changes is True
    assert files.diff(made.id, outs, {**wanted, "path": "demo/else"}).replaces == ["path"]
    # Another checkout has no such file yet; that says nothing of the stack.
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "another"))
    assert files.read(made.id, outs).id == made.id
    assert files.diff(made.id, outs, wanted).changes is True
    files.delete(made.id, outs)
    assert path.is_file()

    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path))
    files.delete(made.id, outs)
    assert not path.parent.exists()
    files.delete(made.id, outs)


@pytest.mark.parametrize("path", ["../outside", "/etc/outside"])
def test_a_file_outside_of_the_inventories_is_neither_written_nor_deleted(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(tmp_path / "inventories"))
    outside = tmp_path / "outside"
    outside.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is no path below the folder of the inventories"):
        TextFileProvider().create({"path": path, "text": "one", "mode": "0o600"})
    digest = hashlib.sha256(b"mine").hexdigest()
    TextFileProvider().delete("it", {"path": path, "mode": "0o600", "sha256": digest})
    assert outside.read_text(encoding="utf-8") == "mine"
