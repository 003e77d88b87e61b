"""The docker of a host: whether it is there and can be used, and its ``daemon.json`` with our settings merged in.

Standard library only, for the Python that a host has. The probe uses it, and the module ``docker_settings``, which
imports it as ``ansible.module_utils.docker_engine``. It changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any, Mapping, Sequence

#: The packages that bring a docker daemon as docker.service: the distributions', Docker's own and Microsoft's.
PACKAGES = ("docker.io", "docker-ce", "moby-engine")
#: ``docker run --pull=never`` came with it.
OLDEST = (20, 10)
#: Settings that dockerd refuses to read from the file if they are on its command line too.
FLAGS = {
    "live-restore": "--live-restore",
    "insecure-registries": "--insecure-registry",
    "runtimes": "--add-runtime",
}
CONFIG = "/etc/docker/daemon.json"
#: Why the docker of a host cannot be used or changed: cause -> text.
TEXTS = {
    "podman": "docker is podman here (podman-docker): remove podman-docker, or use a pool with a wheel",
    "snap": "docker is a snap here, whose containers see no files of /var/lib/vllm: remove the snap, or use a pool "
    "with a wheel",
    "rootless": "a rootless docker runs here (process %s), and docker.io beside it would take its command: remove it, "
    "or use a pool with a wheel",
    "swarm": "docker is a node of a swarm, which does not start with live-restore: take it out of the swarm",
    "too_old": "%s is %d.%d, vLLM's containers need %d.%d: upgrade it",
    "masked": "docker.service of %s is masked: unmask it",
    "would_remove": "to install docker.io, apt would remove %s: remove them yourself, or install the docker that you "
    "want",
    "unreadable": "%s cannot be read: %s: correct it",
    "another_value": "%s has another %s than vLLM's containers need (%s): change it",
    "flag": "dockerd gets %s on its command line, and would not start with %s in %s: move it to the file",
}
CODES = {
    "would_remove": "would_remove",
    "unreadable": "settings_differ",
    "another_value": "settings_differ",
    "flag": "settings_differ",
}


def conflict(cause: str, *values: Any) -> tuple[str, str]:
    """A cause as the code of its veto, and its text."""
    return CODES.get(cause, "unusable_docker"), TEXTS[cause] % values


def read_settings(path: str) -> dict[str, Any]:
    """The settings in a ``daemon.json``; a missing or empty file has none.

    Raises:
        ValueError: the file is not one JSON object. dockerd would not start with it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    settings = json.loads(text) if text.strip() else {}
    if not isinstance(settings, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - a fault of the text, as the other
    return settings


def same_value(theirs: Any, ours: Any, key: str = "") -> bool:
    """Whether a setting that is there does what we need.

    A mapping needs our keys, a list our elements. A program may be given by its name or by its path.
    """
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(
            name in theirs and same_value(theirs[name], value, name) for name, value in ours.items()
        )
    if isinstance(ours, list):
        return isinstance(theirs, list) and all(value in theirs for value in ours)
    if key == "path" and isinstance(theirs, str) and isinstance(ours, str):
        return os.path.basename(theirs) == os.path.basename(ours)
    return type(theirs) is type(ours) and bool(theirs == ours)


def merge_settings(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], where: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[list[Any]], list[str]]:
    """Their settings with ours.

    Args:
        theirs: the settings that are there.
        ours: the settings that we need.
        where: the keys above, for the answer.

    Returns:
        The merged settings; what was added, as lists of keys and value (``None`` as the last key for an element of a
        list, an empty mapping or list for one that was made for what follows it); and the keys whose value is another
        one.
    """
    merged: dict[str, Any] = dict(theirs)
    added: list[list[Any]] = []
    conflicts: list[str] = []
    for key, value in sorted(ours.items()):
        path = (*where, key)
        if key not in merged and isinstance(value, (dict, list)):
            merged[key] = type(value)()
            added.append([*path, type(value)()])
        if key not in merged:
            merged[key] = value
            added.append([*path, value])
        elif isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key], more, refused = merge_settings(merged[key], value, path)
            added += more
            conflicts += refused
        elif isinstance(value, list) and isinstance(merged[key], list):
            new = [element for element in value if element not in merged[key]]
            merged[key] = [*merged[key], *new]
            added += [[*path, None, element] for element in new]
        elif not same_value(merged[key], value, key):
            conflicts.append(".".join(path))
    return merged, added, conflicts


