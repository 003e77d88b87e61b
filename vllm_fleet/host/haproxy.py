"""Plan -> the HAProxy configuration of the gateways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.schema.fleet import Gateway

#: The paths that clients reach; vLLM has many others, with and without a key (vLLM docs/usage/security.md).
ALLOWED_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/responses",
)
CERTIFICATE = "/etc/haproxy/vllm-fleet.pem"
API_KEYS = "/etc/haproxy/vllm-fleet.keys"
ADMIN_SOCKET = "/run/haproxy/admin.sock"


@dataclass(frozen=True)
class Backend:
    """One vLLM process, as a server of the gateways."""

    host: str
    instance: str
    address: str
    port: int
    model: str


def _backend_name(model: str) -> str:
    return "model_" + "".join(char if char.isalnum() else "_" for char in model)


def haproxy_config(gateway: Gateway, backends: Sequence[Backend]) -> str:
    """The whole ``haproxy.cfg``: allowlist, keys by digest, one backend for each model.

    It buffers a request body to read the model. Without ``http-no-delay`` the first token of a stream waits 200 ms. A
    server is up if its readiness port reports that a completion came back; /health is green on a dead engine.
    """
    models = sorted({backend.model for backend in backends})
    bind = f"bind :{gateway.port}"
    if gateway.tls:
        bind += f" ssl crt {CERTIFICATE} alpn h2,http/1.1 ssl-min-ver TLSv1.2"
    lines = [
        "# Made by vllm-fleet; another run replaces what is changed here.",
        "global",
        "  log stdout format raw local0 info",
        "  maxconn 8192",
        # A long prompt has a few MiB; HAProxy reads the body to know the model.
        "  tune.bufsize 4194304" if len(models) > 1 or gateway.affinity == "prefix" else "  tune.bufsize 65536",
        "  hard-stop-after 15m",
        f"  stats socket {ADMIN_SOCKET} mode 600 level admin",
        "  stats timeout 30s",
        "defaults",
        "  mode http",
        "  log global",
        "  option httplog",
        "  option dontlognull",
        "  option http-no-delay",
        "  option redispatch 1",
        "  retries 3",
        "  retry-on conn-failure empty-response 503",
        "  timeout connect 2s",
        "  timeout http-request 15s",
        "  timeout client 10m",
        "  timeout server 10m",
        "  timeout queue 1m",
        "frontend api",
        f"  {bind}",
        "  http-request deny deny_status 404 unless { path " + " ".join(ALLOWED_PATHS) + " }",
        "  http-request set-var(txn.key) req.hdr(authorization),word(2,' '),sha2(256),hex,lower",
        "  http-request deny deny_status 401 hdr WWW-Authenticate Bearer unless "
        f"{{ req.hdr(authorization) -m beg -i 'Bearer ' }} {{ var(txn.key) -m str -f {API_KEYS} }}",
        "  http-request del-header authorization",
    ]
    if len(models) > 1 or gateway.affinity == "prefix":
        lines.append("  http-request wait-for-body time 15s if METH_POST")
    if len(models) > 1:
        lines.append("  http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST")
        lines.append(
            "  http-request deny deny_status 404 if METH_POST !{ var(txn.model) -m str " + " ".join(models) + " }"
        )
        for model in models[1:]:
            lines.append(f"  use_backend {_backend_name(model)} if {{ var(txn.model) -m str {model} }}")
    if models:
        lines.append(f"  default_backend {_backend_name(models[0])}")
    for model in models:
        lines += [f"backend {_backend_name(model)}"]
        if gateway.affinity == "prefix":
            lines += ["  balance hash req.body,bytes(0,2048)", "  hash-type consistent", "  hash-balance-factor 150"]
        else:
            lines.append("  balance leastconn")
        lines += [
            "  option httpchk",
            "  http-check send meth GET uri /ready",
            "  http-check expect status 200",
            "  default-server inter 1s fall 2 rise 1 check observe layer4",
        ]
        lines += [
            f"  server {backend.host}_{backend.instance} {backend.address}:{backend.port} "
            f"port {backend.port + READINESS_OFFSET}"
            for backend in backends
            if backend.model == model
        ]
    return "\n".join(lines) + "\n"


def key_digests_text(keys: Mapping[str, str]) -> str:
    """The digests of the API keys, one per line; no host has the keys themselves."""
    return "".join(f"{digest.removeprefix('sha256:')}\n" for digest in sorted(set(keys.values())))
