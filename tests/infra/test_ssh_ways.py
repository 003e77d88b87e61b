"""Every way in which ssh reaches a host, by the probe, on real sshds: configuration, jumps, certificates, agents."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hanging import HANGING_SECONDS
from real_sshd import USER, Sshd, Sshds, certify, make_key, public

from vllm_fleet.edge import openssh, ssh, ssh_target
from vllm_fleet.edge.connection import JumpHosts, NoAnswerError

pytestmark = pytest.mark.root

#: What every command of these tests prints on the host: the port of the sshd that it came in at.
WHERE = "echo '{\"port\": '${SSH_CONNECTION##* }'}'"


@pytest.fixture
def sshds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshds]:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    servers = Sshds(tmp_path)
    yield servers
    servers.stop()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """An ssh-agent without keys."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    while not socket.exists():
        assert process.poll() is None
    yield socket
    process.terminate()
    process.wait(30)


def target(server: Sshd, key_file: Path | None, **more: Any) -> ssh_target.Target:
    return ssh_target.Target("gpu-0", server.address, server.port, USER, (server.key,), key_file, **more)


def ask(way: ssh_target.Target) -> str:
    return asyncio.run(ssh.run_json(way, WHERE)).strip()


def refused(way: ssh_target.Target) -> str:
    with pytest.raises(NoAnswerError) as caught:
        ask(way)
    return str(caught.value)


def at(server: Sshd) -> str:
    return f'{{"port": {server.port}}}'


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def known_by_user(tmp_path: Path, *servers: Sshd) -> Path:
    return write(tmp_path / "users_known_hosts", "".join(server.known for server in servers))


def jump_words(tmp_path: Path, door: Sshd, key_file: Path) -> str:
    """A ProxyCommand as a user writes it."""
    known = known_by_user(tmp_path, door)
    return f"ssh -F none -i {key_file} -o UserKnownHostsFile={known} -p {door.port} -W %h:%p {USER}@{door.address}"


def hop(tmp_path: Path, door: Sshd, key_file: Path) -> str:
    """The host 'door' in a configuration of ssh."""
    known = known_by_user(tmp_path, door)
    return (
        f"Host door\n  HostName {door.address}\n  Port {door.port}\n  UserKnownHostsFile {known}\n"
        f"  IdentityFile {key_file}\n"
    )


def test_a_host_without_a_configuration_needs_no_ssh(sshds: Sshds, tmp_path: Path) -> None:
    host = sshds.start()
    way = target(host, sshds.key_file, config_file=write(tmp_path / "config", "Host *\n  ServerAliveInterval 5\n"))
    assert asyncio.run(openssh.is_needed(way)) is False
    assert ask(way) == at(host)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "ProxyCommand=PROXY"],
        ["-oProxyCommand=PROXY"],
        ["-o", "proxycommand PROXY"],
        ["-F", "CONFIG"],
        ["-FCONFIG"],
        ["-C", "-o", "ControlMaster=auto", "-o", "ControlPath=none", "-F", "CONFIG", "-J", "door"],
        ["-F", "CONFIG", "-o", "ProxyJump=door"],
    ],
    ids=" ".join,
)
def test_arguments_of_ansible_lead_through_the_jump(sshds: Sshds, tmp_path: Path, arguments: list[str]) -> None:
    door, host = sshds.start(), sshds.start()
    config = write(tmp_path / "config", f"{hop(tmp_path, door, sshds.key_file)}Host {host.address}\n  ProxyJump door\n")
    proxy = jump_words(tmp_path, door, sshds.key_file)
    words = [word.replace("PROXY", proxy).replace("CONFIG", str(config)) for word in arguments]
    assert ask(target(host, sshds.key_file, arguments=tuple(words))) == at(host)
    assert door.logins == 1


@pytest.mark.parametrize("form", ["plain", "include", "match host", "match exec", "proxycommand"])
def test_the_configuration_leads_through_the_jump(sshds: Sshds, tmp_path: Path, form: str) -> None:
    door, host = sshds.start(), sshds.start()
    inner = write(tmp_path / "inner", f"Host {host.address}\n  ProxyJump door\n")
    way = {
        "plain": f"Host {host.address}\n  ProxyJump door\n",
        "include": f"Include {inner}\n",
        "match host": f"Match originalhost {host.address} user {USER}\n  ProxyJump door\n",
        "match exec": f'Match exec "test %p = {host.port}"\n  ProxyJump door\n',
        "proxycommand": f"Host {host.address}\n  ProxyCommand {jump_words(tmp_path, door, sshds.key_file)}\n",
    }[form]
    config = write(tmp_path / "config", way + hop(tmp_path, door, sshds.key_file))
    assert ask(target(host, sshds.key_file, config_file=config)) == at(host)
    assert door.logins == 1


