"""The command line as people and scripts use it: wrong options, closed outputs, folders that are files."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from vllm_fleet import __main__, cli
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.paths import root
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import fleet_directory
from vllm_fleet.edge import package_index, registry, ssh_options
from vllm_fleet.fleet import plan

PROGRAM = [sys.executable, "-m", "vllm_fleet"]


Run = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """What a run of the program gave."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the program's entry point in this process."""

    def call(*arguments: str, **environment: str) -> Done:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["vllm-fleet", *arguments])
        monkeypatch.chdir(root())
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return Done(end.value.code, *capfd.readouterr())

    return call


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which ``$FLEET`` is the program."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=root(),
        env={**os.environ, "FLEET": " ".join(PROGRAM)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["plan", "--nope", "--json"], "No such option: --nope", "plan --help' shows the options"),
        (["plam", "--json"], "No such command 'plam'. Did you mean 'plan'?", "--help"),
        (["recipe", "--json"], "Missing option '--host-class'.", "recipe --help'"),
        (["plan", "--json", "--prices", "none"], "Invalid value for '--prices'", "--help"),
        (["explain", "--json"], "Missing argument 'host'.", "--help"),
    ],
)
def test_a_usage_error_with_json_is_json(arguments: list[str], message: str, hint: str, run: Run) -> None:
    done = run(*arguments)
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2
    assert done.stderr == ""
    assert error["code"] == "bad-input"
    assert error["message"].startswith(message)
    assert hint in error["hint"]


def test_help_and_results_are_the_same_with_json(run: Run) -> None:
    assert run("plan", "--help", "--json").returncode == 0
    assert json.loads(run("recipe", "--host-class", "cpu-2", "--model", "openai/gpt-oss-20b", "--json").stdout)
    assert run("plan", "--nope").returncode == 2


def test_a_reader_that_ends_early_gets_no_traceback() -> None:
    done = shell("$FLEET schema | true")
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert shell("$FLEET schema | head -n 1").stderr == ""


@pytest.mark.parametrize("command", ["schema", "plan --fleet example-aws", "matrix --json", "--help"])
def test_a_full_disk_is_one_error(command: str) -> None:
    done = shell(f"$FLEET {command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", ["schema", "plan --fleet example-aws"])
def test_closed_outputs_change_nothing(command: str) -> None:
    assert shell(f"$FLEET {command} >&-").returncode == 0
    assert shell(f"$FLEET {command} >&- 2>&- <&-").returncode == 0
    assert shell("$FLEET plan --fleet none >&- 2>&-").returncode == 2


@pytest.mark.parametrize("name", ["x" * 5000, "..", "../inventories/lab", "/etc", "", ".", "lab\n", "\x1b[2J"])
@pytest.mark.parametrize("command", ["plan", "check"])
def test_a_fleet_is_a_name_of_the_list(command: str, name: str, run: Run) -> None:
    done = run(command, "--fleet", name)
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no fleet ")
    assert "example-aws" in done.stderr
    assert len(done.stderr) < 300
    assert done.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["../fleets/golden", "../fleets/golden/", "golden/fleet.yml", "{0}/golden/fleet.yml"])
def test_a_path_of_a_fleet_is_answered_with_its_name(name: str, fleets: Path) -> None:
    with pytest.raises(FleetError, match="there is no fleet ") as caught:
        fleet_directory(name.format(fleets))
    assert caught.value.hint == "give the name of its folder: --fleet golden"
    assert caught.value.exit_code == 2


def test_a_folder_without_fleet_yml_is_told_what_it_lacks(fleets: Path) -> None:
    (fleets / "golden" / "fleet.yml").rename(fleets / "golden" / "fleet.yaml")
    (fleets / "new").mkdir()
    for name, hint in (("golden", "rename golden/fleet.yaml"), ("new", "write it: docs/fleets.md has its format")):
        with pytest.raises(FleetError, match=r"has no fleet\.yml") as caught:
            fleet_directory(name)
        assert (caught.value.file, caught.value.hint, caught.value.exit_code) == (name, hint, 2)


