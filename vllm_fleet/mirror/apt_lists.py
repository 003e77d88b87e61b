"""Debian packages in a mirror: signed lists of a distribution and of vendors, and the package files of hosts."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import PurePosixPath

from vllm_fleet.base.errors import FleetError
from vllm_fleet.mirror.store import Artifact
from vllm_fleet.schema.distribution import Distribution, Source
from vllm_fleet.schema.driver import AptSource

#: apt's order of preference among the forms of a list.
_COMPRESSIONS = (".zst", ".xz", ".bz2", ".lzma", ".gz", ".lz4", "")
_SHA256 = re.compile("[0-9a-f]{64}")
_SIZE = re.compile("[0-9]{1,15}")
#: As apt reads a list: only an empty line ends a stanza.
_STRICT = {"whitespace-separates-paragraphs": False}
_LIST_HINT = "look at what answers at this address: it is no archive of packages"


@dataclass(frozen=True)
class Origin:
    """One suite of one archive, and its folder in the mirror; a flat archive has the suite ``/``."""

    uri: str
    suite: str
    components: tuple[str, ...]
    place: str

    @property
    def folder(self) -> str:
        """The folder of its lists below the archive's URL: empty, or with a slash at its end."""
        if not self.suite.endswith("/"):
            return f"dists/{self.suite}/"
        return "" if self.suite == "/" else self.suite

    @property
    def release(self) -> str:
        """The URL of its signed release file."""
        return f"{self.uri}/{self.folder}InRelease"

    def lists(self, architecture: str) -> tuple[str, ...]:
        """Its package lists below its folder, without the suffix of a compression."""
        if self.suite.endswith("/"):
            return ("Packages",)
        return tuple(f"{component}/binary-{architecture}/Packages" for component in self.components)


def distribution_origins(name: str, record: Distribution) -> Iterator[Origin]:
    """Every suite of a distribution."""
    for number, source in enumerate(record.sources):
        for suite in source.suites:
            yield Origin(source.uri, suite, tuple(source.components), archive_folder(name, number))


def vendor_origins(name: str, repository: str, source: AptSource) -> Iterator[Origin]:
    """Every suite of a vendor's repository, in the mirror of a distribution."""
    for suite in source.suites:
        yield Origin(source.uri.rstrip("/"), suite, tuple(source.components), archive_folder(name, repository))


def archive_folder(name: str, archive: int | str) -> str:
    """The folder of an archive in the mirror: named by number for a distribution, by name for a vendor."""
    return f"{distribution_folder(name)}/{archive}"


def distribution_folder(name: str) -> str:
    """The folder in the mirror of all archives of a distribution."""
    return f"debs/{name}"


def source_stanza(uri: str, source: Source | AptSource, keyring: str, *, check_valid_until: bool = True) -> str:
    """One source in apt's deb822 format.

    Args:
        uri: its URL.
        source: its suites and components.
        keyring: the file with the keys that sign it.
        check_valid_until: False accepts expired lists, as in a mirror without a network.
    """
    components = f"Components: {' '.join(source.components)}\n" if source.components else ""
    text = f"Types: deb\nURIs: {uri}\nSuites: {' '.join(source.suites)}\n{components}Signed-By: {keyring}\n"
    return text + ("" if check_valid_until else "Check-Valid-Until: no\n")


def sources_text(record: Distribution, bases: Iterable[str], *, check_valid_until: bool = True) -> str:
    """The sources of a distribution in apt's deb822 format; ``bases`` are the URLs of its archives."""
    return "\n".join(
        source_stanza(base, source, record.keyring, check_valid_until=check_valid_until)
        for source, base in zip(record.sources, bases, strict=True)
    )


def isolated_apt_config(folder: str, architecture: str) -> str:
    """An apt configuration independent of this machine: all files in one folder, no package installed."""
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


