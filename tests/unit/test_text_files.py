"""Files that people name: what is no file, endless or too large is not read, and a PEM file is one."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import https_files
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from vllm_fleet.base import certificates, text_files
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.secret_files import read_secret
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.edge import hub
from vllm_fleet.host import model_files
from vllm_fleet.operate import become_password

READERS: dict[str, Callable[[Path], object]] = {
    "text": text_files.read_text,
    "secret": lambda file: read_secret(file, "the hub's token"),
    "password": become_password.read_file,
    "lock of an engine": engine_locks.read,
    "digests": model_files.read_digests,
    "authority": certificates.read_authority,
    "certificate": certificates.check_server,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_or_endless_is_not_read(tmp_path: Path, reader: str) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "large").touch(0o600)
    os.truncate(tmp_path / "large", text_files.MOST_BYTES + 1)
    no_file = "is a device, a pipe or a socket, not a file"
    # The user of the command line may give a pipe; here nobody writes to it.
    of_pipe = "contains no password" if reader == "password" else no_file
    for name, says in (("pipe", of_pipe), ("zero", no_file), ("large", "at most 8 MiB are read")):
        with pytest.raises(FleetError, match=says) as fault:
            READERS[reader](tmp_path / name)
        assert fault.value.exit_code == 2
        assert str(tmp_path / name) in str(fault.value)


OPTIONS: dict[str, Callable[[Path], object]] = {
    "--hub-token-file": hub.read_token,
    "--become-password-file": become_password.read_file,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_pipe_that_an_option_names_is_read_to_its_end(option: str) -> None:
    """As ``<(pass show hub)`` in a shell."""
    with subprocess.Popen(["sh", "-c", "sleep 0.2; echo hf_word"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert OPTIONS[option](Path(f"/dev/fd/{program.stdout.fileno()}")) == "hf_word"


@pytest.mark.parametrize("option", OPTIONS)
def test_a_pipe_without_an_end_or_a_device_is_refused(option: str) -> None:
    with subprocess.Popen(["cat", "/dev/zero"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        with pytest.raises(FleetError, match="at most 8 MiB are read") as fault:
            OPTIONS[option](Path(f"/dev/fd/{program.stdout.fileno()}"))
        program.kill()
    assert (fault.value.exit_code, fault.value.key) == (2, option)
    with pytest.raises(FleetError, match="is a device, a pipe or a socket, not a file"):
        OPTIONS[option](Path("/dev/zero"))


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"certificate"}))
def test_bytes_that_are_no_text_are_one_error_with_line_and_column(tmp_path: Path, reader: str) -> None:
    (tmp_path / "file").touch(0o600)
    (tmp_path / "file").write_bytes(b"a\nb\xff\0")
    with pytest.raises(FleetError, match="the byte 0xff is not UTF-8") as fault:
        READERS[reader](tmp_path / "file")
    assert (fault.value.line, fault.value.column) == (2, 2)


def test_a_file_of_the_kernel_is_read_although_it_has_no_size() -> None:
    status = Path("/proc/self/status")
    assert status.stat().st_size == 0
    assert stat.S_ISREG(status.stat().st_mode)
    assert "Name:" in text_files.read_text(status)


def test_what_is_not_there_or_has_no_name_is_one_error(tmp_path: Path) -> None:
    for name, says in (("none", "does not exist"), ("a\0b", "null byte"), ("x" * 300, "name too long")):
        with pytest.raises(FleetError, match=f"(?i){says}"):
            text_files.read_bytes(tmp_path / name)


def test_a_byte_order_mark_and_the_ends_of_lines_of_others_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb\rc")
    assert text_files.read_text(tmp_path / "file") == "a\nb\nc"


class TestCertificates:
    """PEM files."""

    def test_an_authority_is_read_without_the_comments_that_no_ssl_reads(self, tmp_path: Path) -> None:
        _, certificate = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        (tmp_path / "ca.pem").write_text(f"Aussteller: Jürgen\n{certificate}", encoding="utf-8")
        assert certificates.read_authority(tmp_path / "ca.pem") == f"Aussteller: Jrgen\n{certificate}"

    def test_a_damaged_authority_is_refused(self, tmp_path: Path) -> None:
        _, certificate = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        lines = certificate.splitlines(keepends=True)
        (tmp_path / "ca.pem").write_text("".join([*lines[:3], *lines[4:]]))
        with pytest.raises(FleetError, match="has a damaged certificate"):
            certificates.read_authority(tmp_path / "ca.pem")

    def test_a_certificate_and_its_key_are_taken(self, tmp_path: Path) -> None:
        https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        certificates.check_server(tmp_path / "server.pem")

    def test_a_key_of_another_certificate_and_one_with_a_passphrase_are_refused(self, tmp_path: Path) -> None:
        _, certificate = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        locks = {"does not belong to": NoEncryption(), "with a passphrase": BestAvailableEncryption(b"x")}
        for says, lock in locks.items():
            text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock).decode()
            (tmp_path / "other.pem").write_text(certificate + text)
            with pytest.raises(FleetError, match=says):
                certificates.check_server(tmp_path / "other.pem")
