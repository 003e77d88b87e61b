"""The file that a shell sources: what it sets, and what it leaves as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vllm_fleet.base import paths

NAMES = ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE_FILE", "PULUMI_HOME", "ANSIBLE_CONFIG")
PLUGINS = ("PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION", "PULUMI_OPTION_SKIP_PLUGIN_PRE_INSTALL")


def sourced(*checkouts: Path, names: tuple[str, ...] = NAMES, **given: str) -> list[str]:
    """The variables of a shell that has sourced the file of one checkout after the other."""
    lines = [*(f". {folder}/activate" for folder in checkouts), *(f'echo "${name}"' for name in names)]
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    """Two checkouts, as far as the file sees them."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "vllm-fleet").touch(0o755)
        for name in ("activate", "ansible.cfg"):
            shutil.copy(paths.root() / name, folder)
    return one, two


def own(folder: Path) -> list[str]:
    at = folder / ".pulumi"
    return [f"file://{at}/state", f"{at}/passphrase", f"{at}/home", f"{folder}/ansible.cfg"]


def test_the_checkout_that_was_activated_last_is_the_one(checkouts: tuple[Path, Path]) -> None:
    one, two = checkouts
    assert sourced(one) == own(one)
    assert sourced(one, one) == own(one)
    assert sourced(one, two) == own(two)
    assert sourced(one, two, one) == own(one)
    assert (two / ".pulumi" / "passphrase").stat().st_mode & 0o077 == 0


def test_a_backend_of_ones_own_wins(checkouts: tuple[Path, Path]) -> None:
    one, two = checkouts
    mine = {"PULUMI_BACKEND_URL": "s3://states", "PULUMI_CONFIG_PASSPHRASE": "x", "PULUMI_HOME": "/home/me/.pulumi"}
    assert sourced(one, two, **mine) == ["s3://states", "", "/home/me/.pulumi", f"{two}/ansible.cfg"]


def test_pulumi_may_fetch_the_plugins_of_a_fleet_and_no_others(checkouts: tuple[Path, Path]) -> None:
    one, _ = checkouts
    assert sourced(one, names=PLUGINS) == ["", "true"]
    assert sourced(one, names=PLUGINS, **dict.fromkeys(PLUGINS, "false")) == ["false", "false"]


def test_without_its_environment_it_says_what_makes_it(checkouts: tuple[Path, Path]) -> None:
    one, _ = checkouts
    shutil.rmtree(one / ".venv")
    done = subprocess.run(["bash", "-ec", f". {one}/activate"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == f"warning: {one}/.venv is not there yet (run 'make venv')\n"


def test_a_shell_that_does_not_name_the_file_is_told_to_change_to_the_checkout(
    checkouts: tuple[Path, Path], tmp_path: Path
) -> None:
    """dash reads the file and takes the current folder for its own."""
    one, _ = checkouts
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = ["sh", "-c", f". {one}/activate"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode == 0:
        pytest.skip("sh is bash here, which names the file")
    assert (done.returncode, list(elsewhere.iterdir())) == (2, [])
    assert done.stderr.startswith(f"error: {elsewhere} is no checkout of vllm-fleet (change to the checkout")
    command = ["sh", "-ec", '. ./activate; echo "$ANSIBLE_CONFIG"']
    done = subprocess.run(command, cwd=one, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == f"{one}/ansible.cfg\n"


def test_programs_of_the_other_checkout_are_gone_from_path(checkouts: tuple[Path, Path]) -> None:
    """They would read the fleets of that checkout, and call them those of this one."""
    one, two = checkouts
    (on_path,) = sourced(one, two, names=("PATH",))
    assert on_path == f"{two}/.venv/bin:{os.environ['PATH']}"
