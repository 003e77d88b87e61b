#!/usr/bin/env python3
"""Finds a Pulumi command line with its Python language host, or builds both from Go modules, once.

The folder that holds them goes to standard output, progress to standard error. Standard library only, so that it
runs before the virtual environment is there. What is built, and from which digests, is in ``go.mod`` and
``go.sum`` beside this file; ``python-language-host/`` has its own, as it needs another release of the SDK.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from lab.progress import Heartbeat  # noqa: E402 - the checkout has to be on the path first
from vllm_fleet.base.errors import FleetError  # noqa: E402
from vllm_fleet.base.paths import cache_dir  # noqa: E402

#: An older engine lacks what the program asks of it.
OLDEST = (3, 200, 0)
#: What has to be in one folder: engine, language host, and the scripts that start programs and providers.
PROGRAMS = ("pulumi", "pulumi-language-python", "pulumi-language-python-exec", "pulumi-resource-pulumi-python")
_SDK = "github.com/pulumi/pulumi/sdk/v3"
_ENGINE = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_LANGUAGE_HOST = f"{_SDK}/python/cmd/pulumi-language-python"
_SCRIPTS = ("python/cmd/pulumi-language-python-exec", "python/dist/pulumi-resource-pulumi-python")
#: Go can fetch a newer toolchain of itself from here on.
_FETCHES_TOOLCHAINS = (1, 21, 0)
_NEEDED_GIB = 5
_HINT = "install Pulumi (https://www.pulumi.com/docs/install/) or Go {go} (https://go.dev/dl/), then run this again"


def version(text: str) -> tuple[int, int, int]:
    """The first ``major.minor[.patch]`` in a text; zeros where there is none."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def is_complete(folder: Path) -> bool:
    """Whether every program is in a folder."""
    return all(os.access(folder / program, os.X_OK) for program in PROGRAMS)


