"""Runs on a host: makes a new SSH host key, and takes it in place of the old one. Standard library only.

Reads ``{"step": "make" | "take" | "look", "create": bool}`` and prints the key that sshd is to show (``current``) and
the one that stands ready (``next``). Each step may be cut off and run again.
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


def _public(private: str) -> str:
    """The public key of a private one, ``type base64``."""
    return " ".join(_run("ssh-keygen", "-y", "-P", "", "-f", private).split()[:2])


def make(directory: str) -> None:
    """Makes the next key, unless it stands ready; it gets its name only when it is whole."""
    ready = os.path.join(directory, "ssh_host_ed25519_key.next")
    if os.path.exists(ready):
        return
    part = ready + ".part"
    for left in (part, part + ".pub"):
        if os.path.exists(left):
            os.unlink(left)
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", part)
    os.unlink(part + ".pub")
    os.rename(part, ready)


def take(directory: str) -> None:
    """Puts the next key in the place of the present one and lets sshd read it; open connections stay."""
    key = os.path.join(directory, "ssh_host_ed25519_key")
    if os.path.exists(key + ".next"):
        os.rename(key + ".next", key)
    part = key + ".pub.part"
    with open(part, "w", encoding="ascii") as file:
        file.write(_public(key) + "\n")
    os.rename(part, key + ".pub")
    _run("/usr/sbin/sshd", "-t")
    for unit in ("ssh.service", "sshd.service"):
        if subprocess.call(["systemctl", "is-active", "-q", unit]) == 0:
            _run("systemctl", "reload", unit)


def main(text: str, directory: str = _DIRECTORY) -> int:
    """Does one step and prints the keys."""
    asked = json.loads(text)
    key = os.path.join(directory, "ssh_host_ed25519_key")
    if not os.path.exists(key):
        sys.exit("%s is not there: this host shows keys of other kinds or places" % key)
    if asked["step"] == "make" and asked["create"]:
        make(directory)
    if asked["step"] == "take":
        take(directory)
    ready = _public(key + ".next") if os.path.exists(key + ".next") else None
    print(json.dumps({"current": _public(key), "next": ready}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
