"""Runs on a host: creates a new SSH host key and installs it in place of the old one. Standard library only.

Reads ``{"step": "make" | "take" | "look", "create": bool}`` and prints the key that sshd uses (``current``) and the one
that is ready to be installed (``next``). An interrupted step can run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

_DIRECTORY = "/etc/ssh"


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit("%s: %s" % (" ".join(words), (done.stderr or done.stdout).strip()[-300:]))
    return done.stdout


def _public_key(private: str) -> str:
    """The public key of a private one, ``type base64``."""
    return " ".join(_run("ssh-keygen", "-y", "-P", "", "-f", private).split()[:2])


def make_key(directory: str) -> None:
    """Creates the next key, unless there is one. It gets its final name only when it is complete."""
    ready = os.path.join(directory, "ssh_host_ed25519_key.next")
    if os.path.exists(ready):
        return
    part = ready + ".part"
    for path in (part, part + ".pub"):
        if os.path.exists(path):
            os.unlink(path)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", part)
    os.unlink(part + ".pub")
    os.rename(part, ready)


def take_key(directory: str) -> None:
    """Replaces the current key by the next one and reloads sshd; open connections stay."""
    key = os.path.join(directory, "ssh_host_ed25519_key")
    if os.path.exists(key + ".next"):
        os.rename(key + ".next", key)
    part = key + ".pub.part"
    with open(part, "w", encoding="ascii") as file:
        file.write(_public_key(key) + "\n")
    os.rename(part, key + ".pub")
    _run("/usr/sbin/sshd", "-t")
    for unit in ("ssh.service", "sshd.service"):
        if subprocess.call(["systemctl", "is-active", "-q", unit]) == 0:
            _run("systemctl", "reload", unit)


def main(text: str, directory: str = _DIRECTORY) -> int:
    """Runs one step and prints the keys."""
    request = json.loads(text)
    key = os.path.join(directory, "ssh_host_ed25519_key")
    if not os.path.exists(key):
        sys.exit("%s is missing: this host has keys of other types or in another directory" % key)
    if request["step"] == "make" and request["create"]:
        make_key(directory)
    if request["step"] == "take":
        take_key(directory)
    ready = _public_key(key + ".next") if os.path.exists(key + ".next") else None
    print(json.dumps({"current": _public_key(key), "next": ready}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
