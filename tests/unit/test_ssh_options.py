"""Which options and files of ssh change the way to a host, and what the user is told of a failed ssh."""

from __future__ import annotations

import errno
import shlex
import socket
from pathlib import Path

import pytest

from vllm_fleet.edge import connection, openssh, ssh_options, ssh_scan
from vllm_fleet.edge.ssh_target import Target

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"
TARGET = Target("gpu-0", "10.0.0.5", 2222, "root", (KEY,), keys_file="inventories/rack/fleet.yml")


@pytest.mark.parametrize(
    "arguments",
    [
        "-o ControlMaster=auto -o ControlPersist=300s -o PreferredAuthentications=publickey",
        "-o StrictHostKeyChecking=yes -o UserKnownHostsFile=/tmp/known_hosts -o GSSAPIAuthentication=no",
        "-C -o ControlMaster=auto -o ControlPersist=60s",
        "-oServerAliveInterval=5 -vvv -o 'ServerAliveCountMax 3'",
        "",
    ],
)
def test_arguments_that_change_no_way_need_no_ssh(arguments: str) -> None:
    assert ssh_options.are_harmless(shlex.split(arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        "-o ProxyJump=door",
        "-oProxyCommand='nc %h %p'",
        "-o 'proxycommand nc %h %p'",
        "-F file",
        "-Ffile",
        "-J door",
        "-o CertificateFile=c",
        "-o IdentityAgent=s",
        "-o BindAddress=10.0.0.1",
        "-4",
        "-b 10.0.0.1",
        "-i key",
        "-o SomethingOfANewerSsh=1",
        "-o",
    ],
)
def test_every_other_argument_is_given_to_ssh(arguments: str) -> None:
    assert not ssh_options.are_harmless(shlex.split(arguments))
    assert not ssh_options.are_harmless(["-C", "-o", "ServerAliveInterval=5", *shlex.split(arguments)])


@pytest.mark.parametrize(
    ("text", "matters"),
    [
        ("", False),
        (
            "# ProxyJump door\nHost *\n    SendEnv LANG LC_*\n    HashKnownHosts yes\n    GSSAPIAuthentication yes\n",
            False,
        ),
        ("Match final all\n\tGSSAPIAuthentication yes\n\tForwardX11Trusted yes\n\tSendEnv LANG\n", False),
        ("Ciphers aes256-gcm@openssh.com\nMACs hmac-sha2-256\nRequiredRSASize 2048\n", False),
        ("Include nothing/*.conf\n", False),
        ("Include plain\n", False),
        ("Include plain jump\n", True),
        ('Include "jump"\n', True),
        ("Include loop\n", True),
        ("Host gpu\n\tProxyJump door\n", True),
        ("proxycommand=nc %h %p\n", True),
        ("Host *\n  IdentityFile ~/.ssh/work\n", True),
        ("Host *\n  SomethingOfANewerSsh yes\n", True),
    ],
)
def test_a_file_matters_if_it_has_any_setting_of_the_way(tmp_path: Path, text: str, matters: bool) -> None:
    for name, inner in {
        "plain": "Compression yes\n",
        "jump": "ProxyJump door\n",
        "loop": f"Include {tmp_path}/loop\n",
    }.items():
        (tmp_path / name).write_text(inner)
        text = text.replace(f'"{name}"', f'"{tmp_path / name}"').replace(f" {name}", f" {tmp_path / name}")
    config = tmp_path / "config"
    config.write_text(text)
    assert ssh_options.have_settings(config) is matters
    assert ssh_options.have_settings(tmp_path / "missing") is False


@pytest.mark.parametrize(
    ("err", "told"),
    [
        (
            "No ED25519 host key is known for [10.0.0.5]:2222 and you have requested strict checking.\r\n"
            "Host key verification failed.\r\n",
            "10.0.0.5 shows another SSH host key than inventories/rack/fleet.yml has",
        ),
        (
            "@@@@@@\r\nHost key for [10.0.0.5]:2222 has changed and you have requested strict checking.\r\n",
            "10.0.0.5 shows another SSH host key than inventories/rack/fleet.yml has",
        ),
        (
            "No ED25519 host key is known for door.example and you have requested strict checking.\r\n"
            "Host key verification failed.\r\nConnection closed by UNKNOWN port 65535\r\n",
            "the host key of door.example, which the connection passes through",
        ),
        (
            "Warning: Permanently added 'x'\nroot@10.0.0.5: Permission denied (publickey).\r\n",
            "root@10.0.0.5 refuses the key",
        ),
        (
            "channel 0: open failed: connect failed: Name or service not known\r\nstdio forwarding failed\r\n"
            "Connection closed by UNKNOWN port 65535\r\n",
            "at 10.0.0.5 port 2222: channel 0: open failed: connect failed: Name or service not known",
        ),
        ("", "ssh failed without a message"),
    ],
)
def test_a_failed_ssh_is_told_in_words(err: str, told: str) -> None:
    assert told in openssh.explain_failure(TARGET, err)


def test_a_host_that_accepts_and_says_nothing_is_one_plain_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_scan, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        at, free = silent.getsockname(), gone.getsockname()
        gone.close()
        found = ssh_scan.scan_host_keys([at, free], {})
    assert (str(found[at]), str(found[free])) == ("no answer in time", "Connection refused")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "no answer in time"),
        (TimeoutError(errno.ETIMEDOUT, "Connect call failed ('10.0.0.5', 22)"), "Connection timed out"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.5', 22)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (
            OSError(
                "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), "
                "[Errno 113] Connect call failed ('10.0.0.5', 1)"
            ),
            "Connection refused, No route to host",
        ),
        (ConnectionResetError(), "the connection ended"),
        (OSError("ssh says why"), "ssh says why"),
        (ValueError("[Errno -2] Name or service not known"), "Name or service not known"),
    ],
)
def test_why_a_connection_failed_is_said_in_words(error: Exception, text: str) -> None:
    assert connection.failure_text(error) == text
