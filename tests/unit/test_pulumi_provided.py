"""Where the Pulumi command line comes from: the cache, the released archive, or a build from Go modules."""

from __future__ import annotations

import hashlib
import io
import platform
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import web
from tools.pulumi import archive, go_build, provide
from tools.pulumi.programs import PROGRAMS

VERSION = go_build.pinned_version()
NAME = archive.archive_name(VERSION, platform.system(), platform.machine())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no Pulumi on PATH."""
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    return tmp_path / "cache" / "pulumi" / VERSION


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The places that a build from Go modules was asked for; nothing is built."""
    places: list[Path] = []
    monkeypatch.setattr(go_build, "build", places.append)
    return places


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of archives of a server that stands in for the one of Pulumi."""
    folder = tmp_path / "releases"
    folder.mkdir()
    with web.serving(web.files(folder)) as url:
        monkeypatch.setattr(archive.install_archive, "__defaults__", (url,))
        yield folder


def packed(folder: Path, version: str = VERSION, without: str = "") -> str:
    """Makes an archive of stand-ins, with more in it than is used; returns its digest."""
    with tarfile.open(folder / NAME, "w:gz") as file:
        for name in (*PROGRAMS, "pulumi-language-go", "../../outside"):
            if name != without:
                text = f"#!/bin/sh\necho v{version}\n".encode()
                member = tarfile.TarInfo(f"pulumi/{name}")
                member.size = len(text)
                file.addfile(member, io.BytesIO(text))
    return hashlib.sha256((folder / NAME).read_bytes()).hexdigest()


def pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    file = tmp_path / "archives.sha256"
    file.write_text(f"# stand-ins\n{digest}  {NAME}\n", encoding="utf-8")
    monkeypatch.setattr(archive, "DIGESTS", file)


def test_the_archive_is_downloaded_verified_and_unpacked_once(
    cache: Path,
    served: Path,
    builds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pin(tmp_path, monkeypatch, packed(served))
    assert provide.main() == 0
    assert capsys.readouterr().out == f"{cache / 'bin'}\n"
    assert sorted(path.name for path in (cache / "bin").iterdir()) == sorted([*PROGRAMS, "unpacked-from"])
    assert sorted(path.name for path in cache.iterdir()) == ["bin", "lock"]
    assert not list(tmp_path.rglob("outside"))
    (served / NAME).unlink()
    assert provide.main() == 0
    assert builds == []


def test_an_archive_with_another_digest_is_refused_and_nothing_is_built_in_its_place(
    cache: Path,
    served: Path,
    builds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    digest = packed(served)
    pin(tmp_path, monkeypatch, "0" * 64)
    assert provide.main() == 1
    shown = capsys.readouterr().err
    assert digest in shown
    assert "0" * 64 in shown
    assert not (cache / "bin").exists()
    assert builds == []


def test_another_pinned_digest_makes_what_was_unpacked_stale(
    cache: Path, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(tmp_path, monkeypatch, packed(served))
    assert provide.main() == 0
    assert archive.is_installed(cache, VERSION)
    pin(tmp_path, monkeypatch, "1" * 64)
    assert not archive.is_installed(cache, VERSION)


@pytest.mark.parametrize(
    ("version", "without", "says"),
    [
        ("3.1.0", "", "cannot be used"),
        ("3.999.0", "", f"is 3.999.0, not {VERSION}"),
        (VERSION, "pulumi-language-python", "does not hold pulumi-language-python"),
    ],
)
def test_an_archive_of_other_programs_is_refused(
    cache: Path,
    served: Path,
    builds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    version: str,
    without: str,
    says: str,
) -> None:
    pin(tmp_path, monkeypatch, packed(served, version, without))
    assert provide.main() == 1
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in cache.iterdir()) == ["lock"]
    assert builds == []


def test_a_file_that_is_no_archive_is_refused(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (served / NAME).write_bytes(b"<html>")
    pin(tmp_path, monkeypatch, hashlib.sha256(b"<html>").hexdigest())
    assert provide.main() == 1
    assert "cannot be unpacked" in capsys.readouterr().err


def test_a_server_that_does_not_have_it_leads_to_a_build(
    cache: Path, served: Path, builds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert provide.main() == 0
    assert builds == [cache]
    assert f"{NAME} is not reachable: HTTP 404 File not found; building Pulumi" in capsys.readouterr().err


def test_a_server_that_is_not_there_leads_to_a_build(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        # Bound and not listening: a connection is refused, and nothing else can take the port.
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(archive.install_archive, "__defaults__", (f"http://127.0.0.1:{closed.getsockname()[1]}",))
        assert provide.main() == 0
    assert builds == [cache]
    shown = capsys.readouterr().err
    assert f"{NAME} is not reachable: " in shown
    assert "Connection refused" in shown
    assert f"building Pulumi {VERSION} from its Go modules instead, minutes" in shown


def test_a_server_that_never_answers_leads_to_a_build_after_seconds(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive._ANSWER_SECONDS <= 5
    monkeypatch.setattr(archive, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(archive.install_archive, "__defaults__", (f"http://127.0.0.1:{silent.getsockname()[1]}",))
        assert provide.main() == 0
    assert builds == [cache]
    assert "is not reachable: timed out" in capsys.readouterr().err


def test_a_platform_without_a_pinned_digest_leads_to_a_build(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archive.platform, "machine", lambda: "riscv64")
    assert provide.main() == 0
    assert builds == [cache]
    assert f"no digest of pulumi-v{VERSION}-linux-riscv64.tar.gz is in tools/pulumi" in capsys.readouterr().err


def test_what_was_built_earlier_is_taken_without_a_request(
    cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "bin").mkdir(parents=True)
    for name in PROGRAMS:
        (cache / "bin" / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (cache / "bin" / name).chmod(0o755)
    (cache / "bin" / "built-from").write_text(go_build._recipe(), encoding="utf-8")
    monkeypatch.setattr(archive, "install_archive", None)
    assert provide.main() == 0
    assert capsys.readouterr().out == f"{cache / 'bin'}\n"
    assert builds == []


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_pinned_release_has_a_digest_for_each_machine(machine: str) -> None:
    digests = archive.read_digests(archive.DIGESTS.read_text(encoding="utf-8"))
    digest = digests[archive.archive_name(VERSION, "Linux", machine)]
    assert len(bytes.fromhex(digest)) == 32
