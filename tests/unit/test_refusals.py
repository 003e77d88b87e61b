"""What ``site.yml`` refuses by the fleet's files: ``check`` and ``plan`` say it before, in the same words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import check
from vllm_fleet.cli import plan as plan_command
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
SMALL, LAB = "openai/gpt-oss-20b", "vllm-fleet/lab-gpt-oss"
SPEC: Mapping[str, Any] = {
    "fleet": "golden",
    "pools": {
        "gpu": {
            "host_class": "h100-1",
            "cloud": "static",
            "model": SMALL,
            "static": {"gpu-0": {"address": "10.0.0.5", "ssh_host_key": KEY}},
        }
    },
    "gateway": {"static": {"gateway-0": {"address": "10.0.0.4", "ssh_host_key": KEY}}},
    "artifacts": {"models": {SMALL: {"on_host": "/data/models/gpt-oss-20b"}}},
}
ANY = "sha256:" + "1" * 64


@dataclass(frozen=True)
class Case:
    """A fleet with one fault.

    Attributes:
        says: what is said of it.
        change: dotted path -> value, in fleet.yml.
        files: files of the fleet's folder; None removes one.
        by: who refuses it in a run: the inventory, or a later step.
        wrong: whether a file is wrong, so that ``check`` ends with an error.
    """

    says: str
    change: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    by: str = "inventory"
    wrong: bool = False


CASES: Mapping[str, Case] = {
    "no API keys": Case("there is no golden/api-keys.yml, so the gateways would", files={"api-keys.yml": None}),
    "an API key that is no digest": Case("", files={"api-keys.yml": "keys: {me: secret}\n"}, wrong=True),
    "no certificate": Case(
        "there is no golden/tls.pem", {("gateway", "tls"): {"certificate_file": "tls.pem"}, ("gateway", "port"): 443}
    ),
    "no digests of the model": Case(
        "the digests of vllm-fleet/lab-gpt-oss are unknown",
        {
            ("pools", "gpu", "model"): LAB,
            ("pools", "gpu", "host_class"): "cpu-2",
            ("artifacts", "models"): {LAB: {"on_host": "/data/lab"}},
        },
        wrong=True,
    ),
    "a list of digests that is not there": Case(
        "there is no golden/sums.txt",
        {("artifacts", "models"): {SMALL: {"on_host": "/data/m", "digests": "sums.txt"}}},
        wrong=True,
    ),
    "a token that others can read": Case(
        "token",
        {("artifacts", "models"): {SMALL: {"hub": "hosts", "token_file": "token"}}},
        {"token": "hf_x"},
        wrong=True,
    ),
    "an authority that is not there": Case(
        "there is no golden/ca.pem",
        {("artifacts", "models"): {SMALL: {"url": "https://bucket.example.com/m", "ca_file": "ca.pem"}}},
        wrong=True,
    ),
    "a model that was not downloaded": Case(
        "has no copy of 'openai/gpt-oss-20b'", {("artifacts", "models"): {SMALL: {"hub": "mirror"}}}
    ),
    "no source of the model": Case("has no copy of 'openai/gpt-oss-20b'", {("artifacts", "models"): {}}),
    "a folder that is not there": Case("there is no golden/copy", {("artifacts", "models"): {SMALL: "copy"}}),
    "a folder without model.json": Case(
        "golden/copy/model.json: ", {("artifacts", "models"): {SMALL: "copy"}}, {"copy/x": ""}
    ),
    "a mirror that was not filled": Case(
        "the mirror of this machine lacks", {("mirror",): {"host": "gateway-0"}, ("artifacts", "models"): {}}
    ),
    "an engine without a lock": Case(
        "vllm-0.32.0-rocm is not locked for x86_64",
        {("pools", "gpu", "host_class"): "mi300x-8", ("pools", "gpu", "install"): "wheel"},
    ),
    "an image without a digest": Case(
        "digest", {("pools", "gpu", "host_class"): "mi300x-8", ("pools", "gpu", "engine"): "rocm-open-mi300"}
    ),
    "an authority of the registry that is not there": Case(
        "there is no golden/registry.pem",
        {
            ("pools", "gpu", "install"): "docker",
            ("artifacts", "images"): {"vllm-0.32.0-cuda": ANY},
            ("mirror",): {"registry": "registry.example.com:5000", "registry_ca_file": "registry.pem"},
        },
    ),
    "no folder of vocabularies": Case("there is no golden/encodings", {("artifacts", "encodings"): "encodings"}),
    "a vocabulary that is another file": Case(
        "o200k_base.tiktoken has the SHA-256 ",
        {("artifacts", "encodings"): "encodings"},
        {"encodings/o200k_base.tiktoken": "x", "encodings/cl100k_base.tiktoken": "x"},
        by="role",
    ),
    "no private key": Case("there is no golden/ssh/id", {("access",): {"ssh_private_key_file": "ssh/id"}}, by="ssh"),
    "a distribution that the vendor has no driver for": Case(
        "recipes/drivers.yml has no nvidia-cuda for debian-12",
        {
            ("pools", "gpu", "host_class"): "gb200-4",
            ("pools", "gpu", "driver"): "managed",
            ("mirror",): {"url": "http://10.0.0.4:8070", "distribution": "debian-12"},
        },
    ),
    "a name that does not resolve": Case(
        "no-such-host.invalid",
        {("pools", "gpu", "static"): {"gpu-0": {"address": "no-such-host.invalid", "ssh_host_key": KEY}}},
    ),
    "gateways that are only counted": Case(
        "asks for gateways that do not exist yet", {("gateway",): {"hosts": 1, "cloud": "static"}}
    ),
}


def write_fleet(fleets: Path, case: Case) -> Path:
    folder = fleets / "golden"
    (folder / "stack.json").unlink()
    spec = json.loads(json.dumps(SPEC))
    for path, value in case.change.items():
        place = spec
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec))
    for name, text in case.files.items():
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    return folder


def site_errors(folder: Path) -> list[str]:
    """What a run says before it touches a host."""
    try:
        inventory.load(folder)
    except FleetError as fault:
        return [str(each) for each in (fault, *fault.others)]
    return []


@pytest.fixture(autouse=True)
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that has downloaded nothing, and resolves no name."""
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "_resolve", lambda name: f"nobody knows {name}")


