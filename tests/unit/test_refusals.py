"""What ``site.yml`` refuses by the fleet's files: ``check`` and ``plan`` say it before, in the same words."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_certificates import certificate_text

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import check
from vllm_fleet.cli import drift as drift_command
from vllm_fleet.cli import plan as plan_command
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan
from vllm_fleet.operate import drift, probing
from vllm_fleet.reports import recipe_check

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
        stops: whether it cannot be read as what it must be, so that ``plan`` ends with an error too.
        line: what fleet.yml, or the file itself, has at the line that is named; None: no line is known.
    """

    says: str
    change: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    by: str = "inventory"
    wrong: bool = False
    stops: bool = False
    line: str | None = None


def broken(
    says: str,
    change: Mapping[tuple[str, ...], Any],
    files: Mapping[str, str | None],
    line: str | None,
    by: str = "inventory",
) -> Case:
    """A file that is there and cannot be read as what it must be."""
    return Case(says, change, files, by, wrong=True, stops=True, line=line)


def lock(name: str = "config.json", sha256: str = f'"{"1" * 64}"', size: str = "1", revision: str = "1" * 40) -> str:
    """A models.lock.json; each value is in a line of its own."""
    files = f'"files": {{\n"{name}": {{\n"sha256": {sha256},\n"bytes": {size}}}}}'
    models = f'"{SMALL}": {{"as_of": "2026-01-01", \n"revision": "{revision}",\n {files}}}'
    return f'{{"version": 1, "models": {{{models}}}}}'