def remove_settings(settings: Mapping[str, Any], added: list[list[Any]]) -> dict[str, Any]:
    """Settings without what :func:`merge_settings` has added; a value that was changed since then stays."""
    left: dict[str, Any] = json.loads(json.dumps(settings))
    # The last first: a mapping that was made for a key goes after the key, if it is empty then.
    for *path, value in reversed(added):
        *above, key = path[:-1] if path[-1] is None else path
        holder: Any = left
        for name in above:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or key not in holder:
            continue
        if path[-1] is None:
            if isinstance(holder[key], list) and value in holder[key]:
                holder[key].remove(value)
        elif type(holder[key]) is type(value) and holder[key] == value:
            del holder[key]
    return left


def command_output(*words: str) -> str:
    """The output of a command; empty if it fails, is missing or hangs."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def installed(names: Sequence[str]) -> list[str]:
    """Those of some packages that are installed."""
    rows = []
    for name in names:
        if command_output("dpkg-query", "-W", "-f=${db:Status-Status}", name) == "installed":
            rows.append(name)
    return rows


def removed_by_apt(names: Sequence[str]) -> list[str]:
    """The packages that apt would remove to install some; none where apt cannot say (it does not know a name).

    Nothing is installed, and no lock is taken.
    """
    if not names:
        return []
    out = command_output("env", "LC_ALL=C", "apt-get", "-s", "-q", "-o", "Debug::NoLocking=1", "install", *names)
    return sorted({match.group(1) for match in re.finditer(r"^Remv (\S+)", out, re.MULTILINE)})


def daemon_arguments() -> list[str]:
    """The command line of the dockerd that runs as root's service; empty if none runs."""
    pid = command_output("systemctl", "show", "--value", "--property=MainPID", "docker.service")
    try:
        with open("/proc/%d/cmdline" % int(pid or 0), "rb") as file:
            return [word.decode("utf-8", "replace") for word in file.read().split(b"\0") if word]
    except (OSError, ValueError):
        return []


def find_other_engines() -> list[tuple[str, str]]:
    """Engines that answer to the name docker and cannot run our containers."""
    found = []
    podman = bool(installed(("podman-docker",))) or "podman" in os.path.basename(os.path.realpath("/usr/bin/docker"))
    if podman:
        found.append(conflict("podman"))
    if os.path.exists("/snap/docker/current"):
        found.append(conflict("snap"))
    if not podman and not installed(PACKAGES):
        rootless = command_output("pgrep", "-f", "-o", "^[^ ]*rootlesskit .*dockerd")
        if rootless:
            found.append(conflict("rootless", rootless))
    return found


def find_conflicts(settings: Mapping[str, Any], config: str = CONFIG) -> list[tuple[str, str]]:
    """Why the docker of this host cannot be used, or must not be changed: (code, text).

    Args:
        settings: the settings that our containers need.
        config: the daemon's file.
    """
    found = find_other_engines()
    if found:
        return found
    packages = installed(PACKAGES)
    if packages:
        found += _unit_conflicts(packages[0])
    elif gone := removed_by_apt(["docker.io"]):
        found.append(conflict("would_remove", ", ".join(gone)))
    try:
        theirs = read_settings(config)
    except ValueError as fault:
        return [*found, conflict("unreadable", config, fault)]
    _, added, keys = merge_settings(theirs, settings)
    found += [conflict("another_value", config, key, json.dumps(value_at(settings, key))) for key in keys]
    flags = {word.split("=", 1)[0] for word in daemon_arguments()}
    new = sorted({str(path[0]) for path in added})
    found += [conflict("flag", FLAGS[key], key, config) for key in new if FLAGS.get(key) in flags]
    if "live-restore" in new and packages:
        swarm = command_output("docker", "info", "--format", "{{.Swarm.LocalNodeState}}")
        if swarm not in ("", "inactive"):
            found.append(conflict("swarm"))
    return found


def value_at(settings: Mapping[str, Any], path: str) -> Any:
    """The value of a setting at keys with points between them."""
    at: Any = settings
    for key in path.split("."):
        at = at[key]
    return at


def _unit_conflicts(package: str) -> list[tuple[str, str]]:
    match = re.search(r"(\d+)\.(\d+)", command_output("dockerd", "--version"))
    version = (int(match.group(1)), int(match.group(2))) if match else OLDEST
    if version < OLDEST:
        return [conflict("too_old", package, *version, *OLDEST)]
    state = command_output("systemctl", "show", "--value", "--property=LoadState", "docker.service")
    return [conflict("masked", package)] if state == "masked" else []
