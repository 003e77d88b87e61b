#!/usr/bin/python
"""Asks apt what an installation would do, with sources and pins that the host does not have yet."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: apt_simulation
short_description: Ask apt what an installation would do
description:
  - >-
    Reads the package lists of the host and of further sources into a temporary directory, and lets apt simulate the
    installation there. Packages, sources, pins and lists of the host stay as they are.
  - >-
    Returns a sentence for each problem: a package that does not exist at its version, a dependency that does not fit,
    a package that would be removed, another package that would get an older version, a new kernel.
  - >-
    A module of its own because apt's module simulates in check mode alone, needs python3-apt, and knows the sources of
    the host only.
  - Changes nothing; supports check mode.
options:
  names:
    description: The packages, as NAME or NAME=VERSION; the version may end in C(*).
    type: list
    elements: str
    required: true
  repositories:
    description: >-
      Further repositories, as the role apt_repository takes them. A source of the host with the same URI is left out,
      as that role does.
    type: list
    elements: dict
    default: []
  system:
    description: ID-VERSION_ID of the host's /etc/os-release.
    type: str
    default: any
  keyrings:
    description: The directory with the keys that the role apt_repository has installed.
    type: path
    default: /etc/apt/keyrings
  preferences:
    description: The pins of apt, in place of those in I(preferences_name).
    type: str
    default: ""
  preferences_name:
    description: The file in apt's preferences.d that the pins replace.
    type: str
    default: ""
  own:
    description: Shell patterns of packages that may get an older version, and that may be changed while on hold.
    type: list
    elements: str
    default: []
  kernels:
    description: Shell patterns of packages that must not be installed anew.
    type: list
    elements: str
    default: []
author: [vllm-fleet]
"""
EXAMPLES = r"""
- apt_simulation:
    names: [nvidia-utils-580=580.159.03-1*]
    own: ["nvidia-*"]
  register: __driver_packages_simulation
"""
RETURN = r"""
problems:
  description: What is wrong, each as a sentence; empty if apt can install the packages.
  type: list
  returned: success
installs:
  description: The packages that apt would install, each as its name and version.
  type: list
  returned: success
held:
  description: The packages on hold that apt would change besides, each as NAME=VERSION.
  type: list
  returned: success
removes:
  description: The packages that apt would remove.
  type: list
  returned: success
"""
_VERSIONS_SHOWN = 3


def read_versions(text: str) -> dict[str, list[str]]:
    """The output of ``apt-cache madison``: name -> versions, newest first. Virtual packages have none."""
    versions: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 3 and fields[1] not in versions.setdefault(fields[0], []):
            versions[fields[0]].append(fields[1])
    return versions


def find_missing(names: Sequence[str], versions: Mapping[str, list[str]]) -> list[str]:
    """A sentence for each package that does not exist, or not at its version."""
    missing = []
    for each in names:
        name, _, version = each.partition("=")
        known = versions.get(name, [])
        if version and not known:
            missing.append(f"no repository has a package {name}")
        elif version and not fnmatch.filter(known, version):
            shown = ", ".join(known[:_VERSIONS_SHOWN])
            missing.append(f"no repository has {name} at version {version}, there is {shown}")
    return missing


def read_steps(text: str) -> tuple[list[str], dict[str, tuple[str | None, str]]]:
    """The steps of ``apt-get --simulate``: (removed names, {name: (old version or None, new version)})."""
    removed = re.findall(r"^(?:Remv|Purg) (\S+)", text, re.MULTILINE)
    rows = re.findall(r"^Inst (\S+)(?: \[([^]]*)\])? \((\S+)", text, re.MULTILINE)
    return removed, {name: (old or None, new) for name, old, new in rows}


def read_unmet(text: str) -> list[str]:
    """The lines in which apt names dependencies that do not fit."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return [line for line in lines if re.search(r"(Depends|PreDepends|Conflicts|Breaks): ", line)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the name of a package, without its architecture, matches a pattern."""
    return any(fnmatch.fnmatchcase(name.partition(":")[0], pattern) for pattern in patterns)


