"""Hosts that reach nothing but their mirror: whatever their number, each byte comes from its origin once.

The engines and the models are small ones from a stand-in of package index and hub; the packages are Debian's own. One
of the hosts has stand-ins of NVIDIA's driver, from a copy of the repository that the mirror carries: it is set up as
one with a GPU is, until vLLM would ask for the GPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mirror_lab import BESIDE, COMMIT, GPU_MODEL, MODEL, Hosts, Project, boot, lock_text, project, wheels

from lab import apt, cleanup, gpu, web
from lab.gpu import packages
from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import download

sys.path.insert(0, str(paths.root() / "tests" / "unit"))
from stand_in_origin import Origin, offer, serving, sha256

pytestmark = [pytest.mark.root, pytest.mark.network]

BRIDGE = "vf-mirror"
SUBNET = "10.79.254"
MIRROR, *SERVING = NAMES = ["mirror-0", "h0", "h1", "h2", "gpu-0"]
GPU = SERVING[-1]
WEIGHTS = os.urandom(20 << 20)
TOKEN = "hf_only_for_this_test"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    with (paths.cache_dir() / "test-mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A killed run may have left its hosts.
        cleanup.down(BRIDGE)
        try:
            yield boot(BRIDGE, SUBNET, NAMES, tmp_path_factory.mktemp("owner"))
        finally:
            cleanup.down(BRIDGE)


def model_files() -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": WEIGHTS, "original/copy.bin": b"x" * 2000}


@pytest.fixture(scope="module")
def origin(catalog: Catalog) -> Iterator[Origin]:
    weights = catalog.model(GPU_MODEL).weights
    assert weights
    models = {MODEL: {COMMIT: model_files()}, GPU_MODEL: {weights.revision: model_files()}}
    with serving(Origin(models=models, token=TOKEN)) as found:
        yield found


def driver_stand_ins(catalog: Catalog) -> list[apt.Package]:
    """NVIDIA's packages for the hosts of the lab, with what they depend on."""
    release = catalog.drivers.releases["nvidia-580"]
    system = release.packages_for("debian-12")
    assert system
    return list(packages.nvidia(gpu.gpus("h100-1"), release.version, system.packages))


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts, catalog: Catalog) -> Iterator[tuple[str, Path]]:
    """A stand-in of NVIDIA's repository, where the hosts would reach it: its URL and its key."""
    folder = tmp_path_factory.mktemp("drivers")
    key = apt.build(folder, driver_stand_ins(catalog))
    with web.serving(web.files(folder), f"{SUBNET}.1") as url:
        yield url, key


@pytest.fixture(scope="module")
def copy(
    tmp_path_factory: pytest.TempPathFactory,
    hosts: Hosts,
    origin: Origin,
    drivers: tuple[str, Path],
    catalog: Catalog,
) -> Project:
    engines = wheels()
    for file, body in {file: body for each in engines.values() for file, body in each.items()}.items():
        offer(origin, file, body)
    # uv itself is the real one: its page of the public index, whose links name its files.
    body, _, _ = download.fetch_text("https://pypi.org/simple/uv/", "application/vnd.pypi.simple.v1+json")
    origin.files["/simple/uv/"] = body.encode()
    for page in [page for page in origin.files if page.startswith("/simple/") and "_" in page]:
        origin.files[page.replace("_", "-")] = origin.files[page]
    base = tmp_path_factory.mktemp("mirrored")
    texts = {engine: lock_text(catalog.engines[engine], files) for engine, files in engines.items()}
    found = project(base / "project", base / "cache", hosts, texts, origin.url, drivers)
    (base / "token").touch(0o600)
    (base / "token").write_text(TOKEN)
    return found


def token_file(copy: Project) -> str:
    return str(copy.root.parent / "token")


