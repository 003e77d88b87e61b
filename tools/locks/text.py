"""From uv's lists of packages to the text of a lock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vllm_fleet.catalogue import engine_locks
from vllm_fleet.schema.recipe import Engine, Machine, WheelInstall

_Files = dict[tuple[str, str], dict[str, Sequence[Mapping[str, Any]]]]


def lock_text(
    engine: Engine,
    wheel: WheelInstall,
    machine: Machine,
    packages: Mapping[str, Sequence[Mapping[str, Any]]],
    indexes: Sequence[str],
    command: str,
) -> str:
    """The lock of an engine.

    Args:
        engine: the engine.
        wheel: its wheel form.
        machine: the machine that it is for.
        packages: Python -> the choices of uv.
        indexes: the indexes in front of the package index; hosts need them too.
        command: the command that writes it again.
    """
    #: (name, version) -> Python -> the files for this Python, nearly always one.
    files: _Files = defaultdict(dict)
    for python, chosen in packages.items():
        for package in chosen:
            files[package["name"], package["version"]][python] = package.get("wheels") or [package["sdist"]]
    pins = [_pin(*key, taken, wheel.python) for key, taken in sorted(files.items())]
    sizes = [sum(_size(taken[python]) for taken in files.values() if python in taken) for python in packages]
    header = [
        f"# {engine_locks.FORM}",
        f"# engine: {engine.id}",
        f"# machine: {machine}",
        f"# python: {' '.join(wheel.python)}",
        f"# glibc: {wheel.glibc_min}",
        f"# platform: {' '.join(engine_locks.Lock('', {}, tuple(pins), '').platform).strip()}",
        f"# inputs: {engine_locks.inputs_digest(engine, machine)}",
        f"# packages: {len(pins)}",
        f"# bytes: {max(sizes)}",
        *([f"# index: {' '.join(indexes)}"] if indexes else []),
        f"# make: {command}",
        "--only-binary :all:",
        *(f"--no-binary {name}" for name in wheel.sources),
    ]
    return "\n".join([*header, *(line for pin in pins for line in _lines(pin))]) + "\n"


def _size(files: Sequence[Mapping[str, Any]]) -> int:
    return max(int(file.get("size", 0)) for file in files)


def _pin(
    name: str, version: str, taken: Mapping[str, Sequence[Mapping[str, Any]]], pythons: Sequence[str]
) -> engine_locks.Pin:
    all_digests = (str(file["hashes"]["sha256"]) for python in pythons for file in taken.get(python, ()))
    digests = tuple(dict.fromkeys(all_digests))
    marker = "" if len(taken) == len(pythons) else " or ".join(f"python_version == '{python}'" for python in taken)
    return engine_locks.Pin(name, version, marker, digests)


def _lines(pin: engine_locks.Pin) -> Iterator[str]:
    """A package in the syntax of a requirements file."""
    marker = f" ; {pin.marker}" if pin.marker else ""
    yield " \\\n".join(
        [f"{pin.name}=={pin.version}{marker}", *(f"    --hash=sha256:{digest}" for digest in pin.sha256)]
    )
