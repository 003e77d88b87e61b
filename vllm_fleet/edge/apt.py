"""A distribution's archive through apt itself: signatures checked, in a folder of its own, nothing here used."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vllm_fleet.edge import download
from vllm_fleet.errors import FleetError
from vllm_fleet.mirror import debs
from vllm_fleet.mirror.needs import Debs
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
    if shutil.which("apt-get") is None:
        raise FleetError(
            "there is no apt-get on this machine, which reads a distribution's archive",
            "run it on Debian or Ubuntu, or leave out mirror.distribution",
            code="refused",
        )
    if not Path(need.record.keyring).is_file():
        raise FleetError(
            f"the keys that sign {need.distribution} are not here",
            f"install {need.record.keyring_package}",
            need.record.keyring,
        )
    shutil.rmtree(work, ignore_errors=True)
    for folder in ("lists/partial", "cache/archives/partial"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    bases = [source.uri for source in need.record.sources]
    (work / "origin.sources").write_text(debs.sources_text(need.record, bases), encoding="utf-8")
    (work / "apt.conf").write_text(debs.apt_config(str(work), need.architecture), encoding="utf-8")
    # An index that cannot be had is only a warning to apt, unless it is told so.
    _apt(need, work, "-o", "APT::Update::Error-Mode=any", "update")
    printed = _apt(need, work, "-qq", "--no-install-recommends", "--print-uris", "-y", "install", *need.packages)
    wanted = debs.names_of_uris(printed)
    found: dict[str, Artifact] = {}
    for origin in debs.origins(need.distribution, need.record):
        release = work / "lists" / debs.list_file(origin.release)
        text = release.read_text(encoding="utf-8")
        place = f"{origin.place}/dists/{origin.suite}/InRelease"
        found[place] = Artifact(place, download.digest_of(release), release.stat().st_size, str(release))
        found |= {each.path: each for each in debs.lists(text, origin, need.architecture)}
        for component in origin.components:
            url = f"{origin.uri}/dists/{origin.suite}/{component}/binary-{need.architecture}/Packages"
            packages = (work / "lists" / debs.list_file(url)).read_text(encoding="utf-8", errors="replace")
            found |= {each.path: each for each in debs.pool(packages, wanted, origin)}
    if missing := len(wanted) - sum(1 for path in found if path.endswith(".deb")):
        raise FleetError(
            f"{missing} packages of {need.distribution} are in no list", "run it again", code="work-failed"
        )
    return list(found.values())


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
