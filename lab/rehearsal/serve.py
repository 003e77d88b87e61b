"""Serves emulated clouds from this process for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc

from lab.rehearsal import table
from lab.rehearsal.cloud import Cloud
from lab.rehearsal.machines import Lab
from lab.rehearsal.operations import Operations
from lab.rehearsal.provider import handler

#: The engine sends many requests at once, and some of them wait.
_THREADS = 64
_BYTES = 256 << 20


@contextmanager
def serve(cloud: Cloud, lab: Lab | None, plugins: tuple[str, ...] = table.PLUGINS) -> Iterator[dict[str, str]]:
    """Serves plugins, until the block ends.

    Args:
        cloud: the cloud that all of them share.
        lab: boots hosts; None: hosts are records only.
        plugins: their names; the first call imports a cloud's SDK.

    Yields:
        The environment variables with which ``pulumi`` finds them.
    """
    servers, ports = [], []
    for plugin in plugins:
        server = grpc.server(
            futures.ThreadPoolExecutor(_THREADS),
            options=[("grpc.max_receive_message_length", _BYTES), ("grpc.max_send_message_length", _BYTES)],
        )
        server.add_generic_rpc_handlers((handler(Operations(plugin, cloud, lab)),))
        ports.append(f"{plugin}:{server.add_insecure_port('127.0.0.1:0')}")
        server.start()
        servers.append(server)
    try:
        yield {"PULUMI_DEBUG_PROVIDERS": ",".join(ports)}
    finally:
        for stopping in [server.stop(grace=1) for server in servers]:
            stopping.wait()
