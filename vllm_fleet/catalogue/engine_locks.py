"""Locks of engines: every package of one engine on one machine, with its digests; ``tools.locks`` makes them.

A lock is a requirements file whose first lines say what it was made for. Pure: text in, records and sentences out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from packaging.version import Version

from vllm_fleet.base import paths, text_files
from vllm_fleet.base.errors import FleetError, InvariantError
from vllm_fleet.schema.recipe import Engine, Machine

#: The first line of a lock.
FORM = "vllm-fleet lock 1"
#: Every distribution that brings a module ``triton``; two of them overwrite each other.
TRITON = re.compile(r"(pytorch-)?triton(-(rocm|cpu|xpu|nightly|windows))?")
#: What an extra of vLLM brings.
EXTRAS = {"flashinfer": "flashinfer-python"}
#: CUDA -> the oldest driver that it runs on, from NVIDIA's CUDA release notes, toolkit and driver versions; unverified.
CUDA_DRIVERS = {"12.8": "570.26", "12.9": "575.51.03", "13.0": "580.65.06"}
_HEADER = re.compile(r"# ([a-z]+): (.+)")
_PIN = re.compile(r"([a-z0-9][a-z0-9-]*)==([^\s;]+)(?: ; ([^\\]+?))?(?: \\)?")
_HASH = re.compile(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?")


@dataclass(frozen=True)
class Pin:
    """One package of a lock. ``marker`` says for which Pythons; empty: for all."""

    name: str
    version: str
    marker: str
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Lock:
    """A lock as it was read.

    Attributes:
        file: its path, as the user would type it.
        header: what its first lines say: ``engine``, ``machine``, ``python``, ``glibc``, ``inputs`` and more.
        pins: its packages.
        text: all of it.
        path: its file, where it was read from one.
    """

    file: str
    header: Mapping[str, str]
    pins: tuple[Pin, ...]
    text: str
    path: Path | None = None

    @property
    def python(self) -> tuple[str, ...]:
        """The versions of Python that it is for."""
        return tuple(self.header["python"].split())

    @cached_property
    def cuda(self) -> str | None:
        """The CUDA that its torch is built for; None for another build."""
        return next((release for name in ("torch", "vllm") if (release := self._variant(name, "cu"))), None) or next(
            (
                ".".join(pin.version.split(".")[:2])
                for pin in self.pins
                if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", pin.name)
            ),
            None,
        )

    @cached_property
    def rocm(self) -> str | None:
        """The ROCm that its vLLM is built for; None for another build."""
        return self._variant("vllm", "rocm")

    def _variant(self, name: str, kind: str) -> str | None:
        """``12.8`` of ``2.8.0+cu128``: the last digit is the minor release, or for ROCm the middle one."""
        for pin in self.pins:
            variant = re.search(rf"\+{kind}(\d+)\b", pin.version) if pin.name == name else None
            if variant:
                digits = variant[1]
                return f"{digits[0]}.{digits[1]}" if kind == "rocm" else f"{digits[:-1]}.{digits[-1]}"
        return None

    @property
    def platform(self) -> tuple[str, str]:
        """``cuda`` or ``rocm`` with its release; ``cpu`` with nothing."""
        if self.rocm:
            return "rocm", self.rocm
        return ("cuda", self.cuda) if self.cuda else ("cpu", "")

    def version(self, name: str) -> str | None:
        """The version of a package; None where it is not in the lock."""
        return next((pin.version for pin in self.pins if pin.name == name), None)


def parse(text: str, file: str) -> Lock:
    """Reads a lock.

    Raises:
        FleetError: not a lock, or a line is neither a package nor a digest.
    """
    hint = "create it with python -m tools.locks"
    lines = text.splitlines()
    if not lines or lines[0] != f"# {FORM}":
        raise FleetError(f"is not a lock: its first line is not '# {FORM}'", hint, file)
    header: dict[str, str] = {}
    pins: list[Pin] = []
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("#"):
            if header_line := _HEADER.fullmatch(line):
                header[header_line[1]] = header_line[2]
        elif match := _HASH.fullmatch(line):
            if not pins:
                raise FleetError("holds a digest before any package", hint, file, number)
            pins[-1] = Pin(*(pins[-1].name, pins[-1].version, pins[-1].marker), (*pins[-1].sha256, match[1]))
        elif match := _PIN.fullmatch(line):
            pins.append(Pin(match[1], match[2], (match[3] or "").strip(), ()))
        elif line and not re.fullmatch(r"--(only|no)-binary [a-z0-9:-]+", line):
            raise FleetError(f"holds {line[:80]!r}, which is neither a package nor a digest", hint, file, number)
    if missing := sorted({"engine", "machine", "python", "glibc", "inputs"} - set(header)):
        raise FleetError(f"lacks the header fields {', '.join(missing)}", hint, file)
    return Lock(file, header, tuple(pins), text)


def read(path: Path) -> Lock:
    """Reads a lock's file.

    Raises:
        FleetError: as :func:`parse`, or the file cannot be read.
    """
    # What the user would type depends on where the user is.
    return _read(path, paths.display(path))


@cache
def _read(path: Path, file: str) -> Lock:
    try:
        text = text_files.read_text(path)
    except FleetError as fault:
        fault.hint = "create it with python -m tools.locks"
        raise
    return replace(parse(text, file), path=path)


def inputs(engine: Engine, machine: Machine) -> dict[str, Any]:
    """What a lock of that engine and machine is made from; the same inputs and the same index give the same lock."""
    wheel = engine.wheel
    if wheel is None:
        raise InvariantError(f"{engine.id} has no wheel form")
    extras = f"[{','.join(wheel.extras)}]" if wheel.extras else ""
    return {
        "requirements": [f"{wheel.distribution}{extras}=={engine.release}", *wheel.beside],
        "overrides": wheel.overrides,
        "without": wheel.without,
        "sources": wheel.sources,
        "python": wheel.python,
        "machine": machine,
        "glibc": wheel.glibc_min,
        "as_of": wheel.as_of,
    }


def inputs_digest(engine: Engine, machine: Machine) -> str:
    """What the header of a lock keeps of :func:`inputs`."""
    return hashlib.sha256(json.dumps(inputs(engine, machine), sort_keys=True).encode()).hexdigest()[:16]


def lock_errors(lock: Lock, engine: Engine, machine: Machine) -> Iterator[str]:
    """Why hosts of that engine and machine cannot be built from a lock; nothing when they can."""
    wheel = engine.wheel
    if wheel is None:
        yield f"{engine.id} has no wheel form"
        return
    for key, wanted in (("engine", engine.id), ("machine", machine)):
        if lock.header[key] != wanted:
            yield f"is for the {key} {lock.header[key]}, not {wanted}"
    if lock.header["inputs"] != inputs_digest(engine, machine):
        yield f"was made from other inputs than those in recipes/engines/{engine.id}.yml"
    version = lock.version(wheel.distribution)
    if version is None or Version(version).public != engine.release:
        yield f"pins {wheel.distribution} {version}, the engine is {engine.release}"
    for extra in wheel.extras:
        if extra in EXTRAS and lock.version(EXTRAS[extra]) is None:
            yield f"lacks {EXTRAS[extra]}, which the extra {extra!r} brings"
    tritons = sorted({pin.name for pin in lock.pins if TRITON.fullmatch(pin.name)})
    if len(tritons) != 1:
        yield f"holds {', '.join(tritons) or 'no triton'}: there must be exactly one triton"
    if loose := [pin.name for pin in lock.pins if not pin.sha256]:
        yield f"has no digest of {', '.join(loose)}"
    yield from _platform(lock, engine)


def _platform(lock: Lock, engine: Engine) -> Iterator[str]:
    if engine.accelerator == "rocm" and lock.rocm is None:
        yield "holds a vLLM without +rocm in its version: that is the CUDA build"
    elif engine.accelerator == "cuda" and lock.rocm:
        yield "holds the ROCm build of vLLM"
    elif engine.accelerator == "cuda" and lock.cuda is None:
        yield "holds a torch for CPUs: there is no CUDA runtime among its packages"


def directory_id(engine: Engine, lock: Lock | None) -> str:
    """The engine's directory name on a host: its id and a digest of all that is installed in it."""
    alias = engine.wheel.alias if engine.wheel else {}
    digest = hashlib.sha256(json.dumps([lock.text if lock else None, alias], sort_keys=True).encode())
    return f"{engine.id}-{digest.hexdigest()[:12]}"


def asked_facts(engine: Engine, lock: Lock | None) -> dict[str, Any]:
    """What the lock of its engine requires of a host, as :func:`manifest.wanted_facts` merges it."""
    wheel = engine.wheel
    if wheel is None:
        return {}
    facts: dict[str, Any] = wheel.model_dump(include={"glibc_min", "rocm_min"}, exclude_none=True)
    if lock is None:
        return facts
    facts |= {"python": list(lock.python), "glibc_min": lock.header["glibc"]}
    if lock.platform[0] == "cuda" and engine.accelerator == "cuda":
        facts["cuda_min"] = lock.cuda
        if floor := CUDA_DRIVERS.get(str(lock.cuda)):
            facts["driver_min"] = floor
    return facts
