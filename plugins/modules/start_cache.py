#!/usr/bin/python
"""The host's half of the start cache: inspects it, packs it, unpacks a copy, removes it."""

from __future__ import annotations

import grp
import gzip
import hashlib
import io
import json
import math
import os
import pwd
import resource
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: start_cache
short_description: Inspect, pack, unpack or remove the compiled code of a start on a host
description:
  - The action plugin C(fleet_start_cache) calls it and moves the archive between host and controller.
  - >-
    A module of its own because a copy must appear at once and only if its digest is right, and because a cache may
    change while it is packed.
  - >-
    The account of the instances owns the directory, so it may have put anything there. A process of that account
    packs and unpacks, within limits; it can reach nothing that the account could not reach.
  - Idempotent; supports check mode and diff.
options:
  path:
    description: The directory of the cache.
    type: path
    required: true
  state:
    description:
      - C(inspected) reports whether the directory exists, and the seconds in the files of I(times).
      - C(packed) writes the directory into I(archive), the same bytes for the same content.
      - C(unpacked) creates the directory from I(archive), if its SHA-256 is I(sha256). An existing one stays.
      - C(absent) removes the directory.
    type: str
    choices: [inspected, packed, unpacked, absent]
    required: true
  archive:
    description: The archive, a tar file with gzip.
    type: path
  sha256:
    description: The digest that the archive must have.
    type: str
  owner:
    description: The account that packs and unpacks; the one that runs the module if it is not given.
    type: str
  group:
    description: The group of that account, and of what is unpacked.
    type: str
  times:
    description: Files that hold a number of seconds each.
    type: list
    elements: path
    default: []
author: [vllm-fleet]
"""
EXAMPLES = r"""
- start_cache:
    path: /var/cache/vllm/0123456789abcdef
    state: packed
    archive: /tmp/cache.tar.gz
"""
RETURN = r"""
exists:
  description: Whether the directory exists, after the task.
  type: bool
  returned: success
seconds:
  description: The largest number in the files of I(times); null for no file.
  type: float
  returned: state is inspected
sha256:
  description: The digest of the archive.
  type: str
  returned: state is packed and the directory exists
bytes:
  description: The size of the archive.
  type: int
  returned: state is packed and the directory exists
"""
#: Settings and reports of use: they belong to one host.
NOT_PACKED = frozenset({".config"})
#: The levels above 6 cost more time than a network needs for the bytes that they save.
LEVEL = 6
#: What a cache may hold. Caches of a start have some hundred MiB; an account that was taken over may leave more.
MAX_BYTES = 8 << 30
MAX_FILE_BYTES = 1 << 30
MAX_ENTRIES = 100_000
#: Limits of the process that packs or unpacks.
MEMORY_BYTES = 4 << 30
CPU_SECONDS = 900
#: A start takes less than this.
MAX_SECONDS = 1e6


def as_account(user: int, group: int, work: Callable[[], None]) -> None:
    """Runs work in a process of an account, within limits.

    Args:
        user: the number of the account; only root can run it as another one than itself.
        group: the number of its group.
        work: what the process does. What it changes in memory is lost.

    Raises:
        OSError: the work has failed, with its reason.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(group)
                os.setuid(user)
            os.umask(0o077)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            work()
            answer: list[str] = []
        except BaseException as fault:
            # The parent reports it; nothing may return into its code.
            answer = [str(fault) or type(fault).__name__]
        with os.fdopen(writer, "w") as channel:
            json.dump(answer, channel)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as channel:
        text = channel.read()
    os.waitpid(child, 0)
    # A process that was killed has written nothing.
    faults = json.loads(text) if text else ["it was killed, as it took too long or too much memory"]
    if faults:
        raise OSError(faults[0])


