"""What ``vllm-fleet init`` asks and writes besides hosts: models, their source, the API key, hosts of an inventory."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from hanging import HANGING_SECONDS
from init_hosts import ADDRESS, init

from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.private_keys import private_key_fault
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import init_questions
from vllm_fleet.edge import git, keys
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.fleet import plan
from vllm_fleet.operate import enrol
from vllm_fleet.operate.import_inventory import import_inventory


def fleet_spec(home: Path) -> dict:
    return yaml.safe_load((home / "rack" / "fleet.yml").read_text())


def test_what_init_writes_is_what_site_accepts(start, home: Path, tmp_path: Path, catalog: Catalog) -> None:
    host, gateway = start("h200-8"), start(None)
    key_file = tmp_path / "key"
    arguments = [*host.arguments, "--gateway", f"root@{ADDRESS}:{gateway.port}", "--key", str(host.key_file)]
    arguments += ["--fingerprint", f"{ADDRESS}:{gateway.port}={gateway.fingerprint}", "--api-key-file", str(key_file)]
    code, told = init("rack", *arguments)
    assert code == 0, told
    assert "site.yml will refuse" not in told
    planned = plan.load(home / "rack", catalog)
    assert inventory.find_refusals(planned, catalog) == ()
    site = inventory.load(home / "rack")
    assert [host.plan.name for host in site.hosts] == ["h200-0", "gateway-0"]
    secret = key_file.read_text().strip()
    assert yaml.safe_load((home / "rack" / "api-keys.yml").read_text()) == {"keys": {"rack": keys.digest(secret)}}
    everything = "".join(file.read_text() for file in (home / "rack").iterdir())
    assert secret not in told + everything


@pytest.mark.parametrize(
    ("source", "written"),
    [
        (("hub=mirror",), {"hub": "mirror"}),
        (("on_host=/mnt/m", "mount=/mnt"), {"on_host": "/mnt/m", "mount": "/mnt"}),
        (("huggingface_cache=/data/hf/hub",), {"huggingface_cache": "/data/hf/hub"}),
        (("url=https://bucket.example.com/m",), {"url": "https://bucket.example.com/m"}),
        ((), {"hub": "hosts"}),
    ],
)
def test_the_source_of_the_model_is_written(start, home: Path, source: tuple[str, ...], written: dict) -> None:
    host = start("h200-8")
    options = [word for text in source for word in ("--model-from", text)]
    code, told = init("rack", *host.arguments, "--key", str(host.key_file), *options)
    assert code == 0, told
    assert fleet_spec(home)["artifacts"]["models"] == {"openai/gpt-oss-120b": written}
    # A download that is not there yet is said; nothing else is missing.
    assert ("site.yml will refuse: " in told) == (source == ("hub=mirror",))


def test_a_folder_of_one_model_is_not_that_of_two(start, home: Path) -> None:
    big, small = start("h200-8"), start("r9700-1")
    arguments = [*big.arguments, *small.arguments, "--key", str(big.key_file), "--model-from", "on_host=/data/m"]
    code, told = init("rack", *arguments)
    assert (code, "--model-from: on_host has the files of one model" in told) == (2, True), told
    assert not home.exists()


def test_a_mirror_on_a_host_of_the_fleet(start, home: Path) -> None:
    host = start("h200-8")
    arguments = [*host.arguments, "--key", str(host.key_file), "--model-from", "hub=mirror", "--mirror"]
    code, told = init("rack", *arguments, "nobody-0")
    assert code == 2
    assert "nobody-0" in told
    assert not home.exists()
    code, told = init("rack", *arguments, "h200-0")
    assert code == 0, told
    assert fleet_spec(home)["mirror"] == {"host": "h200-0"}
    assert "site.yml will refuse: " in told
    assert "run 'vllm-fleet mirror --fleet rack' first" in told


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--model-from: there is no terminal to ask where the models come from"),
        (("--model-from", "hub=hosts"), "--model: there is no terminal to ask which model h200-8 serves"),
    ],
)
def test_without_a_terminal_the_option_is_named(start, home: Path, arguments: tuple[str, ...], says: str) -> None:
    host = start("h200-8")
    code, told = init("rack", *host.arguments, "--key", str(host.key_file), "--asks", *arguments)
    assert (code, says in told) == (2, True), told
    assert not home.exists()
    options = ("--model", "openai/gpt-oss-20b", "--model-from", "hub=hosts")
    assert init("rack", *host.arguments, "--key", str(host.key_file), "--asks", *options)[0] == 0
    assert fleet_spec(home)["pools"]["h200"]["model"] == "openai/gpt-oss-20b"


def test_a_key_without_a_place_stops_before_a_host_is_asked(home: Path, tmp_path: Path) -> None:
    code, told = init("rack", "--gateway", "10.0.0.5")
    assert (code, "--api-key-file: there is no terminal to show the new API key" in told) == (2, True), told
    own = tmp_path / "mine"
    own.write_text("precious")
    code, told = init("rack", "--gateway", "10.0.0.5", "--api-key-file", str(own))
    assert (code, "exists already" in told, own.read_text()) == (2, True, "precious")
    assert not home.exists()


def test_a_class_that_is_said_is_that_of_a_host_without_gpus_alone(start, home: Path) -> None:
    without, h200 = start(None), start("h200-8")
    key = ("--key", str(h200.key_file), "--host-class", "cpu-2")
    code, told = init("rack", *h200.arguments, *key)
    assert (code, "--host-class: is h200-8 by its GPUs, not cpu-2" in told) == (2, True), told
    assert not home.exists()
    code, told = init("rack", *without.arguments, *key, "--model-from", "controller=/models/lab")
    assert code == 0, told
    assert fleet_spec(home)["pools"]["cpu"]["model"] == "vllm-fleet/lab-gpt-oss"
    # The folder is not there: init says what site.yml will say.
    assert "site.yml will refuse: " in told
    assert "/models/lab does not exist" in told
    *_, fix, then = told.splitlines()
    assert fix.startswith("next: ")
    assert then.startswith("then: vllm-fleet plan --fleet rack; ansible-playbook ")


@pytest.mark.parametrize("source", [(), ("hub=hosts",), ("hub=mirror",), ("huggingface_cache=/data/hf/hub",)])
def test_a_model_whose_recipe_pins_no_commit_does_not_come_from_the_hub(
    start, home: Path, source: tuple[str, ...]
) -> None:
    host = start(None)
    words = [*host.arguments, "--key", str(host.key_file), "--host-class", "cpu-2"]
    code, told = init("rack", *words, *(word for text in source for word in ("--model-from", text)))
    assert code == 2
    assert "needs a commit at the hub, and the recipe of vllm-fleet/lab-gpt-oss pins none (give controller=" in told
    assert not home.exists()


def test_a_source_that_the_fleet_has_is_not_chosen_again(start, home: Path) -> None:
    first, second = start(None), start(None)
    source = {"controller": "/models/lab"}
    key = ("--key", str(first.key_file), "--model-from", "controller=/models/lab")
    assert init("rack", *first.arguments, "--host-class", "cpu-2", *key)[0] == 0
    code, told = init("rack", "--add", *second.arguments, "--host-class", "cpu-4")
    assert code == 0, told
    assert fleet_spec(home)["artifacts"]["models"] == {"vllm-fleet/lab-gpt-oss": source}
    assert set(fleet_spec(home)["pools"]) == {"cpu", "cpu-4"}


def test_the_question_offers_no_hub_for_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], catalog: Catalog
) -> None:
    asked: list[str] = []
    answers = iter(["", "/models/lab"])

    def prompt(text: str, default: str = "", value_proc: Callable[[str], Any] = str, **_: object) -> object:
        asked.append(text)
        return value_proc(next(answers) or default)

    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)})())
    monkeypatch.setattr(init_questions.typer, "prompt", prompt)
    asker = init_questions.Asker(take_defaults=False)
    assert asker.source(["vllm-fleet/lab-gpt-oss"], catalog) == {"controller": "/models/lab"}
    assert asked == ["Choice", "The folder on this machine"]
    offered = capsys.readouterr().err
    assert "hub" not in offered
    assert "a folder on each host" in offered
    with pytest.raises(FleetError, match="no one source has"):
        asker.source(["openai/gpt-oss-120b", "vllm-fleet/lab-gpt-oss"], catalog)


def test_a_class_that_is_said_needs_gpus_on_the_bus(start, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, read_facts, bus = start(None), enrol.probing.read_facts, {"pci_gpus": {}}
    monkeypatch.setattr(enrol.probing, "read_facts", lambda targets: [{**each, **bus} for each in read_facts(targets)])
    words = [*host.arguments, "--key", str(host.key_file), "--host-class", "h100-8"]
    code, told = init("rack", *words)
    assert (code, told) == (
        2,
        f"{ADDRESS}: --host-class: is not h100-8: its PCI bus has no GPU "
        "(give the class of its hardware; a host without a GPU is cpu-2)",
    )
    assert not home.exists()
    bus["pci_gpus"] = None
    code, told = init("rack", *words)
    assert code == 0, told
    assert "# nothing reports a GPU: h100-8 is what --host-class says" in told


def test_the_password_for_sudo_reaches_the_hosts_and_no_file(
    start, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = start("h200-8"), []
    read_facts = enrol.probing.read_facts
    monkeypatch.setattr(enrol.probing, "read_facts", lambda targets: [*read_facts(asked.extend(targets) or targets)])
    file = tmp_path / "sudo"
    file.write_text("open sesame\n")
    code, told = init("rack", *host.arguments, "--key", str(host.key_file), "--become-password-file", str(file))
    assert code == 0, told
    assert [target.become_password for target in asked] == ["open sesame"]
    assert told.rstrip().endswith("site.yml -K")
    assert "sesame" not in told + "".join(each.read_text() for each in (home / "rack").iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model-from", "disk"), "--model-from: 'disk' is not KEY=VALUE"),
        (("--model-from", "on_host=data"), "--model-from: not a source of a model: "),
        (("--model-from", "on_host=/a", "--model-from", "url=https://b/c"), "gives on_host and url"),
        (("--model-from", "foo=bar"), "--model-from: not a source of a model: foo: unknown key"),
        (("--model-from", "hub=foo"), "hub: must be 'mirror' or 'hosts', not 'foo'"),
        (("--host-class", "h201-8"), "--host-class: there is no host class 'h201-8'"),
        (("--host-class", ""), "--host-class: there is no host class ''"),
        (("--model", "nope"), "--model: there is no model 'nope'"),
        (("--model", ""), "--model: there is no model ''"),
        (("--model", "openai/gpt-oss-120b", "--host-class", "cpu-2"), "the 120b model on a processor was found"),
        (("--mirror", ""), "--mirror: '' is not a name"),
        (("--mirror", "no such"), "--mirror: 'no such' is not a name"),
        (("--mirror", "ftp://x"), "--mirror: 'ftp://x' is not the URL of a server"),
        (("--mirror", "http://x:0"), "--mirror: 'x:0' is not a host with a port"),
        (("--mirror", "http://user:word@x"), "--mirror: "),
        (("--group", "gpu"), "--group: is a group of an Ansible inventory"),
        (("--gateway-group", ""), "--gateway-group: is a group of an Ansible inventory"),
        (("--from-inventory", "/nowhere"), "/nowhere: --from-inventory: does not exist"),
        (("-K",), "--ask-become-pass: there is no terminal to ask for the password"),
        (("--become-password-file", "/nowhere"), "/nowhere: --become-password-file: does not exist"),
        (("--become-password-file", "/etc"), "/etc: --become-password-file: is a folder, not a file"),
        (("--become-password-file", "/dev/null"), "/dev/null: --become-password-file: is a device, a pipe"),
        (("--api-key-file", "key"), "--api-key-file: no API key is made: there is no gateway"),
    ],
)
def test_bad_options_are_one_clear_error(home: Path, arguments: tuple[str, ...], says: str) -> None:
    code, told = init("rack", "--host", "10.0.0.5", *arguments)
    assert (code, says in told) == (2, True), told
    assert not home.exists()


@pytest.fixture
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrol, "scan_keys", lambda *_: pytest.fail("a host was asked"))


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_place_that_cannot_be_written_stops_before_a_host_is_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    hosts = ("--host", "10.0.0.5", "--gateway", "10.0.0.6", "--api-key-file")
    code, told = init("rack", *hosts, str(file / "key"))
    assert (code, told) == (2, f"{file}: --api-key-file: is not a folder (correct the path)")
    code, told = init("rack", *hosts, str(tmp_path))
    assert (code, "exists already" in told) == (2, True), told
    home.mkdir()
    (home / "rack").write_text("mine")
    code, told = init("rack", *hosts, str(tmp_path / "key"))
    assert (code, told) == (2, f"{home / 'rack'}: is not a folder (choose another name)")
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(file))
    code, told = init("rack", *hosts, str(tmp_path / "key"))
    assert (code, told) == (2, f"{file}: is not a folder (correct the variable VLLM_FLEET_INVENTORIES)")


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_key_that_git_would_commit_stops_before_a_host_is_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    (checkout / ".gitignore").write_text("inventories/*/api-key\n")
    file, ignored = checkout / "key", checkout / "inventories/rack/api-key"
    assert [git.would_commit(each) for each in (file, ignored, checkout / "new/key")] == [True, False, True]
    assert not git.would_commit(tmp_path / "key")
    words = ("--gateway", "10.0.0.5", "--api-key-file", str(file))
    says = f"{file}: --api-key-file: is in a git checkout that does not ignore it, so the key could be committed"
    assert init("rack", *words) == (
        2,
        f"{says} (give a path outside the checkout, or {home / 'rack' / 'api-key'})",
    )
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(checkout / "fleets"))
    assert init("rack", *words) == (2, f"{says} (give a path outside the checkout)")
    assert not home.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not git.would_commit(file)


@pytest.mark.usefixtures("nobody_is_asked")
def test_more_hosts_than_a_fleet_can_have_stop_before_one_is_asked(home: Path, tmp_path: Path) -> None:
    addresses = [f"10.0.{number >> 8}.{number & 255}" for number in range(1, 1002)]
    file = tmp_path / "hosts.ini"
    file.write_text("".join(f"{address}\n" for address in addresses))
    code, told = init("rack", "--from-inventory", str(file))
    assert (code, f"{file}: --from-inventory: the group has 1001 hosts" in told) == (2, True), told
    code, told = init("rack", *(word for address in addresses for word in ("--host", address)))
    assert (code, "--host: the fleet has 1001 hosts: docs/performance.md measures 1000" in told) == (2, True), told
    gateways = (word for address in addresses[:65] for word in ("--gateway", address))
    code, told = init("rack", "--host", "10.9.0.1", *gateways)
    assert (code, "--gateway: the fleet has 65 gateways" in told) == (2, True), told
    assert not home.exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_two_hosts_of_an_inventory_with_one_address_are_named(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text("a ansible_host=10.0.0.5\nb ansible_host=10.0.0.5\nc ansible_host=10.0.0.7\n")
    code, told = init("rack", "--from-inventory", str(file), "--host", "10.0.0.7")
    assert (code, told.splitlines()) == (
        2,
        [
            f"{file}: --from-inventory: a and b are both 10.0.0.5 (leave one out)",
            f"{file}: --from-inventory: 10.0.0.7 and c are both 10.0.0.7 (leave one out)",
        ],
    )
    assert not home.exists()


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_home_that_nobody_has_is_no_key(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text("a ansible_host=10.0.0.5 ansible_ssh_private_key_file=~nobody-here/k\n")
    code, told = init("rack", "--from-inventory", str(file))
    assert (code, told) == (2, "~nobody-here/k: --key: does not exist (correct the path)")


@pytest.mark.usefixtures("nobody_is_asked")
def test_a_key_that_ssh_refuses_stops_before_a_host_is_asked(home: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "id", tmp_path / "id.pub"
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(private)
    key.write_public_key(public)
    for mode in (0o640, 0o604):
        private.chmod(mode)
        code, told = init("rack", "--host", "10.0.0.5", "--key", str(private))
        says = f"can be read by other users (mode {mode:04o}), so ssh refuses it (chmod 600 {private})"
        assert (code, told) == (2, f"{private}: --key: {says}")
    public.chmod(0o600)
    code, told = init("rack", "--host", "10.0.0.5", "--key", str(public))
    assert (code, f"{public}: --key: is a public key (give the private key beside it" in told) == (2, True), told
    assert not home.exists()
    private.chmod(0o600)
    assert private_key_fault(private) is None


def test_ssh_compares_names_as_they_are_typed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config"
    config.write_text("Host GPU-1\n  HostName 10.0.0.5\nHost gpu-2\n  HostName no_name\n")
    (named,) = enrol.parse_hosts(["GPU-1"], [], None)
    assert [(each.address, each.alias) for each in enrol.find_hosts([named], config)] == [("10.0.0.5", "")]
    with pytest.raises(FleetError, match="no '_'") as refused:
        enrol.find_hosts(enrol.parse_hosts(["gpu-2"], [], None), config)
    assert (refused.value.host, refused.value.exit_code) == ("gpu-2", 2)


def test_questions_are_asked_on_a_terminal_and_the_key_is_shown_once(start, home: Path) -> None:
    """The command itself, on a pseudo-terminal, answered as a person would."""
    host, gateway = start("h200-8"), start(None)
    program = "import init_hosts; init_hosts.serve_at_one_address(setattr); init_hosts.app()"
    words = [sys.executable, "-c", program, "init", "rack", *host.arguments, "--key", str(host.key_file)]
    words += ["--gateway", f"root@{ADDRESS}:{gateway.port}"]
    words += ["--fingerprint", f"{ADDRESS}:{gateway.port}={gateway.fingerprint}"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=paths.root(),
        close_fds=True,
        env={**os.environ, "PYTHONPATH": f"{paths.root() / 'tests' / 'unit'}:{paths.root()}"},
    )
    os.close(theirs)
    told = ""
    for question, answer in (
        ("Choice [1]:", "2"),  # the model
        ("Choice [1]:", "9"),
        ("Choice [1]:", "4"),  # a Hugging Face cache
        ("models--ORG--NAME", "relative"),
        ("models--ORG--NAME", "/data/hf/hub"),
    ):
        seen = ""
        while question not in seen or not seen.rstrip().endswith(":"):
            try:
                seen += os.read(ours, 4096).decode()
            except OSError:  # Linux says so at the end of a terminal
                pytest.fail(f"it ended before {question!r}: {told}{seen}")
        told += seen
        os.write(ours, f"{answer}\n".encode())
    out, _ = process.communicate(timeout=HANGING_SECONDS)
    try:
        while piece := os.read(ours, 4096).decode():
            told += piece
    except OSError:  # Linux says so at the end of a terminal
        os.close(ours)
    assert process.returncode == 0, told
    assert "'9' is not one of 1, 2, 3, 4, 5, 6" in told
    assert "is not an absolute path on the host" in told
    spec = fleet_spec(home)
    assert spec["pools"]["h200"]["model"] == "openai/gpt-oss-20b"
    assert spec["artifacts"]["models"] == {"openai/gpt-oss-20b": {"huggingface_cache": "/data/hf/hub"}}
    (secret,) = re.findall(r"shown only now; api-keys.yml has its digest:\s+(\S+)", told)
    assert keys.digest(secret) in (home / "rack" / "api-keys.yml").read_text()
    assert secret not in out.decode()
    assert not (home / "rack" / "api-key").exists()


INI = """
[gpu]
gpu-a ansible_host=10.0.0.5 ansible_port=2222 ansible_user=admin
gpu-b ansible_host=fd00::6
[lb]
edge-1.example.com
[all:vars]
ansible_ssh_private_key_file=/keys/id
ansible_ssh_common_args='-o ProxyJump=ops@bastion.example.com:2200 -o ServerAliveInterval=30'
"""


def test_an_inventory_in_ini_form_is_read_by_ansible(tmp_path: Path) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text(INI)
    found = import_inventory(file, "gpu", "lb")
    assert [(host.label, host.name, host.port, host.user, host.gateway) for host in found.hosts] == [
        ("gpu-a", "10.0.0.5", 2222, "admin", False),
        ("gpu-b", "fd00::6", None, None, False),
        ("edge-1.example.com", "edge-1.example.com", None, None, True),
    ]
    assert (found.bastion, found.key, found.config) == ("ops@bastion.example.com:2200", Path("/keys/id"), None)


def test_groups_below_groups_and_a_configuration_of_ssh(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    hosts = {"h1": {"ansible_user": "u"}, "h2": {}}
    extra = {"ansible_ssh_extra_args": "-F ~/fleet_ssh"}
    spec = {"all": {"children": {"gpu": {"children": {"h": {"hosts": hosts}}, "vars": extra}}}}
    file.write_text(yaml.safe_dump(spec))
    found = import_inventory(file, "gpu", None)
    assert [host.name for host in found.hosts] == ["h1", "h2"]
    assert found.config == Path("~/fleet_ssh").expanduser()


@pytest.mark.parametrize(
    ("variables", "key", "says"),
    [
        ({"ansible_host": "10.0.0.5;reboot"}, "ansible_host", "neither an IP address nor a DNS name"),
        ({"ansible_host": "-oProxyCommand=reboot"}, "ansible_host", "neither an IP address nor a DNS name"),
        ({"ansible_host": "10.0.0.999"}, "ansible_host", "10.0.0.999"),
        ({"ansible_host": "a\nb"}, "ansible_host", "contains blanks or control characters"),
        ({"ansible_host": "{{ lookup('pipe', 'id') }}"}, "ansible_host", "is a template"),
        ({"ansible_host": ["10.0.0.5"]}, "ansible_host", "is not text"),
        ({"ansible_host": "10.0.0.5", "ansible_port": 99999}, "ansible_host", "a port is a number from 1 to 65535"),
        ({"ansible_host": "10.0.0.5", "ansible_user": "a b"}, "ansible_host", "is not the name of a user"),
        ({"ansible_connection": "local"}, "ansible_connection", "is reached by 'local', not by SSH"),
        ({"ansible_ssh_common_args": "-o ProxyCommand='nc %h %p'"}, "ansible_ssh_common_args", "has no key in fleet"),
        ({"ansible_ssh_common_args": "-o 'Proxy"}, "ansible_ssh_common_args", "cannot be split"),
        ({"ansible_ssh_private_key_file": "/other"}, "--key", "a fleet has one key for all hosts"),
    ],
)
def test_what_a_fleet_cannot_have_is_named_with_its_host(tmp_path: Path, variables: dict, key: str, says: str) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text(yaml.safe_dump({"gpu": {"hosts": {"first": {"ansible_host": "10.0.0.4"}, "odd": variables}}}))
    with pytest.raises(FleetError, match=re.escape(says)) as caught:
        import_inventory(file, "gpu", None)
    assert caught.value.key == key
    assert caught.value.file
    assert caught.value.host == ("odd" if key != "--key" else None)


@pytest.mark.parametrize(
    ("text", "group", "says"),
    [
        (INI, "gpus", "there is no group 'gpus' (it has all, gpu, lb)"),
        ("[gpu\n", "gpu", "Ansible cannot read it: "),
        ("[gpu]\n", "all", "the group 'all' has no host"),
    ],
)
def test_an_inventory_that_cannot_be_read(tmp_path: Path, text: str, group: str, says: str) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text(text)
    with pytest.raises(FleetError) as caught:
        import_inventory(file, group, None)
    assert says in str(caught.value)


def test_the_hosts_of_an_inventory_become_a_fleet_with_their_names(start, home: Path, tmp_path: Path) -> None:
    host, gateway = start("h200-8"), start(None)
    file = tmp_path / "hosts.ini"
    file.write_text(
        f"[gpu]\nrack-7 ansible_host={ADDRESS} ansible_port={host.port} ansible_user=root\n"
        f"[lb]\nEdge.1 ansible_host={ADDRESS} ansible_port={gateway.port} ansible_user=root\n"
        f"[all:vars]\nansible_ssh_private_key_file={host.key_file}\n"
    )
    known = [f"--fingerprint={ADDRESS}:{server.port}={server.fingerprint}" for server in (host, gateway)]
    words = ["--from-inventory", str(file), "--group", "gpu", "--gateway-group", "lb", *known]
    code, told = init("rack", *words, "--api-key-file", str(tmp_path / "key"), "--json")
    assert code == 0, told
    assert json.loads(told)["site_refuses"] == []
    assert [member.name for member in plan.load(home / "rack").hosts] == ["rack-7", "gateway-0"]
    assert fleet_spec(home)["access"] == {"ssh_private_key_file": str(host.key_file)}


def test_the_hosts_that_an_inventory_gave_and_their_new_names_are_said(
    start, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = start("h200-8"), start("h200-8")
    file = tmp_path / "hosts.ini"
    file.write_text(
        f"node_one ansible_host={ADDRESS} ansible_port={one.port}\n"
        f"[lb]\nlb-1 ansible_host={ADDRESS} ansible_port={two.port}\n"
        f"[all:vars]\nansible_ssh_private_key_file={one.key_file}\n"
    )
    said: list[str] = []
    monkeypatch.setattr("vllm_fleet.cli.init.print_note", said.append)
    known = [f"--fingerprint={ADDRESS}:{server.port}={server.fingerprint}" for server in (one, two)]
    code, told = init("rack", "--from-inventory", str(file), *known)
    assert code == 0, told
    assert {host.name for host in plan.load(home / "rack").hosts} == {"h200-0", "lb-1"}
    assert said[0].startswith(f"{file}: all hosts become GPU hosts (")
    assert "ungrouped: node_one" in said[0]
    assert "lb: lb-1" in said[0]
    assert said[0].endswith("; --group GROUP chooses a group")
    assert "names in fleet.yml: node_one is h200-0 (" in said[-1]


def test_of_many_hosts_of_an_inventory_the_number_is_said(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hosts.ini"
    file.write_text("[gpu]\n" + "".join(f"10.0.0.{number}\n" for number in range(1, 21)))
    said: list[str] = []
    monkeypatch.setattr("vllm_fleet.cli.init.print_note", said.append)
    monkeypatch.setattr(enrol, "scan_keys", lambda *_: ([], [FleetError("is not asked")]))
    for group, lines in (((), 1), (("--group", "gpu"), 0)):
        said.clear()
        assert init("rack", "--from-inventory", str(file), *group)[0] == 2
        assert len(said) == lines
        assert all("10.0.0.8 and 12 more)" in line for line in said)
    assert not home.exists()


@pytest.mark.parametrize(
    ("answer", "address"),
    [
        ('{"address": "10.1.2.3"}', "10.1.2.3"),
        ('{"address": "fd00::5"}', "fd00::5"),
        ('{"address": "127.0.0.1"}', None),
        ('{"address": "fe80::1"}', None),
        ('{"address": "10.1.2.999"}', None),
        ('{"address": "10.1.2.3", "more": 1}', None),
        ('{"address": "a: b\\n"}', None),
        ("", None),
    ],
)
def test_a_host_says_its_address_where_its_name_does_not_resolve(
    monkeypatch: pytest.MonkeyPatch, answer: str, address: str | None
) -> None:
    async def say(*_: object) -> str:
        return answer

    monkeypatch.setattr(enrol.ssh, "run_json", say)
    monkeypatch.setattr(enrol, "resolve_names", lambda names: dict.fromkeys(names, "nobody knows it"))
    hosts = [Target("a", "gpu-1.internal", 22, "root", ()), Target("b", "10.0.0.5", 22, "root", ())]
    assert enrol._find_inside_addresses(hosts) == ({("gpu-1.internal", 22): address} if address else {})