def test_an_alias_brings_its_host_name_and_key(sshds: Sshds, tmp_path: Path) -> None:
    host = sshds.start()
    config = write(
        tmp_path / "config",
        f"Host gpu\n  HostName {host.address}\n  IdentityFile {sshds.key_file}\n  HostKeyAlias other\n",
    )
    way = replace(target(host, None, config_file=config, alias="gpu"), address="gpu.example")
    assert ask(way) == at(host)


def test_a_connection_that_is_open_already_is_not_taken(sshds: Sshds, tmp_path: Path) -> None:
    host, other = sshds.start(), sshds.start()
    path = tmp_path / "mux"
    known = known_by_user(tmp_path, other)
    words = (
        f"-F none -i {sshds.key_file} -o UserKnownHostsFile={known} -M -S {path} -N -f -p {other.port} {other.address}"
    )
    subprocess.run(["ssh", *words.split()], check=True)
    try:
        config = write(tmp_path / "config", f"Host *\n  ControlPath {path}\n  BindAddress 127.0.0.1\n")
        assert ask(target(host, sshds.key_file, config_file=config)) == at(host)
    finally:
        subprocess.run(["ssh", "-F", "none", "-S", path, "-O", "exit", "x"], check=True, capture_output=True)


@pytest.mark.parametrize("place", ["beside the key", "in the configuration", "in an argument"])
def test_a_user_certificate_opens_the_host(sshds: Sshds, tmp_path: Path, place: str) -> None:
    authority, key = make_key(tmp_path / "authority"), make_key(tmp_path / "certified")
    certificate = certify(authority, key, "-n", USER)
    options = {"TrustedUserCAKeys": f"{authority}.pub", "AuthorizedKeysFile": "none"}
    host = sshds.start(options=options)
    more: dict[str, Any] = {}
    if place != "beside the key":
        certificate = certificate.rename(tmp_path / "elsewhere-cert.pub")
    if place == "in the configuration":
        more["config_file"] = write(tmp_path / "config", f"Host *\n  CertificateFile {certificate}\n")
    if place == "in an argument":
        more["arguments"] = ("-o", f"CertificateFile={certificate}")
    assert ask(target(host, key, **more)) == at(host)
    alone = write(tmp_path / "alone", key.read_text())
    alone.chmod(0o600)
    assert "refuses the key" in refused(target(host, alone))


