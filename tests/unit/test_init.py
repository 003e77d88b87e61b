"""``vllm-fleet init`` on a real SSH server, with the stand-ins of the lab as the tools of its host."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

import asyncssh
import pytest
import yaml
from init_hosts import ADDRESS, init

from lab import gpu
from lab.rootfs import write_files
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.edge.ssh_scan import fingerprint
from vllm_fleet.fleet import plan


def test_a_rack_of_several_classes_becomes_a_fleet(start, home: Path) -> None:
    h200, same, amd, gateway = start("h200-8"), start("h200-8"), start("r9700-1"), start(None, "ecdsa-sha2-nistp256")
    arguments = [*h200.arguments, *same.arguments, *amd.arguments, "--gateway", f"root@{ADDRESS}:{gateway.port}"]
    arguments += ["--fingerprint", f"{ADDRESS}:{gateway.port}={gateway.fingerprint}", "--key", str(h200.key_file)]
    arguments += ["--api-key-file", str(home.parent / "api-key")]
    code, told = init("rack", *arguments, "--json")
    assert code == 0, told
    assert [host["host_class"] for host in json.loads(told)["hosts"]] == ["h200-8", "h200-8", "r9700-1", None]
    planned = plan.load(home / "rack")
    assert [(host.name, host.kind, host.host_class) for host in planned.hosts] == [
        ("h200-0", "serving", "h200-8"),
        ("h200-1", "serving", "h200-8"),
        ("r9700-0", "serving", "r9700-1"),
        ("gateway-0", "gateway", None),
    ]
    serving = planned.hosts[0].deployment, planned.hosts[2].deployment
    assert [each.model for each in serving if each] == ["openai/gpt-oss-120b", "openai/gpt-oss-20b"]
    text = (home / "rack" / "fleet.yml").read_text(encoding="utf-8")
    assert "# 8 x NVIDIA H200 (sm_90, 140.4 GiB), driver 580.159.03, CUDA up to 13.0" in text
    for file in (home.parent / "api-key", home / "rack" / "api-keys.yml"):
        assert file.stat().st_mode & 0o777 == 0o600
    assert planned.hosts[3].static.ssh_host_key.startswith("ecdsa-sha2-nistp256 ")


def test_hosts_are_added_and_comments_stay(start, home: Path) -> None:
    first, second, third = start("h200-8"), start("h200-8"), start("h200-4")
    assert init("rack", *first.arguments, "--key", str(first.key_file))[0] == 0
    file = home / "rack" / "fleet.yml"
    file.write_text(file.read_text().replace("    model:", "    # a comment of ours\n    model:"), encoding="utf-8")
    before = file.read_text()
    code, told = init("rack", *second.arguments)
    assert code == 2
    assert "this fleet exists already" in told
    assert file.read_text() == before
    code, told = init("rack", "--add", *second.arguments, *third.arguments)
    assert code == 0, told
    after = file.read_text()
    assert "# a comment of ours" in after
    assert "+      h200-1:" in told
    assert {name: set(pool["static"]) for name, pool in yaml.safe_load(after)["pools"].items()} == {
        "h200": {"h200-0", "h200-1"},
        "h200-4": {"h200-4-0"},
    }
    code, told = init("rack", "--add", *second.arguments)
    assert (code, "is already in the fleet, as h200-1" in told) == (2, True)
    assert file.read_text() == after


def test_nobody_to_ask_trusts_nothing(start, home: Path) -> None:
    host = start("h200-8")
    code, told = init("rack", "--host", f"root@{ADDRESS}:{host.port}", "--key", str(host.key_file))
    assert code == 2
    assert "nothing was written" in told
    assert not home.exists()


def test_another_key_is_refused_before_the_host_is_asked(start, home: Path) -> None:
    host = start("h200-8")
    wrong = "SHA256:" + "A" * 43
    code, told = init("rack", "--host", f"{ADDRESS}:{host.port}", "--fingerprint", f"{ADDRESS}={wrong}")
    assert code == 2
    assert f"shows the host key {host.fingerprint}, not {wrong}" in told
    assert not home.exists()


def test_a_person_is_asked_and_may_say_no(
    start, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = start("h200-8")
    asked: list[str] = []
    monkeypatch.setattr("vllm_fleet.cli.init.typer.confirm", lambda text, **_: bool(asked.append(text)))
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)})())
    with pytest.raises(FleetError, match="were not confirmed"):
        app(["init", "rack", "--host", f"root@{ADDRESS}:{host.port}"], standalone_mode=False)
    assert asked == ["Are these the keys of your hosts?"]
    assert host.fingerprint in capsys.readouterr().err
    assert not home.exists()


def test_every_host_that_is_wrong_is_told_at_once(start, home: Path) -> None:
    without, odd, stranger = start(None), start("h200-8"), start("h200-8")
    write_files(odd.key_file.parent / "host-1", gpu.files(gpu.Gpus("nvidia", "NVIDIA T4", 16 << 30, "7.5", 1, "580.1")))
    other = odd.key_file.parent / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(other)
    other.chmod(0o600)
    code, told = init("rack", *without.arguments, *odd.arguments, "--key", str(odd.key_file))
    assert code == 2
    assert "nvidia-smi not found" in told
    assert "NVIDIA T4 (sm_75, 16.0 GiB)" in told
    code, told = init("rack", *stranger.arguments, "--key", str(other))
    assert (code, "refuses the key" in told) == (2, True)
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no host is given"),
        (("--host", "10.0.0.5", "--add"), "--add: there is no fleet rack to add hosts to (correct the name, or leave"),
        (("--host", "root@10.0.0.5; reboot"), "--host: '10.0.0.5; reboot' contains blanks"),
        (("--host", "root@10.0.0.500"), "--host: '10.0.0.500' is not an IPv4 address: write four numbers"),
        (("--host", "root@10.0.0.5:99999"), "has the port '99999': a port is a number from 1 to 65535"),
        # To Python these are digits: it was port 12.
        (("--host", "10.0.0.5:\u0661\u0662"), "a port is a number from 1 to 65535"),
        (("--host", "10.0.0.5:"), "has the port ''"),
        (("--host", ""), "--host: is empty"),
        (("--host", "root@[fe80::1%eth0]"), "has a zone, which only one machine knows"),
        (("--host", "0.0.0.0"), "is the address of no single host"),  # noqa: S104 - nothing listens
        (("--host", "0x7f.1"), "is not an IPv4 address"),
        (("--host", "[1.2.3.4]"), "only those are written in brackets"),
        (("--host", "fd00::5"), "'fd00::5' has no brackets: write '[fd00::5]'"),
        (("--host", "-@10.0.0.5"), "'-' is not the name of a user"),
        (("--gateway", "169.254.1.1"), "--gateway: '169.254.1.1' is a link-local address"),
        (("--host", "10.0.0.5", "--bastion", ""), "--bastion: is empty"),
        (("--host", "10.0.0.5", "--gateway", "root@10.0.0.5"), "10.0.0.5 is given twice"),
        (("--host", "10.0.0.5", "--fingerprint", "10.0.0.5=MD5:00"), "contains no fingerprint"),
        (("--host", "10.0.0.5", "--fingerprint", f"10.0.0.6=SHA256:{'A' * 43}"), "matches 0 of the given hosts"),
        (("--host", "10.0.0.5", "--key", "/nowhere/id"), "/nowhere/id: --key: does not exist"),
        (("--host", "10.0.0.5", "--key", "~nobody-here/id"), "~nobody-here/id: --key: does not exist"),
        (("--host", "10.0.0.5", "--ssh-config", "~nobody-here/c"), "~nobody-here/c: --ssh-config: does not exist"),
        (("--host", f"{ADDRESS}:1"), "cannot be reached at port 1: Connection refused"),
    ],
)
def test_bad_input_is_one_clear_error(home: Path, arguments: tuple[str, ...], says: str) -> None:
    code, told = init("rack", *arguments)
    assert code == 2
    assert says in told
    assert not home.exists()


def test_a_name_that_is_not_resolved_is_to_be_corrected(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    code, told = init("rack", "--host", "no-such-host.example.com")
    assert (code, told) == (
        2,
        "no-such-host.example.com: cannot be reached at port 22: Name or service not known "
        "(correct the name, or give an address)",
    )
    assert not home.exists()


def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    file = tmp_path / "key.pub"
    key.write_public_key(file)
    printed = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True).stdout
    assert fingerprint(file.read_text()) == printed.split()[1]
