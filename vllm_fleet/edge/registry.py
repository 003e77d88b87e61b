"""Registries of images over HTTP: what an image is made of, and how its parts are asked for."""

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
from urllib.parse import urlencode

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import download
from vllm_fleet.edge.download import Access
from vllm_fleet.mirror import image_store
from vllm_fleet.mirror.parts import Image
from vllm_fleet.mirror.store import Artifact

_ACCEPT = {"Accept": ", ".join((*image_store.LISTS, *image_store.MANIFESTS, "*/*;q=0.1"))}
#: How long a token is good where its registry does not say, and how much of that is left for the answer.
_TOKEN_SECONDS = 60
_MARGIN_SECONDS = 20
#: The public registry as docker and podman name it where they keep accounts.
_PUBLIC = ("https://index.docker.io/v1/", "docker.io")


class _Repository:
    """An image's repository, which several threads ask; tokens are asked for again before they end."""

    def __init__(self, need: Image) -> None:
        self.host, self.name = image_store.home(need.name, need.registry)
        # As the hosts do: the fleet's own registry is asked with TLS where its signer is named.
        scheme = "http" if need.registry and need.ca is None else "https"
        self.base = f"{scheme}://{self.host}/v2"
        self.context = _trusting(need.ca) if need.ca else None
        self.access = Access(self._headers, self.context)
        self._account = _account(self.host)
        self._lock = Lock()
        self._realm: Mapping[str, str] | None = None
        self._token, self._until = "", 0.0

    def manifest(self, digest: str) -> str:
        return f"{self.base}/{self.name}/manifests/{digest}"

    def blob(self, digest: str) -> str:
        return f"{self.base}/{self.name}/blobs/{digest}"

    def _headers(self) -> Mapping[str, str]:
        with self._lock:
            if self._realm is None:
                told = download.challenge(f"{self.base}/", Access(context=self.context))
                self._realm = dict(re.findall(r'(\w+)="([^"]*)"', told)) if told.lower().startswith("bearer ") else {}
            if "realm" not in self._realm:
                return {**_ACCEPT, **self._basic()}
            if time.monotonic() >= self._until:
                self._ask(self._realm)
            return {**_ACCEPT, "Authorization": f"Bearer {self._token}"}

    def _basic(self) -> Mapping[str, str]:
        return {"Authorization": f"Basic {self._account}"} if self._account else {}

    def _ask(self, realm: Mapping[str, str]) -> None:
        """Asks whom the registry trusts for a token to read the repository.

        An account is sent to nobody who is asked without TLS, unless the registry itself is.
        """
        trusted = realm["realm"].startswith("https://") or self.base.startswith("http://")
        asked = {"service": realm.get("service", ""), "scope": f"repository:{self.name}:pull"}
        url = f"{realm['realm']}?{urlencode({name: value for name, value in asked.items() if value})}"
        body, _, _ = download.text(url, access=Access(self._basic if trusted else dict, self.context))
        try:
            record = json.loads(body)
            self._token = str(record.get("token") or record["access_token"])
            lasts = int(record.get("expires_in") or _TOKEN_SECONDS)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise FleetError(f"{realm['realm']} gives no token", "look at the registry", code="work-failed") from None
        self._until = time.monotonic() + max(lasts - _MARGIN_SECONDS, lasts / 2)


def listing(need: Image) -> list[Artifact]:
    """The files of an image: of a list of platforms, that of the hosts alone.

    Raises:
        FleetError: the registry cannot be reached or does not have it, or not for the hosts' machines.
    """
    where = _Repository(need)
    found: dict[str, tuple[int, str]] = {}

    def read(digest: str) -> Mapping[str, object]:
        try:
            body = download.text(where.manifest(digest), access=where.access)[0].encode()
        except FleetError as fault:
            fault.hint = fault.hint or f"does {where.host} have {where.name}@{digest}? 'docker login' gives an account"
            raise
        found[digest] = (len(body), where.manifest(digest))
        return image_store.parse(
            body, digest, f"{where.host} gives another one than was pinned: nothing was put in place"
        )

    manifest = read(need.digest)
    if one := image_store.of_platform(manifest, need.platform):
        manifest = read(one.digest)
    for part in image_store.blobs(manifest):
        found[part.digest] = (part.size, where.blob(part.digest))
    return [
        Artifact(f"{image_store.FOLDER}/{image_store.blob(digest)}", digest.removeprefix("sha256:"), size, url)
        for digest, (size, url) in found.items()
    ]


def access(need: Image) -> Access:
    """How the files of an image are asked for."""
    return _Repository(need).access


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as fault:
        raise FleetError(
            f"holds no certificate of who signs the registry's: {type(fault).__name__}",
            "give a file in the PEM form as mirror.registry_ca_file",
            paths.display(ca),
        ) from None


def _account(host: str) -> str:
    """Account and password for a registry as docker and podman keep them, in the form of a header; empty: none."""
    home, run = Path.home(), os.environ.get("XDG_RUNTIME_DIR")
    files = [Path(own)] if (own := os.environ.get("REGISTRY_AUTH_FILE")) else []
    files += [Path(run) / "containers" / "auth.json"] if run else []
    files += [Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"]
    names = (host, f"https://{host}", *(_PUBLIC if host == image_store.PUBLIC else ()))
    for file in files:
        if not file.is_file():
            continue
        try:
            kept = json.loads(file.read_text(encoding="utf-8")).get("auths", {})
            found = next((kept[name]["auth"] for name in names if "auth" in kept.get(name, {})), "")
            base64.b64decode(found, validate=True)
        except (OSError, ValueError, AttributeError, TypeError) as fault:
            raise FleetError(
                f"holds no accounts of registries: {type(fault).__name__}", "correct it", paths.display(file)
            ) from None
        if found:
            return str(found)
    return ""
