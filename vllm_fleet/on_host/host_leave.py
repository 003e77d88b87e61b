"""Runs on a host that leaves its fleet: removes what the toolkit has made, and nothing else. Standard library only.

Reads ``{"check", "packages", "keep_models"}`` (booleans) and prints ``{"removed": [...], "kept": [{"what", "why"}],
"failed": [...]}``. The record of what was there before (:mod:`host_record`) goes last, so an interrupted run can be
repeated.
"""

from __future__ import annotations

import fnmatch
import glob
import grp
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
from typing import Any, Iterator, Mapping

from vllm_fleet.on_host import docker_engine, host_record, neighbours

#: Units that are the toolkit's by their name, in the order in which they stop.
UNITS = (
    *("vllm@*.service", "vllm-docker@*.service", "vllm-container@*.socket", "vllm-container@*.service"),
    *("vllm-fetch@*.service", "vllm-firewall.service", "nvidia-cdi.service", "vllm-gpu-devices.service"),
    *("vllm-*.timer", "vllm-*.service", "vllm-*.socket"),
    # Adopted folders: their files stay where they are.
    "var-lib-vllm-adopted-*.mount",
)
#: Services of the distribution that run for the fleet, if the toolkit has brought them.
SERVICES = ("keepalived.service", "haproxy.service", "nginx.service", "docker-registry.service", "docker.service")
#: Files and folders that are the toolkit's by their place.
PLACES = (
    *("/etc/systemd/system/vllm@.service", "/etc/systemd/system/vllm-*", "/etc/systemd/system/nvidia-cdi.service"),
    *("/etc/systemd/system/vllm@*.service.d", "/etc/systemd/system/*.wants/vllm*"),
    *("/etc/systemd/system/var-lib-vllm-adopted-*.mount", "/etc/systemd/system/*.wants/var-lib-vllm-adopted-*"),
    *("/usr/local/libexec/vllm-*", "/etc/cdi/nvidia.yaml", "/etc/vllm", "/opt/vllm", "/var/cache/vllm"),
    *("/srv/vllm-fleet-mirror", "/var/lib/vllm-gateway", "/var/log/nginx/vllm-fleet-mirror.log*", "/run/vllm-*"),
)
MARK = "vllm-fleet"
STATE = "/var/lib/vllm"
MODELS = "/var/lib/vllm/models"
FOLDER = os.path.dirname(neighbours.RECORD)
DOCKER_RECORD = FOLDER + "/docker.json"
#: Where model_store mounts a disk for models -> its unit.
OWN_DISKS = {"/mnt/vllm-%s/" % kind: "mnt-vllm\\x2d%s.mount" % kind for kind in ("models", "scratch", "volume")}
TABLE = ("inet", "vllm_fleet")
#: What the role apt_repository puts before a line of a source that it has switched off, or into a stanza.
DISABLED = re.compile(r"^# disabled by vllm-fleet(?:: |\nEnabled: no\n)", re.MULTILINE)
#: Packages that roles install for their own work, beside those of the manifest.
HELPERS = ("gpg", "python3-apt", "python3-debian", "rsync", "linux-headers-*", "linux-modules-extra-*")
#: The name of the engine, which docker makes at its first start.
DOCKER_KEY = "/etc/docker/key.json"
#: Packages that the toolkit holds.
HELD = (*("*nvidia*", "cuda-*", "*nvlsm*", "amdgpu*", "rocm*", "amd-smi*", "hip*"),)


class Leaving:
    """One run: what it has removed, kept and failed at."""

    def __init__(self, request: Mapping[str, bool]) -> None:
        self.check = request["check"]
        self.packages = request["packages"]
        self.keep_models = request["keep_models"]
        self.record = host_record.read_record(neighbours.RECORD)
        self.is_recorded = os.path.exists(neighbours.RECORD)
        self.removed: list[str] = []
        self.kept: list[dict[str, str]] = []
        self.failed: list[str] = []

    def keep(self, what: str, why: str) -> None:
        """Notes what stays."""
        self.kept.append({"what": what, "why": why})

    def run(self, what: str, *words: str) -> bool:
        """Runs a command that removes something, unless this is a check."""
        if self.check:
            self.removed.append(what)
            return True
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode:
            self.failed.append("%s: %s" % (what, done.stdout.strip()[-300:]))
            return False
        self.removed.append(what)
        return True

    def delete(self, path: str) -> None:
        """Removes a file, a link, or a folder with all that is in it; does not follow links."""
        if not os.path.lexists(path):
            return
        inside = mounts_below(path)
        if inside:
            self.keep(path, "%s is mounted there: unmount it and run this again" % inside[0])
            return
        if not self.check:
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
            except OSError as fault:
                self.failed.append("%s: %s" % (path, fault))
                return
        self.removed.append(path)

    def made(self, key: str) -> bool:
        """Whether the toolkit has made something, by the record or, on a host without one, by its marks."""
        return key in self.record["made"] if self.is_recorded else not key.startswith("package:")