@pytest.mark.parametrize("folder", ["/nowhere/inventories", "/etc/passwd", "x" * 5000])
@pytest.mark.parametrize("command", [["check"], ["plan"], ["explain", "lab-0"], ["check", "--fleet", "lab"]])
def test_fleets_in_no_folder_are_an_error(command: list[str], folder: str, run: Run) -> None:
    done = run(*command, VLLM_FLEET_INVENTORIES=folder)
    assert done.returncode == 2
    assert "there is no such folder of fleets (correct the variable VLLM_FLEET_INVENTORIES)" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--directory", "/etc/passwd"], "--directory /etc/passwd: /etc/passwd is not a folder"),
        (["--directory", "/etc/passwd/x"], "--directory /etc/passwd/x: /etc/passwd is not a folder"),
        (["--to", "/etc/passwd"], "--to /etc/passwd: /etc/passwd is not a folder"),
        (["--from", "/nowhere"], "--from /nowhere is no mirror: it has no mirror.json"),
        (["--from", "/etc/passwd"], "is no mirror"),
        (["--serve", "--to", "COPY"], "--serve and --to exclude each other"),
        (["--serve"], "mirror.url: is missing"),
        (["--to", "COPY", "--from", "COPY"], "exclude each other"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_before_anything_is_copied(
    arguments: list[str], says: str, tmp_path: Path, run: Run
) -> None:
    copy, cache = tmp_path / "copy", tmp_path / "cache"
    done = run("mirror", *(word.replace("COPY", str(copy)) for word in arguments), VLLM_FLEET_CACHE=str(cache))
    assert done.returncode == 2
    assert says in done.stderr
    assert not copy.exists()
    assert not cache.exists()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EROFS, "it is read-only: work in a copy that you may write to"),
        (errno.EACCES, "correct its permissions, or run as a user who has them"),
        (errno.ENOSPC, "free space on its disk"),
        (errno.ENOTDIR, "correct the path"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_error(
    number: int, hint: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number), "/checkout/.fleet/lab/drift.json")

    monkeypatch.setattr(cli, "app", refuse)
    done = run("drift")
    assert done.returncode == 1
    assert done.stderr == f"error: /checkout/.fleet/lab/drift.json: cannot be used: {os.strerror(number)} ({hint})\n"
    assert json.loads(run("drift", "--json").stdout)["error"]["file"] == "/checkout/.fleet/lab/drift.json"


def test_many_errors_are_counted(tmp_path: Path, run: Run) -> None:
    (tmp_path / "many").mkdir()
    text = "fleet: many\npools: {}\n" + "".join(f"key{number}: 1\n" for number in range(200))
    (tmp_path / "many" / "fleet.yml").write_text(text, encoding="utf-8")
    done = run("check", VLLM_FLEET_INVENTORIES=str(tmp_path))
    lines = done.stderr.splitlines()
    assert (len(lines), lines[-1]) == (51, "and 151 more errors")
    record = json.loads(run("check", "--json", VLLM_FLEET_INVENTORIES=str(tmp_path)).stdout)
    assert (len(record["errors"]), record["errors_left_out"]) == (50, 151)


def test_check_names_each_fleet_that_it_cannot_look_into(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root() / "inventories" / "example-aws", tmp_path / "example-aws")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "no-fleet").mkdir()
    environment = {"VLLM_FLEET_INVENTORIES": str(tmp_path)}
    assert run("check", **environment).stdout.endswith("fleets: example-aws\n")
    for name in ("itself", "closed"):
        (tmp_path / name).mkdir()
    (tmp_path / "itself" / "fleet.yml").symlink_to("fleet.yml")
    (tmp_path / "turning").symlink_to("turning")
    (tmp_path / "nothing").symlink_to("nowhere")
    lstat = Path.lstat

    def closed(path: Path) -> os.stat_result:
        if path.parent.name == "closed":  # root may look into every folder
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", closed)
    done = run("check", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    for text in (
        "itself/fleet.yml: cannot be read: Too many levels of symbolic links",
        "turning: cannot be looked into, so it was not checked: Too many levels of symbolic links",
        "nothing: is a link to nothing",
        "closed: cannot be looked into, so it was not checked: Permission denied (correct its permissions",
    ):
        assert f"{tmp_path}/{text}" in done.stderr
    assert "closed: cannot be looked into" in run("plan", "--fleet", "closed", **environment).stderr
    assert run("plan", "--fleet", "example-aws", **environment).returncode == 0


def test_a_folder_of_recipes_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = shutil.copytree(root() / "recipes", tmp_path / "recipes")
    scandir = os.scandir

    def closed(folder: str) -> object:
        if Path(folder).name == "openai":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(FleetError, match="cannot be listed: Permission denied") as caught:
        catalogue.load(recipes)
    assert {error.file for error in (caught.value, *caught.value.others)} >= {str(recipes / "models" / "openai")}


def test_a_user_without_a_home_is_told_what_to_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "VLLM_FLEET_CACHE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    done = run("check", "--fleet", "example-aws")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: this user has no home, so there is no place for the cache")
    assert "(set HOME or VLLM_FLEET_CACHE)" in done.stderr
    assert package_index.configured_index().startswith("https://")
    assert registry._account("registry.example.com") == ""
    with pytest.raises(FleetError, match="ssh does not work for the user"):
        ssh_options.have_settings(None)


