"""Runs on a host: applies items of its manifest that differ, one after the other, and reports which it has applied.

Standard library only, for the Python that the host has (3.8 or later). Reads ``{"items": [...], "contents": {...},
"groups": [...], "diff": bool}``, where the contents are SHA-256 -> text. Prints ``{"applied": [...], "left": {...},
"diffs": [...]}``, where what is left is name -> why. It stops at the first item that it cannot apply: the role that
owns it does so, and reports what is wrong.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Mapping

if TYPE_CHECKING:
    from vllm_fleet.on_host import manifest_items as items

#: A change below it is one that systemd must read.
UNITS = "/etc/systemd/system/"
#: A change below it is one that the kernel must get.
SYSCTLS = "/etc/sysctl.d/"


class NotAppliedError(Exception):
    """Why an item cannot be applied here."""


def run(*words: str) -> None:
    """Runs a program of the system.

    Raises:
        NotAppliedError: it failed.
    """
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace")
    if done.returncode:
        raise NotAppliedError("%s: %s" % (" ".join(words), done.stdout.strip()[:300]))


def owner_of(item: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of an item's owner and group; root where it names none.

    Raises:
        NotAppliedError: the host does not have the account or the group.
    """
    try:
        return pwd.getpwnam(item.get("owner", "root")).pw_uid, grp.getgrnam(item.get("group", "root")).gr_gid
    except KeyError as missing:
        raise NotAppliedError(str(missing.args[0])) from None


def apply_directory(item: items.DirectoryItem) -> None:
    """Creates a directory, or corrects its owner and mode."""
    owner, group = owner_of(item)
    if os.path.lexists(item["path"]) and (os.path.islink(item["path"]) or not os.path.isdir(item["path"])):
        raise NotAppliedError("%s is no directory" % item["path"])
    os.makedirs(item["path"], 0o755, exist_ok=True)
    os.chown(item["path"], owner, group)
    os.chmod(item["path"], int(item.get("mode", "0755"), 8))


def read_text(path: str) -> str | None:
    """The text of a file; None without it.

    Raises:
        NotAppliedError: something else is there.
    """
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        raise NotAppliedError("%s is no file" % path)
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def apply_file(item: items.FileItem, contents: Mapping[str, str]) -> dict[str, str]:
    """Replaces a file at once: a reader sees the old one or the new one, with its mode and owner.

    Returns:
        The difference of its content.
    """
    path, text = item["path"], contents[item["sha256"]]
    data = text.encode()
    if hashlib.sha256(data).hexdigest() != item["sha256"]:
        raise NotAppliedError("the content of %s has another digest" % path)
    owner, group = owner_of(item)
    before = read_text(path)
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".vllm-fleet-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chown(draft, owner, group)
        os.chmod(draft, int(item.get("mode", "0644"), 8))
        if path.startswith(SYSCTLS):
            # Before it is in its place: a file that was not loaded would look as if it were.
            run("sysctl", "--load", draft)
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
    return {"before_header": path, "after_header": path, "before": before or "", "after": text}


def apply_user(item: items.UserItem, groups: list[str]) -> None:
    """Creates a system account without a home, and the groups of the system that its programs need."""
    for name in groups:
        run("groupadd", "--force", "--system", name)
    words = ["useradd", "--system", "--no-create-home", "--user-group"]
    run(*words, "--home-dir", item["home"], "--shell", item["shell"], item["name"])


def apply_unit(item: items.UnitItem) -> None:
    """Enables and starts a unit, as far as the item says so."""
    if item.get("enabled"):
        run("systemctl", "enable", "--quiet", item["name"])
    if item.get("active"):
        run("systemctl", "start", item["name"])


class Work:
    """The items that were applied so far, and whether systemd has not read its units since."""

    def __init__(self, question: Mapping[str, Any]) -> None:
        self.contents, self.groups = question["contents"], question["groups"]
        self.applied: list[str] = []
        self.diffs: list[dict[str, str]] = []
        self.unread = False

    def apply(self, item: Any) -> None:
        """Applies an item.

        Raises:
            NotAppliedError: it cannot be applied here.
        """
        kind, name = item["kind"], str(item.get("path") or item.get("name"))
        if kind == "directory":
            apply_directory(item)
        elif kind == "file":
            self.diffs.append(apply_file(item, self.contents))
            self.unread |= name.startswith(UNITS)
        elif kind == "user":
            apply_user(item, self.groups)
        elif kind == "unit":
            self.read_units()
            apply_unit(item)
        else:
            raise NotAppliedError("no item of the kind %s is applied here" % kind)
        self.applied.append(name)

    def read_units(self) -> None:
        """Has systemd read its units, if one was written."""
        if self.unread:
            run("systemctl", "daemon-reload")
            self.unread = False


def apply_items(question: Mapping[str, Any]) -> dict[str, Any]:
    """Applies items up to the first that cannot be.

    Args:
        question: the question of the controller.

    Returns:
        The answer.
    """
    work, left = Work(question), {}
    for item in question["items"]:
        try:
            work.apply(item)
        except (NotAppliedError, OSError, KeyError, ValueError) as fault:
            left[str(item.get("path") or item.get("name"))] = str(fault)
            break
    work.read_units()
    return {"applied": work.applied, "left": left, "diffs": work.diffs if question["diff"] else []}


def main() -> None:
    """Reads the question, applies its items and prints the answer."""
    # A hardened host has a stricter one, and directories above files are for all to enter.
    os.umask(0o022)
    json.dump(apply_items(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