def test_no_host_reaches_the_outside(hosts: Hosts, copy: Project, drivers: tuple[str, Path]) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    with socket.create_connection(("deb.debian.org", 80), 10) as outside:
        reached_from_here = outside.getpeername()[0]
    ask = "python3 -c 'import socket; socket.create_connection((\"{}\", {}), 3)'"
    near = hosts.on("h0", ask.format(f"{SUBNET}.1", urlsplit(drivers[0]).port), key)
    assert near.returncode == 0, near.stderr
    far = hosts.on("h0", ask.format(reached_from_here, 80), key)
    assert far.returncode == 1
    assert "TimeoutError" in far.stderr


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    copy: Project, origin: Origin, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", small], check=True)
    try:
        words = ("mirror", "--directory", str(small), "--hub-token-file", token_file(copy), "--fleet", copy.fleet.name)
        done = copy.run(sys.executable, "-m", "vllm_fleet", *words)
        assert done.returncode == 2, done.stderr
        assert "GiB are missing in" in done.stderr
        assert not any("resolve" in path or "packages" in path for path in origin.bodies())
        assert not list(small.rglob("*.whl"))
    finally:
        subprocess.run(["umount", small], check=True)


def test_the_origin_sends_each_byte_once_to_the_mirror_and_none_to_its_hosts(
    hosts: Hosts, copy: Project, origin: Origin
) -> None:
    first = not (copy.root.parent / "cache" / "mirror" / "mirror.json").is_file()
    found = copy.mirror("--hub-token-file", token_file(copy))
    # What two engines have is a part of both, and fetched once.
    again = sum(len(origin.files[f"/packages/{file}"]) for file in BESIDE)
    assert found["fetched_bytes"] == (found["bytes"] - again if first else 0)
    bodies = [path for path in origin.bodies() if not path.startswith("/simple/")]
    packed = [path for path in origin.files if path.startswith("/packages/")]
    assert len(bodies) == len(set(bodies)) == len(packed) + len((MODEL, GPU_MODEL)) * 2
    sent = origin.sent
    said = copy.playbooks("site.yml", "--limit", ",".join(NAMES))
    # GPU serves nothing yet, so its driver does not wait for the rollout.
    marks = ("PLAY [Install NVIDIA's drivers]", "TASK [nvidia_driver : ", "PLAY [Install the engines]")
    places = [said.index(mark) for mark in marks]
    assert places == sorted(places)
    assert origin.sent == sent
    print(f"{len(SERVING)} hosts: {found['bytes']} bytes from the origins in all")
    done = copy.run(
        sys.executable,
        "-m",
        "vllm_fleet",
        "drift",
        "--fleet",
        copy.fleet.name,
        "--json",
        "--host",
        MIRROR,
        *(word for name in SERVING for word in ("--host", name)),
    )
    assert json.loads(done.stdout)["drift"] == [], done.stdout


def test_the_mirror_has_sent_the_model_to_each_host_once(hosts: Hosts, copy: Project) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    log = hosts.on(MIRROR, "cat /var/log/nginx/vllm-fleet-mirror.log", key).stdout
    lines = [json.loads(line) for line in log.splitlines()]
    sent = dict.fromkeys(hosts.addresses.values(), 0)
    for line in lines:
        if line["path"].endswith("/model.safetensors"):
            sent[line["host"]] += line["bytes"]
    assert {name: sent[hosts.addresses[name]] for name in SERVING} == dict.fromkeys(SERVING, len(WEIGHTS))