@pytest.mark.parametrize(
    ("option", "place", "says"),
    [
        ("--key", "folder", "folder: --key: is a folder, not a file"),
        ("--ssh-config", "loop", "loop: --ssh-config: cannot be read: Too many levels of"),
        ("--from-inventory", "loop", "loop: --from-inventory: cannot be read: Too many levels of symbolic links"),
        ("--from-inventory", "x" * 900, "cannot be read: File name too long"),
        ("--api-key-file", "file", "file: --api-key-file: exists already"),
        ("--api-key-file", "file/key", "file: --api-key-file: is not a folder"),
        ("--api-key-file", "x" * 900, "cannot be written: File name too long"),
    ],
)
def test_a_path_that_cannot_be_is_told_by_its_option(
    option: str, place: str, says: str, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "inventories").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / place
    hosts = [] if option == "--from-inventory" else ["--host", "192.0.2.1", "--gateway", "192.0.2.2"]
    inventories = tmp_path / "inventories"
    done = run("init", "rack", *hosts, option, str(path), "--yes", VLLM_FLEET_INVENTORIES=str(inventories))
    assert done.returncode == 2
    assert says in done.stderr.replace(f"{tmp_path}/", "")
    assert not list(inventories.iterdir())


@pytest.mark.parametrize("ending", [KeyboardInterrupt, typer.Abort, EOFError])
def test_an_interruption_is_one_line_or_one_document(
    ending: type[BaseException], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise ending

    monkeypatch.setattr(plan, "load", interrupt)
    done = run("plan", "--fleet", "example-aws")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "error: interrupted (run the command again)\n"
    done = run("plan", "--fleet", "example-aws", "--json")
    assert (done.returncode, done.stderr) == (130, "")
    assert json.loads(done.stdout)["error"]["code"] == "interrupted"


def test_an_interruption_before_the_commands_are_known_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", interrupt)
    for arguments, said in (([], ("", "error: interrupted (run the command again)\n")), (["--json"], None)):
        monkeypatch.setattr(sys, "argv", ["vllm-fleet", "plan", *arguments])
        with pytest.raises(SystemExit) as end:
            __main__.main()
        assert end.value.code == 130
        shown = capfd.readouterr()
        assert shown == said or json.loads(shown.out)["error"]["message"] == "interrupted"


def test_sigterm_leaves_no_folder_behind(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(*_: object) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    monkeypatch.setattr(plan, "load", work)
    done = run("plan", "--fleet", "example-aws")
    assert (done.returncode, done.stderr) == (143, "error: ended by SIGTERM (run the command again)\n")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize("is_other", [False, True])
def test_the_fleet_of_another_checkout_than_the_one_a_user_stands_in_is_announced(
    is_other: bool, tmp_path: Path
) -> None:
    (tmp_path / "vllm_fleet").mkdir()
    for name in ("Pulumi.yaml", "vllm_fleet/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "docs").mkdir()
    done = subprocess.run(
        [*PROGRAM, "check", "--fleet", "example-amd"],
        cwd=tmp_path / "docs" if is_other else root(),
        env={name: value for name, value in os.environ.items() if name != "VLLM_FLEET_INVENTORIES"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == (
        f"warning: this is the vllm-fleet of {root()}, with the fleets there (run '. ./activate' in {tmp_path})\n"
        if is_other
        else ""
    )
