"""Runs on a host: packs the start cache of its instances, unpacks a copy, removes it.

Standard library only, for the Python that the host has (3.8 or later). Reads a line ``{"work": "pack" | "unpack" |
"remove", "path": ...}`` and, to unpack, the archive behind it, whose digest and size the line has. Prints one JSON
object, and the bytes of the archive that it has packed behind a line that names their number.

The account of the instances owns the directory, so it may have put anything there. A process of that account packs and
unpacks, within limits; it can reach nothing that the account could not reach. A copy appears at once and only if its
digest is right; a cache may change while it is packed.
"""

from __future__ import annotations

import grp
import gzip
import hashlib
import io
import json
import os
import pwd
import resource
import shutil
import stat
import sys
import tarfile
import tempfile
from typing import IO, Any, Callable, Iterator, Mapping, cast

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
#: Archives on their way have no name here, and space on a disk.
SCRATCH = "/var/tmp"  # noqa: S108 - they have no name
#: The line before the bytes of an archive.
BYTES_FOLLOW = "vllm-fleet-bytes"


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


def ids(question: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of the account and its group; those of this process by default.

    Raises:
        KeyError: the host has no such account or group.
    """
    owner, group = question.get("owner"), question.get("group")
    return (
        pwd.getpwnam(owner).pw_uid if owner else os.geteuid(),
        grp.getgrnam(group).gr_gid if group else os.getegid(),
    )


def pack(question: Mapping[str, Any], out: IO[bytes]) -> dict[str, Any]:
    """Prints the archive of the cache behind a line that names its size."""
    if not os.path.isdir(question["path"]):
        return {"exists": False}
    with tempfile.TemporaryFile(dir=SCRATCH) as raw:
        as_account(*ids(question), lambda: write_archive(question["path"], raw))
        found = {"exists": True, "sha256": sha256(raw), "bytes": os.fstat(raw.fileno()).st_size}
        out.write(f"{BYTES_FOLLOW} {found['bytes']}\n".encode())
        shutil.copyfileobj(raw, out)
    return found


def unpack_copy(question: Mapping[str, Any], stream: IO[bytes]) -> dict[str, Any]:
    """Unpacks the archive that follows the question, if the host has no cache of its own.

    Raises:
        ValueError: it has another digest.
        OSError: it cannot be unpacked.
    """
    if os.path.isdir(question["path"]):
        return {"made": False}
    with tempfile.TemporaryFile(dir=SCRATCH) as raw:
        left = question["bytes"]
        while left and (block := stream.read(min(left, 1 << 20))):
            raw.write(block)
            left -= len(block)
        seen = sha256(raw)
        if seen != question["sha256"]:
            raise ValueError(f"what has arrived has the SHA-256 {seen}, not {question['sha256']}")
        unpack(raw, question["path"], *ids(question))
    return {"made": True}


def remove(question: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the cache."""
    exists = os.path.isdir(question["path"])
    if exists:
        shutil.rmtree(question["path"])
    return {"removed": exists}


def work_of(question: Mapping[str, Any], stream: IO[bytes], out: IO[bytes]) -> dict[str, Any]:
    """Does the work of a question.

    Args:
        question: the question of the controller.
        stream: what follows it.
        out: the standard output, which gets an archive.

    Returns:
        The answer.
    """
    if question["work"] == "pack":
        return pack(question, out)
    return unpack_copy(question, stream) if question["work"] == "unpack" else remove(question)


def main() -> None:
    """Reads the question, does its work and prints the answer."""
    question = json.loads(sys.stdin.buffer.readline())
    try:
        answer = work_of(question, sys.stdin.buffer, sys.stdout.buffer)
    except (OSError, ValueError, KeyError, tarfile.TarError, EOFError) as fault:
        done = {"pack": "packed", "unpack": "unpacked", "remove": "removed"}[question["work"]]
        answer = {"fault": f"{question['path']} cannot be {done}: {fault}"}
    sys.stdout.buffer.write(json.dumps(answer).encode())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
