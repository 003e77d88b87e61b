"""Reads the archives of a distribution and of vendors with apt, which checks their signatures."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vllm_fleet.base.digests import file_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.edge import download
from vllm_fleet.host.apt_repositories import KEY_FILE, Repository, apt_pins
from vllm_fleet.mirror import apt_lists
from vllm_fleet.mirror.apt_lists import Origin
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.store import Artifact

_TIMEOUT_SECONDS = 600
_KEY_MIB = 1


def list_files(need: Debs, work: Path) -> list[Artifact]:
    """The signed lists of a distribution and its vendors, and the packages with all their dependencies.

    Args:
        need: the packages.
        work: a folder for apt's files; kept, because artifacts are copied from it.

    Raises:
        FleetError: apt or a key is missing, a signature is wrong, or a package does not exist.
    """
    _expect_tools(need)
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    keys = {
        repository.name: _fetch_key(repository, need.distribution, work / f"{repository.name}.asc")
        for repository in need.repositories
    }
    (work / "origin.sources").write_text(_sources(need, keys), encoding="utf-8")
    (work / "preferences").touch()
    (work / "apt.conf").write_text(apt_lists.isolated_apt_config(str(work), need.architecture), encoding="utf-8")
    # By default apt only warns of an index that it cannot download.
    _apt(need, work, "-o", "APT::Update::Error-Mode=any", "update")
    wanted: dict[str, None] = {}
    for wanted_set in need.sets:
        pins = "\n\n".join([*apt_pins(need.repositories, in_mirror=False), *wanted_set.pins])
        (work / "preferences").write_text(pins + "\n", encoding="utf-8")
        _expect_versions(need, work, wanted_set.packages)
        printed = _apt(
            need, work, "-q", "--no-install-recommends", "--print-uris", "-y", "install", *wanted_set.packages
        )
        wanted |= dict.fromkeys(apt_lists.printed_urls(printed))
    artifacts = {
        artifact.path: artifact for origin in need.origins for artifact in _list_archive(origin, need, work, wanted)
    }
    for repository in need.repositories:
        key = keys[repository.name]
        place = f"{apt_lists.archive_folder(need.distribution, repository.name)}/{KEY_FILE}"
        artifacts[place] = Artifact(place, file_sha256(key), key.stat().st_size, str(key))
    if missing := len(wanted) - sum(1 for path in artifacts if path.endswith(".deb")):
        raise FleetError(
            f"{missing} packages of {need.distribution} are in no package list",
            "run it again",
            code=ErrorCode.WORK_FAILED,
        )
    return list(artifacts.values())


def _expect_versions(need: Debs, work: Path, packages: Iterable[str]) -> None:
    """Raises an error that names every package with a version that no archive has."""
    # Not the others: a distribution's package may be a virtual one.
    wanted = [package.partition("=")[::2] for package in packages if "=" in package]
    if not wanted:
        return
    shown = _run_apt(work, "apt-cache", "madison", *(name for name, _ in wanted)).stdout
    missing = apt_lists.missing_versions(wanted, apt_lists.madison_versions(shown))
    if missing:
        vendors = ", ".join(repository.name for repository in need.repositories)
        raise FleetError(
            f"{need.distribution}, {need.architecture}: {clean_text('; '.join(missing))}",
            f"correct recipes/drivers.yml, or name a copy of {vendors} that has them in artifacts.repositories",
            code=ErrorCode.REFUSED,
        )


def _list_archive(origin: Origin, need: Debs, work: Path, wanted: Iterable[str]) -> Iterator[Artifact]:
    """The lists of one suite, which apt has just read, and the wanted files of its archive."""
    release = work / "lists" / apt_lists.apt_list_name(origin.release)
    if not release.is_file():
        raise FleetError(
            f"{origin.release} is missing: the archive has only the older form of a signed list",
            "name a copy of the archive that has it in artifacts.repositories",
            code=ErrorCode.REFUSED,
        )
    place = f"{origin.place}/{origin.folder}InRelease"
    yield Artifact(place, file_sha256(release), release.stat().st_size, str(release))
    yield from apt_lists.release_lists(release.read_text(encoding="utf-8", errors="replace"), origin, need.architecture)
    for name in origin.lists(need.architecture):
        packages = work / "lists" / apt_lists.apt_list_name(f"{origin.uri}/{origin.folder}{name}")
        yield from apt_lists.pool_files(packages.read_text(encoding="utf-8", errors="replace"), wanted, origin)


def _sources(need: Debs, keys: Mapping[str, Path]) -> str:
    """The sources of the distribution and of the vendors, at their own URLs."""
    stanzas = [apt_lists.sources_text(need.record, [source.uri for source in need.record.sources])]
    for repository in need.repositories:
        if source := repository.source(need.distribution):
            stanzas.append(apt_lists.source_stanza(source.uri, source, str(keys[repository.name])))
    return "\n".join(stanzas)


def _fetch_key(repository: Repository, system: str, path: Path) -> Path:
    """Copies or downloads the key of a repository for a system, and compares its fingerprint."""
    key = repository.system_key(system)
    if isinstance(key, Path):
        shutil.copyfile(key, path)
        return path
    url, fingerprint = key.url, key.fingerprint
    path.write_bytes(download.fetch_bytes(url, limit_mib=_KEY_MIB).body)
    shown = subprocess.run(
        ["gpg", "--batch", "--homedir", str(path.parent), "--show-keys", "--with-colons", str(path)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    rows = [line.split(":") for line in shown.stdout.splitlines()]
    # Exactly one key: apt would trust every key in the file.
    primary = [row for row in rows if row[0] == "pub"]
    fingerprints = [row[9] for row in rows if row[0] == "fpr" and len(row) > 9]
    if len(primary) != 1 or fingerprints[:1] != [fingerprint] or not _has_digest(path, key.sha256):
        raise FleetError(
            f"the key at {url} is not the pinned key {fingerprint}",
            f"ask the vendor of {repository.name} why it changed, then pin the new key",
            "recipes/drivers.yml",
            code=ErrorCode.REFUSED,
        )
    return path


def _has_digest(path: Path, sha256: str | None) -> bool:
    return sha256 is None or file_sha256(path) == sha256


def _expect_tools(need: Debs) -> None:
    programs = [
        "apt-get",
        *(["gpg"] if any(not isinstance(repository.key, Path) for repository in need.repositories) else []),
    ]
    for program in programs:
        if shutil.which(program) is None:
            raise FleetError(
                f"{program} is not installed on this machine; it reads an archive or the key that signs it",
                "run it on Debian or Ubuntu with apt and gpg, or remove mirror.distribution",
                code=ErrorCode.REFUSED,
            )
    if not Path(need.record.keyring).is_file():
        raise FleetError(
            f"the keys that sign {need.distribution} are missing",
            f"install {need.record.keyring_package}",
            need.record.keyring,
        )


def _apt(need: Debs, work: Path, *words: str) -> str:
    done = _run_apt(work, "apt-get", *words)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        unmet = [" ".join(line.split()) for line in done.stdout.splitlines() if "Depends: " in line]
        raise FleetError(
            f"{need.distribution}: {clean_text('; '.join([*unmet, *lines[-3:]]))}",
            "check the network and the package names",
            code=ErrorCode.WORK_FAILED,
        )
    return done.stdout


def _run_apt(work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of apt with the files in ``work`` alone."""
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "APT_CONFIG": str(work / "apt.conf")}
    environment |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    try:
        return subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FleetError(f"{words[0]} did not finish within {_TIMEOUT_SECONDS} s", code=ErrorCode.WORK_FAILED) from None
