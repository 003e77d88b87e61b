"""The second process of a gateway: it reads long bodies, so that the first one needs no long buffers."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_fleet.host import haproxy
from vllm_fleet.host.gateway_routes import Backend, routes
from vllm_fleet.schema.fleet import Gateway


def reader_config(gateway: Gateway, backends: Sequence[Backend]) -> str:
    """The whole configuration of the reader.

    The gateway sends it a request whose key it has checked and whose body is too long for its own buffers. The reader
    keeps the whole body, refuses it if it must, and else returns the request with what it has read in headers. Only the
    account of HAProxy reaches the two sockets.

    Args:
        gateway: the gateway of the fleet.
        backends: every vLLM process.
    """
    limit = gateway.max_body_mib << 20
    long = haproxy.too_long(gateway)
    api = haproxy.Api(gateway, routes(backends))
    lines = [
        "# Made by vllm-fleet; another run replaces what is changed here.",
        *haproxy.global_lines(limit + (64 << 10), haproxy.READER_STREAMS + 8),
        *haproxy.default_lines(),
        "frontend reader",
        f"  bind unix@{haproxy.READER_SOCKET} mode 600",
        "  http-request wait-for-body time 60s",
        f"  http-request return {long} if {{ req.body_size gt {limit} }}",
        f"  http-request lua.read_request {gateway.affinity}",
        f"  http-request return {long} if {{ var(txn.read) -m str cut }} {{ req.body_len ge {limit} }}",
        *(f"  {line}" for line in haproxy.judge_body(api, "METH_POST")),
        "  http-request lua.pass_on",
        "  default_backend gateway",
        "backend gateway",
        f"  server gateway unix@{haproxy.RETURN_SOCKET}",
    ]
    return "\n".join(lines) + "\n"