@pytest.mark.parametrize("place", ["environment", "configuration", "argument"])
def test_an_agent_opens_the_host(
    sshds: Sshds, tmp_path: Path, agent: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = sshds.start()
    add = ["ssh-add", "-q", sshds.key_file]
    subprocess.run(add, env={**os.environ, "SSH_AUTH_SOCK": str(agent)}, check=True, stderr=subprocess.DEVNULL)
    more: dict[str, Any] = {"config_file": write(tmp_path / "config", "")}
    if place == "environment":
        monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    if place == "configuration":
        more["config_file"] = write(tmp_path / "config", f"Host *\n  IdentityAgent {agent}\n")
    if place == "argument":
        more["arguments"] = ("-o", f"IdentityAgent={agent}")
    assert ask(target(host, None, **more)) == at(host)


def test_a_key_with_a_passphrase_needs_an_agent_and_asks_nobody(
    sshds: Sshds, tmp_path: Path, agent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = sshds.start()
    key = make_key(tmp_path / "locked", "a passphrase")
    write(tmp_path / "authorized_keys", public(key) + "\n")
    text = refused(target(host, key))
    assert f"{USER}@{host.address} refuses the key: {key} has a passphrase, and no agent holds the key" in text
    assert f"ssh-add {key}" in text
    answer = write(tmp_path / "answer", "#!/bin/sh\necho a passphrase\n")
    answer.chmod(0o755)
    environment = {
        **os.environ,
        "SSH_AUTH_SOCK": str(agent),
        "SSH_ASKPASS": str(answer),
        "SSH_ASKPASS_REQUIRE": "force",
    }
    subprocess.run(["ssh-add", "-q", key], env=environment, check=True, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent))
    assert ask(target(host, key)) == at(host)


def test_only_the_keys_of_the_fleet_are_accepted(sshds: Sshds, tmp_path: Path) -> None:
    host, other = sshds.start(), sshds.start()
    loose = f"Host *\n  BindAddress 127.0.0.1\n  UserKnownHostsFile {known_by_user(tmp_path, host)}\n"
    loose += "  StrictHostKeyChecking accept-new\n  NoHostAuthenticationForLocalhost yes\n"
    config = write(tmp_path / "config", loose)
    arguments = ("-o", "StrictHostKeyChecking=off", "-o", f"UserKnownHostsFile={known_by_user(tmp_path, host)}")
    wrong = replace(target(host, sshds.key_file), host_keys=(other.key,), keys_file="inventories/rack/fleet.yml")
    for way in (wrong, replace(wrong, config_file=config), replace(wrong, config_file=config, arguments=arguments)):
        text = refused(way)
        assert "127.0.0.1 shows another SSH host key than inventories/rack/fleet.yml has" in text
        assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in text
        assert "correct its key in inventories/rack/fleet.yml" in text
    assert host.logins == 0


def test_an_unknown_jump_host_is_named(sshds: Sshds, tmp_path: Path) -> None:
    door, host = sshds.start(), sshds.start()
    nothing = write(tmp_path / "nothing", "")
    config = write(
        tmp_path / "config",
        f"Host door\n  HostName {door.address}\n  Port {door.port}\n  UserKnownHostsFile {nothing}\n"
        f"  IdentityFile {sshds.key_file}\n  StrictHostKeyChecking yes\nHost {host.address}\n  ProxyJump door\n",
    )
    text = refused(target(host, sshds.key_file, config_file=config))
    assert f"the host key of [{door.address}]:{door.port}, which the connection passes through" in text
    asking = write(config, config.read_text().replace("StrictHostKeyChecking yes", "StrictHostKeyChecking ask"))
    assert "cannot be reached" in refused(target(host, sshds.key_file, config_file=asking))


def test_a_certificate_of_the_host_is_accepted(sshds: Sshds, tmp_path: Path) -> None:
    authority, stranger = make_key(tmp_path / "authority"), make_key(tmp_path / "stranger")
    key = make_key(tmp_path / "host")
    certificate = certify(authority, key, "-h", "-n", "127.0.0.1,gpu.example")
    host = sshds.start(options={"HostKey": str(key), "HostCertificate": str(certificate)})
    config = write(tmp_path / "config", "Host *\n  BindAddress 127.0.0.1\n")
    for file in (None, config):
        way = replace(target(host, sshds.key_file, config_file=file), host_keys=(), authorities=(public(authority),))
        assert ask(way) == at(host)
        assert "shows another SSH host key" in refused(replace(way, authorities=(public(stranger),)))


def test_a_host_is_reached_over_ipv6(sshds: Sshds, tmp_path: Path) -> None:
    door, host = sshds.start("::1"), sshds.start("::1")
    jump = replace(target(door, sshds.key_file), name="the bastion")
    config = write(tmp_path / "config", "Host *\n  AddressFamily inet6\n")
    for file in (None, config):
        assert ask(target(host, sshds.key_file, config_file=file)) == at(host)
        assert ask(target(host, sshds.key_file, config_file=file, jump=replace(jump, config_file=file))) == at(host)
    assert door.logins == 2


def test_blanks_and_quotation_marks_in_paths_are_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    folder = tmp_path / 'it\'s a % "folder" #1'
    folder.mkdir()
    servers = Sshds(tmp_path)
    try:
        door, host = servers.start(), servers.start()
        key = folder / "key file"
        key.write_bytes(servers.key_file.read_bytes())
        key.chmod(0o600)
        config = write(folder / "ssh config", "Host *\n  BindAddress 127.0.0.1\n")
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        jump = replace(target(door, key, config_file=config), name="the bastion")
        assert ask(target(host, key, config_file=config, jump=jump)) == at(host)
        assert door.logins == 1
    finally:
        servers.stop()


def test_a_configuration_that_ssh_cannot_read_is_told(sshds: Sshds, tmp_path: Path) -> None:
    config = write(tmp_path / "config", "Host *\n  ProxyJmp door\n")
    text = refused(target(sshds.start(), sshds.key_file, config_file=config))
    assert "ssh cannot read its configuration" in text
    assert "proxyjmp" in text


def wait_for_end(process: int) -> None:
    """Waits until a process that got its signal is gone: under load the kernel may need a moment."""
    state = Path(f"/proc/{process}/stat")
    deadline = time.monotonic() + HANGING_SECONDS
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < deadline, f"{process} goes on"
        time.sleep(0.05)


def test_a_program_that_stands_still_is_ended_with_its_proxy(sshds: Sshds, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    config = write(tmp_path / "config", f"Host *\n  ProxyCommand sh -c 'echo $$ > {mark}; exec sleep 1000'\n")
    way = target(sshds.start(), sshds.key_file, config_file=config)

    async def give_up() -> None:
        task = asyncio.ensure_future(ssh.run_json(way, WHERE))
        while not (mark.exists() and mark.read_text().strip()):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    wait_for_end(int(mark.read_text()))


def test_many_hosts_come_through_a_jump_that_takes_few_at_a_time(sshds: Sshds, tmp_path: Path) -> None:
    """As sshd does by default from the eleventh on, with luck; here without luck."""
    door, host = sshds.start(options={"MaxStartups": "10:100:11"}), sshds.start()
    config = write(tmp_path / "config", f"{hop(tmp_path, door, sshds.key_file)}Host {host.address}\n  ProxyJump door\n")
    way = target(host, sshds.key_file, config_file=config)

    async def ask_all() -> list[str]:
        async with JumpHosts() as jump_hosts:
            return await asyncio.gather(*(ssh.run_json(way, WHERE, jump_hosts=jump_hosts) for _ in range(24)))

    assert [answer.strip() for answer in asyncio.run(ask_all())] == [at(host)] * 24
    assert door.logins == 24
