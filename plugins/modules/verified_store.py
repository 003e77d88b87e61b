#!/usr/bin/python
"""Verifies every file of a directory once and leaves a stamp that later checks can trust."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: verified_store
short_description: Verify the files of a directory by SHA-256 and stamp it
description:
  - Reads every file once, compares its SHA-256 and writes a stamp with size and time of each.
  - >-
    A module of its own because a model has tens of gigabytes: stat with a checksum would read them in one task a
    file, and again in every run; the stamp tells a later check that nothing has changed since.
  - >-
    With O(account) the directory is not the project's and is only read, by that account, because a network file system
    may give root fewer rights. What is not safe is refused: a link that leads out of O(within), files that every
    account may write, and files that are not of the model.
options:
  path:
    description: The directory.
    type: path
    required: true
  files:
    description: The files with their digests.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: File name.
        type: str
        required: true
      sha256:
        description: The digest that it must have.
        type: str
        required: true
  stamp_only:
    description: Only compare the stamp with size and time of the files; read none and stamp none.
    type: bool
    default: false
  stamp:
    description: The file of the stamp. Default V(.verified.json) in the directory.
    type: path
  account:
    description: The account that reads the files of a directory that is not the project's.
    type: str
    default: ''
  within:
    description: The directory that links must not lead out of. Default O(path).
    type: path
author: [vllm-fleet]
"""
EXAMPLES = r"""
- verified_store:
    path: /var/lib/vllm/models/openai--gpt-oss-20b/main
    files: [{name: config.json, sha256: 0123...}]
"""
RETURN = r"""
verified:
  description: The files that were read.
  type: list
  returned: success
missing:
  description: With O(stamp_only), the files that are not as they were verified.
  type: list
  returned: success
"""
STAMP = ".verified.json"
READERS = 4
#: The number of an account that owns nothing.
UNKNOWN = 65534
#: What a model's directory may have besides its files: vLLM reads none of it.
DOCUMENTS = ("LICENSE", "NOTICE", "README.md", "USAGE_POLICY", "model.json")
#: A directory of which the tokenizer reads templates.
READ_DIRECTORIES = ("additional_chat_templates",)


class RefusedError(Exception):
    """Why a directory is not used."""


def sha256(path: str) -> str:
    """Digest of a file, in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_stamp(path: str) -> dict[str, Any]:
    """The stamp; empty if it is missing or unreadable."""
    try:
        with open(path) as file:
            stamp = json.load(file)
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


class Account:
    """The account that serves the files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number: int | None = None
        self.groups: list[int] = []
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            # The first run on a host looks at the directory before it has made the account, which owns nothing yet and
            # is in no group: it can read what an unknown account can.
            self.number, self.group, self.groups = UNKNOWN, UNKNOWN, [UNKNOWN]
            return
        self.number, self.group = entry.pw_uid, entry.pw_gid
        self.groups = os.getgrouplist(name, entry.pw_gid)

    def run(self, work: Any) -> Any:
        """The result of a function that this account runs.

        Raises:
            RefusedError: what it refuses.
        """
        if self.number is None or os.geteuid() != 0:
            return work()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer: dict[str, Any] = {"error": "it ended early"}
            try:
                os.setgroups(self.groups)
                os.setgid(self.group)
                os.setuid(self.number)
                answer = {"result": work()}
            except (RefusedError, OSError) as fault:
                answer = {"error": str(fault)}
            finally:
                with open(writer, "w") as pipe:
                    json.dump(answer, pipe)
                os._exit(0)
        os.close(writer)
        with open(reader) as pipe:
            answer = json.loads(pipe.read() or '{"error": "it ended early"}')
        os.waitpid(child, 0)
        if "error" in answer:
            raise RefusedError(answer["error"])
        return answer["result"]