def open_regular(path: str) -> IO[bytes]:
    """Opens a file that another account may have replaced: no link is followed, and no pipe is waited for.

    Raises:
        OSError: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(f"{path} is not a regular file")


def read_seconds(paths: Iterable[str]) -> float | None:
    """The longest start; None for no file.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds no number of seconds. Its content is not part of the message.
    """
    seconds = []
    for path in paths:
        with open_regular(path) as file:
            text = file.read(64)
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not 0 <= number < MAX_SECONDS:
            raise ValueError(f"{path} holds no number of seconds")
        seconds.append(number)
    return max(seconds) if seconds else None


def sha256(file: IO[bytes]) -> str:
    """Digest of an open file, in blocks; it is at its beginning afterwards."""
    file.seek(0)
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def names_below(path: str) -> Iterator[str]:
    """The relative names of everything below a directory that is packed, parents first."""
    for folder, folders, files in os.walk(path):
        if folder == path:
            folders[:] = [name for name in folders if name not in NOT_PACKED]
        folders.sort()
        for name in sorted([*folders, *files]):
            relative = os.path.relpath(os.path.join(folder, name), path)
            if relative not in NOT_PACKED:
                yield relative


def member(path: str, name: str) -> tuple[tarfile.TarInfo, bytes] | None:
    """A file, directory or link as a member of the archive with its bytes; None for others and removed ones."""
    full = os.path.join(path, name)
    try:
        info = os.lstat(full)
        entry = tarfile.TarInfo(name)
        entry.mode, entry.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
        if stat.S_ISLNK(info.st_mode):
            entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(full)
            return (entry, b"") if is_inside(name, entry.linkname) else None
        if stat.S_ISDIR(info.st_mode):
            entry.type = tarfile.DIRTYPE
            return entry, b""
        if not stat.S_ISREG(info.st_mode):
            return None
        # The whole file at once: it may grow while it is read.
        with open_regular(full) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise ValueError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
            content = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    entry.size = len(content)
    return entry, content


def is_inside(name: str, link: str = "") -> bool:
    """Whether a name, and the target of the link that it is, stay inside the directory of the cache."""
    target = os.path.normpath(os.path.join(os.path.dirname(name), link) if link else name)
    return not os.path.isabs(link or name) and target.split(os.sep)[0] != os.pardir


def pack(path: str, archive: str, user: int, group: int) -> tuple[str, int]:
    """Writes the archive, readable by the owner of its folder alone; the account reads the cache.

    Returns:
        The digest and the size of the archive.
    """
    draft = archive + ".part"
    with open(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w+b") as raw:
        try:
            as_account(user, group, lambda: write_archive(path, raw))
        except OSError:
            os.unlink(draft)
            raise
        # The user that fetches the file owns the folder, and may not be the one that runs this.
        folder = os.stat(os.path.dirname(archive))
        if os.geteuid() == 0:
            os.fchown(raw.fileno(), folder.st_uid, folder.st_gid)
        os.rename(draft, archive)
        return sha256(raw), os.fstat(raw.fileno()).st_size


def write_archive(path: str, raw: IO[bytes]) -> None:
    """Writes a directory as a tar file with gzip.

    Raises:
        ValueError: it holds more than a cache may.
    """
    with gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as packed:
        write_members(path, packed)
    raw.flush()


def write_members(path: str, stream: gzip.GzipFile) -> None:
    """Writes a directory as a tar file."""
    total = 0
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names_below(path), 1):
            entry = member(path, name)
            if entry:
                total += entry[0].size
                check_limits(number, total)
                tar.addfile(entry[0], io.BytesIO(entry[1]))


def check_limits(entries: int, total: int) -> None:
    """Stops at more than a cache may hold.

    Raises:
        ValueError: it is more.
    """
    if entries > MAX_ENTRIES:
        raise ValueError(f"more than {MAX_ENTRIES} files")
    if total > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")


def unpack(archive: IO[bytes], path: str, user: int, group: int) -> None:
    """Creates the directory, which appears only when it is complete; the account writes it.

    Raises:
        OSError: the archive holds a name outside of the directory, something that is no file, directory or link, or
            more than a cache may.
    """
    draft = path + ".part"
    # It follows no link, so it is safe in a folder of another account, whose directories may forbid it to that one.
    shutil.rmtree(draft, ignore_errors=True)
    try:
        as_account(user, group, lambda: write_directory(archive, draft, path))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_directory(archive: IO[bytes], draft: str, path: str) -> None:
    """Unpacks an archive into a new directory and renames it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.mkdir(draft, 0o700)
    total = 0
    with tarfile.open(fileobj=archive, mode="r:gz") as tar:
        for number, entry in enumerate(tar, 1):
            total += entry.size
            check_limits(number, total)
            unpack_member(tar, entry, draft)
    os.chmod(draft, 0o750)  # noqa: S103 - as the directory of all caches
    os.rename(draft, path)


