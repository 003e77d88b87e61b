"""Strange shells and sudo rules on a real sshd: the probe finds its answer, or the fault is the state of that host."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hanging import HANGING_SECONDS
from sshd_with_users import Sshd, User, serve

from vllm_fleet.base import paths
from vllm_fleet.facts.states import DriftState
from vllm_fleet.host.manifest import Manifest
from vllm_fleet.operate import probing
from vllm_fleet.operate.probing import Report

pytestmark = pytest.mark.root

SECRET = "s3cr'et ß"
ANY = "ALL=(ALL) NOPASSWD: ALL"
USERS = (
    User("plain", sudo=ANY),
    User("asked", password=SECRET, sudo="ALL=(ALL) ALL"),
    User("noisy", sudo=ANY, bashrc='echo \'{"drift": []}\'; printf "\\033[2Jwelcome\\r\\n"; trap "echo bye" EXIT\n'),
    User("traced", sudo=ANY, bashrc="set -x\n"),
    User("shut", login_shell="/usr/sbin/nologin"),
    User("painted", bashrc='printf "go\\033]0;away\\007\\n"; exit 3\n'),
    User("flood", bashrc="yes hello\n"),
    User("complaining", bashrc="yes hello >&2\n"),
    User("no-sudo", password=SECRET),
)
MANIFEST = Manifest("any", ({"role": "r", "kind": "file", "path": "/nowhere"},), {})


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with serve(tmp_path_factory.mktemp("sshd"), USERS) as server:
        yield server


@pytest.fixture(scope="module")
def reports(sshd: Sshd) -> Mapping[str, Report]:
    """One probe of all of them, as one fleet."""
    targets = [sshd.target(user.name) for user in USERS]
    targets.append(replace(sshd.target("asked", SECRET), name="asked, right"))
    targets.append(replace(sshd.target("asked", "wrong"), name="asked, wrong"))
    targets.append(replace(sshd.target("plain", SECRET), name="plain, not asked"))
    targets.append(replace(sshd.target("no-sudo", SECRET), name="no-sudo, right"))
    return probing.probe_hosts([(target, MANIFEST) for target in targets])


@pytest.mark.parametrize("name", ["plain", "noisy", "traced", "asked, right", "plain, not asked"])
def test_the_answer_is_found_whatever_the_shell_prints(reports: Mapping[str, Report], name: str) -> None:
    assert reports[name].error == ""
    assert [(item.what, item.state) for item in reports[name].drift] == [("/nowhere", DriftState.MISSING)]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("asked", "sudo: a password is required (give it with --ask-become-pass)"),
        ("asked, wrong", "sudo on 127.0.0.1 refuses the password of asked"),
        ("no-sudo, right", "no-sudo is not in the sudoers file"),
        ("shut", "(exit status 1): it prints: This account is currently not available."),
        ("painted", r"(exit status 3): it prints: go\x1b]0;away\x07"),
        ("flood", "127.0.0.1 sends more than 1 MiB of output"),
        ("complaining", "127.0.0.1 sends more than 1 MiB of error output"),
    ],
)
def test_a_fault_is_the_state_of_its_host(reports: Mapping[str, Report], name: str, error: str) -> None:
    assert error in reports[name].error
    assert reports[name].error.isprintable()
    assert (reports[name].drift, reports[name].veto) == ((), ())


def test_a_program_that_was_ended_leaves_no_process(sshd: Sshd, reports: Mapping[str, Report]) -> None:
    assert reports["flood"].error
    left = subprocess.run(["pgrep", "-a", "-x", "yes"], capture_output=True, text=True, check=False).stdout
    assert "hello" not in left


def write_fleet(folder: Path, fleets: Path, sshd: Sshd, users: tuple[str, ...]) -> Path:
    """A fleet of one host for each user of the server."""
    golden = yaml.safe_load((fleets / "golden" / "fleet.yml").read_text(encoding="utf-8"))
    at = {"port": sshd.port, "ssh_host_key": sshd.host_key}
    static = {f"h-{user}": {"address": f"127.0.0.{n}", "user": user, **at} for n, user in enumerate(users, 1)}
    fleet = {
        "fleet": folder.name,
        **{key: golden[key] for key in ("defaults", "artifacts") if key in golden},
        "pools": {"main": {"host_class": "cpu-2", "cloud": "static", "static": static}},
        "gateway": {"hosts": 0},
        "access": {"ssh_private_key_file": str(sshd.key_file)},
    }
    folder.mkdir(parents=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return folder / "fleet.yml"


def test_ansible_passes_its_password_for_sudo_to_the_probe(sshd: Sshd, fleets: Path, tmp_path: Path) -> None:
    file = write_fleet(fleets / "asked", fleets, sshd, ("asked",))
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n", encoding="utf-8")
    secret.chmod(0o600)
    words = ["ansible-playbook", "-i", str(file), "playbooks/probe.yml"]
    try:
        for more, code, says in (
            (["--become-password-file", str(secret)], 0, "ok=1"),
            ([], 2, "a password is required"),
        ):
            done = subprocess.run(
                [*words, *more], cwd=paths.root(), capture_output=True, text=True, check=False, timeout=HANGING_SECONDS
            )
            assert (done.returncode, says in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
            assert SECRET not in done.stdout + done.stderr
    finally:
        shutil.rmtree(paths.run_dir("asked"), ignore_errors=True)
