"""Packages in a mirror: the signed lists of a distribution and of vendors, and of their pools what hosts install."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from vllm_fleet.base.errors import FleetError
from vllm_fleet.mirror.store import Artifact
from vllm_fleet.schema.distribution import Distribution, Source
from vllm_fleet.schema.driver import AptSource

#: The list that apt takes first of those that an archive has.
_COMPRESSIONS = (".zst", ".xz", ".bz2", ".lzma", ".gz", ".lz4", "")


@dataclass(frozen=True)
class Origin:
    """One suite of one archive, and where it stands in the mirror; a flat one has the suite ``/``."""

    uri: str
    suite: str
    components: tuple[str, ...]
    place: str

    @property
    def folder(self) -> str:
        """Its lists, as seen from the archive's own folder: empty, or with a slash at its end."""
        if not self.suite.endswith("/"):
            return f"dists/{self.suite}/"
        return "" if self.suite == "/" else self.suite

    @property
    def release(self) -> str:
        """The URL of its signed list of lists."""
        return f"{self.uri}/{self.folder}InRelease"

    def lists(self, architecture: str) -> tuple[str, ...]:
        """Its package lists, as seen from its folder, without the ending of a compression."""
        if self.suite.endswith("/"):
            return ("Packages",)
        return tuple(f"{each}/binary-{architecture}/Packages" for each in self.components)


def origins(name: str, record: Distribution) -> Iterator[Origin]:
    """Every suite of a distribution."""
    for number, source in enumerate(record.sources):
        for suite in source.suites:
            yield Origin(source.uri, suite, tuple(source.components), place(name, number))


def vendor_origins(name: str, repository: str, source: AptSource) -> Iterator[Origin]:
    """Every suite of a vendor's repository, in the mirror of a distribution."""
    for suite in source.suites:
        yield Origin(source.uri.rstrip("/"), suite, tuple(source.components), place(name, repository))


def place(name: str, archive: int | str) -> str:
    """Where an archive stands in the mirror: by its number those of a distribution, by its name a vendor's."""
    return f"{folder(name)}/{archive}"


def folder(name: str) -> str:
    """Where the archives of a distribution stand in the mirror."""
    return f"debs/{name}"


def stanza(uri: str, source: Source | AptSource, keyring: str, *, check_valid_until: bool = True) -> str:
    """One source as apt reads it, in the deb822 form.

    Args:
        uri: where it lies.
        source: its suites and components.
        keyring: the file of the keys that sign it.
        check_valid_until: False where the lists may be older than their signers allow, as in a mirror without network.
    """
    components = f"Components: {' '.join(source.components)}\n" if source.components else ""
    text = f"Types: deb\nURIs: {uri}\nSuites: {' '.join(source.suites)}\n{components}Signed-By: {keyring}\n"
    return text + ("" if check_valid_until else "Check-Valid-Until: no\n")


def sources_text(record: Distribution, bases: Iterable[str], *, check_valid_until: bool = True) -> str:
    """The sources of a distribution; ``bases`` are the URIs of its archives, the rest as for :func:`stanza`."""
    return "\n".join(
        stanza(base, source, record.keyring, check_valid_until=check_valid_until)
        for source, base in zip(record.sources, bases, strict=True)
    )


def apt_config(folder: str, architecture: str) -> str:
    """A configuration of apt that knows nothing of this machine: no package is installed, all of it is in a folder."""
    return (
        f'Dir::Etc::sourcelist "{folder}/origin.sources";\n'
        'Dir::Etc::sourceparts "/dev/null";\nDir::Etc::parts "/dev/null";\n'
        f'Dir::Etc::preferences "{folder}/preferences";\nDir::Etc::preferencesparts "/dev/null";\n'
        f'Dir::State "{folder}";\nDir::State::lists "{folder}/lists";\nDir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\nDir::Log "{folder}";\n'
        f'APT::Architecture "{architecture}";\nAPT::Architectures "{architecture}";\n'
        'Acquire::Languages "none";\nAPT::Sandbox::User "root";\n'
    )


def _decoded(url: str) -> str:
    return re.sub("%([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), url)


def names_of_uris(text: str) -> list[str]:
    """The URLs that ``apt-get --print-uris`` prints."""
    return [match[1] for match in re.finditer(r"^'(\S+)' ", text, re.MULTILINE)]


def pool(packages: str, wanted: Iterable[str], origin: Origin) -> Iterator[Artifact]:
    """The files of an archive that are wanted, with their digests from its list.

    Args:
        packages: the text of the list.
        wanted: URLs of files; those of other archives are left out.
        origin: the archive.
    """
    names = {_decoded(url.removeprefix(f"{origin.uri}/")): url for url in wanted if url.startswith(f"{origin.uri}/")}
    for stanza in packages.split("\n\n"):
        name = re.search(r"^Filename: (\S+)$", stanza, re.MULTILINE)
        if name and (url := names.get(name[1])):
            size = re.search(r"^Size: (\d+)$", stanza, re.MULTILINE)
            sha256 = re.search(r"^SHA256: ([0-9a-f]{64})$", stanza, re.MULTILINE)
            if size and sha256:
                # A flat archive says './name.deb'.
                yield Artifact(f"{origin.place}/{PurePosixPath(name[1])}", sha256[1], int(size[1]), url)


def lists(release: str, origin: Origin, architecture: str) -> Iterator[Artifact]:
    """The package lists of a suite that a host will ask for, with the digests that its signed release gives.

    Args:
        release: the text of ``InRelease``, whose signature was checked.
        origin: the suite.
        architecture: as Debian calls it.

    Raises:
        FleetError: the release has no such list.
    """
    known = _digests(release)
    by_hash = re.search(r"^Acquire-By-Hash: yes$", release, re.MULTILINE)
    for base in origin.lists(architecture):
        name = next((base + ending for ending in _COMPRESSIONS if base + ending in known), None)
        if name is None:
            raise FleetError(f"{origin.release} has no list {base}", "correct its source in the recipes")
        sha256, size = known[name]
        asked = f"{PurePosixPath(name).parent}/by-hash/SHA256/{sha256}" if by_hash else name
        path = f"{origin.folder}{PurePosixPath(asked)}"
        yield Artifact(f"{origin.place}/{path}", sha256, size, f"{origin.uri}/{path}")


def _digests(release: str) -> Mapping[str, tuple[str, int]]:
    section = re.search(r"^SHA256:\n((?: .*\n)+)", release, re.MULTILINE)
    lines = section[1].splitlines() if section else []
    return {words[2]: (words[0], int(words[1])) for words in map(str.split, lines) if len(words) == 3}


def list_file(uri: str) -> str:
    """The name that apt gives to its copy of a file: the URL without its scheme, ``/`` as ``_``."""
    bare = re.sub(r"^\w+://", "", uri)
    return bare.replace("_", "%5f").replace("/", "_")


def host_config(sources: str | None) -> str:
    """The text of apt's configuration on a host: what ``sources`` says and nothing else, or what the host has."""
    if sources is None:
        return "// Made by vllm-fleet: this fleet has no mirror of packages.\n"
    return (
        "// Made by vllm-fleet: packages come from the fleet's mirror, and from the sources that its roles add.\n"
        f'Dir::Etc::sourcelist "{sources}";\n'
        'Dir::Etc::sourceparts "/etc/apt/vllm-fleet.sources.d";\n'
        'Acquire::Languages "none";\n'
    )