class Apt:
    """apt with its lists, sources and pins in a temporary directory, and the installed packages of the host."""

    def __init__(self, module: AnsibleModule, folder: str) -> None:
        self._module = module
        self._folder = folder
        self._options: list[str] = []
        self.held: set[str] = set()

    def prepare(self) -> None:
        """Copies what the host has, and adds the sources and the pins of the module."""
        parameters, folder = self._module.params, self._folder
        names = (
            "Dir::State::lists/d",
            "Dir::Etc::sourceparts/d",
            "Dir::Etc::preferencesparts/d",
            "Dir::State::status/f",
        )
        asked = [word for number, name in enumerate(names) for word in (f"V{number}", name)]
        out = self._module.run_command(["apt-config", "shell", *asked], check_rc=True)[1]
        host = dict(re.findall(r"^V(\d)='(.*)'$", out, re.MULTILINE))
        sources = {each["name"]: pick_source(each, parameters["system"]) for each in parameters["repositories"]}
        uris = [source["uri"].rstrip("/") for source in sources.values()]
        for part in ("lists/partial", "cache/archives/partial", "sources", "preferences"):
            os.makedirs(os.path.join(folder, part))
        _link(host["0"], os.path.join(folder, "lists"), lambda path: not os.path.isdir(path) and not _is_lock(path))
        _link(host["1"], os.path.join(folder, "sources"), os.path.isfile)
        for name in os.listdir(os.path.join(folder, "sources")):
            _leave_out(os.path.join(folder, "sources", name), uris)
        own = parameters["preferences_name"]
        _link(host["2"], os.path.join(folder, "preferences"), lambda path: os.path.basename(path) != own)
        for name, source in sources.items():
            _write(os.path.join(folder, "sources", f"zz-{name}.sources"), source_stanza(source, parameters["keyrings"]))
        if parameters["preferences"]:
            _write(os.path.join(folder, "preferences", own or "zz-simulation"), parameters["preferences"])
        # apt changes a package on hold only where it is named: the role names it, with the version that is found here.
        with open(host["3"], encoding="utf-8", errors="surrogateescape") as file:
            status, self.held = release_holds(file.read(), parameters["own"])
        _write(os.path.join(folder, "status"), status)
        self._options += ["-o", f"Dir::State::status={os.path.join(folder, 'status')}"]
        settings = {
            "Dir::State::lists": "lists",
            "Dir::Etc::sourceparts": "sources",
            "Dir::Etc::preferencesparts": "preferences",
            "Dir::Cache": "cache",
        }
        for key, part in settings.items():
            self._options += ["-o", f"{key}={os.path.join(folder, part)}/"]
        # The lists are not those of the host: they need no lock, and apt's own user cannot read them.
        self._options += ["-o", "APT::Sandbox::User=root", "-o", "APT::Get::List-Cleanup=0"]

    def run(self, *words: str) -> tuple[str, str, int]:
        """The output, error output and exit code of a program of apt."""
        command = [words[0], *self._options, *words[1:]]
        environment = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        code, out, err = self._module.run_command(command, environ_update=environment)
        return out, err, code


def _is_lock(path: str) -> bool:
    return os.path.basename(path) == "lock"


def without_sources(text: str, uris: Sequence[str], deb822: bool) -> str:
    """A file of sources without those at some URIs: lines, or the stanzas of the newer format."""
    parts = re.split(r"\n\s*\n", text) if deb822 else text.splitlines()
    start = "URIs:" if deb822 else "deb"
    kept = []
    for part in parts:
        lines = [line for line in part.splitlines() if line.strip().startswith(start)]
        words = [word.rstrip("/") for line in lines for word in line.split()]
        if not set(words) & set(uris):
            kept.append(part)
    return ("\n\n" if deb822 else "\n").join(kept) + "\n"


def _leave_out(path: str, uris: Sequence[str]) -> None:
    """Replaces the link to a file of sources by a copy without those at some URIs, if it has any."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return
    if any(uri in text for uri in uris):
        os.unlink(path)
        _write(path, without_sources(text, uris, path.endswith(".sources")))


def _link(source: str, target: str, wanted: Callable[[str], bool]) -> None:
    """Links the files of a directory: apt replaces a list that has changed, it never writes into one."""
    try:
        names = sorted(os.listdir(source))
    except OSError:
        return
    for name in names:
        path = os.path.join(source, name)
        if wanted(path):
            os.symlink(os.path.realpath(path), os.path.join(target, name))


def pick_source(repository: Mapping[str, Any], system: str) -> dict[str, Any]:
    """The source of a repository for a system, with the key that signs it."""
    systems = repository["systems"]
    return {"key": repository["key"], **(systems.get(system) or systems["any"])}


def source_stanza(source: Mapping[str, Any], keyrings: str) -> str:
    """A source in apt's deb822 format."""
    lines = ["Types: deb", f"URIs: {source['uri']}", f"Suites: {' '.join(source['suites'])}"]
    if source.get("components"):
        lines.append(f"Components: {' '.join(source['components'])}")
    if not source.get("check_valid_until", True):
        lines.append("Check-Valid-Until: no")
    return "\n".join([*lines, f"Signed-By: {keyrings}/vllm-fleet-{source['key']['name']}.asc", ""])