class Store:
    """The directory and how its files are looked at."""

    def __init__(self, folder: str, files: dict[str, str], within: str, account: Account | None) -> None:
        self.folder = folder
        self.files = files
        self.within = within
        self.foreign = account is not None
        self.account = account or Account("root")
        self.warnings: list[str] = []

    def path(self, name: str) -> str:
        """Where a file is."""
        return os.path.join(self.folder, name)

    def entry(self, name: str) -> dict[str, Any]:
        """What the stamp keeps of a file; more of it where others can write."""
        info = os.stat(self.path(name))
        kept = {"sha256": self.files[name], "size": info.st_size, "mtime_ns": info.st_mtime_ns}
        return {**kept, "inode": info.st_ino, "ctime_ns": info.st_ctime_ns} if self.foreign else kept

    def is_as_stamped(self, name: str, stamp: dict[str, Any]) -> bool:
        """Whether a file is still as it was when it was verified."""
        return os.path.isfile(self.path(name)) and stamp.get(name) == self.entry(name)

    def changed(self, stamp: dict[str, Any]) -> list[str]:
        """The files that are not as they were verified."""
        names = [name for name in self.files if not self.is_as_stamped(name, stamp)]
        if not names and self.foreign and stamp.get(".") != self.own_entry():
            return sorted(self.files)[:1]
        return names

    def own_entry(self) -> dict[str, Any]:
        """What the stamp keeps of the directory: it changes when a file is added, renamed or removed."""
        return {"mtime_ns": os.stat(self.folder).st_mtime_ns}

    def check(self) -> None:
        """Refuses a directory of another owner that is not safe to use."""
        strange = []
        for found in os.scandir(self.folder):
            if found.is_dir():
                if found.name in READ_DIRECTORIES:
                    strange.append(found.name)
            elif found.name not in self.files and found.name not in DOCUMENTS and not found.name.startswith("."):
                strange.append(found.name)
        if strange:
            raise RefusedError(
                f"{self.folder} has files that are not of the model, and vLLM may read them: "
                f"{', '.join(repr(name) for name in sorted(strange)[:5])}. Move them away, or list them in 'digests'"
            )
        owners = set()
        for name in sorted(self.files):
            owners |= self.check_file(name)
        self.check_readable()
        strangers = sorted(owners - {0, self.account.number})
        if strangers:
            self.warnings.append(
                f"{self.folder} belongs to {', '.join(account_name(number) for number in strangers)}, who can change "
                "it after it was verified; the next run and 'vllm-fleet drift' notice it, an instance that starts in "
                "between does not"
            )

    def check_readable(self) -> None:
        """Lets the account itself try, from the directory on: it need not be able to enter those above it."""
        if not self.account.number or os.geteuid() != 0:
            return
        top = os.path.realpath(self.within)
        paths = [os.path.relpath(os.path.realpath(self.path(name)), top) for name in sorted(self.files)]
        descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)

        def find_unreadable() -> list[str]:
            os.fchdir(descriptor)
            return [path for path in paths if not os.access(path, os.R_OK)][:1]

        try:
            unreadable = self.account.run(find_unreadable)
        finally:
            os.close(descriptor)
        for path in unreadable:
            raise RefusedError(
                f"the account {self.account.name} cannot read {os.path.join(top, path)}: chmod o+rX it and the "
                f"directories up to {top}, or give the account its group"
            )

    def check_file(self, name: str) -> set[int]:
        """The accounts that own a file and the directories that it is in."""
        path = self.path(name)
        real = os.path.realpath(path)
        if not os.path.lexists(path):
            raise RefusedError(f"{path} is missing")
        if os.path.commonpath([real, os.path.realpath(self.within)]) != os.path.realpath(self.within):
            raise RefusedError(
                f"{path} leads to {real}, out of {self.within}: give the folder that has the files themselves, or "
                "'huggingface_cache'"
            )
        owners = set()
        place = real
        while True:
            info = os.stat(place)
            if info.st_mode & stat.S_IWOTH:
                raise RefusedError(f"every account may write {place}: chmod o-w {place}")
            owners.add(info.st_uid)
            if place == os.path.realpath(self.within):
                break
            place = os.path.dirname(place)
        if not os.path.isfile(real):
            raise RefusedError(f"{path} is not a regular file")
        if not os.access(real, os.R_OK):
            raise RefusedError(f"the account {account_name(os.geteuid())} cannot read {real}")
        return owners

    def verify(self, old: dict[str, Any], lenient: bool) -> tuple[dict[str, Any], list[str]]:
        """The new stamp, and the files that were read."""
        new: dict[str, Any] = {}
        todo = []
        for name in self.files:
            if not os.path.isfile(self.path(name)):
                if not lenient:
                    raise RefusedError(f"{self.path(name)} is missing")
            elif self.is_as_stamped(name, old):
                new[name] = old[name]
            else:
                todo.append(name)
        before = {name: self.entry(name) for name in todo}
        with ThreadPoolExecutor(READERS) as pool:
            digests = [pool.submit(sha256, self.path(name)) for name in todo]
            for name, digest in zip(todo, digests):  # noqa: B905 - hosts may have Python 3.8
                seen = digest.result()
                if seen != self.files[name] and not lenient:
                    raise RefusedError(f"{self.path(name)} has the SHA-256 {seen}, not {self.files[name]}")
                if self.entry(name) != before[name]:
                    raise RefusedError(f"{self.path(name)} changed while it was read")
                new[name] = before[name]
        if self.foreign and new:
            new["."] = self.own_entry()
        return new, todo


