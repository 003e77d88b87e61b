"""Where the hosts of a fleet get a model from: ``artifacts.models`` in ``fleet.yml``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from vllm_fleet.base.https_urls import check_https_url
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.recipe import Strict

#: The keys of which a source has exactly one, with what each means.
FORMS = {
    "controller": "a folder on the controller with a model.json; hosts get copies",
    "hub": "'mirror' or 'hosts': who downloads from the hub",
    "on_host": "a folder on each host, or a network file system that is mounted there",
    "huggingface_cache": "a Hugging Face cache on each host",
    "url": "object storage, over HTTPS",
}
#: Key -> the forms that it belongs to.
_BELONGS = {
    "mount": ("on_host", "huggingface_cache"),
    "digests": ("hub", "on_host", "huggingface_cache", "url"),
    "revision": ("hub", "on_host", "huggingface_cache", "url"),
    "endpoint": ("hub",),
    "token_file": ("hub",),
    "ca_file": ("hub", "url"),
}
_PATH = re.compile(r"/[^\x00-\x1f\x7f]+")
#: Systemd and docker split or expand these.
_RESERVED = frozenset("%:,\\\"'$`")
_BUCKETS = {
    "s3": "https://BUCKET.s3.REGION.amazonaws.com/FOLDER/",
    "gs": "https://storage.googleapis.com/BUCKET/FOLDER/",
}


def _host_path(value: str) -> str:
    path = value.rstrip("/")
    if not _PATH.fullmatch(path) or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise ValueError(f"{value!r} is not an absolute path on the host")
    if found := sorted(_RESERVED & set(path)) or [char for char in path if char.isspace()][:1]:
        raise ValueError(f"{value!r} contains {found[0]!r}, which units and container options cannot hold")
    return path


def _https(value: str) -> str:
    scheme = value.partition("://")[0]
    if scheme in _BUCKETS:
        raise ValueError(
            f"{scheme}:// needs the storage's own client and credentials on every host: give {_BUCKETS[scheme]!r}, "
            "readable without an account"
        )
    check_https_url(
        value,
        "what is downloaded crosses other networks",
        "such a URL is a secret, and a presigned one expires; let the hosts' network read the folder, or use the "
        "mirror",
    )
    return value.rstrip("/")


HostPath = Annotated[str, AfterValidator(_host_path)]
_COMMIT = Form("[0-9a-f]{40}", "a commit", "write all 40 digits: a branch, or a tag, may be another model tomorrow")
HttpsUrl = Annotated[str, AfterValidator(_https)]


class ModelSource(Strict):
    """Where a model comes from. A string in its place is a folder on the controller."""

    controller: str | None = Field(
        default=None, min_length=1, description="Folder on the controller, with a model.json; hosts get copies."
    )
    hub: Literal["mirror", "hosts"] | None = Field(
        default=None, description="'mirror': 'vllm-fleet mirror' downloads it once. 'hosts': each host downloads it."
    )
    on_host: HostPath | None = Field(
        default=None, description="Folder on each host, also of a mounted network file system. It is not copied."
    )
    huggingface_cache: HostPath | None = Field(
        default=None,
        description="Hugging Face cache on each host: the folder that contains models--ORG--NAME. It is not copied.",
    )
    url: HttpsUrl | None = Field(
        default=None, description="Folder in object storage, over HTTPS; each host downloads it."
    )
    mount: HostPath | None = Field(
        default=None, description="Mount point that must be mounted on each host before the folder is used."
    )
    digests: str | None = Field(
        default=None,
        min_length=1,
        description="Your own list of the files, made by 'sha256sum *' or a model.json, relative to the fleet's "
        "folder. Default: the recipe's, or what 'vllm-fleet lock' wrote.",
    )
    revision: Annotated[str, _COMMIT] | None = Field(
        default=None, description="Commit at the hub. Default: the recipe's."
    )
    endpoint: HttpsUrl | None = Field(
        default=None, description="URL of your own copy of the hub. Default: https://huggingface.co."
    )
    token_file: str | None = Field(
        default=None,
        min_length=1,
        description="File with the hub's token for a gated model, mode 0600, relative to the fleet's folder.",
    )
    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the authority of the server's certificate, relative to the fleet's folder.",
    )

    @model_validator(mode="before")
    @classmethod
    def _folder_as_text(cls, data: Any) -> Any:
        return {"controller": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _one_form(self) -> ModelSource:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            known = "; ".join(f"{form}: {text}" for form, text in FORMS.items())
            raise ValueError(f"gives {' and '.join(given) or 'no source'}: give exactly one of {known}")
        for key, forms in _BELONGS.items():
            fits = given[0] in forms and (self.hub != "mirror" or key == "digests")
            if getattr(self, key) is not None and not fits:
                raise ValueError(f"{key!r} does not belong to {given[0]!r}: remove it")
        if self.mount and not f"{self.on_host or self.huggingface_cache}/".startswith(f"{self.mount}/"):
            raise ValueError(f"the folder is not below the mount point {self.mount}")
        return self

    @property
    def adopted(self) -> str | None:
        """The folder on the host that is used where it is; None where the host gets files."""
        return self.on_host or self.huggingface_cache