TLS = {("gateway", "tls"): {"certificate_file": "tls.pem"}, ("gateway", "port"): 443}
ACME = {
    ("gateway", "tls"): {
        "acme": {
            "directory": "https://ca.example.com/directory",
            "email": "me@example.com",
            "names": ["api.example.com"],
            "ca_file": "acme.pem",
            "accept_terms": True,
        }
    },
    ("gateway", "port"): 443,
}
AUTHORITY = {("artifacts", "models"): {SMALL: {"url": "https://bucket.example.com/m", "ca_file": "ca.pem"}}}
DIGESTS = {("artifacts", "models"): {SMALL: {"on_host": "/data/m", "digests": "sums.txt"}}}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\n"
PRIVATE = "-----BEGIN PRIVATE KEY-----\n"
CASES: Mapping[str, Case] = {
    "no API keys": Case("golden/api-keys.yml does not exist, so the gateways would", files={"api-keys.yml": None}),
    "an API key that is no digest": Case("", files={"api-keys.yml": "keys: {me: secret}\n"}, wrong=True, stops=True),
    "a file without API keys": broken(
        "golden/api-keys.yml:1:1: must have at least one entry", {}, {"api-keys.yml": "keys: {}\n"}, "keys: {}"
    ),
    "a certificate file without a certificate": broken(
        "golden/tls.pem has no certificate in PEM form", TLS, {"tls.pem": "keys"}, "certificate_file"
    ),
    "a certificate without its key": broken(
        "golden/tls.pem has no private key", TLS, {"tls.pem": f"{CERTIFICATE}MII\n"}, "certificate_file"
    ),
    "a certificate that is damaged": broken(
        "golden/tls.pem has a certificate or a key that is damaged",
        TLS,
        {"tls.pem": f"{CERTIFICATE}MII\n{PRIVATE}MII\n"},
        "certificate_file",
    ),
    "a folder in place of a certificate": broken(
        "golden/tls.pem is a folder, not a file", TLS, {"tls.pem/x": ""}, "certificate"
    ),
    "a CA file without a certificate": broken(
        "golden/ca.pem has no certificate in PEM form", AUTHORITY, {"ca.pem": "keys"}, "ca_file"
    ),
    "an authority with its key": broken(
        "golden/ca.pem has a private key", AUTHORITY, {"ca.pem": f"{PRIVATE}MII\n"}, "ca_file"
    ),
    "an authority in another encoding": broken(
        "golden/ca.pem:2:1 cannot be read: the byte 0xff is not UTF-8", AUTHORITY, {"ca.pem": "a\n\udcff"}, "ca_file"
    ),
    "a folder in place of an authority": broken(
        "golden/ca.pem is a folder, not a file", AUTHORITY, {"ca.pem/x": ""}, "ca_file"
    ),
    "a CA file of a registry without a certificate": broken(
        "golden/fleet.yml has no certificate in PEM form",
        {("mirror",): {"registry": "registry.example.com:5000", "registry_ca_file": "fleet.yml"}},
        {},
        "registry_ca_file",
    ),
    "a folder in place of a key": broken(
        "golden is a folder, not a file",
        {("artifacts", "repositories"): {"nvidia-cuda": {"uri": "http://10.0.0.9/cuda", "signing_key_file": "."}}},
        {},
        "signing_key_file",
    ),
    "keys of hosts that are no YAML": broken("golden/host-keys.yml:1:", {}, {"host-keys.yml": "keys: }"}, "}"),
    "keys of hosts that are no keys": broken(
        "golden/host-keys.yml:2: keys.gpu-0: must be a list", {}, {"host-keys.yml": "keys:\n  gpu-0: x\n"}, "gpu-0"
    ),
    "keys of a host that has left": Case(
        "golden/host-keys.yml:2: keys.gpu-9: the fleet has no such host",
        files={"host-keys.yml": f"keys:\n  gpu-9: [{KEY}]\n"},
        wrong=True,
        line="gpu-9",
    ),
    "zones that are no JSON": broken("golden/zones.json:1:2: is not JSON", {}, {"zones.json": "{"}, "{"),
    "a zone with a wrong value": broken(
        "golden/zones.json:2: gpu-0.made: ", {}, {"zones.json": '{"gpu-0": {"zone": "a",\n"made": 1}}'}, "made"
    ),
    "a zone that is empty": broken(
        "golden/zones.json:1: gpu-0: is empty", {}, {"zones.json": '{"gpu-0": null}'}, "gpu"
    ),
    "zones that are a list": broken("must be a mapping of hosts", {}, {"zones.json": "[]"}, "[]"),
    "a lock of models that is no JSON": broken(
        "golden/models.lock.json:1:2: is not JSON", {}, {"models.lock.json": "{"}, "{"
    ),
    "a lock of models that is nested too deeply": broken(
        "golden/models.lock.json:1: is not JSON: it is nested too deeply",
        {},
        {"models.lock.json": "[" * 100_000},
        "[",
    ),
    "a lock with a file outside of the model's folder": broken(
        "'../../a' is not a plain file name", {}, {"models.lock.json": lock(name="../../a")}, "../../a"
    ),
    "a lock with a wrong digest": broken("'x' is not a SHA-256", {}, {"models.lock.json": lock(sha256='"x"')}, "x"),
    "a lock with a negative size": broken(
        "greater than or equal to 0, not -1", {}, {"models.lock.json": lock(size="-1")}, "-1"
    ),
    "a lock with an endless size": broken("integer, not inf", {}, {"models.lock.json": lock(size="1e999")}, "1e999"),
    "a lock with a branch": broken("match pattern", {}, {"models.lock.json": lock(revision="main")}, "main"),
    "a list of digests that is no JSON": broken(
        "golden/sums.txt:1:2: is not a list of a model's files: is not JSON", DIGESTS, {"sums.txt": "{"}, "{"
    ),
    "a list of digests without a revision": broken(
        "golden/sums.txt:1: revision: is not a list of a model's files: is missing",
        DIGESTS,
        {"sums.txt": f'{{"files": {{"config.json": {{"sha256": "{"1" * 64}"}}}}}}'},
        "files",
    ),
    "a list of digests with a path": broken(
        "golden/sums.txt:2: '../a' is not a plain file name",
        DIGESTS,
        {"sums.txt": f'{{"revision": "1", "files": {{\n"../a": {{"sha256": "{"1" * 64}"}}}}}}'},
        "../a",
    ),
    "a folder in place of a list": broken("golden/sums.txt is not a list", DIGESTS, {"sums.txt/x": ""}, "sums.txt"),
    "a model.json that is wrong": broken(
        "golden/copy/model.json:1:2: is not a list of a model's files: is not JSON",
        {("artifacts", "models"): {SMALL: "copy"}},
        {"copy/model.json": "{"},
        "{",
    ),
    "a certificate that has ended": broken(
        "golden/tls.pem has a certificate that has ended at",
        TLS,
        {"tls.pem": certificate_text(days=(-9, -2))},
        "certificate_file",
    ),
    "a certificate that has not begun": broken(
        "golden/tls.pem has a certificate that begins at",
        TLS,
        {"tls.pem": certificate_text(days=(2, 9))},
        "certificate_file",
    ),
    "an authority of the ACME server that has no certificate": broken(
        "golden/acme.pem has no certificate in PEM form", ACME, {"acme.pem": "keys"}, "ca_file"
    ),
    "an authority of the ACME server that is not there": Case("golden/acme.pem does not exist", ACME),
    "no certificate": Case(
        "golden/tls.pem does not exist", {("gateway", "tls"): {"certificate_file": "tls.pem"}, ("gateway", "port"): 443}
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
        "golden/sums.txt does not exist",
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
        "golden/ca.pem does not exist",
        {("artifacts", "models"): {SMALL: {"url": "https://bucket.example.com/m", "ca_file": "ca.pem"}}},
        wrong=True,
    ),
    "a model that was not downloaded": Case(
        "has no copy of 'openai/gpt-oss-20b'", {("artifacts", "models"): {SMALL: {"hub": "mirror"}}}
    ),
    "no source of the model": Case("has no copy of 'openai/gpt-oss-20b'", {("artifacts", "models"): {}}),
    "a folder that is not there": Case("golden/copy does not exist", {("artifacts", "models"): {SMALL: "copy"}}),
    "a folder without model.json": Case(
        "golden/copy/model.json: ", {("artifacts", "models"): {SMALL: "copy"}}, {"copy/x": ""}
    ),
    "a mirror that was not filled": Case(
        "the mirror of this machine lacks", {("mirror",): {"host": "gateway-0"}, ("artifacts", "models"): {}}
    ),
    "an engine without a lock": Case(
        "vllm-0.33.0-rocm is not locked for x86_64",
        {("pools", "gpu", "host_class"): "mi300x-8", ("pools", "gpu", "install"): "wheel"},
    ),
    "an image without a digest": Case(
        "digest", {("pools", "gpu", "host_class"): "mi300x-8", ("pools", "gpu", "engine"): "rocm-open-mi300"}
    ),
    "an authority of the registry that is not there": Case(
        "golden/registry.pem does not exist",
        {
            ("pools", "gpu", "install"): "docker",
            ("artifacts", "images"): {"vllm-0.33.0-cuda": ANY},
            ("mirror",): {"registry": "registry.example.com:5000", "registry_ca_file": "registry.pem"},
        },
    ),
    "no folder of vocabularies": Case("golden/encodings does not exist", {("artifacts", "encodings"): "encodings"}),
    "a vocabulary that is another file": Case(
        "o200k_base.tiktoken has the SHA-256 ",
        {("artifacts", "encodings"): "encodings"},
        {"encodings/o200k_base.tiktoken": "x", "encodings/cl100k_base.tiktoken": "x"},
        by="role",
    ),
    "no private key": Case("golden/ssh/id does not exist", {("access",): {"ssh_private_key_file": "ssh/id"}}, by="ssh"),
    "a public key in place of the private one": broken(
        "golden/ssh/id is a public key",
        {("access",): {"ssh_private_key_file": "ssh/id"}},
        {"ssh/id": KEY},
        "ssh/id",
        by="ssh",
    ),
    "another file in place of the private key": broken(
        "golden/fleet.yml is not a private key of SSH (correct the path)",
        {("access",): {"ssh_private_key_file": "fleet.yml"}},
        {},
        "fleet.yml",
        by="ssh",
    ),
    "a private key that others can read": broken(
        "golden/ssh/id can be read by other users (mode 0644), so ssh refuses it (chmod 600 golden/ssh/id)",
        {("access",): {"ssh_private_key_file": "ssh/id"}},
        {"ssh/id": PRIVATE},
        "ssh/id",
        by="ssh",
    ),
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
            (folder / name).write_bytes(text.encode(errors="surrogateescape"))
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
    """A controller that has downloaded nothing, resolves no name, and has no agent with keys."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(names, "_resolve", lambda name: f"nobody knows {name}")


@pytest.fixture(autouse=True, scope="module")
def sound_recipes() -> Iterator[None]:
    """The recipes are those of the repository, which other tests check: half a second for each fleet here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_check, "recipe_errors", lambda _catalog: ())
        yield