def account_name(number: int) -> str:
    """The name of an account, or its number."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the account {number}"


def write_stamp(stamp_file: str, new: dict[str, Any]) -> None:
    """Writes the stamp in one step."""
    descriptor, name = tempfile.mkstemp(dir=os.path.dirname(stamp_file))
    with os.fdopen(descriptor, "w") as file:
        json.dump(new, file, indent=1, sort_keys=True)
    os.chmod(name, 0o644)
    os.replace(name, stamp_file)


def look_at(account: Account | None, look: Any, stamp_only: bool) -> dict[str, Any]:
    """What a look at the files gives.

    Before the directory is mounted, only root may be able to enter the directories above it; on a network file system,
    only the account.
    """
    if account and stamp_only:
        try:
            found: dict[str, Any] = look()
        except PermissionError:
            found = account.run(look)
        return found
    return dict(account.run(look) if account else look())


def run(module: Any) -> None:
    """Looks at the files, and verifies those that are not as the stamp has them."""
    folder = module.params["path"]
    account = Account(module.params["account"]) if module.params["account"] else None
    stamp_file = module.params["stamp"] or os.path.join(folder, STAMP)
    files = {item["name"]: item["sha256"] for item in module.params["files"]}
    store = Store(folder, files, module.params["within"] or folder, account)
    old, check_mode = read_stamp(stamp_file), module.check_mode

    def look() -> dict[str, Any]:
        if account:
            store.check()
        if module.params["stamp_only"]:
            return {"missing": store.changed(old), "warnings": store.warnings}
        new, verified = store.verify(old, check_mode)
        return {"new": new, "verified": verified, "warnings": store.warnings}

    found = look_at(account, look, module.params["stamp_only"])
    for warning in found["warnings"]:
        module.warn(warning)
    if module.params["stamp_only"]:
        # What is missing will be brought by others: in check mode that is the change to tell.
        module.exit_json(changed=bool(found["missing"]) and check_mode, missing=found["missing"])
    changed = found["new"] != old
    if changed and not check_mode:
        write_stamp(stamp_file, found["new"])
    module.exit_json(changed=changed, verified=found["verified"])


def main() -> None:
    """Runs the module."""
    files = {"name": {"type": "str", "required": True}, "sha256": {"type": "str", "required": True}}
    # The inventory has one list for every use; what else it says of a file is not this module's.
    files["size"] = {"type": "int", "required": False}
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True, "options": files},
            "stamp_only": {"type": "bool", "default": False},
            "stamp": {"type": "path"},
            "account": {"type": "str", "default": ""},
            "within": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        run(module)
    except RefusedError as fault:
        module.fail_json(msg=str(fault))
    except OSError as fault:
        module.fail_json(msg=f"{module.params['path']} cannot be read: {fault}")


if __name__ == "__main__":
    main()
