"""The routers of the benchmark, on loopback addresses: HAProxy as this project sets it up, and smg."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import stand_in
from lab import local_gateway
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.processes import find_descendants
from vllm_fleet.edge import keys
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy import API_KEYS, SCRIPT, Members, haproxy_config, shares_tables
from vllm_fleet.schema.fleet import Gateway

MODEL = "openai/gpt-oss-20b"
#: Below the ports that Linux gives to connections; each gateway has an address of its own.
_PORT, _METRICS_PORT, _MESH_PORT = 21080, 21081, 21082
#: What the key may do: its owner, and no limits.
_UNLIMITED = "bench:0:0:0:0:5:api"
#: How many requests a server works on at the same time; no run has so many.
_SEATS = 256
_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.05
#: In the metrics of smg once it is connected to another one: the one that has called counts the rounds of its peer, the
#: one that was called counts the connections.
_PEERS = 'peer="gateway-'
Servers = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Router:
    """A running router.

    Attributes:
        gateways: address and port of each gateway.
        pids: its processes, with their descendants.
    """

    gateways: Sequence[tuple[str, int]]
    pids: Sequence[int] = ()

    def cpu_seconds(self) -> float:
        """What its processes have used so far, in steps of 10 ms."""
        everyone = {process.pid for pid in self.pids for process in find_descendants(pid)}
        return sum(_cpu_seconds(pid) for pid in everyone)


#: (servers, number of gateways, an empty folder, the API key) -> the running router.
Start = Callable[[Servers, int, Path, str], AbstractContextManager[Router]]


@contextmanager
def direct(servers: Servers, _gateways: int, _folder: Path, _key: str) -> Iterator[Router]:
    """No router: clients know the servers."""
    yield Router(servers)


def haproxy(affinity: Any) -> Start:
    """HAProxy with the configuration of a fleet's gateways.

    Args:
        affinity: the value of ``affinity`` in ``fleet.yml``.
    """
    return partial(_haproxy, affinity)


@contextmanager
def _haproxy(affinity: Any, servers: Servers, gateways: int, folder: Path, key: str) -> Iterator[Router]:
    addresses = [local_gateway.loopback(number + 1) for number in range(gateways)]
    with ExitStack() as stack:
        running = []
        for number, address in enumerate(addresses):
            own = folder / f"g{number}"
            own.mkdir()
            gateway = Gateway(hosts=gateways, port=_PORT, affinity=affinity)
            text = haproxy_config(gateway, _backends(servers), addresses, _members(gateway, number, addresses))
            _write_files(own, key)
            started = local_gateway.running(local_gateway.move(text, own, address), own)
            running.append(stack.enter_context(started))
        for each in running:
            each.wait_for_peers()
        yield Router([(address, _PORT) for address in addresses], [each.pid for each in running])


def _backends(servers: Servers) -> list[Backend]:
    return [Backend(f"gpu-{number}", "0", *server, MODEL, seats=_SEATS) for number, server in enumerate(servers)]


def _members(gateway: Gateway, number: int, addresses: Sequence[str]) -> Members | None:
    if not shares_tables(gateway, len(addresses)):
        return None
    named = {f"gateway-{other}": address for other, address in enumerate(addresses)}
    # Linux connects from this address to each loopback address.
    return Members(f"gateway-{number}", named, ["127.0.0.1"])


def _write_files(folder: Path, key: str) -> None:
    """Writes the files of a gateway besides its configuration.

    Its second process, which reads bodies of more than 60 KiB, is not started: no request has so much.
    """
    digest = keys.digest(key).removeprefix("sha256:")
    (folder / Path(API_KEYS).name).write_text(f"{digest} {_UNLIMITED}\n", encoding="utf-8")
    shutil.copy(paths.root() / "roles/gateway/files/vllm-gateway.lua", folder / Path(SCRIPT).name)


def smg(program: Path) -> Start:
    """The router smg with its policy ``cache_aware`` and, with several gateways, its mesh.

    Args:
        program: the path of ``smg``.
    """
    return partial(_smg, program)


@contextmanager
def _smg(program: Path, servers: Servers, gateways: int, folder: Path, _key: str) -> Iterator[Router]:
    addresses = [local_gateway.loopback(number + 1) for number in range(gateways)]
    with ExitStack() as stack:
        processes = []
        for number, address in enumerate(addresses):
            others = [other for other in addresses if other != address]
            words = [
                str(program),
                *smg_arguments(address, servers),
                *(_mesh(number, address, others) if others else ()),
            ]
            log = folder / f"smg-{number}.log"
            process = stack.enter_context(_process(words, folder, log))
            processes.append((process, address, log))
        for process, address, log in processes:
            _wait_for_smg(process, address, (len(servers), gateways > 1), log)
        yield Router([(address, _PORT) for address in addresses], [process.pid for process, _, _ in processes])


def smg_arguments(address: str, servers: Servers) -> list[str]:
    """The arguments of one smg. It polls vLLM for load only where a policy needs that, and sends no request twice."""
    return [
        "launch",
        *("--host", address),
        *("--port", str(_PORT)),
        *("--prometheus-host", address),
        *("--prometheus-port", str(_METRICS_PORT)),
        *("--policy", "cache_aware"),
        *("--backend", "vllm"),
        *("--log-level", "warn"),
        "--disable-retries",
        "--disable-load-monitoring",
        "--disable-tokenizer-autoload",
        *("--worker-urls", *(f"http://{host}:{port}" for host, port in servers)),
    ]


def _mesh(number: int, address: str, others: Sequence[str]) -> list[str]:
    return [
        "--enable-mesh",
        *("--mesh-server-name", f"gateway-{number}"),
        *("--mesh-host", address),
        *("--mesh-advertise-host", address),
        *("--mesh-port", str(_MESH_PORT)),
        *("--mesh-peer-urls", *(f"{other}:{_MESH_PORT}" for other in others)),
    ]


@contextmanager
def _process(words: Sequence[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait_for_smg(process: subprocess.Popen[bytes], address: str, wanted: tuple[int, bool], log: Path) -> None:
    """Waits until smg has registered that many servers and, if it is part of a mesh, has a peer."""
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            workers = json.loads(_get(f"http://{address}:{_PORT}/workers"))["workers"]
            peers = _get(f"http://{address}:{_METRICS_PORT}/metrics") if wanted[1] else _PEERS
            if sum(worker["is_healthy"] for worker in workers) == wanted[0] and _PEERS in peers:
                return
        time.sleep(_LOOK_SECONDS)
    words = log.read_text(encoding="utf-8", errors="replace")[-800:]
    raise FleetError(f"smg is not ready after {_READY_SECONDS:.0f} s: {words}", code=ErrorCode.WORK_FAILED)


@contextmanager
def servers(number: int, token_seconds: float) -> Iterator[Servers]:
    """That many stand-ins of vLLM, in a process of their own.

    Args:
        number: how many.
        token_seconds: the time before each token.
    """
    options = ["--readiness-offset", str(READINESS_OFFSET), "--model", MODEL, "--token-seconds", str(token_seconds)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench.stand_in", *["0"] * number, *options],
        cwd=paths.root(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield [("127.0.0.1", port) for port in json.loads(process.stdout.readline())]
        finally:
            process.stdin.close()  # it ends then


def served_requests(of: Servers) -> list[dict[str, Any]]:
    """Every completion that stand-ins were asked for, in the order of their arrival: ``server``, ``session``."""
    host, port = of[0]
    found: list[dict[str, Any]] = json.loads(_get(f"http://{host}:{port}{stand_in.REQUESTS}"))
    return found


def _get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()


def _cpu_seconds(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