def test_a_whole_fleet_is_refused_by_nobody(fleets: Path, catalog: Catalog) -> None:
    folder = write_fleet(fleets, Case(""))
    assert inventory.find_refusals(plan.load(folder, catalog), catalog) == ()
    assert site_errors(folder) == []


@pytest.mark.parametrize("name", CASES)
def test_check_and_plan_say_it_in_the_words_of_the_run(
    name: str, fleets: Path, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    folder = write_fleet(fleets, case)
    found = inventory.find_refusals(plan.load(folder, catalog), catalog)
    said = [str(refusal.error) for refusal in found]
    assert any(case.says in text for text in said), said
    assert len(said) == len(set(said))
    assert any(refusal.is_wrong for refusal in found) == case.wrong
    if case.by == "inventory":
        refused = site_errors(folder)
        assert refused
        assert set(refused) <= set(said)
    plan_command.command("golden", json=False)
    told = capsys.readouterr().out
    assert all(f"site.yml will refuse: {text}" in told for text in said)
    if case.wrong:
        with pytest.raises(FleetError):
            check.command("golden", json=False)
    else:
        check.command("golden", json=False)
        told = capsys.readouterr().out
        assert all(f"site.yml will refuse: {text}" in told for text in said)


PLACES: Mapping[str, Callable[[Path], object]] = {
    "is a folder, not a file": Path.mkdir,
    "is a device, a pipe or a socket, not a file": os.mkfifo,
    "cannot be read: Too many levels of symbolic links": lambda file: file.symlink_to(file.name),
    "cannot be read: Permission denied": Path.touch,
}
TLS: Mapping[tuple[str, ...], Any] = {("gateway", "tls"): {"certificate_file": "own.pem"}, ("gateway", "port"): 443}
NAMED: Mapping[str, Mapping[tuple[str, ...], Any]] = {
    "gateway.api_keys_file": {("gateway", "api_keys_file"): "own.pem"},
    "gateway.tls.certificate_file": TLS,
    "access.ssh_private_key_file": {("access",): {"ssh_private_key_file": "own.pem"}},
    "access.ssh_config_file": {("access",): {"ssh_config_file": "own.pem"}},
    "mirror.registry_ca_file": {
        ("pools", "gpu", "install"): "docker",
        ("artifacts", "images"): {"vllm-0.32.0-cuda": ANY},
        ("mirror",): {"registry": "registry.example.com:5000", "registry_ca_file": "own.pem"},
    },
}


@pytest.mark.parametrize("says", PLACES)
@pytest.mark.parametrize("key", NAMED)
def test_what_is_there_and_is_no_file_that_can_be_read_is_one_error(
    key: str, says: str, fleets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fleet(fleets, Case("", NAMED[key]))
    PLACES[says](folder / "own.pem")
    if "Permission" in says:  # root may read every file
        monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "own.pem")
    for run in (lambda: check.command("golden"), lambda: plan_command.command("golden")):
        with pytest.raises(FleetError) as caught:
            run()
        fault = caught.value
        assert (fault.exit_code, fault.others) == (2, [])
        assert f"golden/own.pem {says}" in fault.message
        assert (fault.key, fault.file) == (key, "golden/fleet.yml")
        assert fault.line is not None


@pytest.mark.parametrize("value", ["", ".", "x" * 900, "/etc/passwd/keys"])
def test_api_keys_that_are_named_as_no_file_can_be(value: str, fleets: Path) -> None:
    write_fleet(fleets, Case("", {("gateway", "api_keys_file"): value}))
    try:
        check.command("golden")
    except FleetError as fault:
        assert (fault.exit_code, fault.key) == (2, "gateway.api_keys_file")
    else:
        assert value.startswith("/etc"), "nothing is there, so it may be on another machine"


@pytest.mark.parametrize("name", ["api-keys.yml", "stack.json"])
def test_a_link_to_itself_in_place_of_a_file_of_the_fleet(name: str, fleets: Path) -> None:
    folder = fleets / "golden"
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    with pytest.raises(FleetError, match=f"{name}.* cannot be read: Too many levels of symbolic links"):
        inventory.load(folder)


def test_every_fault_is_said_at_once(fleets: Path) -> None:
    three = ("no API keys", "no certificate", "a model that was not downloaded")
    both = Case(
        "",
        {path: value for name in three for path, value in CASES[name].change.items()},
        {file: text for name in three for file, text in CASES[name].files.items()},
    )
    refused = site_errors(write_fleet(fleets, both))
    assert all(any(CASES[name].says in text for text in refused) for name in three), refused


def test_keys_that_the_stack_will_make_are_not_missing(fleets: Path, catalog: Catalog) -> None:
    folder = fleets / "golden"
    for name in ("stack.json", "api-keys.yml"):
        (folder / name).unlink()
    assert not [
        refusal
        for refusal in inventory.find_refusals(plan.load(folder, catalog), catalog)
        if "api-keys" in str(refusal.error)
    ]


def test_hosts_download_the_vocabularies_where_no_copy_is_named(fleets: Path, catalog: Catalog) -> None:
    (host, _) = inventory.load(write_fleet(fleets, Case(""))).hosts
    sources = {file["name"]: file["url"] for file in host.variables["harmony_encodings_files"]}
    assert sources == {name: catalog.encodings.encodings[name].url for name in catalog.model(SMALL).encodings}
