"""Pages of docs/ that tests follow: their code blocks, written where their first line says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from vllm_fleet.base import paths


def page(name: str) -> Path:
    """A page by its path below docs/."""
    return paths.root() / "docs" / name


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in the order of the page."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path: Path) -> list[str]:
    """The lines of the bash blocks."""
    return [line for block in blocks(path, "bash") for line in block.splitlines()]


def add_data(path: Path, tree: Path) -> None:
    """Follows the yaml blocks of a page: each names its file, and the list or mapping in it where it is an entry.

    Args:
        path: the page.
        tree: a folder with ``recipes/``, as in the project.
    """
    for block in blocks(path, "yaml"):
        place, _, body = block.partition("\n")
        file, _, key = place.removeprefix("# ").partition(", in ")
        target = tree / file
        if not key:
            assert not target.exists(), target
            target.write_text(body, encoding="utf-8")
            continue
        data: dict[str, Any] = yaml.safe_load(target.read_text(encoding="utf-8"))
        entries = yaml.safe_load(body)
        if isinstance(entries, dict):
            data[key] |= entries
        else:
            data[key] = [*entries, *data[key]] if key == "support" else [*data[key], *entries]
        target.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")


def change_files(path: Path, tree: Path) -> list[str]:
    """Follows the blocks of a page whose first line is ``# FILE``: a whole file, or as a diff what changes in one.

    A diff has no line numbers: what it shows of the old text must be in the file just once.

    Returns:
        The files, as the page names them.
    """
    changed = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        first, _, body = block.partition("\n")
        if not (named := re.fullmatch(r"# ([\w./-]+)", first)) or language in ("bash", "text"):
            continue
        target = tree / named[1]
        if language == "diff":
            lines = body.splitlines()
            old, new = ("\n".join(line[1:] for line in lines if line[:1] != sign) + "\n" for sign in "+-")
            text = target.read_text(encoding="utf-8")
            assert text.count(old) == 1, f"{named[1]} contains this {text.count(old)} times, not once:\n{old}"
            target.write_text(text.replace(old, new), encoding="utf-8")
        else:
            assert not target.exists(), target
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(body, encoding="utf-8")
        changed.append(named[1])
    return changed


def copy_project(into: Path) -> Path:
    """Copies what a clone would have, and what is not committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (source := paths.root() / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into / name)
    return into


def register_entry_points(tree: Path) -> None:
    """Does what 'make venv' would do with the entry points of a copy: writes them where Python looks them up."""
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder = tree / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    sections = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(sections), encoding="utf-8")


def run_in(tree: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line in a copy of the project, with the programs of this environment and the copy's packages."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tree),
        "ANSIBLE_CONFIG": str(tree / "ansible.cfg"),
    }
    if target := re.fullmatch(r"make ([a-z]+)", line):
        # The copy has no environment of its own that the target could activate.
        recipe = re.search(rf"^{target[1]}:.*\n\t@\$\(ACTIVATE\); (.*)", (tree / "Makefile").read_text(), re.MULTILINE)
        assert recipe, line
        line = recipe[1]
    # The installed program would be that of the checkout.
    line = re.sub(r"^vllm-fleet\b", f"{sys.executable} -m vllm_fleet", line)
    return subprocess.run(["bash", "-c", line], cwd=tree, env=environment, capture_output=True, text=True)
