"""A model that hosts have already: a read-only mount of its folder, where the service can see it.

The folder itself may be where the unit sees nothing (``ProtectHome``), or below a folder that only its owner may enter.
The mount has the same path for both install forms, shows only the model, and cannot be written through. Links within it
work, because the whole tree that they stay in is mounted: for a Hugging Face cache, the folder of the model with its
``blobs``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.host import host_paths
from vllm_fleet.host.manifest_items import Item, file_item, store_item, unit_item

_ROLE = "model_store"
#: The account that serves the files also verifies them: a network file system may give root fewer rights than it.
ACCOUNT = "vllm"


@dataclass(frozen=True)
class AdoptedModel:
    """A model in a folder of the host.

    Attributes:
        name: the model.
        folder: the tree that is mounted.
        inside: the folder of the files below it; empty: the tree itself.
        required_mount: a mount point that must be mounted first; empty: none.
    """

    name: str
    folder: str
    inside: str = ""
    required_mount: str = ""

    @cached_property
    def identifier(self) -> str:
        """A name for the mount; another folder or revision is another mount."""
        return hashlib.sha256(f"{self.folder}\0{self.inside}".encode()).hexdigest()[:16]

    @property
    def place(self) -> str:
        """Where the tree is mounted."""
        return f"{host_paths.ADOPTED}/{self.identifier}"

    @property
    def directory(self) -> str:
        """The folder of the files, in the mount."""
        return f"{self.place}/{self.inside}".rstrip("/")

    @property
    def stamp(self) -> str:
        """The file that records the verification: beside the mount, because the folder is not the project's."""
        return f"{host_paths.ADOPTED}/{self.identifier}.verified.json"

    @property
    def unit(self) -> str:
        """The mount unit; systemd derives the name from the path."""
        return f"{self.place.strip('/').replace('/', '-')}.mount"

    @property
    def unit_text(self) -> str:
        """The mount unit. ``_netdev``: its folder may be on the network, so the local mounts do not wait for it."""
        return (
            "# Made by vllm-fleet. A model that this host had already, where the service can see it.\n"
            "[Unit]\n"
            f"Description=Model {self.name} from {self.folder}\n"
            "[Mount]\n"
            f"What={self.folder}\n"
            f"Where={self.place}\n"
            "Type=none\n"
            "Options=bind,ro,nosuid,nodev,noexec,_netdev\n"
            "[Install]\n"
            "WantedBy=multi-user.target\n"
        )

    @property
    def variables(self) -> dict[str, Any]:
        """The model as the role model_store expects it."""
        return {
            "folder": self.folder,
            "inside": self.inside,
            "required_mount": self.required_mount,
            "place": self.place,
            "stamp": self.stamp,
            "account": ACCOUNT,
            "unit": self.unit,
            "unit_text": self.unit_text,
        }

    def items(self, files: Mapping[str, str]) -> Iterator[Item]:
        """The manifest items: the mount and the verified files."""
        yield file_item(_ROLE, f"/etc/systemd/system/{self.unit}", text_sha256(self.unit_text))
        yield unit_item(_ROLE, self.unit, active=True, enabled=True)
        yield store_item(_ROLE, self.directory, self.stamp, files, ACCOUNT)