def mounts_below(path: str) -> list[str]:
    """The mount points at a path or below it."""
    path = os.path.abspath(path)
    with open("/proc/self/mounts") as file:
        points = [line.split()[1].encode().decode("unicode_escape") for line in file]
    return sorted(point for point in points if point == path or point.startswith(path + "/"))


def loaded_units(patterns: tuple[str, ...]) -> Iterator[str]:
    """The units with these names that systemd knows, the patterns one after the other."""
    seen = set()
    for pattern in patterns:
        for listing in ("list-units", "list-unit-files"):
            words = ["systemctl", listing, "--all", "--plain", "--no-legend", "--no-pager", pattern]
            for line in docker_engine.command_output(*words).splitlines():
                name = line.split()[0]
                # A template has no state.
                if name not in seen and "@." not in name and fnmatch.fnmatchcase(name, pattern):
                    seen.add(name)
                    yield name


def is_state(name: str, wanted: str) -> bool:
    """Whether a unit is active or enabled."""
    return wanted in host_record.unit_state(name)


def stop_units(leaving: Leaving) -> None:
    """Stops and disables the units of the toolkit."""
    for name in loaded_units(UNITS):
        if is_state(name, "active") or is_state(name, "activating"):
            leaving.run("unit %s (stopped)" % name, "systemctl", "stop", name)
        if is_state(name, "enabled"):
            leaving.run("unit %s (disabled)" % name, "systemctl", "disable", "-q", name)
    names = docker_engine.command_output("nft", "list", "tables").splitlines()
    if "table %s %s" % TABLE in names:
        leaving.run("nftables table %s %s" % TABLE, "nft", "delete", "table", *TABLE)


def leave_docker(leaving: Leaving) -> None:
    """Removes our containers, images and settings; docker itself stays."""
    if docker_engine.command_output("docker", "info", "--format", "{{.ID}}"):
        containers = docker_engine.command_output("docker", "ps", "-a", "--format", "{{.Names}}").split()
        for name in sorted(containers):
            if re.match(r"vllm-\d+$", name):
                leaving.run("container %s" % name, "docker", "rm", "--force", name)
        for image in sorted(release_images()):
            tag = re.sub(r"^[^/]*[.:][^/]*/", "", image.split("@")[0]) + ":deploy"
            for name in (tag, image):
                if docker_engine.command_output("docker", "image", "inspect", "--format", "{{.Id}}", name):
                    leaving.run("image %s" % name, "docker", "image", "rm", name)
    try:
        with open(DOCKER_RECORD, encoding="utf-8") as file:
            record = json.load(file)
        before = docker_engine.read_settings(docker_engine.CONFIG)
    except (OSError, ValueError):
        return
    after = docker_engine.remove_settings(before, record["added"])
    if record["created"] and not after:
        leaving.delete(docker_engine.CONFIG)
    elif after != before:
        leaving.removed.append("settings in %s" % docker_engine.CONFIG)
        if not leaving.check:
            rewrite(docker_engine.CONFIG, json.dumps(after, indent=2) + "\n")
    if after != before and not leaving.check:
        subprocess.run(["systemctl", "reload", "docker.service"], stderr=subprocess.DEVNULL)


def rewrite(path: str, text: str) -> None:
    """Replaces the text of a file at once; its owner and mode stay."""
    known = os.stat(path)
    draft = path + ".vllm-fleet-new"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
    os.chown(draft, known.st_uid, known.st_gid)
    os.chmod(draft, known.st_mode & 0o7777)
    os.replace(draft, path)


def release_images() -> set[str]:
    """The images that the releases of this host name."""
    images = set()
    for path in glob.glob("/opt/vllm/releases/*/*.env"):
        with open(path, encoding="utf-8") as file:
            images.update(re.findall(r'^FLEET_IMAGE="?([^"\n]+)', file.read(), re.MULTILINE))
    return images