def unpack_member(tar: tarfile.TarFile, entry: tarfile.TarInfo, folder: str) -> None:
    """Writes one member below a folder; parents come before what is in them.

    Archives of GNU tar are read too: their names begin with ``./``, and a file may be a link to an earlier one.
    """
    name = os.path.normpath(entry.name)
    if name == ".":
        return
    full = inner_path(folder, name)
    if entry.issym() and is_inside(name, entry.linkname):
        os.symlink(entry.linkname, full)
        return
    if entry.islnk():
        os.link(inner_path(folder, os.path.normpath(entry.linkname)), full, follow_symlinks=False)
        return
    if entry.isdir():
        os.mkdir(full)
    elif entry.isreg():
        with open(full, "xb") as file:
            shutil.copyfileobj(cast("IO[bytes]", tar.extractfile(entry)), file)
    else:
        raise ValueError(f"{entry.name} is not a file, directory or link inside the cache")
    os.chmod(full, entry.mode & 0o777)
    os.utime(full, (entry.mtime, entry.mtime))


def inner_path(folder: str, name: str) -> str:
    """The path of a name in a folder; links on the way must not lead out of it.

    Raises:
        ValueError: the name is outside, or below a link.
    """
    full = os.path.join(os.path.realpath(folder), name)
    if not is_inside(name) or os.path.realpath(os.path.dirname(full)) != os.path.dirname(full):
        raise ValueError(f"{name} is outside the cache directory")
    return full


def ids(owner: str | None, group: str | None) -> tuple[int, int]:
    """The numbers of an account and a group; those of this process by default.

    Raises:
        KeyError: the host has no such account or group.
    """
    return (
        pwd.getpwnam(owner).pw_uid if owner else os.geteuid(),
        grp.getgrnam(group).gr_gid if group else os.getegid(),
    )


def change(module: AnsibleModule, exists: bool) -> dict[str, Any]:
    """What the task returns; it changes the host unless in check mode."""
    path, state, archive = module.params["path"], module.params["state"], module.params["archive"]
    account = ids(module.params["owner"], module.params["group"])
    if state == "inspected":
        return {"changed": False, "exists": exists, "seconds": read_seconds(module.params["times"])}
    if state == "packed":
        if not exists or module.check_mode:
            return {"changed": exists, "exists": exists}
        digest, size = pack(path, archive, *account)
        return {"changed": True, "exists": True, "sha256": digest, "bytes": size}
    if state == "absent":
        if exists and not module.check_mode:
            shutil.rmtree(path)
        return {"changed": exists, "exists": False, "diff": diff(path if exists else "", "")}
    if exists:
        return {"changed": False, "exists": True}
    with open(archive, "rb") as file:
        seen = sha256(file)
        if seen != module.params["sha256"]:
            raise ValueError(f"{archive} has the SHA-256 {seen}, not {module.params['sha256']}")
        if not module.check_mode:
            unpack(file, path, *account)
    return {"changed": True, "exists": True, "diff": diff("", path)}


def diff(before: str, after: str) -> dict[str, str]:
    """A diff of the directory's name."""
    return {name: f"{text}\n" if text else "" for name, text in (("before", before), ("after", after))}


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["inspected", "packed", "unpacked", "absent"], "required": True},
            "archive": {"type": "path"},
            "sha256": {"type": "str"},
            "owner": {"type": "str"},
            "group": {"type": "str"},
            "times": {"type": "list", "elements": "path", "default": []},
        },
        required_if=[("state", "packed", ["archive"]), ("state", "unpacked", ["archive", "sha256"])],
        supports_check_mode=True,
    )
    try:
        result = change(module, os.path.isdir(module.params["path"]))
    except (OSError, ValueError, KeyError, tarfile.TarError, EOFError) as fault:
        module.fail_json(msg=f"{module.params['path']} cannot be {module.params['state']}: {fault}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
