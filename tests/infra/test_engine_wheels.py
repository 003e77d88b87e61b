"""The role vllm_engine on a lab host: the real CUDA build of one release, and stand-ins of the ROCm build.

0.32.0 is the release with the fewest bytes to fetch (4.0 GB against 4.9 of 0.10.2 and 5.2 of 0.12.0), of which 2.7 are
those of the lab's own CPU engine. There is no GPU here: what CUDA's driver library is needed for is not shown.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engine_host
import pytest
import stand_in_index
from engine_host import EngineHost
from hanging import HANGING_SECONDS

from tools.locks.__main__ import main as make_locks
from vllm_fleet.base import paths
from vllm_fleet.catalogue import engine_locks
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.catalogue.engine_locks import Lock
from vllm_fleet.host import engine_install
from vllm_fleet.mirror import apt_lists
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.resolve.resolve import Question, resolve

pytestmark = [pytest.mark.root, pytest.mark.network]

CUDA, ROCM = "vllm-0.32.0-cuda", "vllm-0.14.1-rocm"
#: The small package that the second lock has in another version.
OLD = "tabulate==0.10.0"
NEW = "tabulate==0.9.0 \\\n    --hash=sha256:024ca478df22e9340661486f85298cff5f6dcdba14f3813e8830015b9ed1948f\n"


@pytest.fixture(scope="module")
def gpu_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine_host.made(tmp_path_factory.mktemp("host")) as found:
            no_mirror = {"host_baseline_apt_config": apt_lists.host_apt_config(None), "host_baseline_apt_sources": ""}
            code, _, said = found.run(no_mirror, roles=["host_baseline"])
            assert code == 0, said
            yield found


def variables(catalog: Catalog, host_class: str, engine: str, lock: Lock, **more: Any) -> dict[str, Any]:
    """What a fleet's inventory would give the role, without the compiler, which nothing here is compiled with."""
    found = resolve(catalog, Question(host_class, "openai/gpt-oss-120b", engine=engine, install="wheel"))
    named: Deployment = found.__class__(
        **{**vars(found), "engine_directory_id": engine_locks.directory_id(found.engine, lock)}
    )
    # The modules are not compiled, which takes minutes for each of these engines; the lab's are.
    saved = {"vllm_engine_packages": [], "vllm_engine_compile_bytecode": False}
    return {**engine_install.engine_variables(named, lock), **saved, **more}


@pytest.fixture(scope="module")
def first(catalog: Catalog) -> dict[str, Any]:
    """The engine as its recipe locks it."""
    lock = catalog.lock(catalog.engines[CUDA], "x86_64")
    assert lock
    return variables(catalog, "h100-1", CUDA, lock)


