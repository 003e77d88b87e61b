"""The modules that read a host or remove what it no longer needs, with stand-ins for the commands that they run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from run_module import run_module


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands."""
    folder = tmp_path / "commands"
    folder.mkdir()
    return folder


def add_command(commands: Path, name: str, script: str) -> None:
    (commands / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (commands / name).chmod(0o755)


class TestDpkgInfo:
    ROWS = (
        "linux-image-6.1 6.1.2-1 install ok installed\nlinux-image-6.2 6.2.1-1 hold ok installed\n"
        "linux-image-5.9 5.9-1 deinstall ok config-files\n"
    )

    def read(self, commands: Path, rows: str = ROWS, code: int = 0, **arguments: Any) -> dict[str, Any]:
        rows = rows.replace(" ok ", " ")
        add_command(commands, "dpkg-query", f"echo \"$@\" > {commands}/asked; printf '{rows}'; exit {code}")
        add_command(commands, "apt-cache", '[ "$2" = linux-modules-extra-6.1 ]')
        return run_module("dpkg_info", commands, arguments, path=commands)

    def test_only_what_is_installed_counts_and_holds_are_read(self, commands: Path) -> None:
        result = self.read(commands, patterns=["linux-image-*"])
        assert result["installed"] == ["linux-image-6.1 6.1.2-1", "linux-image-6.2 6.2.1-1"]
        assert result["not_held"] == ["linux-image-6.1"]
        assert (commands / "asked").read_text(encoding="utf-8").split()[-1] == "linux-image-*"

    def test_a_pattern_without_packages_is_no_error_and_another_fault_is(self, commands: Path) -> None:
        result = self.read(commands, rows="", code=1, patterns=["nothing*"])
        assert (result["installed"], result["not_held"]) == ([], [])
        assert self.read(commands, rows="", code=2, patterns=["nothing*"])["failed"] is True

    def test_candidates_are_those_that_apt_knows(self, commands: Path) -> None:
        names = ["linux-modules-extra", "linux-modules-nvidia"]
        assert self.read(commands, candidates=names, suffix="-6.1")["available"] == ["linux-modules-extra-6.1"]
        assert not (commands / "asked").exists()


class TestUnusedImages:
    NAME = "192.0.2.1:5000/vllm/vllm-openai"
    DIGESTS = tuple(f"sha256:{digit * 64}" for digit in "1234")

    @pytest.fixture
    def releases(self, commands: Path) -> Path:
        """Two releases; the first names the second image. docker has four of the name and one of another."""
        folder = commands / "releases"
        for name, digest in (("a", self.DIGESTS[1]), ("b", self.DIGESTS[0])):
            (folder / name).mkdir(parents=True)
            (folder / name / "0.env").write_text(f'FLEET_IMAGE="{self.NAME}@{digest}"\n', encoding="utf-8")
        (folder / "b" / "note").write_text(f"@{self.DIGESTS[2]}\n", encoding="utf-8")
        names = [
            *(f"{self.NAME}@{digest}" for digest in self.DIGESTS),
            f"other@{self.DIGESTS[2]}",
            f"{self.NAME}@<none>",
        ]
        listing = "\\n".join(names)
        add_command(
            commands, "docker", f'case $2 in ls) printf "{listing}\\n" ;; rm) echo $3 >> {commands}/gone ;; esac'
        )
        return folder

    def clean(self, commands: Path, releases: Path, *, check: bool = False) -> dict[str, Any]:
        arguments = {"reference": f"{self.NAME}@{self.DIGESTS[0]}", "releases": str(releases)}
        return run_module("unused_images", commands, arguments, check=check, path=commands)

    def test_images_of_the_name_that_no_release_names_go(self, commands: Path, releases: Path) -> None:
        result = self.clean(commands, releases)
        gone = [f"{self.NAME}@{digest}" for digest in self.DIGESTS[2:]]
        assert (result["changed"], result["removed"]) == (True, gone)
        assert (commands / "gone").read_text(encoding="utf-8").split() == gone

    def test_check_mode_names_them_and_removes_none(self, commands: Path, releases: Path) -> None:
        result = self.clean(commands, releases, check=True)
        assert len(result["removed"]) == 2
        assert self.DIGESTS[2] in result["diff"]["before"]
        assert not (commands / "gone").exists()

    def test_a_host_without_releases_keeps_the_image_in_use(self, commands: Path, releases: Path) -> None:
        result = self.clean(commands, releases / "nowhere")
        assert result["removed"] == [f"{self.NAME}@{digest}" for digest in self.DIGESTS[1:]]


class TestSigningKeyInfo:
    def read(self, commands: Path, output: str) -> dict[str, Any]:
        add_command(commands, "gpg", f"printf '{output}'")
        return run_module("signing_key_info", commands, {"path": "/key.asc"}, path=commands)

    def test_primary_keys_count_and_their_subkeys_do_not(self, commands: Path) -> None:
        first, sub, second = ("A" * 40, "B" * 40, "C" * 40)
        rows = ["tru::1:::", "pub:-:4096:1:X:::", f"fpr:::::::::{first}:", "uid:-::::", "sub:-:4096:1:Y:::"]
        rows += [f"fpr:::::::::{sub}:"]
        assert self.read(commands, "\\n".join(rows))["fingerprints"] == [first]
        rows += ["pub:-:4096:1:Z:::", f"fpr:::::::::{second}:"]
        assert self.read(commands, "\\n".join(rows))["fingerprints"] == [first, second]

    def test_a_file_without_keys_has_none_and_a_failure_is_an_error(self, commands: Path) -> None:
        assert self.read(commands, "")["fingerprints"] == []
        add_command(commands, "gpg", "echo no valid OpenPGP data >&2; exit 2")
        result = run_module("signing_key_info", commands, {"path": "/key.asc"}, path=commands)
        assert "no valid OpenPGP data" in result["msg"]


class TestEngineHostInfo:
    def read(self, folder: Path, **changes: Any) -> dict[str, Any]:
        own = ".".join(platform.python_version_tuple()[:2])
        required = {"machine": platform.machine(), "python_versions": [own, "3.99"], "glibc_min": "2.17"}
        return run_module("engine_host_info", folder, required | changes)

    def test_this_machine_fits_itself(self, tmp_path: Path) -> None:
        result = self.read(tmp_path)
        assert (result["fits"], result["changed"]) == (True, False)
        assert result["python"] in result["found"]
        assert result["required"].endswith("glibc 2.17 or newer")

    @pytest.mark.parametrize(
        ("change", "phrase"),
        [
            ({"machine": "riscv64"}, "riscv64, Python"),
            ({"python_versions": ["3.98", "3.99"]}, "Python 3.98 or 3.99"),
            ({"glibc_min": "2.99"}, "glibc 2.99 or newer"),
            ({"rocm_min": "7.0"}, "ROCm 7.0 or newer"),
        ],
    )
    def test_what_the_host_lacks_makes_it_unfit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], phrase: str
    ) -> None:
        monkeypatch.setenv("ROCM_PATH", str(tmp_path / "rocm"))
        result = self.read(tmp_path, **change)
        assert result["fits"] is False
        assert phrase in result["required"]
        assert result["found"].endswith("ROCm none")

    @pytest.mark.parametrize(("version", "fits"), [("6.4.3-123", False), ("7.0.2-9", True), ("10.0", True)])
    def test_rocm_is_compared_by_number(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
    ) -> None:
        (tmp_path / "rocm" / ".info").mkdir(parents=True)
        (tmp_path / "rocm" / ".info" / "version").write_text(f"{version}\n", encoding="utf-8")
        monkeypatch.setenv("ROCM_PATH", str(tmp_path / "rocm"))
        assert self.read(tmp_path, rocm_min="7.0")["fits"] is fits