def release_holds(status: str, patterns: Sequence[str]) -> tuple[str, set[str]]:
    """The status file of dpkg with some packages not on hold, and the names of those that were."""
    held = set()

    def release(match: re.Match[str]) -> str:
        if not matches(match[1], patterns):
            return match[0]
        held.add(match[1])
        return match[0].replace("\nStatus: hold ", "\nStatus: install ")

    return re.sub(r"^Package: (\S+)\nStatus: hold .*$", release, status, flags=re.MULTILINE), held


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def judge_steps(
    removed: Sequence[str],
    installs: Mapping[str, tuple[str | None, str]],
    parameters: Mapping[str, Any],
    is_older: Callable[[str, str], bool],
) -> list[str]:
    """A sentence for what an installation must not do.

    Args:
        removed: the names that apt would remove.
        installs: name -> (old version or None, new version).
        parameters: those of the module.
        is_older: whether the first of two versions is older than the second.
    """
    problems = []
    if removed:
        problems.append(f"apt would remove {', '.join(sorted(removed))}")
    older = [
        f"{name} from {old} to {new}"
        for name, (old, new) in sorted(installs.items())
        if old and not matches(name, parameters["own"]) and is_older(new, old)
    ]
    if older:
        problems.append(f"apt would downgrade {', '.join(older)}")
    kernels = [name for name, (old, _) in installs.items() if old is None and matches(name, parameters["kernels"])]
    if kernels:
        problems.append(f"apt would install the kernel packages {', '.join(sorted(kernels))}")
    return problems


def simulate(module: AnsibleModule, apt: Apt) -> tuple[list[str], dict[str, tuple[str | None, str]], list[str]]:
    """The problems, the packages that apt would install and those that it would remove."""
    names = module.params["names"]
    update_errors = apt.run("apt-get", "-q", "update")[1]
    found = apt.run("apt-cache", "madison", *[each.partition("=")[0] for each in names])[0]
    problems = find_missing(names, read_versions(found))
    # A list that cannot be read is the reason, not its package.
    faults = [line[3:] for line in update_errors.splitlines() if line.startswith(("E: ", "W: "))]
    if problems:
        return problems + faults, {}, []
    flags = ["-q", "-y", "--simulate", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages"]
    out, errors, code = apt.run("apt-get", *flags, "install", *names)
    if code:
        reasons = read_unmet(out) or [line[3:] for line in errors.splitlines() if line.startswith("E: ")]
        return [f"apt cannot install the packages: {'; '.join(reasons or [errors.strip()])}"], {}, []
    removed, installs = read_steps(out)

    def is_older(first: str, second: str) -> bool:
        return bool(module.run_command(["dpkg", "--compare-versions", first, "lt", second])[0] == 0)

    return judge_steps(removed, installs, module.params, is_older), installs, removed


def main() -> None:
    """Runs the module."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "repositories": {"type": "list", "elements": "dict", "default": []},
            "system": {"type": "str", "default": "any"},
            "keyrings": {"type": "path", "default": "/etc/apt/keyrings"},
            "preferences": {"type": "str", "default": ""},
            "preferences_name": {"type": "str", "default": ""},
            "own": {"type": "list", "elements": "str", "default": []},
            "kernels": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    folder = tempfile.mkdtemp(prefix="vllm-fleet-apt-", dir=module.tmpdir)
    try:
        apt = Apt(module, folder)
        apt.prepare()
        problems, installs, removed = simulate(module, apt)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    installed = sorted(f"{name} {new}" for name, (_, new) in installs.items())
    named = {each.partition("=")[0] for each in module.params["names"]}
    held = sorted(f"{name}={installs[name][1]}" for name in (apt.held & set(installs)) - named)
    module.exit_json(changed=False, problems=problems, installs=installed, held=held, removes=sorted(removed))


if __name__ == "__main__":
    main()
