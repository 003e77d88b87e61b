"""Builds the Pulumi command line and its Python language host from Go modules, once: minutes, and 5 GiB of disk.

For machines that reach a Go module proxy and not the archives of Pulumi. What is built, and from which digests, is in
``go.mod`` and ``go.sum`` beside this file; ``python-language-host/`` has its own, as it needs another release of the
SDK.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools.pulumi.programs import is_complete, parse_version, printed_version
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.heartbeat import Heartbeat

HERE = Path(__file__).resolve().parent
_SDK = "github.com/pulumi/pulumi/sdk/v3"
_ENGINE = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
_LANGUAGE_HOST = f"{_SDK}/python/cmd/pulumi-language-python"
_SCRIPTS = ("python/cmd/pulumi-language-python-exec", "python/dist/pulumi-resource-pulumi-python")
#: Go can fetch a newer toolchain of itself from here on.
_FETCHES_TOOLCHAINS = (1, 21, 0)
_NEEDED_GIB = 5
_HINT = "install Pulumi (https://www.pulumi.com/docs/install/) or Go {go} (https://go.dev/dl/), then run this again"


def required_go(*modules: str) -> str:
    """The newest ``go`` line of several ``go.mod`` texts."""
    lines: list[str] = [re.findall(r"^go (\S+)$", module, re.MULTILINE)[0] for module in modules]
    return max(lines, key=parse_version)


def engine_version(module: str) -> str:
    """The release of the engine that a ``go.mod`` text pins, without its ``v``."""
    versions: list[str] = re.findall(r"github\.com/pulumi/pulumi/pkg/v3 v(\S+)", module)
    return versions[0]


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
    have = parse_version(present)
    if have >= parse_version(needed):
        return {}
    if have < _FETCHES_TOOLCHAINS or chosen == "local":
        old = present.split()[2].removeprefix("go")
        raise FleetError(f"there is no Pulumi command line, and Go {old} is too old to build it", hint)
    return {"GOTOOLCHAIN": f"go{needed}+auto"}


def is_built(place: Path) -> bool:
    """Whether a place holds the programs that were built from the modules as they are now."""
    stamp = place / "bin" / "built-from"
    return is_complete(place / "bin") and stamp.is_file() and stamp.read_text(encoding="utf-8") == _recipe()


def build(place: Path) -> Path:
    """Builds the programs; what Go has compiled is kept when this is interrupted.

    Args:
        place: the folder that gets ``bin``.

    Returns:
        The folder of the programs.

    Raises:
        FleetError: there is no Go that can build them, the disk is too small, or the build failed.
    """
    modules = _modules()
    environment = {**os.environ, **_go_environment(required_go(*modules)), "GOWORK": "off", "CGO_ENABLED": "0"}
    _build(place, engine_version(modules[0]), environment)
    return place / "bin"


def pinned_version() -> str:
    """The release of Pulumi that the modules pin, without its ``v``."""
    return engine_version(_modules()[0])


def _modules() -> list[str]:
    return [(folder / "go.mod").read_text(encoding="utf-8") for folder in (HERE, HERE / "python-language-host")]


def _recipe() -> str:
    return hashlib.sha256("".join(_modules()).encode()).hexdigest()


def _go() -> str | None:
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")


def _go_environment(needed: str) -> Mapping[str, str]:
    go = _go()
    local = {**os.environ, "GOTOOLCHAIN": "local"}
    present = subprocess.run([go, "version"], capture_output=True, text=True, env=local).stdout if go else None
    return toolchain(present or None, needed, os.environ.get("GOTOOLCHAIN"))


def _build(place: Path, pinned: str, environment: Mapping[str, str]) -> None:
    """Builds into a folder beside the final one."""
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
    if (built := printed_version(part)) != f"v{pinned}":
        raise FleetError(f"the Pulumi that was built is {built or 'broken'}, not v{pinned}", code=ErrorCode.WORK_FAILED)
    (part / "built-from").write_text(_recipe(), encoding="utf-8")
    shutil.rmtree(place / "bin", ignore_errors=True)
    part.rename(place / "bin")


def _go_run(what: str, folder: Path, environment: Mapping[str, str], *words: str) -> str:
    """Runs Go in a module's folder with signs of life; its output is shown when it fails.

    Raises:
        FleetError: it failed.
    """
    lines: list[str] = []
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
            lines.append(line)
            beat.note = f"{len(lines)}, {line.strip()}"
        if process.wait() != 0:
            tail = "; ".join(line.strip() for line in lines[-5:])
            raise FleetError(
                f"'go {' '.join(words[:2])}' failed: {tail}",
                "if it could not reach its module proxy, set GOPROXY; the next run continues",
                code=ErrorCode.WORK_FAILED,
            )
    return "".join(lines)


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
                code=ErrorCode.REFUSED,
            )
