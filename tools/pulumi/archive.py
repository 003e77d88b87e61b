"""Downloads the released archive of Pulumi, checks it against ``archives.sha256``, and unpacks four programs of it.

``pulumi.automation.PulumiCommand.install`` is not used: it runs a shell script from get.pulumi.com, and neither the
script nor the archive that the script fetches is checked against a digest. Here the archive is, before anything in it
runs. What was unpacked is then loaded as ``PulumiCommand``, which checks that the SDK of the project can drive it.
"""

from __future__ import annotations

import platform
import shutil
import tarfile
from pathlib import Path

import httpx

from tools.pulumi.programs import PROGRAMS, is_complete
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat
from vllm_fleet.edge import download
from vllm_fleet.mirror.store import Artifact

#: Where Pulumi publishes its releases.
RELEASES = "https://get.pulumi.com/releases/sdk"
DIGESTS = Path(__file__).resolve().parent / "archives.sha256"
#: How long a server may take to answer before the archive counts as not reachable.
_ANSWER_SECONDS = 5.0
_MACHINES = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64", "arm64": "arm64"}


class UnavailableError(Exception):
    """The archive cannot be had here; the text is the reason. Another way may still provide Pulumi."""


def archive_name(version: str, system: str, machine: str) -> str:
    """The file name of a release's archive.

    Args:
        version: the release, without ``v``.
        system: as ``platform.system()`` gives it.
        machine: as ``platform.machine()`` gives it.
    """
    return f"pulumi-v{version}-{system.lower()}-{_MACHINES.get(machine.lower(), machine.lower())}.tar.gz"


def read_digests(text: str) -> dict[str, str]:
    """File name -> SHA-256, from lines as ``sha256sum`` prints them; lines that begin with ``#`` are comments."""
    rows = (line.split() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name: digest for digest, name in rows}


def install_archive(version: str, place: Path, releases: str = RELEASES) -> Path:
    """Downloads, verifies and unpacks a release.

    Args:
        version: the release, without ``v``.
        place: the folder that gets ``bin``; a partial download is kept beside it for the next run.
        releases: the URL of the folder of archives.

    Returns:
        The folder of the programs.

    Raises:
        UnavailableError: no digest is pinned for this platform, or the server cannot be reached.
        FleetError: the transfer broke off, the archive has another digest, or its programs cannot be used.
    """
    name = archive_name(version, platform.system(), platform.machine())
    digest = read_digests(DIGESTS.read_text(encoding="utf-8")).get(name)
    if digest is None:
        raise UnavailableError(f"no digest of {name} is in tools/pulumi/{DIGESTS.name}")
    url = f"{releases}/{name}"
    size = _ask_for_size(url)
    file = place / name
    with Heartbeat(f"Pulumi {version}: downloading {url}") as beat:
        received = 0

        def progress(count: int) -> None:
            nonlocal received
            received += count
            beat.note = f"{received >> 20} of {size >> 20} MiB"

        download.fetch_file(Artifact(name, digest, size, url), file, progress)
    part = place / "unpacked"
    shutil.rmtree(part, ignore_errors=True)
    try:
        _unpack(file, part / "bin")
        _check(part, version)
        (part / "bin" / "unpacked-from").write_text(digest, encoding="utf-8")
        shutil.rmtree(place / "bin", ignore_errors=True)
        (part / "bin").rename(place / "bin")
    finally:
        shutil.rmtree(part, ignore_errors=True)
        file.unlink(missing_ok=True)
    return place / "bin"


def is_installed(place: Path, version: str) -> bool:
    """Whether a place holds the programs of an archive whose digest is still the pinned one."""
    stamp = place / "bin" / "unpacked-from"
    digests = read_digests(DIGESTS.read_text(encoding="utf-8"))
    name = archive_name(version, platform.system(), platform.machine())
    return is_complete(place / "bin") and stamp.is_file() and stamp.read_text(encoding="utf-8") == digests.get(name)


def _ask_for_size(url: str) -> int:
    """The length of the archive in bytes, 0 where the server does not say.

    Raises:
        UnavailableError: no server answers within seconds, or it does not have the archive.
    """
    try:
        answer = httpx.head(url, timeout=_ANSWER_SECONDS, follow_redirects=True)
    except httpx.TransportError as error:
        raise UnavailableError(f"{url} is not reachable: {error}") from None
    if answer.status_code != httpx.codes.OK:
        raise UnavailableError(f"{url} is not reachable: HTTP {answer.status_code} {answer.reason_phrase}")
    return int(answer.headers.get("Content-Length", 0))


def _unpack(file: Path, folder: Path) -> None:
    """Writes the programs that are used, and no other path of the archive."""
    folder.mkdir(parents=True)
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                target = folder / Path(member.name).name
                if content is None or target.name not in PROGRAMS:
                    continue
                with content, target.open("wb") as program:
                    shutil.copyfileobj(content, program)
                target.chmod(0o755)
    except tarfile.TarError as error:
        raise FleetError(f"{file.name} cannot be unpacked: {error}", code=ErrorCode.WORK_FAILED) from None
    if not is_complete(folder):
        missing = [program for program in PROGRAMS if not (folder / program).is_file()]
        raise FleetError(f"{file.name} does not hold {', '.join(missing)}", code=ErrorCode.WORK_FAILED)


def _check(root: Path, version: str) -> None:
    """Lets the SDK load what was unpacked.

    Args:
        root: the folder above ``bin``.
        version: the release that it has to be.
    """
    from pulumi.automation import PulumiCommand  # a second of imports, needed only here
    from semver import VersionInfo

    wanted = VersionInfo.parse(version)
    try:
        command = PulumiCommand(root=str(root), version=wanted)
    except Exception as error:
        raise FleetError(
            f"the Pulumi that was downloaded cannot be used: {error}", code=ErrorCode.WORK_FAILED
        ) from None
    if command.version != wanted:
        raise FleetError(
            f"the Pulumi that was downloaded is {command.version}, not {version}", code=ErrorCode.WORK_FAILED
        )