def test_a_whole_fleet_is_refused_by_nobody(fleets: Path, catalog: Catalog) -> None:
    folder = write_fleet(fleets, Case(""))
    assert inventory.find_refusals(plan.load(folder, catalog), catalog) == ()
    assert site_errors(folder) == []


def expect_line(error: FleetError, text: str) -> None:
    """Expects an error to name a line that has a text."""
    assert error.file is not None
    assert error.line is not None
    assert text in Path(error.file).read_text(encoding="utf-8").splitlines()[error.line - 1]


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
    if case.line is not None:
        expect_line(next(refusal.error for refusal in found if case.says in str(refusal.error)), case.line)
    if case.stops:
        with pytest.raises(FleetError) as fault:
            plan_command.command("golden", json=False)
        assert fault.value.exit_code == 2
        assert any(case.says in str(error) for error in (fault.value, *fault.value.others))
    else:
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


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_a_cache_that_is_no_folder_is_an_error_of_the_variable(
    fleets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / place))
    folder = write_fleet(fleets, Case("", {("mirror",): {"host": "gateway-0"}}))
    for run in (check.command, plan_command.command):
        with pytest.raises(FleetError, match=r"^VLLM_FLEET_CACHE .* is not a folder") as fault:
            run("golden", json=False)
        assert (fault.value.exit_code, fault.value.others) == (2, [])
    assert len(site_errors(folder)) == 1


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