def leave_services(leaving: Leaving) -> None:
    """Stops the services that run only for the fleet, and gives those of others their own settings back."""
    for name in SERVICES:
        drop_in = "/etc/systemd/system/%s.d/vllm-fleet.conf" % name
        used = leaving.made("unit:" + name) if leaving.is_recorded else os.path.exists(drop_in)
        if not used:
            continue
        if name == "docker.service" and docker_engine.command_output("docker", "ps", "-q"):
            leaving.keep(name, "it runs containers of others")
            continue
        if is_state(name, "active"):
            leaving.run("unit %s (stopped)" % name, "systemctl", "stop", name)
        if is_state(name, "enabled"):
            leaving.run("unit %s (disabled)" % name, "systemctl", "disable", "-q", name)


def named_files() -> list[str]:
    """Files below /etc whose name says that they are the toolkit's."""
    found = []
    for folder, folders, names in os.walk("/etc"):
        if os.path.samefile(folder, "/etc"):
            # The record is removed last.
            folders[:] = [name for name in folders if os.path.join(folder, name) != FOLDER]
        found += [os.path.join(folder, name) for name in names if MARK in name]
        for name in list(folders):
            if MARK in name:
                found.append(os.path.join(folder, name))
                folders.remove(name)
    return sorted(found)


def delete_files(leaving: Leaving) -> None:
    """Removes the files of the toolkit, and folders that are empty after it."""
    if leaving.keep_models and os.path.isdir(MODELS):
        leaving.keep(MODELS, "--keep-models")
    elif os.path.islink(MODELS):
        folder = os.path.realpath(MODELS)
        if folder.startswith(tuple(OWN_DISKS)):
            leaving.delete(folder)
        else:
            leaving.keep(folder, "%s was linked to it, not by vllm-fleet" % MODELS)
        leaving.delete(MODELS)
    recorded = [key.split(":", 1)[1] for key in leaving.record["made"] if key.startswith(("file:", "link:"))]
    # On a host without a record the mark in the file decides.
    shared = ["/etc/haproxy/haproxy.cfg", "/etc/keepalived/keepalived.conf"]
    recorded += [path for path in shared if not leaving.is_recorded and neighbours.is_marked(path)]
    places = [path for pattern in PLACES for path in sorted(glob.glob(pattern))]
    below = ("/var/lib/vllm/", "/opt/vllm/", "/run/vllm-", "/proc/")
    paths = dict.fromkeys([*named_files(), *(path for path in recorded if not path.startswith(below)), *places])
    for path in paths:
        if path != docker_engine.CONFIG:
            leaving.delete(path)
    for name in sorted(os.listdir(STATE)) if os.path.isdir(STATE) else []:
        path = os.path.join(STATE, name)
        if not (leaving.keep_models and path == MODELS):
            leaving.delete(path)
    if os.path.isdir(STATE) and (leaving.check or not os.listdir(STATE)) and not leaving.keep_models:
        leaving.delete(STATE)
    for folder in glob.glob("/etc/systemd/system/*.d") + glob.glob("/etc/docker/certs.d/*"):
        if not leaving.check and os.path.isdir(folder) and not os.listdir(folder):
            os.rmdir(folder)
    if not leaving.check:
        subprocess.run(["systemctl", "daemon-reload"], check=False)
        subprocess.run(["systemctl", "reset-failed", "vllm*"], stderr=subprocess.DEVNULL, check=False)


def restore_sources(leaving: Leaving) -> None:
    """Switches the package sources on that were switched off for those of the fleet."""
    for path in sorted(glob.glob("/etc/apt/sources.list.d/*")):
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, UnicodeDecodeError):
            continue
        before = DISABLED.sub("", text)
        if before != text:
            leaving.removed.append("what switched off sources in %s" % path)
            if not leaving.check:
                rewrite(path, before)


def release_holds(leaving: Leaving) -> None:
    """Lets apt change the packages that the toolkit held."""
    before = set(leaving.record["held"] or ())
    for name in docker_engine.command_output("apt-mark", "showhold").split():
        if name not in before and any(fnmatch.fnmatchcase(name, pattern) for pattern in HELD):
            leaving.run("hold of package %s" % name, "apt-mark", "unhold", name)


def remove_account(leaving: Leaving) -> None:
    """Removes the account, if the toolkit made it."""
    try:
        entry = pwd.getpwnam("vllm")
    except KeyError:
        return
    if leaving.made("user:vllm") and entry.pw_dir == STATE:
        leaving.run("account vllm", "userdel", "vllm")
    else:
        leaving.keep("account vllm", "it was there before")


def helper_packages(leaving: Leaving) -> list[str]:
    """The packages that roles have installed for their own work."""
    before = leaving.record["installed"]
    if before is None:
        return []
    rows = docker_engine.command_output("dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\\n").splitlines()
    now = {row.split()[0] for row in rows if row.endswith(" installed")}
    return sorted(name for name in now - set(before) if any(fnmatch.fnmatchcase(name, each) for each in HELPERS))