def test_a_gpu_host_got_its_driver_before_it_served_and_without_a_restart(
    hosts: Hosts, copy: Project, catalog: Catalog
) -> None:
    """From the mirror, which has them from the copy of the repository that the fleet names."""
    key = copy.fleet / "ssh" / "id_ed25519"
    version = catalog.drivers.releases["nvidia-580"].version
    ask = "nvidia-smi --query-gpu=driver_version --format=csv,noheader; apt-mark showhold"
    names = sorted(each.name for each in driver_stand_ins(catalog))
    assert hosts.on(GPU, ask, key).stdout.split() == [version, *names]
    text = hosts.on(MIRROR, "cat /var/log/nginx/vllm-fleet-mirror.log", key).stdout
    log = [json.loads(line) for line in text.splitlines()]
    sent = {line["path"] for line in log if line["host"] == hosts.addresses[GPU] and line["path"].endswith(".deb")}
    assert len([path for path in sent if "/nvidia-cuda/" in path]) == len(names)
    sources = hosts.on(GPU, "cat /etc/apt/vllm-fleet.sources.d/*", key).stdout
    assert f"URIs: http://{hosts.addresses[MIRROR]}:8070/debs/debian-12/nvidia-cuda\n" in sources
    # In the order of their times: the host starts, the driver is there, the instance runs.
    order = 'date +%s -d "$(systemctl show -P UserspaceTimestamp)"; stat -c %Z /usr/bin/nvidia-smi'
    order += '; date +%s -d "$(systemctl show -P ActiveEnterTimestamp vllm@0)"'
    times = [int(line) for line in hosts.on(GPU, order, key).stdout.split()]
    assert len(times) == 3
    assert times == sorted(times)
    url = f"http://{hosts.addresses[GPU]}:8000/metrics"
    ask = f"python3 -c 'import urllib.request; print(urllib.request.urlopen(\"{url}\", timeout=9).read())'"
    assert "vllm:num_requests_running" in hosts.on(MIRROR, ask, key).stdout


def test_a_host_repairs_a_model_and_a_vocabulary_from_the_mirror(hosts: Hosts, copy: Project, origin: Origin) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    folder = f"/var/lib/vllm/models/{MODEL.replace('/', '--')}/{COMMIT}"
    damage = f"printf x | dd of={folder}/model.safetensors conv=notrunc bs=1 seek=77; rm /var/lib/vllm/encodings/o200k*"
    assert hosts.on("h1", damage, key).returncode == 0
    sent = origin.sent
    said = copy.playbooks("playbooks/probe.yml", "playbooks/prepare-hosts.yml", "--limit", "h1")
    assert "model.safetensors was changed after it was verified" in said
    again = hosts.on("h1", f"sha256sum {folder}/model.safetensors", key).stdout.split()[0]
    assert again == sha256(WEIGHTS)
    assert origin.sent == sent


def test_a_mirror_is_carried_to_a_controller_without_a_way_out(copy: Project, origin: Origin, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    assert copy.mirror("--to", str(disk))["fetched_bytes"] > len(WEIGHTS)
    beyond = {**copy.environment, "VLLM_FLEET_CACHE": str(tmp_path / "beyond"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    beyond["UV_DEFAULT_INDEX"] = "http://127.0.0.1:9/simple"
    away = Project(copy.root, beyond)
    requests = len(origin.requests)
    program = ["unshare", "--net", sys.executable, "-m", "vllm_fleet", "mirror", "--fleet", copy.fleet.name]
    done = away.run(*program, "--from", str(disk), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    done = away.run(*program, "--verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["fetched_bytes"] == 0
    assert len(origin.requests) == requests
    shutil.rmtree(disk)


def test_the_hubs_token_is_nowhere_on_mirror_and_hosts(hosts: Hosts, copy: Project) -> None:
    key = copy.fleet / "ssh" / "id_ed25519"
    # sudo writes this very command into the journal, which must not match.
    pattern = f"{TOKEN[:-1]}[{TOKEN[-1]}]"
    look = f"grep -rlsI {pattern} /etc /var/lib/vllm /srv /var/log /run /root /home"
    look += f"; journalctl --no-pager | grep -c {pattern}"
    for name in (MIRROR, "h0"):
        assert hosts.on(name, look, key).stdout.split() == ["0"]
    assert not [
        path
        for path in (copy.root.parent / "cache").rglob("*")
        if path.is_file() and path.stat().st_size < 1 << 20 and TOKEN.encode() in path.read_bytes()
    ]
