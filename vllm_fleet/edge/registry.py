"""Image registries over HTTP: the files of an image, and the credentials to download them."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Annotated
from urllib.parse import urlencode

from pydantic import Field, StringConstraints

from vllm_fleet.base import paths, text_files
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.foreign_text import ForeignPart, UnreadableError, parse_record
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Access
from vllm_fleet.mirror import image_store
from vllm_fleet.mirror.parts import Image
from vllm_fleet.mirror.store import Artifact

_ACCEPT = {"Accept": ", ".join((*image_store.LISTS, *image_store.MANIFESTS, "*/*;q=0.1"))}
#: How long a token is valid where its registry does not say so, and how long before its end it is renewed.
_TOKEN_SECONDS = 60
_MARGIN_SECONDS = 20
#: The size that a registry must take at least, by the OCI distribution specification.
_MANIFEST_MIB = 4
#: What may be in a header.
_HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]*$", max_length=1 << 16)]
#: The names of the public registry in the credential files of docker and podman.
_PUBLIC = ("https://index.docker.io/v1/", "docker.io")


class _Repository:
    """An image's repository, shared by threads; a token is renewed before it expires."""

    def __init__(self, need: Image) -> None:
        self.host, self.name = image_store.locate_image(need.name, need.registry)
        # As on the hosts: the fleet's own registry uses TLS where its CA file is given.
        scheme = "http" if need.registry and need.ca is None else "https"
        self.base = f"{scheme}://{self.host}/v2"
        self.context = _tls_context(need.ca) if need.ca else None
        self.access = Access(self._headers, self.context)
        self._account = _account(self.host)
        self._lock = Lock()
        self._realm: Mapping[str, str] | None = None
        self._token, self._until = "", 0.0

    def manifest_url(self, digest: str) -> str:
        return f"{self.base}/{self.name}/manifests/{digest}"

    def blob_url(self, digest: str) -> str:
        return f"{self.base}/{self.name}/blobs/{digest}"

    def _headers(self) -> Mapping[str, str]:
        with self._lock:
            if self._realm is None:
                challenge = download.fetch_challenge(f"{self.base}/", Access(context=self.context))
                fields = re.findall(r'(\w+)="([^"]*)"', challenge)
                self._realm = dict(fields) if challenge.lower().startswith("bearer ") else {}
            if "realm" not in self._realm:
                return {**_ACCEPT, **self._basic()}
            if time.monotonic() >= self._until:
                self._renew_token(self._realm)
            return {**_ACCEPT, "Authorization": f"Bearer {self._token}"}

    def _basic(self) -> Mapping[str, str]:
        return {"Authorization": f"Basic {self._account}"} if self._account else {}

    def _renew_token(self, realm: Mapping[str, str]) -> None:
        """Requests a token to read the repository from the server that the registry names.

        Credentials are sent over TLS only, unless the registry itself has no TLS.
        """
        encrypted = realm["realm"].startswith("https://") or self.base.startswith("http://")
        query = {"service": realm.get("service", ""), "scope": f"repository:{self.name}:pull"}
        url = f"{realm['realm']}?{urlencode({name: value for name, value in query.items() if value})}"
        answer = download.fetch_bytes(url, access=Access(self._basic if encrypted else dict, self.context))
        self._token, seconds = _parse_token(answer.body, download.display_url(realm["realm"]))
        self._until = time.monotonic() + max(seconds - _MARGIN_SECONDS, seconds / 2)


class _Token(ForeignPart):
    """A token server's answer, as the distribution specification has it; older servers name only ``token``."""

    token: _HeaderValue = ""
    access_token: _HeaderValue = ""
    expires_in: Annotated[int, Field(ge=0, le=10**9)] | None = None


def _parse_token(body: bytes, url: str) -> tuple[str, int]:
    """The token of a token server's answer, and for how many seconds it is valid.

    Raises:
        FleetError: the answer has no token.
    """
    try:
        answer = parse_record(_Token, body)
    except UnreadableError as error:
        reason = f" that can be read: {error}"
    else:
        if token := answer.token or answer.access_token:
            return token, answer.expires_in or _TOKEN_SECONDS
        reason = ""
    raise FleetError(f"{url} returns no token{reason}", "check the registry", code=ErrorCode.WORK_FAILED)


def list_files(need: Image) -> list[Artifact]:
    """The files of an image; of an image list, those for the platform of the hosts.

    Raises:
        FleetError: the registry cannot be reached, or does not have the image for the platform.
    """
    repository = _Repository(need)
    files: dict[str, tuple[int, str]] = {}

    def read(digest: str) -> Mapping[str, object]:
        try:
            url = repository.manifest_url(digest)
            body = download.fetch_bytes(url, access=repository.access, limit_mib=_MANIFEST_MIB).body
        except FleetError as error:
            error.hint = (
                error.hint
                or f"check that {repository.host} has {repository.name}@{digest}; 'docker login' stores credentials"
            )
            raise
        files[digest] = (len(body), repository.manifest_url(digest))
        return image_store.parse_manifest(
            body, digest, f"the manifest of {repository.host} is not the pinned one: nothing was stored"
        )

    manifest = read(need.digest)
    if selected := image_store.select_platform(manifest, need.platform):
        manifest = read(selected.digest)
    for part in image_store.image_blobs(manifest):
        files[part.digest] = (part.size, repository.blob_url(part.digest))
    return [
        Artifact(f"{image_store.FOLDER}/{image_store.blob_path(digest)}", digest.removeprefix("sha256:"), size, url)
        for digest, (size, url) in files.items()
    ]


def image_access(need: Image) -> Access:
    """The credentials and TLS context to download the files of an image."""
    return _Repository(need).access


def _tls_context(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise FleetError(
            f"holds no CA certificate: {type(error).__name__}",
            "give a PEM file as mirror.registry_ca_file",
            paths.display(ca),
        ) from None


def _account(host: str) -> str:
    """The credentials that docker or podman stores for a registry, encoded for a Basic header; empty: none."""
    home, run = paths.home_dir(), os.environ.get("XDG_RUNTIME_DIR")
    files = [Path(own)] if (own := os.environ.get("REGISTRY_AUTH_FILE")) else []
    files += [Path(run) / "containers" / "auth.json"] if run else []
    if config := os.environ.get("DOCKER_CONFIG") or (home and home / ".docker"):
        files.append(Path(config) / "config.json")
    names = (host, f"https://{host}", *(_PUBLIC if host == image_store.PUBLIC else ()))
    for file in files:
        if not file.is_file():
            continue
        try:
            stored = json.loads(text_files.read_text(file)).get("auths", {})
            account = next((stored[name]["auth"] for name in names if "auth" in stored.get(name, {})), "")
            base64.b64decode(account, validate=True)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise FleetError(
                f"is not a credential file of docker or podman: {type(error).__name__}",
                "correct it",
                paths.display(file),
            ) from None
        if account:
            return str(account)
    return ""