def others_removed(names: list[str]) -> list[str]:
    """The packages that apt would remove with some."""
    out = docker_engine.command_output("env", "LC_ALL=C", "apt-get", "-s", "-q", "purge", *names)
    return sorted(set(re.findall(r"^(?:Remv|Purg) (\S+)", out, re.MULTILINE)) - set(names))


def leave_packages(leaving: Leaving) -> None:
    """Removes the packages that the toolkit installed, with those that only they need; or says that they stay."""
    made = [key.split(":", 1)[1] for key in leaving.record["made"] if key.startswith("package:")]
    made = docker_engine.installed(sorted(made))
    there = sorted({*made, *helper_packages(leaving)})
    if not there:
        return
    if not leaving.packages:
        leaving.keep("packages %s" % ", ".join(there), "add --packages to remove them")
        return
    if others_removed(there):
        # Another package needs one of the helpers now.
        leaving.keep("packages %s" % ", ".join(sorted(set(there) - set(made))), "others may need them")
        there = made
    others = others_removed(there) if there else []
    if others:
        leaving.keep("packages %s" % ", ".join(there), "without them apt would remove %s too" % ", ".join(others))
        return
    before = removable()
    has_docker = bool(set(docker_engine.PACKAGES) & set(there))
    if has_docker:
        delete_tables_of_docker(leaving)
    purge = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--allow-change-held-packages", "purge")
    if there and leaving.run("packages %s" % ", ".join(there), *purge, *there) and not leaving.check:
        alone = sorted(removable() - before)
        if alone:
            leaving.run("packages %s" % ", ".join(alone), *purge, *alone)
        if has_docker:
            delete_rest_of_docker(leaving)


def delete_tables_of_docker(leaving: Leaving) -> None:
    """Deletes the tables that docker made: without it their ``policy drop`` would still block forwarding."""
    before = leaving.record["tables"]
    for table in host_record.tables_now() if before is not None else ():
        words = table.split()
        if table not in before and is_of_docker(docker_engine.command_output("nft", "list", "table", *words)):
            leaving.run("nftables table %s" % table, "nft", "delete", "table", *words)


def delete_rest_of_docker(leaving: Leaving) -> None:
    """Removes what docker's packages leave when they are purged, as far as it was not there before."""
    leaving.delete(DOCKER_KEY)
    folder = os.path.dirname(DOCKER_KEY)
    if os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)
    groups = leaving.record["groups"]
    try:
        members = grp.getgrnam("docker").gr_mem
    except KeyError:
        return
    if groups is not None and "docker" not in groups and not members:
        leaving.run("group docker", "groupdel", "docker")


def is_of_docker(listing: str) -> bool:
    """Whether all rules of a table are docker's.

    Args:
        listing: what ``nft list table`` prints.
    """
    chain = ""
    for line in listing.splitlines():
        words = line.split()
        if words[:1] == ["chain"]:
            chain = words[1]
        is_rule = words and words[0] not in ("table", "chain", "type", "}", "#")
        if is_rule and not any(mark in line for mark in ("DOCKER", "docker0")) and not chain.startswith("DOCKER"):
            return False
    return bool(chain)


def removable() -> set[str]:
    """The packages that apt would remove because none needs them."""
    out = docker_engine.command_output("env", "LC_ALL=C", "apt-get", "-s", "-q", "autoremove")
    return set(re.findall(r"^Remv (\S+)", out, re.MULTILINE))


def leave(request: Mapping[str, bool]) -> dict[str, Any]:
    """Removes everything, or with ``check`` says what it would remove."""
    leaving = Leaving(request)
    stop_units(leaving)
    leave_docker(leaving)
    leave_services(leaving)
    for place, unit in OWN_DISKS.items():
        if os.path.exists("/etc/systemd/system/" + unit):
            leaving.run("unit %s (disabled)" % unit, "systemctl", "disable", "-q", unit)
            leaving.keep(place.rstrip("/"), "its file system stays: unmount and remove it")
            leaving.delete("/etc/systemd/system/" + unit)
    restore_sources(leaving)
    release_holds(leaving)
    delete_files(leaving)
    remove_account(leaving)
    leave_packages(leaving)
    if not leaving.failed:
        leaving.delete(FOLDER)
    return {"removed": leaving.removed, "kept": leaving.kept, "failed": leaving.failed}


if __name__ == "__main__":
    json.dump(leave(json.load(sys.stdin)), sys.stdout)