def key_errors(folder: Path, catalog: Catalog) -> list[str]:
    found = inventory.find_refusals(plan.load(folder, catalog), catalog)
    return [str(refusal.error) for refusal in found if refusal.error.key == "access.ssh_private_key_file"]


def test_the_private_key_of_a_stack_is_missing_only_once_the_stack_is_up(fleets: Path, catalog: Catalog) -> None:
    folder = fleets / "golden"
    (error,) = key_errors(folder, catalog)
    assert error.endswith(
        "golden/ssh/id_ed25519 does not exist (run 'pulumi up --stack golden --refresh' to write it again)"
    )
    (folder / "stack.json").unlink()
    assert key_errors(folder, catalog) == []
    file = folder / "fleet.yml"
    file.write_text(file.read_text(encoding="utf-8").replace("ssh/id_ed25519", "ssh/other"), encoding="utf-8")
    (error,) = key_errors(folder, catalog)
    assert error.endswith(
        "golden/ssh/other does not exist (correct the path; the key that the stack makes is ssh/id_ed25519)"
    )


def test_a_public_key_is_right_where_an_agent_may_have_the_private_one(
    fleets: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_fleet(fleets, CASES["a public key in place of the private one"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    assert key_errors(folder, catalog) == []


@pytest.mark.parametrize(
    "name", ["no private key", "a public key in place of the private one", "a private key that others can read"]
)
def test_a_private_key_that_ssh_cannot_use_is_one_error_before_a_host_is_probed(
    name: str, fleets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = inventory.load(write_fleet(fleets, CASES[name]))
    monkeypatch.setattr(probing, "probe_hosts", lambda *_: pytest.fail("a host was probed"))
    with pytest.raises(FleetError) as caught:
        drift.probe_site(site, {host.plan.name: drift.host_target(site, host) for host in site.hosts})
    assert (caught.value.key, caught.value.exit_code, caught.value.others) == ("access.ssh_private_key_file", 2, [])
    assert CASES[name].says in str(caught.value)


def test_drift_counts_the_hosts_that_answered(
    fleets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_fleet(fleets, Case(""))
    reports = {"gpu-0": probing.Report("gpu-0"), "gateway-0": probing.Report("gateway-0", error="no answer")}
    monkeypatch.setattr(probing, "probe_hosts", lambda *_: reports)
    with pytest.raises(FleetError, match="no answer") as caught:
        drift_command.command("golden")
    assert caught.value.exit_code == 1
    assert capsys.readouterr().out == "1 hosts probed, 1 match the plan, 0 items drifted; 1 did not answer\n"


def test_a_fleet_of_static_hosts_needs_no_stack(fleets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fleet(fleets, Case(""))
    plan_command.command("golden", json=False)
    assert "stack: none is needed, all hosts exist already\n" in capsys.readouterr().out


def test_the_command_that_makes_a_lock_is_quoted_whole(fleets: Path, catalog: Catalog) -> None:
    folder = write_fleet(fleets, CASES["an engine without a lock"])
    (error,) = [
        refusal.error
        for refusal in inventory.find_refusals(plan.load(folder, catalog), catalog)
        if "is not locked" in refusal.error.message
    ]
    command = "python -m tools.locks --engine vllm-0.33.0-rocm --machine x86_64 --index URL --output FILE"
    assert error.hint.startswith(f"run '{command}' where its index is reachable")


def test_hosts_download_the_vocabularies_where_no_copy_is_named(fleets: Path, catalog: Catalog) -> None:
    (host, _) = inventory.load(write_fleet(fleets, Case(""))).hosts
    sources = {file["name"]: file["url"] for file in host.variables["harmony_encodings_files"]}
    assert sources == {name: catalog.encodings.encodings[name].url for name in catalog.model(SMALL).encodings}
