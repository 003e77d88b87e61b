"""Plan -> the HAProxy configuration of the gateways."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base.addresses import host_port
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host import acme
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
#: HAProxy's own errors. Clients of the OpenAI API parse every error as JSON.
_OWN_ERRORS = {
    400: "The request is not valid HTTP.",
    408: "The request took too long to arrive.",
    500: "The gateway failed.",
    502: "The server failed before it answered.",
    503: "No server is ready for this model.",
    504: "The server did not answer in time.",
}
#: A long prompt has a few MiB; HAProxy reads the body to know the model. A header has room beside it.
_BODY_BUFFER_BYTES = 4 << 20


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


def haproxy_config(gateway: Gateway, backends: Sequence[Backend], addresses: Sequence[str] = ()) -> str:
    """The whole ``haproxy.cfg``: allowlist, keys by digest, one backend for each model.

    It buffers a request body to read the model. Without ``http-no-delay`` the first token of a stream waits 200 ms. A
    server is up if its readiness port reports that a completion came back; /health is green on a dead engine.

    Args:
        gateway: the gateway of the fleet.
        backends: every vLLM process.
        addresses: the IP addresses of the gateways; with an IPv6 address among them it listens for IPv6 too.
    """
    models = sorted({backend.model for backend in backends})
    reads_body = len(models) > 1 or gateway.affinity == "prefix"
    # A kernel without IPv6 refuses the second form.
    bind = f"bind [::]:{gateway.port} v4v6" if any(":" in address for address in addresses) else f"bind :{gateway.port}"
    if gateway.tls:
        bind += f" ssl crt {CERTIFICATE} alpn h2,http/1.1 ssl-min-ver TLSv1.2"
    lines = [
        "# Made by vllm-fleet; another run replaces what is changed here.",
        "global",
        "  log stdout format raw local0 info",
        "  maxconn 8192",
        f"  tune.bufsize {_BODY_BUFFER_BYTES if reads_body else 65536}",
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
        *(f"  http-error {_answer(status, text, None)}" for status, text in _OWN_ERRORS.items()),
        "frontend api",
        f"  {bind}",
        f"  http-request return {_answer(404, 'This gateway does not serve the path.', None)} unless {{ path "
        + " ".join(ALLOWED_PATHS)
        + " }",
        "  http-request set-var(txn.key) req.hdr(authorization),word(2,' '),sha2(256),hex,lower",
        f"  http-request return {_answer(401, 'The API key is missing or wrong.', 'invalid_api_key')} "
        "hdr WWW-Authenticate Bearer unless "
        f"{{ req.hdr(authorization) -m beg -i 'Bearer ' }} {{ var(txn.key) -m str -f {API_KEYS} }}",
        "  http-request del-header authorization",
    ]
    if reads_body:
        lines.append("  http-request wait-for-body time 15s if METH_POST")
    if len(models) > 1:
        lines += _choose_model(models)
    if models:
        lines.append(f"  default_backend {_backend_name(models[0])}")
    lines += acme.challenge_lines(gateway, addresses)
    for model in models:
        lines += [f"backend {_backend_name(model)}"]
        if gateway.affinity == "prefix":
            lines += ["  balance hash req.body,bytes(0,2048)", "  hash-type consistent", "  hash-balance-factor 150"]
        else:
            lines.append("  balance leastconn")
        lines += [
            "  option httpchk",
            # An instance that serves another model, since its host has not changed yet, is not ready for this one.
            f"  http-check send meth GET uri /ready/{model}",
            "  http-check expect status 200",
            "  default-server inter 1s fall 2 rise 1 check observe layer4",
        ]
        lines += [
            f"  server {backend.host}_{backend.instance} {host_port(backend.address, backend.port)} "
            f"port {backend.port + READINESS_OFFSET}"
            for backend in backends
            if backend.model == model
        ]
    return "\n".join(lines) + "\n"


def _choose_model(models: Sequence[str]) -> Iterator[str]:
    """The rules that choose a backend by the model in the body, and answer for the models that no backend has."""
    served = f"This gateway serves {', '.join(models)}."
    too_long = f"The body is longer than the {_BODY_BUFFER_BYTES >> 20} MiB that the gateway reads."
    listing = {
        "object": "list",
        "data": [{"id": model, "object": "model", "created": 0, "owned_by": "vllm"} for model in models],
    }
    yield f"  http-request return {_json(200, listing)} if METH_GET {{ path /v1/models }}"
    yield "  http-request set-var(txn.read) req.body_len if METH_POST"
    yield (f"  http-request return {_answer(413, too_long, None)} if METH_POST {{ req.body_size,sub(txn.read) gt 0 }}")
    yield "  http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST"
    # json_query refuses a string with the escape \/, which PHP writes for every slash. Not regsub: HAProxy compiles
    # regular expressions to machine code, which its unit forbids (MemoryDenyWriteExecute). A quoted key cannot occur
    # in a text of the body, where its quotes are escaped.
    for model in models:
        if "/" in model:
            name = model.replace("/", "\\/")
            forms = " ".join(f'\'"model":{blank}"{name}"\'' for blank in ("", " "))
            yield (
                f"  http-request set-var(txn.model) str({model}) if METH_POST !{{ var(txn.model) -m found }} "
                f"{{ req.body -m sub {forms} }}"
            )
    no_model = f"The body is not a JSON object with a 'model'. {served}"
    yield f"  http-request return {_answer(400, no_model, None)} if METH_POST !{{ var(txn.model) -m found }}"
    yield (
        f"  http-request return {_answer(404, f'The model does not exist. {served}', 'model_not_found')} "
        "if METH_POST !{ var(txn.model) -m str " + " ".join(models) + " }"
    )
    for model in models[1:]:
        yield f"  use_backend {_backend_name(model)} if {{ var(txn.model) -m str {model} }}"


def _answer(status: int, message: str, code: str | None) -> str:
    """An error in the form of the OpenAI API (``Error`` in openai/openai-openapi): all four keys are required there."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return _json(status, {"error": {"message": message, "type": kind, "param": None, "code": code}})


def _json(status: int, body: Mapping[str, object]) -> str:
    text = json.dumps(body, separators=(",", ":")).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'status {status} content-type application/json string "{text}"'


def key_digests_text(keys: Mapping[str, str]) -> str:
    """The digests of the API keys, one per line; no host has the keys themselves."""
    return "".join(f"{digest.removeprefix('sha256:')}\n" for digest in sorted(set(keys.values())))
