"""Archives of a distribution and of vendors through apt itself: signatures checked, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download
from vllm_fleet.host.apt_repositories import KEY_FILE, Repository, apt_pins
from vllm_fleet.mirror import apt_lists
from vllm_fleet.mirror.apt_lists import Origin
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.store import Artifact

_TIMEOUT_SECONDS = 600


def listing(need: Debs, work: Path) -> list[Artifact]:
    """The signed lists of a distribution, and every package that the wanted ones depend on, from nothing.

    Args:
        need: the packages.
        work: a folder for apt's files, kept so that the artifacts can be copied out of it.

    Raises:
        FleetError: no apt here, no keys, a list with a wrong signature, or a package that there is none of.
    """
    _expect_tools(need)
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    keys = {each.name: _key(each, work / f"{each.name}.asc") for each in need.repositories}
    (work / "origin.sources").write_text(_sources(need, keys), encoding="utf-8")
    pins = "\n\n".join(apt_pins(need.repositories, in_mirror=False))
    (work / "preferences").write_text(pins + "\n", encoding="utf-8")
    (work / "apt.conf").write_text(apt_lists.apt_config(str(work), need.architecture), encoding="utf-8")
    # An index that cannot be had is only a warning to apt, unless it is told so.
    _apt(need, work, "-o", "APT::Update::Error-Mode=any", "update")
    wanted: dict[str, None] = {}
    for packages in need.sets:
        printed = _apt(need, work, "-qq", "--no-install-recommends", "--print-uris", "-y", "install", *packages)
        wanted |= dict.fromkeys(apt_lists.names_of_uris(printed))
    found = {each.path: each for origin in need.origins for each in _archive(origin, need, work, wanted)}
    for repository in need.repositories:
        key = keys[repository.name]
        place = f"{apt_lists.place(need.distribution, repository.name)}/{KEY_FILE}"
        found[place] = Artifact(place, download.digest_of(key), key.stat().st_size, str(key))
    if missing := len(wanted) - sum(1 for path in found if path.endswith(".deb")):
        raise FleetError(
            f"{missing} packages of {need.distribution} are in no list", "run it again", code="work-failed"
        )
    return list(found.values())


def _archive(origin: Origin, need: Debs, work: Path, wanted: Iterable[str]) -> Iterator[Artifact]:
    """What is wanted of one suite of an archive, whose lists apt has just read."""
    release = work / "lists" / apt_lists.list_file(origin.release)
    if not release.is_file():
        raise FleetError(
            f"{origin.release} is not there, only the older form of a signed list",
            "name a copy in artifacts.repositories that has it",
            code="refused",
        )
    place = f"{origin.place}/{origin.folder}InRelease"
    yield Artifact(place, download.digest_of(release), release.stat().st_size, str(release))
    yield from apt_lists.lists(release.read_text(encoding="utf-8"), origin, need.architecture)
    for name in origin.lists(need.architecture):
        packages = work / "lists" / apt_lists.list_file(f"{origin.uri}/{origin.folder}{name}")
        yield from apt_lists.pool(packages.read_text(encoding="utf-8", errors="replace"), wanted, origin)


def _sources(need: Debs, keys: Mapping[str, Path]) -> str:
    """The sources of the distribution and of the vendors, each where it really lies."""
    stanzas = [apt_lists.sources_text(need.record, [source.uri for source in need.record.sources])]
    for repository in need.repositories:
        if source := repository.source(need.distribution):
            stanzas.append(apt_lists.stanza(source.uri, source, str(keys[repository.name])))
    return "\n".join(stanzas)


def _key(repository: Repository, path: Path) -> Path:
    """Brings the key of a repository, which must have its fingerprint."""
    if isinstance(repository.key, Path):
        shutil.copyfile(repository.key, path)
        return path
    url, wanted = repository.key.url, repository.key.fingerprint
    try:
        body, _, _ = download.text(url, "*/*")
    except UnicodeDecodeError:
        body = "no text, as an armoured key is"
    path.write_text(body, encoding="utf-8")
    shown = subprocess.run(
        ["gpg", "--batch", "--homedir", str(path.parent), "--show-keys", "--with-colons", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split(":") for line in shown.stdout.splitlines()]
    # Just one key: a file may hold others beside it, and apt would believe each of them.
    primary = [row for row in rows if row[0] == "pub"]
    prints = [row[9] for row in rows if row[0] == "fpr"]
    if len(primary) != 1 or prints[:1] != [wanted] or not _is_digest(path, repository.key.sha256):
        raise FleetError(
            f"the key at {url} is not {wanted}",
            f"do not use it before the vendor of {repository.name} has said why",
            "recipes/drivers.yml",
            code="refused",
        )
    return path


def _is_digest(path: Path, sha256: str | None) -> bool:
    return sha256 is None or download.digest_of(path) == sha256


def _expect_tools(need: Debs) -> None:
    programs = ["apt-get", *(["gpg"] if any(not isinstance(each.key, Path) for each in need.repositories) else [])]
    for program in programs:
        if shutil.which(program) is None:
            raise FleetError(
                f"there is no {program} on this machine, which reads an archive or the key that signs it",
                "run it on Debian or Ubuntu with apt and gpg, or leave out mirror.distribution",
                code="refused",
            )
    if not Path(need.record.keyring).is_file():
        raise FleetError(
            f"the keys that sign {need.distribution} are not here",
            f"install {need.record.keyring_package}",
            need.record.keyring,
        )


def _apt(need: Debs, work: Path, *words: str) -> str:
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "APT_CONFIG": str(work / "apt.conf")}
    environment |= {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            ["apt-get", *words], env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise FleetError(f"apt-get did not end within {_TIMEOUT_SECONDS} s", code="work-failed") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        raise FleetError(
            f"{need.distribution}: {'; '.join(lines[-3:])}", "look at the network and the names", code="work-failed"
        )
    return done.stdout