@pytest.fixture(scope="module")
def second(catalog: Catalog, first: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same with one small package in another version."""
    text = Path(first["vllm_engine_lock_file"]).read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("locks") / "second.txt"
    changed, count = re.subn(rf"{re.escape(OLD)} \\\n(    --hash=\S+( \\)?\n)+", lambda _: NEW, text)
    assert count == 1
    file.write_text(changed, encoding="utf-8")
    return variables(catalog, "h100-1", CUDA, engine_locks.read(file))


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Each file with its size, the time of its last change and, below 64 KiB, its digest: a write shows in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            info = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if info.st_size < 1 << 16 else ""
            found[str(path.relative_to(folder))] = (info.st_size, info.st_mtime_ns, digest)
    return found


def test_a_build_that_is_killed_does_not_count(gpu_host: EngineHost, first: dict[str, Any]) -> None:
    engine = gpu_host.engine(first["vllm_engine_directory_id"])
    started = gpu_host.start(first)
    deadline = time.monotonic() + HANGING_SECONDS
    while not list(engine.glob("lib/python3.*/site-packages/torch/lib")):
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    gpu_host.on("kill -KILL $(pidof uv)")
    said, _ = started.communicate(timeout=HANGING_SECONDS)
    assert started.returncode != 0, said
    assert not (engine / ".complete").exists()


def test_the_next_run_builds_and_proves_it(gpu_host: EngineHost, first: dict[str, Any]) -> None:
    code, _, said = gpu_host.run(first)
    assert code == 0, said
    engine = gpu_host.engine(first["vllm_engine_directory_id"])
    assert (engine / ".complete").read_text(encoding="utf-8") == f"{engine.name}\n"
    at = f"/opt/vllm/engines/{engine.name}/bin/python"
    code_of_test = "import torch, vllm; print(torch.version.cuda, vllm.__version__)"
    assert gpu_host.on(f"{at} -B -c '{code_of_test}' 2>/dev/null").stdout.split()[-2:] == ["13.0", "0.32.0"]
    written = [path for path in engine.rglob("*") if path.is_file() and path.lstat().st_mode & 0o222]
    assert [path.name for path in written if not path.is_symlink() and path.parent != engine] == []


def test_an_upgrade_writes_only_what_differs_and_what_is_complete_is_not_touched(
    gpu_host: EngineHost, first: dict[str, Any], second: dict[str, Any]
) -> None:
    old, new = (gpu_host.engine(each["vllm_engine_directory_id"]) for each in (first, second))
    before = snapshot(old)
    code, counts, said = gpu_host.run(second, first)
    assert code == 0, said
    assert counts[1]["changed"] == 0, said
    assert snapshot(old) == before
    files = [path for path in new.rglob("*") if path.is_file() and not path.is_symlink()]
    own = {path for path in files if path.stat().st_nlink == 1}
    assert len(files) > 50_000
    assert len(own) < 100, sorted(own)[:200]
    print(f"{len(own)} of {len(files)} files written, {sum(path.stat().st_size for path in own)} bytes")
    for engine, version in ((old, "0.10.0"), (new, "0.9.0")):
        at = f"/opt/vllm/engines/{engine.name}/bin"
        assert (
            gpu_host.on(f"{at}/python -B -c 'import tabulate; print(tabulate.__version__)'").stdout.strip() == version
        )
        script = f"export PYTHONDONTWRITEBYTECODE=1; {at}/torchrun --help >/dev/null"
        script += f" && {at}/python -c 'import sys; print(sys.prefix)'"
        assert gpu_host.on(script).stdout.strip() == f"/opt/vllm/engines/{engine.name}"
    named = gpu_host.on(
        f"grep -rlF {old.name} /opt/vllm/engines/{new.name}/bin /opt/vllm/engines/{new.name}/pyvenv.cfg"
    )
    assert named.stdout == ""


def test_a_second_triton_is_found(gpu_host: EngineHost, first: dict[str, Any], second: dict[str, Any]) -> None:
    """The lock cannot hold two; what gets in another way does not pass the proof."""
    new = gpu_host.engine(second["vllm_engine_directory_id"])
    (packages,) = new.glob("lib/python3.*/site-packages")
    intruder = packages / "pytorch_triton-3.7.1.dist-info"
    intruder.mkdir()
    (intruder / "METADATA").write_text("Metadata-Version: 2.1\nName: pytorch-triton\nVersion: 3.7.1\n")
    (intruder / "RECORD").write_text("triton/__init__.py,,\n")
    (intruder / "top_level.txt").write_text("triton\n")
    script = (paths.root() / "roles/vllm_engine/files/prove.py").read_text(encoding="utf-8")
    said = gpu_host.on(f"/opt/vllm/engines/{new.name}/bin/python -I - 0.32.0 cuda 13.0 '' <<'EOF'\n{script}\nEOF\n")
    assert said.returncode == 1
    assert "there must be one triton, there are ['pytorch-triton', 'triton']" in said.stdout


def test_a_host_that_the_rocm_build_is_not_for_is_refused_before_anything(
    gpu_host: EngineHost, catalog: Catalog, rocm: Lock
) -> None:
    wanted = [
        ({"vllm_engine_python_versions": ["3.12"]}, "Python 3.12, glibc 2.35 or newer, ROCm 7.0 or newer; this host"),
        ({"vllm_engine_glibc_min": "2.99"}, "glibc 2.99 or newer"),
        ({}, "ROCm none. Use an image of a distribution that"),
    ]
    asked = {**variables(catalog, "mi300x-8", ROCM, rocm), "vllm_engine_python_versions": ["3.11"]}
    before = sorted((gpu_host.root / "opt/vllm").glob("*/*"))
    code, counts, said = gpu_host.run(*({**asked, **change} for change, _ in wanted))
    assert code == 2
    assert [count["failed"] for count in counts] == [1] * len(wanted), said
    for _, says in wanted:
        assert says in " ".join(said.split())
    assert sorted((gpu_host.root / "opt/vllm").glob("*/*")) == before


@pytest.fixture(scope="module")
def indexes() -> Iterator[stand_in_index.Indexes]:
    with stand_in_index.serving(f"{engine_host.SUBNET}.1") as found:
        yield found


@pytest.fixture(scope="module")
def rocm(
    gpu_host: EngineHost, indexes: stand_in_index.Indexes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lock]:
    """The lock of the ROCm build, from the stand-in whose wheels take the Python of the host."""
    file = tmp_path_factory.mktemp("rocm") / "rocm.txt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_DEFAULT_INDEX", indexes.cuda)
        words = ["--engine", ROCM, "--machine", "x86_64", "--index", indexes.rocm_any_python, "--output", str(file)]
        assert make_locks(words) == 0
    yield engine_locks.read(file)


def test_the_rocm_build_is_proven_after_its_installation(
    gpu_host: EngineHost, catalog: Catalog, rocm: Lock, indexes: stand_in_index.Indexes
) -> None:
    gpu_host.on("mkdir -p /opt/rocm/.info && echo 7.0.2 > /opt/rocm/.info/version")
    more = {"vllm_engine_python_versions": ["3.11"], "vllm_engine_index_url": indexes.cuda}
    right = variables(catalog, "mi300x-8", ROCM, rocm, **more)
    wrong = {
        **right,
        "vllm_engine_directory_id": "another",
        "vllm_engine_platform": {"name": "cuda", "version": "12.8"},
    }
    code, counts, said = gpu_host.run(right, wrong)
    assert [count["failed"] for count in counts] == [0, 1], said
    assert (gpu_host.engine(right["vllm_engine_directory_id"]) / ".complete").is_file()
    assert code == 2
    assert "is built for None, not for cuda 12.8" in " ".join(said.split())
    assert not (gpu_host.engine("another") / ".complete").exists()


def test_an_upgrade_of_the_rocm_build_replaces_files_and_writes_into_none(
    gpu_host: EngineHost, catalog: Catalog, rocm: Lock, indexes: stand_in_index.Indexes, tmp_path: Path
) -> None:
    """The same upgrade as that of the CUDA build, small enough to look at every byte."""
    digest = hashlib.sha256(stand_in_index.wheel(stand_in_index.OLDER, stand_in_index.ANY_PYTHON[stand_in_index.OLDER]))
    text = re.sub(
        r"triton==\S+ \\\n    --hash=\S+",
        lambda _: f"triton==3.5.0+rocm7.0 \\\n    --hash=sha256:{digest.hexdigest()}",
        rocm.text,
    )
    (tmp_path / "second.txt").write_text(text, encoding="utf-8")
    more = {"vllm_engine_python_versions": ["3.11"], "vllm_engine_index_url": indexes.cuda}
    first = variables(catalog, "mi300x-8", ROCM, rocm, **more)
    second = variables(catalog, "mi300x-8", ROCM, engine_locks.read(tmp_path / "second.txt"), **more)
    old, new = (gpu_host.engine(each["vllm_engine_directory_id"]) for each in (first, second))
    before = snapshot(old)
    fetched = len(indexes.fetched)
    code, _, said = gpu_host.run(second)
    assert code == 0, said
    assert [file.replace("%2B", "+") for file in indexes.fetched[fetched:]] == [stand_in_index.OLDER]
    assert snapshot(old) == before
    (changed,) = new.glob("lib/python3.*/site-packages/triton/__init__.py")
    assert changed.read_text(encoding="utf-8") == "OLDER = True\n"
    assert (new / "pyvenv.cfg").samefile(old / "pyvenv.cfg")
    assert (new / "bin/vllm").samefile(old / "bin/vllm")
    own = {
        path.name for path in new.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1
    }
    assert own <= {".complete", ".lock", "__init__.py", "__init__.cpython-311.pyc"} | {
        *("METADATA", "WHEEL", "RECORD", "INSTALLER", "REQUESTED", "uv_cache.json")
    }, own