def madison_versions(text: str) -> dict[str, list[str]]:
    """The output of ``apt-cache madison``: package -> its versions, newest first. Virtual packages have none."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and fields[1] not in found.setdefault(fields[0], []):
            found[fields[0]].append(fields[1])
    return found


def missing_versions(wanted: Iterable[tuple[str, str]], known: Mapping[str, list[str]]) -> list[str]:
    """Which packages are not there, or not at their version, in words.

    Args:
        wanted: name and version, which may be empty or end in ``*``.
        known: package -> its versions.
    """
    missing = []
    for name, version in wanted:
        versions = known.get(name, [])
        if not versions:
            missing.append(f"there is no package {name}")
        elif version and not fnmatch.filter(versions, version):
            missing.append(f"{name} {version} is not there, but {', '.join(versions[:3])}")
    return missing


def printed_urls(text: str) -> list[str]:
    """The URLs that ``apt-get --print-uris`` prints."""
    return [match[1] for match in re.finditer(r"^'(\S+)' ", text, re.MULTILINE)]


def _is_path(name: str) -> bool:
    """Whether a file of a list stays below its archive, and its name in one line."""
    return name.isprintable() and not name.startswith("/") and ".." not in PurePosixPath(name).parts


def pool_files(packages: str, wanted: Iterable[str], origin: Origin) -> Iterator[Artifact]:
    """The wanted files of an archive, with the digests from its package list.

    Args:
        packages: the text of the list.
        wanted: URLs of files; URLs of other archives are ignored.
        origin: the archive.

    Raises:
        FleetError: it is no package list.
    """
    names = {_decoded(url.removeprefix(f"{origin.uri}/")): url for url in wanted if url.startswith(f"{origin.uri}/")}
    # The reader stops at a stanza without any of the fields; each has a Package.
    fields = ["Package", "Filename", "Size", "SHA256"]
    for stanza in _stanzas(packages, fields, origin):
        name, size, sha256 = stanza.get("Filename", ""), stanza.get("Size", ""), stanza.get("SHA256", "")
        if (url := names.get(name)) and _is_path(name) and _SIZE.fullmatch(size) and _SHA256.fullmatch(sha256):
            # A flat archive has './name.deb'.
            yield Artifact(f"{origin.place}/{PurePosixPath(name)}", sha256, int(size), url)


def _stanzas(packages: str, fields: list[str], origin: Origin) -> Iterator[Mapping[str, str]]:
    # Imported when a mirror is filled: the inventory imports this module too.
    from debian.deb822 import Deb822

    try:
        yield from Deb822.iter_paragraphs(StringIO(packages), fields, strict=_STRICT)
    except ValueError as fault:
        raise FleetError(f"a package list of {origin.uri} cannot be read: {fault}", _LIST_HINT) from None


def release_lists(release: str, origin: Origin, architecture: str) -> Iterator[Artifact]:
    """The package lists of a suite that apt on a host downloads, with the digests from the signed release file.

    Args:
        release: the text of ``InRelease``, with a verified signature.
        origin: the suite.
        architecture: Debian's name of it.

    Raises:
        FleetError: it is no release file, or has no list for the architecture.
    """
    from debian.deb822 import Release

    try:
        record = Release(StringIO(release))
    except ValueError as fault:
        raise FleetError(f"the release file of {origin.uri} cannot be read: {fault}", _LIST_HINT) from None
    known = {
        row["name"]: (row["sha256"], int(row["size"]))
        for row in record.get("SHA256", [])
        if len(row) == 3 and _SIZE.fullmatch(row["size"]) and _SHA256.fullmatch(row["sha256"])
    }
    by_hash = record.get("Acquire-By-Hash") == "yes"
    for base in origin.lists(architecture):
        name = next((base + ending for ending in _COMPRESSIONS if base + ending in known), None)
        if name is None:
            raise FleetError(f"{origin.release} has no list {base}", "correct its source in the recipes")
        sha256, size = known[name]
        address = f"{PurePosixPath(name).parent}/by-hash/SHA256/{sha256}" if by_hash else name
        path = f"{origin.folder}{PurePosixPath(address)}"
        yield Artifact(f"{origin.place}/{path}", sha256, size, f"{origin.uri}/{path}")


def apt_list_name(uri: str) -> str:
    """The name of apt's copy of a file: the URL without its scheme, with ``_`` for ``/``."""
    bare = re.sub(r"^\w+://", "", uri)
    return bare.replace("_", "%5f").replace("/", "_")


def host_apt_config(sources: str | None, proxy_lines: str = "") -> str:
    """The apt configuration of a host.

    Args:
        sources: the file with the only sources to use; None keeps the host's own sources.
        proxy_lines: the lines that name a proxy.
    """
    if sources is None:
        return f"// Made by vllm-fleet: this fleet has no mirror of packages.\n{proxy_lines}"
    return (
        "// Made by vllm-fleet: packages come from the fleet's mirror, and from the sources that its roles add.\n"
        f'Dir::Etc::sourcelist "{sources}";\n'
        'Dir::Etc::sourceparts "/etc/apt/vllm-fleet.sources.d";\n'
        'Acquire::Languages "none";\n'
        f"{proxy_lines}"
    )