def installed() -> Path | None:
    """The folder of a Pulumi on PATH that is complete and recent enough."""
    found = shutil.which("pulumi")
    folder = Path(found).resolve().parent if found else None
    if folder is None or not is_complete(folder):
        return None
    said = subprocess.run(
        [folder / "pulumi", "version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "1"},
    )
    return folder if said.returncode == 0 and version(said.stdout) >= OLDEST else None


def required_go(*modules: str) -> str:
    """The newest ``go`` line of several ``go.mod`` texts."""
    lines: list[str] = [re.findall(r"^go (\S+)$", module, re.MULTILINE)[0] for module in modules]
    return max(lines, key=version)


def engine_version(module: str) -> str:
    """The release of the engine that a ``go.mod`` text pins, without its ``v``."""
    found: list[str] = re.findall(r"github\.com/pulumi/pulumi/pkg/v3 v(\S+)", module)
    return found[0]


def toolchain(present: str | None, needed: str, chosen: str | None) -> Mapping[str, str]:
    """What the environment must say for Go to build with a toolchain that is new enough.

    Args:
        present: what ``go version`` prints; None where there is no Go.
        needed: the version that the modules ask for.
        chosen: the user's ``GOTOOLCHAIN``, if it is set.

    Raises:
        FleetError: there is no Go, or it is too old and may not or cannot fetch another.
    """
    hint = _HINT.format(go=needed)
    if present is None:
        raise FleetError("there is neither a Pulumi command line with its Python host nor Go to build it", hint)
    have = version(present)
    if have >= version(needed):
        return {}
    if have < _FETCHES_TOOLCHAINS or chosen == "local":
        old = present.split()[2].removeprefix("go")
        raise FleetError(f"there is no Pulumi command line, and Go {old} is too old to build it", hint)
    return {"GOTOOLCHAIN": f"go{needed}+auto"}


def main() -> int:
    """Prints the folder; the exit code is 0, or that of the error."""
    try:
        print(installed() or built())
    except FleetError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    return 0


def built() -> Path:
    """The folder of the Pulumi that is built from the modules, which happens when it is not there yet."""
    modules = [(folder / "go.mod").read_text(encoding="utf-8") for folder in (HERE, HERE / "python-language-host")]
    pinned = engine_version(modules[0])
    place = cache_dir() / "pulumi" / pinned
    recipe = hashlib.sha256("".join(modules).encode()).hexdigest()
    if _is_built(place / "bin", recipe):
        return place / "bin"
    environment = {**os.environ, **_go_environment(required_go(*modules)), "GOWORK": "off", "CGO_ENABLED": "0"}
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_built(place / "bin", recipe):
            _build(place, pinned, recipe, environment)
    return place / "bin"


def _is_built(folder: Path, recipe: str) -> bool:
    stamp = folder / "built-from"
    return is_complete(folder) and stamp.is_file() and stamp.read_text(encoding="utf-8") == recipe


def _go() -> str | None:
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")


def _go_environment(needed: str) -> Mapping[str, str]:
    go = _go()
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    present = subprocess.run([go, "version"], capture_output=True, text=True, env=local).stdout if go else None
    return toolchain(present or None, needed, os.environ.get("GOTOOLCHAIN"))


def _build(place: Path, pinned: str, recipe: str, environment: Mapping[str, str]) -> None:
    """Builds into a folder beside the final one; what Go has compiled is kept when this is interrupted."""
    _require_disk(environment)
    part = place / "bin.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    flags = f"-s -w -X {_SDK}/go/common/version.Version=v{pinned}"
    for what, folder, package in (
        (f"Pulumi {pinned} (once, minutes)", HERE, _ENGINE),
        ("Pulumi's Python language host", HERE / "python-language-host", _LANGUAGE_HOST),
    ):
        # Only what the program imports: 'go mod download' would fetch the whole graph.
        _go_run(f"{what}: downloading modules", folder, environment, "list", "-deps", package)
        words = ("build", "-v", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", flags)
        _go_run(f"{what}: compiling", folder, environment, *words, "-o", str(part / Path(package).name), package)
    sdk = _go_run("Pulumi's scripts", HERE, environment, "list", "-m", "-f", "{{.Dir}}", _SDK).strip()
    for script in _SCRIPTS:
        target = part / Path(script).name
        shutil.copyfile(Path(sdk) / script, target)
        target.chmod(0o755)
    said = subprocess.run([part / "pulumi", "version"], capture_output=True, text=True, env=environment)
    if said.stdout.strip() != f"v{pinned}":
        raise FleetError(f"the Pulumi that was built says {said.stdout or said.stderr!r}", code="work-failed")
    (part / "built-from").write_text(recipe, encoding="utf-8")
    shutil.rmtree(place / "bin", ignore_errors=True)
    part.rename(place / "bin")


def _go_run(what: str, folder: Path, environment: Mapping[str, str], *words: str) -> str:
    """Runs Go in a module's folder with signs of life; what it says is shown when it fails.

    Raises:
        FleetError: it failed.
    """
    said: list[str] = []
    with (
        Heartbeat(what) as beat,
        subprocess.Popen(
            [_go() or "go", *words],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        for line in process.stdout or ():
            said.append(line)
            beat.note = f"{len(said)}, {line.strip()}"
        if process.wait() != 0:
            tail = "; ".join(line.strip() for line in said[-5:])
            raise FleetError(
                f"'go {' '.join(words[:2])}' failed: {tail}",
                "if it could not reach its module proxy, set GOPROXY; run this again and it goes on from there",
                code="work-failed",
            )
    return "".join(said)


def _require_disk(environment: Mapping[str, str]) -> None:
    where = subprocess.run(
        [_go() or "go", "env", "GOMODCACHE", "GOCACHE"], capture_output=True, text=True, env=environment, cwd=HERE
    ).stdout.split()
    for folder in map(Path, where):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free_gib = shutil.disk_usage(there).free / 2**30
        if free_gib < _NEEDED_GIB:
            raise FleetError(
                f"building Pulumi takes {_NEEDED_GIB} GiB at {folder}, and {free_gib:.1f} GiB are free",
                "free some space, or set GOMODCACHE and GOCACHE to a larger disk",
                code="refused",
            )


if __name__ == "__main__":
    sys.exit(main())
