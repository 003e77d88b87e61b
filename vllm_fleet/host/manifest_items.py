"""Makes the items of a manifest, and says which roles own which kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from vllm_fleet.on_host.manifest_items import (
    CertificateItem,
    DirectoryItem,
    FileItem,
    HoldsItem,
    ImageItem,
    Item,
    KeysItem,
    LinkItem,
    PackageItem,
    SettingsItem,
    StoreItem,
    SysctlItem,
    TableItem,
    TrafficItem,
    UnitItem,
    UserItem,
)

#: Kind -> its type.
KINDS: Mapping[str, Any] = {get_args(get_type_hints(item_type)["kind"])[0]: item_type for item_type in get_args(Item)}
#: Kind -> the roles that own items of it.
OWNERS: Mapping[str, tuple[str, ...]] = {
    "file": (
        *("host_baseline", "image_ports"),
        *("nvidia_driver", "amd_driver", "harmony_encodings", "model_store"),
        *("vllm_engine", "container_engine"),
        *("vllm_firewall", "vllm_service", "gateway", "mirror"),
    ),
    "settings": ("container_engine",),
    "directory": ("host_baseline", "harmony_encodings", "vllm_engine", "vllm_firewall", "vllm_service"),
    "link": ("vllm_service",),
    "store": ("model_store", "mirror"),
    "image": ("vllm_image",),
    "user": ("host_baseline", "amd_driver"),
    "sysctl": ("amd_driver",),
    "unit": (
        *("host_baseline", "image_ports", "nvidia_driver", "model_store", "container_engine"),
        *("vllm_firewall", "vllm_service", "gateway", "mirror"),
    ),
    "package": (
        *("host_baseline", "nvidia_driver", "amd_driver", "model_store", "vllm_engine", "container_engine"),
        *("gateway", "mirror"),
    ),
    "holds": ("nvidia_driver", "amd_driver"),
    "traffic": ("gateway",),
    "keys": ("gateway",),
    "table": ("vllm_firewall",),
    "certificate": ("gateway",),
}


def item_name(item: Item) -> str:
    """What the probe calls an item: its path, or its name where it has no path."""
    return str(item.get("path") or item.get("name"))


def file_item(role: str, path: str, sha256: str, mode: str = "0644", group: str = "root") -> FileItem:
    """A file of root with its content, mode and group."""
    return FileItem(role=role, kind="file", path=path, sha256=sha256, mode=mode, owner="root", group=group)


def absent_item(role: str, path: str) -> FileItem:
    """A path at which an earlier plan had a file, and this one has none."""
    return FileItem(role=role, kind="file", path=path, absent=True)


def settings_item(role: str, path: str, values: Mapping[str, Any]) -> SettingsItem:
    """A JSON file that contains these values, beside those of others."""
    return SettingsItem(role=role, kind="settings", path=path, values=dict(values))


def directory_item(role: str, path: str, mode: str, owner: str = "root") -> DirectoryItem:
    """A directory of a user, and of the group of that name."""
    return DirectoryItem(role=role, kind="directory", path=path, mode=mode, owner=owner, group=owner)


def link_item(role: str, path: str, target: str) -> LinkItem:
    """A symbolic link with its target."""
    return LinkItem(role=role, kind="link", path=path, target=target)


def store_item(role: str, path: str, stamp: str, files: Mapping[str, str], account: str | None = None) -> StoreItem:
    """A directory of large files, name -> SHA-256, with the stamp that says when they were verified.

    Args:
        role: the role that repairs it.
        path: the directory.
        stamp: the file with the stamp; a path of its own where the directory is not the project's.
        files: name -> SHA-256.
        account: the account that reads the files; None: root.
    """
    item = StoreItem(role=role, kind="store", path=path, stamp=stamp, files=dict(files))
    if account is not None:
        item["account"] = account
    return item


def image_item(role: str, name: str, tag: str) -> ImageItem:
    """A container image by its name with a digest, and its tag."""
    return ImageItem(role=role, kind="image", name=name, tag=tag)


def user_item(
    role: str, name: str, home: str | None = None, login_shell: str | None = None, groups: Sequence[str] = ()
) -> UserItem:
    """An account; None and no groups leave open what it has."""
    item = UserItem(role=role, kind="user", name=name)
    if home is not None:
        item["home"] = home
    if login_shell is not None:
        item["shell"] = login_shell
    if groups:
        item["groups"] = list(groups)
    return item


def sysctl_item(role: str, name: str, value: str, *, may_be_missing: bool = False) -> SysctlItem:
    """A kernel parameter with its value."""
    item = SysctlItem(role=role, kind="sysctl", name=name, value=value)
    if may_be_missing:
        item["may_be_missing"] = True
    return item


def unit_item(
    role: str,
    name: str,
    *,
    active: bool | None = None,
    enabled: bool | None = None,
    files: Sequence[str] | None = None,
) -> UnitItem:
    """A systemd unit; None leaves it open whether it runs or starts with the host, and which files it is read from."""
    item = UnitItem(role=role, kind="unit", name=name)
    if active is not None:
        item["active"] = active
    if enabled is not None:
        item["enabled"] = enabled
    if files is not None:
        item["files"] = list(files)
    return item


def package_item(
    role: str, name: str, version: str | None = None, alternatives: Sequence[str] = (), systems: Sequence[str] = ()
) -> PackageItem:
    """A package, or one of its alternatives.

    Args:
        role: the role that owns it.
        name: the package.
        version: its version; None leaves it open.
        alternatives: packages that do in its place.
        systems: the systems whose hosts have the item; empty for all.
    """
    item = PackageItem(role=role, kind="package", name=name)
    if version is not None:
        item["version"] = version
    if alternatives:
        item["alternatives"] = list(alternatives)
    if systems:
        item["systems"] = list(systems)
    return item


def holds_item(role: str, patterns: Sequence[str]) -> HoldsItem:
    """The packages that stay on hold, as patterns of their names."""
    return HoldsItem(role=role, kind="holds", name="held packages", patterns=list(patterns))


def traffic_item(role: str, path: str, drains: str = "/var/lib/vllm-gateway/drains.json") -> TrafficItem:
    """The admin socket of an HAProxy that gives traffic to all of its servers, and the file with its drains."""
    return TrafficItem(role=role, kind="traffic", path=path, drains=drains)


def keys_item(role: str, path: str, socket: str) -> KeysItem:
    """A file of API keys that an HAProxy with this admin socket has loaded."""
    return KeysItem(role=role, kind="keys", path=path, socket=socket)


def table_item(role: str, name: str, rules: str) -> TableItem:
    """A table of nftables by its family and name, and the file that makes it."""
    return TableItem(role=role, kind="table", name=name, rules=rules)


def certificate_item(role: str, path: str, names: Sequence[str] | None = None) -> CertificateItem:
    """The certificate in a PEM file.

    Args:
        role: the role that owns it.
        path: the file.
        names: the names that a CA has signed by ACME; None: the file is the user's.
    """
    return CertificateItem(role=role, kind="certificate", path=path, acme=names is not None, names=list(names or ()))


__all__ = [
    "KINDS",
    "OWNERS",
    "FileItem",
    "Item",
    "absent_item",
    "certificate_item",
    "directory_item",
    "file_item",
    "holds_item",
    "image_item",
    "item_name",
    "keys_item",
    "link_item",
    "package_item",
    "settings_item",
    "store_item",
    "sysctl_item",
    "table_item",
    "traffic_item",
    "unit_item",
    "user_item",
]
