"""The items of a manifest: one type for each kind. The contract between the controller, the probe and the roles.

It holds types only. The probe imports it for type checkers and never on a host, so it may use a newer Python than hosts
have. The first paragraph of each docstring is what the probe checks; ``docs/manifest.md`` is made from them.
"""

from typing import Any, Literal, NotRequired, TypedDict


class FileItem(TypedDict):
    """A regular file with this content, mode, owner and group. A key that is left out is not checked.

    ``sha256`` is the digest of the whole content, ``mode`` is octal text such as ``0644``. With ``absent`` there is
    nothing at the path: the role removes what an earlier plan had.
    """

    role: str
    kind: Literal["file"]
    path: str
    sha256: NotRequired[str]
    mode: NotRequired[str]
    owner: NotRequired[str]
    group: NotRequired[str]
    absent: NotRequired[bool]


class SettingsItem(TypedDict):
    """A JSON file that contains these values, beside any others.

    A mapping needs these keys, a list these elements. A ``path`` may be the name of the program or its path.
    """

    role: str
    kind: Literal["settings"]
    path: str
    values: dict[str, Any]


class DirectoryItem(TypedDict):
    """A directory with this mode, owner and group. What is in it is not checked."""

    role: str
    kind: Literal["directory"]
    path: str
    mode: NotRequired[str]
    owner: NotRequired[str]
    group: NotRequired[str]


class LinkItem(TypedDict):
    """A symbolic link to exactly this target, and the target exists."""

    role: str
    kind: Literal["link"]
    path: str
    target: str


class StoreItem(TypedDict):
    """Large files in a directory, each with the size and the time that it had when its digest was verified.

    ``files`` is name -> SHA-256. ``stamp`` is the file in the directory that keeps digest, size and time of each; an
    absolute path where the directory is not the project's. Such a stamp also has the inode and the time of the last
    change of each file, and those of the directory. ``account`` is the account that looks at the files; default: root.
    """

    role: str
    kind: Literal["store"]
    path: str
    stamp: str
    files: dict[str, str]
    account: NotRequired[str]


class ImageItem(TypedDict):
    """A container image that was pulled by its digest, and that its tag names."""

    role: str
    kind: Literal["image"]
    name: str
    tag: str


class UserItem(TypedDict):
    """An account with this home and shell that is a member of these groups. A key that is left out is not checked."""

    role: str
    kind: Literal["user"]
    name: str
    home: NotRequired[str]
    shell: NotRequired[str]
    groups: NotRequired[list[str]]


class SysctlItem(TypedDict):
    """A kernel parameter with this value. ``may_be_missing`` allows kernels that do not have it."""

    role: str
    kind: Literal["sysctl"]
    name: str
    value: str
    may_be_missing: NotRequired[bool]


class UnitItem(TypedDict):
    """A systemd unit that is loaded as it is on disk, active and enabled, and that no other file changes.

    A key that is left out is not checked. ``files`` are the paths in ``/etc`` and ``/run`` that the unit may be read
    from: its unit file and its drop-ins; those of packages in ``/usr/lib`` are not checked.
    """

    role: str
    kind: Literal["unit"]
    name: str
    active: NotRequired[bool]
    enabled: NotRequired[bool]
    files: NotRequired[list[str]]


class PackageItem(TypedDict):
    """A Debian package that is installed, or one of its alternatives, at this version where one is given.

    ``*`` in a version matches anything. ``systems`` limits the item to hosts whose ``ID-VERSION_ID`` in /etc/os-release
    is one of them.
    """

    role: str
    kind: Literal["package"]
    name: str
    version: NotRequired[str]
    alternatives: NotRequired[list[str]]
    systems: NotRequired[list[str]]


class HoldsItem(TypedDict):
    """Every installed package whose name matches one of the patterns is on hold."""

    role: str
    kind: Literal["holds"]
    name: str
    patterns: list[str]


class TrafficItem(TypedDict):
    """HAProxy, asked at the socket ``path``, drains no server but the cordons that the file ``drains`` has.

    Where it does not answer, its unit is the drift.
    """

    role: str
    kind: Literal["traffic"]
    path: str
    drains: str


class KeysItem(TypedDict):
    """HAProxy, asked at ``socket``, has loaded the API keys of the file ``path``.

    The file has an item of its own. Where HAProxy does not answer, its unit is the drift.
    """

    role: str
    kind: Literal["keys"]
    path: str
    socket: str


class TableItem(TypedDict):
    """A table of nftables that the kernel has loaded just as its file makes it.

    ``name`` is its family and name, ``rules`` the path of the file. The file has an item of its own.
    """

    role: str
    kind: Literal["table"]
    name: str
    rules: str


class CertificateItem(TypedDict):
    """The first certificate of a PEM file: it does not end soon, has these names, and is of a CA where ``acme`` is set.

    Soon is within 21 days, or within the last quarter of a shorter life. ``names`` may be empty. Where the file is
    missing, its item of the kind ``file`` is the drift.
    """

    role: str
    kind: Literal["certificate"]
    path: str
    acme: bool
    names: list[str]


Item = (
    FileItem
    | SettingsItem
    | DirectoryItem
    | LinkItem
    | StoreItem
    | ImageItem
    | UserItem
    | SysctlItem
    | UnitItem
    | PackageItem
    | HoldsItem
    | TrafficItem
    | KeysItem
    | TableItem
    | CertificateItem
)
