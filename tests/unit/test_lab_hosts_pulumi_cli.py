"""Finding or building the Pulumi command line, and repairing what a killed one left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra import adopt, backend, repair
from tools.pulumi import go_build
from tools.pulumi.programs import PROGRAMS, find_installed, parse_version
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import pulumi_cli

HERE = go_build.HERE


def programs(folder: Path, said: str) -> Path:
    folder.mkdir(parents=True)
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\necho {said}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("v3.259.0", (3, 259, 0)),
        ("go version go1.24 linux/amd64", (1, 24, 0)),
        ("1.25.11", (1, 25, 11)),
        ("", (0, 0, 0)),
    ],
)
def test_version(text: str, found: tuple[int, int, int]) -> None:
    assert parse_version(text) == found


@pytest.mark.parametrize(
    ("said", "taken"), [("v3.200.0", True), ("v3.259.0", True), ("v3.199.9", False), ("v2.9.0", False)]
)
def test_a_recent_pulumi_on_path_is_taken_where_it_really_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, taken: bool
) -> None:
    real = programs(tmp_path / "real", said)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pulumi").symlink_to(real / "pulumi")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    assert find_installed() == (real if taken else None)


def test_a_pulumi_without_its_python_host_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = programs(tmp_path / "real", "v3.259.0")
    (real / "pulumi-language-python").unlink()
    monkeypatch.setenv("PATH", f"{real}:/bin:/usr/bin")
    assert find_installed() is None


@pytest.mark.parametrize(
    ("present", "chosen", "means"),
    [
        ("go version go1.25.11 linux/amd64", None, {}),
        ("go version go1.26.8 linux/amd64", "local", {}),
        ("go version go1.24.2 linux/amd64", None, {"GOTOOLCHAIN": "go1.25.11+auto"}),
        ("go version go1.21 linux/amd64", "auto", {"GOTOOLCHAIN": "go1.25.11+auto"}),
    ],
)
def test_go_that_can_build_it(present: str, chosen: str | None, means: dict[str, str]) -> None:
    assert go_build.toolchain(present, "1.25.11", chosen) == means


@pytest.mark.parametrize(
    ("present", "chosen", "says"),
    [
        (None, None, "neither a Pulumi command line"),
        ("go version go1.19.8 linux/amd64", None, "Go 1.19.8 is too old"),
        ("go version go1.24.2 linux/amd64", "local", "Go 1.24.2 is too old"),
    ],
)
def test_one_sentence_says_what_to_install(present: str | None, chosen: str | None, says: str) -> None:
    with pytest.raises(FleetError, match=says) as fault:
        go_build.toolchain(present, "1.25.11", chosen)
    assert fault.value.exit_code == 2
    assert "install Pulumi" in fault.value.hint
    assert "Go 1.25.11" in fault.value.hint


def test_what_is_built_is_pinned_with_digests() -> None:
    for folder in (HERE, HERE / "python-language-host"):
        module, sums = (folder / "go.mod").read_text(encoding="utf-8"), (folder / "go.sum").read_text(encoding="utf-8")
        assert "github.com/pulumi/pulumi/sdk/v3 v3." in module
        assert all(line.split()[2].startswith("h1:") for line in sums.splitlines())
    assert go_build.engine_version((HERE / "go.mod").read_text(encoding="utf-8")) == "3.259.0"


def test_the_engine_and_the_sdk_of_the_program_are_of_one_release() -> None:
    project = (HERE.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    pinned = go_build.engine_version((HERE / "go.mod").read_text(encoding="utf-8"))
    assert f'"pulumi=={pinned}"' in project


def lock(folder: Path, **held: Any) -> Path:
    path = folder / "locks" / "organization" / "vllm-fleet" / "demo" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(held), encoding="utf-8")
    path.with_name("a.json.attrs").write_text("{}", encoding="utf-8")
    return path


def stat(folder: Path, text: str) -> Path:
    (folder / "7").mkdir(parents=True)
    (folder / "7" / "stat").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("process", "stale"),
    [
        (None, True),
        ("7 (pulumi) S 1 7", False),
        ("7 (pulumi) Z 1 7", True),
        ("7 (bash) S 1 7", True),
        ("7 (pulumi-languag) R 1 7", False),
    ],
)
def test_a_lock_is_stale_when_its_pulumi_is_gone(tmp_path: Path, process: str | None, stale: bool) -> None:
    processes = stat(tmp_path / "proc", process) if process else tmp_path / "proc"
    assert repair.is_stale(lock(tmp_path, hostname="here", pid=7), "here", processes) is stale


def test_the_lock_of_another_machine_stays(tmp_path: Path) -> None:
    held = lock(tmp_path, hostname="elsewhere", pid=2**22)
    assert repair.drop_stale_locks(tmp_path, "demo") == []
    assert held.exists()


def test_a_stale_lock_goes_with_its_attributes_and_only_on_its_stack(tmp_path: Path) -> None:
    held = lock(tmp_path, hostname=socket.gethostname(), pid=2**22 + 1)
    assert repair.drop_stale_locks(tmp_path, "other") == []
    assert repair.drop_stale_locks(tmp_path, "demo") == [held]
    assert list(held.parent.iterdir()) == []


def test_this_running_process_is_no_pulumi(tmp_path: Path) -> None:
    assert repair.is_stale(lock(tmp_path, hostname="here", pid=os.getpid()), "here") is True


@pytest.mark.parametrize(
    ("url", "folder"),
    [("file:///a/b%20c", Path("/a/b c/.pulumi")), ("s3://bucket", None), ("", None)],
)
def test_only_a_file_backend_is_looked_into(url: str, folder: Path | None) -> None:
    assert backend.folder(url) == folder


def test_a_state_in_a_file_is_read_there_and_pulumi_is_asked_for_a_compressed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, stacks = f"file://{tmp_path}", tmp_path / ".pulumi/stacks"
    begun = {"pending_operations": [{"type": "creating", "resource": {"urn": "a::b"}}]}
    asked: list[tuple[str, ...]] = []

    def export(*words: str) -> str:
        asked.append(words)
        return json.dumps({"deployment": begun})

    monkeypatch.setattr(backend, "pulumi_output", export)
    # Another project has a stack of the same name in the same folder.
    for project, latest in (("vllm-fleet", begun), ("other", {})):
        (stacks / project).mkdir(parents=True)
        (stacks / project / "demo.json").write_text(json.dumps({"checkpoint": {"latest": latest}}), encoding="utf-8")
    assert repair.open_creations(url, "demo") == ["a::b"]
    assert repair.open_creations(url, "nowhere") == []
    assert asked == []
    (stacks / "vllm-fleet/packed.json.gz").write_bytes(b"")
    assert repair.open_creations(url, "packed") == repair.open_creations("s3://bucket", "packed") == ["a::b"]
    assert asked == [("stack", "export", "--stack", "packed")] * 2


def test_only_the_project_s_own_creations_are_forgotten() -> None:
    own = "urn:pulumi:lab::vllm-fleet::fleet:infra:Fleet$fleet:infra:LabCloud$pulumi-python:dynamic/lab:Host::lab-0"
    cloud = "urn:pulumi:prod::vllm-fleet::fleet:infra:Fleet$aws:ec2/instance:Instance::h100-0"
    operations = [
        {"type": "creating", "resource": {"urn": own}},
        {"type": "deleting", "resource": {"urn": cloud}},
    ]
    assert list(adopt.pending_creations({"pending_operations": operations})) == [own]
    assert list(adopt.pending_creations({})) == []
    assert adopt.names_in_clouds([own]) == []
    assert adopt.names_in_clouds([own, cloud]) == ["h100-0"]


@pytest.mark.parametrize(
    ("command", "address"),
    [
        ("/c/bin/pulumi-language-python 127.0.0.1:4100", ("127.0.0.1", 4100)),
        ("/bin/sh /c/bin/pulumi-resource-pulumi-python 127.0.0.1:4100", ("127.0.0.1", 4100)),
        ("/v/bin/python -u -m pulumi.dynamic 127.0.0.1:4100", ("127.0.0.1", 4100)),
        ("/v/bin/python -u -m pulumi.dynamic", None),
        ("/usr/bin/ssh 127.0.0.1:4100", None),
        ("", None),
    ],
)
def test_the_engine_of_a_process(command: str, address: tuple[str, int] | None) -> None:
    assert repair.engine_address(command.split()) == address


def test_only_a_provider_without_its_engine_is_ended() -> None:
    code = "import sys, time; time.sleep(60)"
    with socket.create_server(("127.0.0.1", 0)) as engine, socket.socket() as gone:
        # Nothing listens there, and nothing else of this machine can take the port.
        gone.bind(("127.0.0.1", 0))
        ports = [server.getsockname()[1] for server in (engine, gone)]
        kept, orphan = (
            subprocess.Popen([sys.executable, "-c", code, "pulumi.dynamic", f"127.0.0.1:{port}"]) for port in ports
        )
        try:
            # A program is begun before its command line can be read, and a run beside this one may end it first.
            ended = set(repair.end_orphans())
            while orphan.poll() is None:
                ended |= set(repair.end_orphans())
            assert orphan.returncode == -signal.SIGKILL
            assert kept.pid not in ended
            assert kept.poll() is None
        finally:
            kept.kill()
            kept.wait()


def a_pulumi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "pulumi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / "pulumi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def test_the_runner_gives_arguments_and_input_and_returns_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_pulumi(tmp_path / "bin", monkeypatch, 'echo "$@" in $(pwd); cat; echo noise >&2')
    shown = pulumi_cli.pulumi_output("stack", "import", cwd=tmp_path, text_in="state")
    assert shown == f"stack import in {tmp_path}\nstate"
    done = pulumi_cli.run_pulumi("up", environment={"PATH": f"{tmp_path / 'bin'}:/bin:/usr/bin"}, text_in="")
    assert (done.returncode, done.stderr) == (0, "noise\n")


def test_a_failed_run_is_one_error_with_its_command_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_pulumi(tmp_path / "bin", monkeypatch, "echo 'the stack is locked' >&2; exit 255")
    with pytest.raises(FleetError, match="'pulumi refresh --yes' failed: the stack is locked") as fault:
        pulumi_cli.pulumi_output("refresh", "--yes")
    assert fault.value.exit_code == 1
    a_pulumi(
        tmp_path / "bin",
        monkeypatch,
        "printf 'Previewing:\\n  Stack error: no\\n   region\\nerror: an unhandled error occurred\\n' >&2; exit 255",
    )
    with pytest.raises(FleetError, match=r"failed: no region [(]"):
        pulumi_cli.pulumi_output("refresh", "--yes")
    assert pulumi_cli.run_pulumi("refresh").returncode == 255


def test_without_a_pulumi_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FleetError, match="pulumi is not on PATH") as fault:
        pulumi_cli.run_pulumi("version")
    assert "make setup" in fault.value.hint
    assert fault.value.exit_code == 2
