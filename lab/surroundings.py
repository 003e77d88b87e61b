"""The site settings of this machine that lab hosts get: package mirrors, certificates, resolver, proxies.

The cloud configures these in its images; a lab host must reach the registries as this machine does. They are read
when a host is created, so they are current.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_fleet.base.errors import ErrorCode, FleetError

SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_DEBOOTSTRAP = "/usr/sbin/debootstrap"
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_INDEXES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX")


@dataclass(frozen=True)
class Site:
    """The site configuration that every lab host carries.

    Attributes:
        mirrors: the URI of Debian and of its security archive.
        ca_bundle: the machine's trusted certificates, PEM.
        own_certificates: name -> PEM of the certificates that the site has added.
        resolv_conf: the text of ``/etc/resolv.conf``.
        pip: the index settings of pip.
        uv: the text of the machine's ``/etc/uv/uv.toml``, empty without the file.
        environment: proxies and package indexes of the environment.
    """

    mirrors: tuple[str, str]
    ca_bundle: str
    own_certificates: Mapping[str, str]
    resolv_conf: str
    pip: Mapping[str, str]
    uv: str
    environment: Mapping[str, str]


def read_site(root: Path = Path("/")) -> Site:
    """Reads the site configuration of this machine.

    Raises:
        FleetError: no resolver that hosts can reach, or no certificates.
    """
    bundle = Path(os.environ.get("SSL_CERT_FILE") or root / CA_BUNDLE.lstrip("/"))
    if not bundle.is_file():
        raise FleetError("there are no trusted certificates", "apt-get install ca-certificates", str(bundle))
    own = sorted((root / "usr/local/share/ca-certificates").glob("**/*.crt"))
    return Site(
        mirrors=debian_mirrors(_texts(root / "etc/apt"), _read(root / _DEBOOTSTRAP.lstrip("/"))),
        ca_bundle=bundle.read_text(encoding="utf-8"),
        own_certificates={path.name: path.read_text(encoding="utf-8") for path in own},
        resolv_conf=usable_resolver(_read(root / "etc/resolv.conf"), _read(root / "run/systemd/resolve/resolv.conf")),
        pip=pip_indexes(_read(root / "etc/pip.conf")),
        uv=_read(root / "etc/uv/uv.toml"),
        environment={key: os.environ[key] for key in (*_PROXIES, *_INDEXES) if os.environ.get(key)},
    )


def debian_mirrors(texts: Iterable[str], debootstrap: str) -> tuple[str, str]:
    """The mirrors of the lab's Debian release from apt's sources, else from debootstrap.

    Args:
        texts: the sources, in the one-line or the deb822 form.
        debootstrap: the text of the program, which contains the URL of Debian's archive.

    Raises:
        FleetError: neither has one.
    """
    settings: dict[str, str] = {}
    for text in texts:
        for uri, suites, components in _sources(text):
            if "main" in components:
                for suite in suites:
                    settings.setdefault(suite, uri.rstrip("/"))
    own = re.search(r'^DEF_MIRROR="(\S+?)/?"', debootstrap, re.MULTILINE)
    if own:
        settings.setdefault(SUITE, own[1])
        settings.setdefault(f"{SUITE}-security", f"{own[1]}-security")
    try:
        return settings[SUITE], settings[f"{SUITE}-security"]
    except KeyError as missing:
        raise FleetError(f"no mirror of Debian's {missing} is known", "name one in /etc/apt/sources.list") from None


def _sources(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in text.splitlines():
        if line_match := re.match(r"\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)", line):
            yield line_match[1], [line_match[2]], line_match[3].split()
    for stanza in re.split(r"\n\s*\n", text):
        # Comments may be between the fields of a stanza; continuation lines begin with a blank.
        lines = [line for line in stanza.splitlines() if not line.lstrip().startswith("#")]
        fields = {
            key.strip().lower(): value.split()
            for key, _, value in (field.partition(":") for field in re.split(r"\n(?=\S)", "\n".join(lines)))
        }
        if "deb" in fields.get("types", []) and fields.get("uris"):
            yield fields["uris"][0], fields.get("suites", []), fields.get("components", [])


def usable_resolver(*texts: str) -> str:
    """The first ``resolv.conf`` with a name server that is not on the machine's own loopback.

    Raises:
        FleetError: no usable name server, so hosts could not resolve names.
    """
    for text in texts:
        servers = re.findall(r"^\s*nameserver\s+([^\s%]+)", text, re.MULTILINE)
        if any(not ipaddress.ip_address(server).is_loopback for server in servers):
            return text
    raise FleetError(
        "/etc/resolv.conf names no name server that the lab's hosts could reach",
        "name one that is not on the loopback address",
        code=ErrorCode.REFUSED,
    )


def pip_indexes(text: str) -> dict[str, str]:
    """The index settings of a ``pip.conf``."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read_string(text)
    section = parser["global"] if parser.has_section("global") else {}
    return {key: section[key] for key in _PIP_KEYS if key in section}


def site_files(site: Site) -> dict[str, str]:
    """Path on the host -> text, for all site settings."""
    main, security = site.mirrors
    files = {
        "etc/apt/sources.list": "",
        "etc/apt/sources.list.d/debian.sources": _deb822(main, f"{SUITE} {SUITE}-updates")
        + "\n"
        + _deb822(security, f"{SUITE}-security"),
        # No timer may hold dpkg's lock while a playbook sets up the host.
        "etc/apt/apt.conf.d/90-lab": 'APT::Periodic::Enable "0";\n',
        "etc/resolv.conf": site.resolv_conf,
        CA_BUNDLE.lstrip("/"): site.ca_bundle,
        "etc/pip.conf": "".join(
            f"{line}\n" for line in ("[global]", f"cert = {CA_BUNDLE}", *(f"{k} = {v}" for k, v in site.pip.items()))
        ),
        "etc/uv/uv.toml": _uv_toml(site.uv),
        "etc/environment": "".join(f'{key}="{value}"\n' for key, value in site.environment.items()),
    }
    proxies = {key.lower(): value for key, value in site.environment.items()}
    if proxy := proxies.get("http_proxy"):
        files["etc/apt/apt.conf.d/80-lab-proxy"] = f'Acquire::http::Proxy "{proxy}";\n'
    for name, pem in site.own_certificates.items():
        files[f"usr/local/share/ca-certificates/{name}"] = pem
    return files


def _deb822(uri: str, suites: str) -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"


def _uv_toml(text: str) -> str:
    """The machine's settings with the system's certificates; by default uv uses its own."""
    known = tomllib.loads(text)
    return text if "native-tls" in known or "system-certs" in known else f"system-certs = true\n{text}"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _texts(apt: Path) -> Iterator[str]:
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        yield _read(path)
