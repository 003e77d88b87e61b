"""The locks of engines: what they hold, what is refused, and which one a host gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tools.locks.text import lock_text
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.engine_locks import Lock
from vllm_fleet.host import engine_install
from vllm_fleet.reports.recipe_check import recipe_errors
from vllm_fleet.resolve.resolve import Question, resolve

CATALOG = catalogs.load()
LOCKED = [
    pytest.param(engine.id, machine, id=f"{engine.id}-{machine}")
    for engine in CATALOG.engines.values()
    if engine.wheel
    for machine in engine.wheel.locks
]
CUDA, ROCM, MACHINE = "vllm-0.32.0-cuda", "vllm-0.14.1-rocm", "x86_64"


def lock_of(engine: str, machine: Any = MACHINE) -> Lock:
    found = CATALOG.lock(CATALOG.engines[engine], machine)
    assert found
    return found


@pytest.mark.parametrize(("name", "machine"), LOCKED)
def test_a_lock_holds_what_its_recipe_asks(name: str, machine: Any) -> None:
    engine, lock = CATALOG.engines[name], lock_of(name, machine)
    assert engine.wheel
    assert list(engine_locks.lock_errors(lock, engine, machine)) == []
    assert lock.file == f"recipes/engines/locks/{name}-{machine}.txt"
    assert lock.header["inputs"] == engine_locks.inputs_digest(engine, machine)
    assert lock.python == tuple(engine.wheel.python)
    assert lock.header["packages"] == str(len(lock.pins))
    assert lock.header["platform"] == " ".join(lock.platform).strip()
    assert f"--engine {name} --machine {machine}" in lock.header["make"]
    assert set(engine.wheel.without).isdisjoint(pin.name for pin in lock.pins)


@pytest.mark.parametrize(("name", "machine"), LOCKED)
def test_a_lock_names_no_index_and_every_file_by_its_digest(name: str, machine: Any) -> None:
    lock = lock_of(name, machine)
    assert "://" not in lock.text
    assert len(lock.text) < 50_000, "digests of files that its hosts cannot take"
    for pin in lock.pins:
        assert pin.sha256, pin.name
        assert len(set(pin.sha256)) == len(pin.sha256)


@pytest.mark.parametrize(("name", "machine"), LOCKED)
def test_a_lock_is_complete_for_each_python(name: str, machine: Any) -> None:
    """No package twice for one Python: its markers shut each other out."""
    lock = lock_of(name, machine)
    for python in lock.python:
        names = [pin.name for pin in lock.pins if not pin.marker or f"'{python}'" in pin.marker]
        assert sorted(names) == sorted(set(names))
        assert {"torch", "triton"} <= set(names)


@pytest.mark.parametrize(("name", "machine"), [each for each in LOCKED if "cuda" in str(each.values[0])])
def test_the_cuda_of_a_lock_is_one_that_the_guides_allow(name: str, machine: Any) -> None:
    found = lock_of(name, machine).cuda
    assert found
    assert Version(found) >= Version("12.8")
    assert found in engine_locks.CUDA_DRIVERS


def test_every_class_gets_a_lock_or_a_reason(catalog: Catalog) -> None:
    for sized in catalog.sized_classes():
        for engine in catalog.engines.values():
            if engine.wheel and engine.accelerator == sized.family.accelerator:
                assert sized.machine in {**engine.wheel.locks, **engine.wheel.unlocked}, (engine.id, sized.machine)


def test_hosts_of_another_machine_get_their_own_lock(catalog: Catalog) -> None:
    found = {
        name: resolve(catalog, Question(name, "openai/gpt-oss-120b", engine=CUDA, install="wheel")).engine_directory_id
        for name in ("b200-8", "h100-8", "gb200-4")
    }
    assert found["b200-8"] == found["h100-8"] != found["gb200-4"]
    assert lock_of(CUDA, "aarch64").header["machine"] == "aarch64"


def test_a_directory_is_named_by_what_is_installed_in_it(catalog: Catalog) -> None:
    engine, lock = catalog.engines[CUDA], lock_of(CUDA)
    assert engine.docker
    image = engine.docker.model_copy(update={"digest": f"sha256:{'0' * 64}"})
    same = engine.model_copy(update={"docker": image, "source": "another place"})
    assert engine_locks.directory_id(engine, lock) == engine_locks.directory_id(same, lock)
    other = engine_locks.parse(lock.text.replace(lock.pins[0].sha256[0], "0" * 64), "x")
    assert engine_locks.directory_id(engine, other) != engine_locks.directory_id(engine, lock)


def test_the_lock_asks_more_of_a_host_than_its_class(catalog: Catalog) -> None:
    asked = engine_locks.asked_facts(catalog.engines[CUDA], lock_of(CUDA))
    assert asked == {
        "glibc_min": "2.35",
        "python": ["3.11", "3.12", "3.13"],
        "cuda_min": "13.0",
        "driver_min": "580.65.06",
    }


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("# engine: vllm-0.32.0-cuda", "# engine: vllm-0.12.0-cuda", "is for the engine vllm-0.12.0-cuda"),
        ("# machine: x86_64", "# machine: aarch64", "is for the machine aarch64"),
        ("# inputs: ", "# inputs: 0", "was made from other inputs"),
        ("\nvllm==0.32.0", "\nvllm==0.31.0", "pins vllm 0.31.0, the engine is 0.32.0"),
        ("\ntriton==", "\npytorch-triton==", ""),
        ("\ntqdm==", "\npytorch-triton==", "holds pytorch-triton, triton: there must be exactly one triton"),
        ("\ntriton==", "\ntritonic==", "holds no triton"),
        ("\nnvidia-cuda-runtime==", "\nno-cuda-runtime==", "holds a torch for CPUs"),
        ("\nvllm==0.32.0", "\nvllm==0.32.0+rocm721", "holds the ROCm build of vLLM"),
    ],
)
def test_a_lock_that_does_not_fit_is_refused(catalog: Catalog, old: str, new: str, says: str) -> None:
    text = lock_of(CUDA).text
    assert old in text
    found = list(
        engine_locks.lock_errors(engine_locks.parse(text.replace(old, new, 1), "x"), catalog.engines[CUDA], MACHINE)
    )
    assert (says in found[0]) if says else not found


def test_a_lock_without_the_extra_is_refused(catalog: Catalog) -> None:
    text = lock_of("vllm-0.10.2-cuda").text.replace("\nflashinfer-python==", "\nflashinfer-other==")
    (found,) = engine_locks.lock_errors(engine_locks.parse(text, "x"), catalog.engines["vllm-0.10.2-cuda"], MACHINE)
    assert found == "lacks flashinfer-python, which the extra 'flashinfer' brings"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a lock"),
        ("vllm==1\n", "is not a lock"),
        (f"# {engine_locks.FORM}\n", "lacks the header fields engine, glibc, inputs, machine, python"),
        (f"# {engine_locks.FORM}\n    --hash=sha256:{'0' * 64}\n", "a digest before any package"),
        (f"# {engine_locks.FORM}\n--index-url https://example.org\n", "neither a package nor a digest"),
        (f"# {engine_locks.FORM}\nvllm @ https://example.org/x.whl\n", "neither a package nor a digest"),
    ],
)
def test_what_is_no_lock_is_told_with_its_file(text: str, says: str) -> None:
    with pytest.raises(FleetError, match=says) as refused:
        engine_locks.parse(text, "some.txt")
    assert refused.value.file == "some.txt"


@pytest.mark.parametrize(
    ("torch", "vllm", "platform"),
    [
        ("2.7.1+cu128", "0.10.1", ("cuda", "12.8")),
        ("2.11.0+cu130", "0.32.0", ("cuda", "13.0")),
        ("2.9.1+git8907517", "0.14.1+rocm700", ("rocm", "7.0")),
        ("2.9.1", "0.17.0+rocm721", ("rocm", "7.2")),
        ("2.9.1", "0.17.0+cu129", ("cuda", "12.9")),
        ("2.13.0", "0.32.0", ("cpu", "")),
    ],
)
def test_what_a_lock_is_built_for_is_read_from_its_versions(torch: str, vllm: str, platform: tuple[str, str]) -> None:
    pins = tuple(engine_locks.Pin(name, version, "", ()) for name, version in (("torch", torch), ("vllm", vllm)))
    assert Lock("", {}, pins, "").platform == platform


def test_a_class_is_not_served_from_a_lock_for_an_older_cuda(catalog: Catalog) -> None:
    text = lock_of("vllm-0.12.0-cuda").text
    old = engine_locks.parse(re.sub(r"nvidia-cuda-runtime-cu12==\S+", "nvidia-cuda-runtime-cu12==12.6.77", text), "x")
    engine = catalog.engines["vllm-0.12.0-cuda"]
    ((message, hint),) = engine_install.lock_misfits(old, engine, catalog.host_class("h100-8"))
    assert message == "vllm-0.12.0-cuda is locked for CUDA 12.6, and h100-8 needs 12.8 or newer"
    assert "python -m tools.locks --engine vllm-0.12.0-cuda --machine x86_64 --index URL'" in hint


def test_a_wrong_lock_of_the_recipes_is_a_fault_of_the_engine(catalog: Catalog, tmp_path: Path) -> None:
    engine = catalog.engines[CUDA]
    assert engine.wheel
    file = tmp_path / "wrong.txt"
    file.write_text(lock_of(CUDA).text.replace("# inputs: ", "# inputs: 0", 1), encoding="utf-8")
    wheel = engine.wheel.model_copy(update={"locks": {MACHINE: str(file)}})
    engines = {**catalog.engines, CUDA: engine.model_copy(update={"wheel": wheel})}
    found = [fault for fault in recipe_errors(catalog.__class__(**{**vars(catalog), "engines": engines})) if fault.key]
    assert [(fault.key, "other inputs" in fault.message) for fault in found] == [("wheel.locks.x86_64", True)]


def test_the_text_of_a_lock_is_read_back_as_it_was_meant(catalog: Catalog) -> None:
    engine = catalog.engines[ROCM]
    assert engine.wheel
    wheel = engine.wheel.model_copy(update={"python": ["3.11", "3.12"], "sources": ["built"]})

    def package(name: str, version: str, *digits: str, kind: str = "wheels") -> dict[str, Any]:
        files = [{"size": 7, "hashes": {"sha256": digit * 64}} for digit in digits]
        return {"name": name, "version": version, kind: files if kind == "wheels" else files[0]}

    packages = {
        "3.11": [package("vllm", "0.14.1+rocm700", "a"), package("six", "1.16", "b")],
        "3.12": [package("vllm", "0.14.1+rocm700", "a", "c"), package("built", "2", "d", kind="sdist")],
    }
    text = lock_text(engine, wheel, MACHINE, packages, ["https://example.org/rocm"], "make it")
    found = engine_locks.parse(text, "x")
    assert [(pin.name, pin.marker, [digest[0] for digest in pin.sha256]) for pin in found.pins] == [
        ("built", "python_version == '3.12'", ["d"]),
        ("six", "python_version == '3.11'", ["b"]),
        ("vllm", "", ["a", "c"]),
    ]
    assert (found.header["platform"], found.header["bytes"]) == ("rocm 7.0", "14")
    assert found.header["index"] == "https://example.org/rocm"
    assert "--no-binary built\n" in text
