"""Plan -> the HAProxy configuration of the gateways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_fleet.base.addresses import host_port
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host import acme
from vllm_fleet.host.gateway_answers import document, error, own_errors
from vllm_fleet.host.gateway_routes import Backend, Route, routes
from vllm_fleet.schema.fleet import Gateway

#: What clients POST to; vLLM has many other paths, with and without a key (vLLM docs/usage/security.md).
POSTED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MODELS_PATH = "/v1/models"
RESPONSES_PATH = "/v1/responses"
METRICS_PATH = "/metrics"
CERTIFICATE = "/etc/haproxy/vllm-fleet.pem"
API_KEYS = "/etc/haproxy/vllm-fleet.keys"
SCRIPT = "/etc/haproxy/vllm-fleet.lua"
READER_CONFIG = "/etc/haproxy/vllm-fleet-reader.cfg"
ADMIN_SOCKET = "/run/haproxy/admin.sock"
#: Where the gateway sends long bodies, and where the reader returns them.
READER_SOCKET = "/run/vllm-gateway-reader/reader.sock"
RETURN_SOCKET = "/run/haproxy/read.sock"
#: Where programs on the gateway ask whether it is healthy; clients ask at the port of the API.
HEALTH_PORT = 10242
#: Where gateways tell each other which server has a session or a response, and where each one's HAProxy takes that.
TABLES_PORT, OWN_TABLES_PORT = 10240, 10241
#: The server that means the gateway itself: while it is drained, balancers before the gateway send it nothing.
ITSELF, ITSELF_SERVER = "itself", "this.gateway"
#: A body up to this length is read in the buffer of its connection, which has 1 KiB beside it for rewriting.
_BUFFER_BYTES = 64 << 10
_READ_BYTES = 60 << 10
#: The memory that the reader's long bodies take at most, and how often one of them is in it: its buffer, its text.
_READER_MIB, _COPIES = 1500, 2
#: How many requests with long bodies are in flight at the same time; the reader holds few of the bodies themselves.
READER_STREAMS = 1500
#: Connections of clients. The gateway has others beside them, for its reader and for balancers that ask its health.
_MOST_CONNECTIONS = 8192
#: Connections of one address at the same time: more than clients behind one router have.
_CONNECTIONS = 2000
#: Whoever has an IPv6 address has all of its network.
_SOURCE = "src,ipmask(32,64)"
#: Wrong keys from one address in a minute; then keys that have not come from there before are refused.
_GUESSES = 60
#: After so many more in the same minute the connection ends without an answer: a client that reads none holds them.
_UNANSWERED = 1000
#: Requests of one key whose bodies are on their way; each takes a buffer.
_ARRIVING = 1024
#: Requests on one connection of HTTP/2; clients open another one for more.
_STREAMS = 32
#: How long the gateway knows a session or a response after its last request.
_KNOWN = "24h"


@dataclass(frozen=True)
class Api:
    """What the rules of a gateway depend on: its keys in the fleet.yml, and where the names of models lead."""

    gateway: Gateway
    routes: Sequence[Route]

    @property
    def served(self) -> str:
        """The names of its models, for people."""
        return f"This gateway serves {', '.join(name for route in self.routes for name in route.names)}."


@dataclass(frozen=True)
class Members:
    """The gateways of a fleet, as one of them sees them.

    Attributes:
        own: its name.
        addresses: gateway -> where the others reach it, itself among them.
        sources: the addresses that they connect from.
    """

    own: str
    addresses: Mapping[str, str]
    sources: Sequence[str]


def haproxy_config(
    gateway: Gateway, backends: Sequence[Backend], addresses: Sequence[str] = (), members: Members | None = None
) -> str:
    """The whole ``haproxy.cfg``: allowlist, keys by digest, one backend for each set of names.

    Without ``http-no-delay`` the first token of a stream waits 200 ms. A server is up if its readiness port reports
    that a completion came back; /health is green on a dead engine. A request is sent again only where no connection to
    the server was made: one that ended an engine would end the next one too. For the same reason no connection to a
    server is used twice.

    Args:
        gateway: the gateway of the fleet.
        backends: every vLLM process.
        addresses: the IP addresses of the gateways; with an IPv6 address among them it listens for IPv6 too.
        members: the gateways that share what they know of sessions and responses; None: it has none to share with.
    """
    api = Api(gateway, routes(backends))
    bind = _bind(gateway.port, addresses)
    if gateway.tls:
        bind += f" ssl crt {CERTIFICATE} alpn h2,http/1.1 ssl-min-ver TLSv1.2"
    else:
        bind += " proto h1"
    shared = " peers gateways" if members else ""
    lines = [
        "# Made by vllm-fleet; another run replaces what is changed here.",
        *global_lines(_BUFFER_BYTES, _MOST_CONNECTIONS + 512),
        *((f"  localpeer {members.own}",) if members else ()),
        f"  stats socket {ADMIN_SOCKET} mode 600 level admin",
        "  stats timeout 30s",
        *default_lines(),
        f"  timeout queue {gateway.queue_seconds}s",
        "frontend api",
        f"  {bind}",
        f"  maxconn {_MOST_CONNECTIONS}",
        *(f"  {line}" for line in _connections(gateway)),
        "  filter lua.count",
        *(f"  {line}" for line in _accept(api)),
        *acme.challenge_lines(gateway, addresses),
        f"frontend read\n  bind unix@{RETURN_SOCKET} mode 600",
        "  filter lua.count",
        *(f"  {line}" for line in _take_over(api)),
        f"frontend health\n  bind 127.0.0.1:{HEALTH_PORT}",
        *(f"  {line}" for line in _health(api, "TRUE")),
        *(_share(members, _bind(TABLES_PORT, addresses)) if members else ()),
        "backend sessions",
        f"  stick-table type string len 64 size 100k expire {_KNOWN} store server_id{shared}",
        "backend responses",
        f"  stick-table type string len 80 size 100k expire {_KNOWN} store gpt0{shared}",
        "backend addresses",
        "  stick-table type ipv6 size 100k expire 2m store conn_cur,gpc0,gpc0_rate(1m),gpc1,gpc1_rate(1m)",
        "backend known",
        "  stick-table type string len 64 size 100k expire 1h store gpc0",
        f"backend {ITSELF}",
        f"  server {ITSELF_SERVER} 127.0.0.1:1",
        "backend reader",
        f"  server reader unix@{READER_SOCKET} maxconn {READER_STREAMS}",
        *(line for route in api.routes for line in _backend(api, route)),
        *(_any_response(api) if gateway.responses_store else ()),
    ]
    return "\n".join(lines) + "\n"


def global_lines(buffer_bytes: int, connections: int) -> list[str]:
    """The section ``global`` of both processes of a gateway.

    With several threads HAProxy 2.6 stalls answers that a filter in Lua sees.

    Args:
        buffer_bytes: the size of a buffer: the longest body that is read.
        connections: how many connections it takes.
    """
    return [
        "global",
        "  log stdout format raw local0 info",
        "  nbthread 1",
        f"  maxconn {connections}",
        f"  tune.bufsize {buffer_bytes}",
        f"  tune.h2.max-concurrent-streams {_STREAMS}",
        "  tune.lua.session-timeout 30s",
        f"  lua-load {SCRIPT}",
        # Streams may last; a reload does not cut them before.
        "  hard-stop-after 2h",
    ]


def default_lines() -> list[str]:
    """The section ``defaults`` of both processes of a gateway."""
    return [
        "defaults",
        "  mode http",
        "  log global",
        "  option httplog",
        "  option dontlognull",
        "  option http-no-delay",
        "  option http-server-close",
        # The engine ends its work when its client has gone.
        "  option abortonclose",
        "  http-reuse never",
        "  option redispatch 1",
        "  retries 3",
        "  retry-on conn-failure",
        "  timeout connect 2s",
        "  timeout http-request 15s",
        "  timeout http-keep-alive 75s",
        "  timeout client 10m",
        "  timeout server 10m",
        *(f"  {line}" for line in own_errors()),
    ]


def _accept(api: Api) -> Iterator[str]:
    """The rules for a client's request, from its path to its model."""
    yield from _plain_headers()
    yield "http-request set-var(txn.path) path"
    yield from _health(api, "{ path /healthz }")
    yield from _paths(api)
    yield from _origins(api.gateway)
    yield from _keys()
    yield from _methods(api)
    if api.routes:
        yield from _models(api)
    # A chunked body has no length; what does not fit is found when it is read.
    yield f"acl long_body req.hdr(content-length) -m int gt {_READ_BYTES}"
    limit = api.gateway.max_body_mib << 20
    yield f"http-request return {too_long(api.gateway)} if METH_POST {{ req.hdr(content-length) -m int gt {limit} }}"
    busy = error(429, "Too many requests of this API key are on their way.", "rate_limit_exceeded")
    yield f"http-request lua.arrive {_ARRIVING} if METH_POST !long_body"
    yield f"http-request return {busy} hdr Retry-After 1 if METH_POST !long_body !{{ var(txn.arriving) -m found }}"
    yield "http-request wait-for-body time 15s if METH_POST !long_body"
    yield f"http-request lua.read_request {api.gateway.affinity} if METH_POST !long_body"
    yield "acl cut_body var(txn.read) -m str cut"
    yield f"acl full_buffer req.body_len ge {_READ_BYTES - 8192}"
    yield "http-request set-var(txn.long) bool(true) if METH_POST long_body"
    yield "http-request set-var(txn.long) bool(true) if METH_POST cut_body full_buffer"
    yield "acl goes_to_reader var(txn.long) -m found"
    yield "http-request set-header x-vllm-fleet-key %[var(txn.key)] if goes_to_reader"
    yield from judge_body(api, "METH_POST !goes_to_reader")
    yield from _find_response(api, "!goes_to_reader")
    yield from _admit()
    yield from _enter_reader(api.gateway)
    yield from _send(api, "!goes_to_reader")
    yield "use_backend reader if goes_to_reader"


def _connections(gateway: Gateway) -> Iterator[str]:
    """The limit of connections of one address. Behind a balancer that ends TLS all clients have its few addresses."""
    yield f"tcp-request connection track-sc2 {_SOURCE} table addresses"
    if not gateway.plain:
        yield f"tcp-request connection reject if {{ sc2_conn_cur gt {_CONNECTIONS} }}"


def _plain_headers() -> Iterator[str]:
    """Headers that mean the same to the gateway and to a server."""
    odd = error(400, "A header has a control character.")
    yield f"http-request return {odd} if {{ req.hdrs,lua.has_control -m str yes }}"
    for name in ("connection", "upgrade", "http2-settings"):
        yield f"http-request del-header {name}"
    yield "http-request del-header x-vllm-fleet- -m beg"


def _take_over(api: Api) -> Iterator[str]:
    """The rules for a request that the reader returns: its key is checked, its body is read."""
    yield "http-request set-var(txn.path) path"
    yield "http-request set-var(txn.key) req.hdr(x-vllm-fleet-key)"
    yield "http-request lua.take_over"
    yield "http-request del-header x-vllm-fleet- -m beg"
    yield from _choose_backend(api, "METH_POST")
    yield from _find_response(api, "TRUE")
    yield from _send(api, "TRUE")


def _health(api: Api, asked: str) -> Iterator[str]:
    """What ``/healthz`` answers: green with a ready server, unless the gateway itself is out of traffic."""
    leaves = document(503, {"status": "leaves traffic"})
    yield f"http-request set-log-level silent if {asked}"
    yield f"http-request return {leaves} hdr Connection close if {asked} {{ nbsrv({ITSELF}) eq 0 }}"
    for route in api.routes:
        yield f"http-request return {document(200, {'status': 'ok'})} if {asked} {{ nbsrv({route.backend}) gt 0 }}"
    yield f"http-request return {document(503, {'status': 'no server is ready'})} if {asked}"


def _paths(api: Api) -> Iterator[str]:
    """The allowlist. Paths are compared as they come: nothing is decoded before."""
    yield f"acl is_posted path {' '.join(POSTED_PATHS)}"
    yield f"acl is_models path {MODELS_PATH}"
    yield f"acl is_model path_beg {MODELS_PATH}/"
    yield f"acl is_metrics path {METRICS_PATH} {METRICS_PATH}/keys"
    allowed = ["is_posted", "is_models", "is_model", "is_metrics"]
    yield f"acl is_response path_beg {RESPONSES_PATH}/resp_"
    # No id of a response is encoded.
    yield "acl is_encoded path_sub %"
    yield "acl is_odd path_sub // .. ; \\\\"
    if api.gateway.responses_store:
        allowed.append("is_response")
    unknown = error(404, "This gateway does not serve the path.")
    if not api.gateway.responses_store:
        off = "This gateway keeps no responses: responses_store is off in its fleet.yml."
        yield f"http-request return {error(404, off, 'response_not_found')} if is_response !is_odd"
    # Releases up to 0.33 have nothing else below a response: vLLM's page for that is not in the form of the API.
    yield "http-request set-var(txn.verb) path,field(5,/,0) if is_response"
    yield "acl is_cancel var(txn.verb) -m str cancel"
    yield f"http-request return {unknown} if is_response {{ var(txn.verb) -m found }} !is_cancel"
    yield f"http-request return {unknown} if is_odd"
    yield f"http-request return {unknown} if is_response is_encoded"
    yield f"http-request return {unknown} if " + " ".join(f"!{name}" for name in allowed)
    # A server gets no URI with a host in it: which of two hosts means what is a matter of taste.
    yield "http-request set-uri %[pathq]"


def _origins(gateway: Gateway) -> Iterator[str]:
    """What browsers ask before they let a page of another origin use the API; they ask it without a key."""
    yield "http-response del-header access-control-allow- -m beg"
    if not gateway.cors_origins:
        return
    yield f"acl is_origin req.hdr(origin) -m str {' '.join(gateway.cors_origins)}"
    yield "http-request set-var(txn.origin) req.hdr(origin) if is_origin"
    known = "{ var(txn.origin) -m found }"
    yield f"http-after-response set-header Access-Control-Allow-Origin %[var(txn.origin)] if {known}"
    yield f"http-after-response add-header Vary Origin if {known}"
    yield (
        "http-request return status 204 hdr Access-Control-Allow-Methods GET,POST "
        "hdr Access-Control-Allow-Headers %[req.fhdr(access-control-request-headers)] "
        "hdr Access-Control-Max-Age 600 if METH_OPTIONS is_origin"
    )


def _keys() -> Iterator[str]:
    """The check of the key, by its digest; the key itself goes no further."""
    yield "http-request set-var(txn.secret) req.hdr(x-api-key) if { req.hdr(x-api-key) -m found }"
    yield (
        "http-request set-var(txn.secret) req.hdr(authorization),word(2,' ') "
        "if { req.hdr(authorization) -m beg -i 'Bearer ' }"
    )
    yield "http-request set-var(txn.digest) var(txn.secret),sha2(256),hex,lower if { var(txn.secret) -m found }"
    yield "http-request unset-var(txn.secret)"
    yield "http-request del-header authorization"
    yield "http-request del-header x-api-key"
    yield f"http-request set-var(txn.key) var(txn.digest),map_str({API_KEYS}) if {{ var(txn.digest) -m found }}"
    yield "http-request set-var(txn.ends) var(txn.key),field(2,:) if { var(txn.key) -m found }"
    yield "http-request set-var(txn.scope) var(txn.key),field(7,:) if { var(txn.key) -m found }"
    yield "http-request set-var-fmt(txn.visit) %[src]%[var(txn.digest)]"
    yield "http-request set-var(txn.visit) var(txn.visit),sha2(256),hex"
    yield "acl is_known_key var(txn.key) -m found"
    yield "acl has_ended var(txn.ends) -m int gt 0"
    yield "acl has_ended_now date,sub(txn.ends) -m int ge 0"
    yield f"acl guesses sc2_gpc0_rate(addresses) gt {_GUESSES}"
    yield "acl has_visited var(txn.visit),in_table(known) -m bool"
    slow = error(429, "Too many wrong API keys have come from this address. Wait a minute.", "too_many_wrong_keys")
    yield "http-request sc-inc-gpc1(2) if guesses !has_visited"
    yield f"http-request reject if guesses !has_visited {{ sc2_gpc1_rate(addresses) gt {_UNANSWERED} }}"
    yield f"http-request return {slow} hdr Retry-After 60 if guesses !has_visited"
    yield "http-request sc-inc-gpc0(2) if !is_known_key"
    for text, condition in (
        ("The API key is missing or wrong.", "!is_known_key"),
        ("The API key has ended.", "has_ended has_ended_now"),
    ):
        yield f"http-request return {error(401, text, 'invalid_api_key')} hdr WWW-Authenticate Bearer if {condition}"
    other = error(403, "The API key is not for this path.", "insufficient_permissions")
    yield f"http-request return {other} if !is_metrics !{{ var(txn.scope) -m str api }}"
    yield f"http-request return {other} if is_metrics !{{ var(txn.scope) -m str metrics }}"
    yield "http-request track-sc0 var(txn.visit) table known"


def _methods(api: Api) -> Iterator[str]:
    """The methods of each path."""
    wrong = error(405, "This path takes another method.", "method_not_allowed")
    yield f"http-request return {wrong} hdr Allow POST if is_posted !METH_POST"
    yield f"http-request return {wrong} hdr Allow GET if is_models !METH_GET"
    yield f"http-request return {wrong} hdr Allow GET if is_model !METH_GET"
    yield f"http-request return {wrong} hdr Allow GET if is_metrics !METH_GET"
    yield f"http-request use-service prometheus-exporter if {{ path {METRICS_PATH} }}"
    yield "http-request use-service lua.key_metrics if is_metrics"
    if api.gateway.responses_store:
        yield f"http-request return {wrong} hdr Allow POST if is_response is_cancel !METH_POST"
        yield f"http-request return {wrong} hdr Allow GET if is_response !is_cancel !METH_GET"


def _models(api: Api) -> Iterator[str]:
    """The list of the models, and the page of each one; a name may be encoded."""
    pages = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": route.servers[0].model}
        | ({"max_model_len": tokens} if (tokens := route.servers[0].context_tokens) else {})
        for route in api.routes
        for name in route.names
    }
    yield (
        f"http-request return {document(200, {'object': 'list', 'data': list(pages.values())})} if METH_GET is_models"
    )
    yield f"http-request set-var(txn.name) path,bytes({len(MODELS_PATH) + 1}),url_dec if is_model"
    for name, page in pages.items():
        yield f"http-request return {document(200, page)} if METH_GET is_model {{ var(txn.name) -m str {name} }}"
    unknown = error(404, f"The model does not exist. {api.served}", "model_not_found")
    yield f"http-request return {unknown} if is_model"


def long_bodies(gateway: Gateway) -> int:
    """How many long bodies the reader keeps at the same time; others wait."""
    return max(4, min(64, _READER_MIB // (_COPIES * gateway.max_body_mib)))


def _first_places(gateway: Gateway) -> int:
    """How many of the reader's places are for the first long bodies of each key."""
    return max(2, long_bodies(gateway) // 4)


def _enter_reader(gateway: Gateway) -> Iterator[str]:
    """A long body waits for a place in the reader, and has it until a server has the body.

    A body that arrives slowly holds its place for a minute. A key that fills the places for all takes half of those for
    first bodies, and other keys have the rest.
    """
    first = _first_places(gateway)
    others = long_bodies(gateway) - first
    yield f"http-request lua.enter_reader {first // 2} {first} {others} {gateway.queue_seconds} if goes_to_reader"
    yield _refused("bodies", "The gateway has had no place for a body of this length.")
    yield "http-request set-header x-vllm-fleet-body %[var(txn.body)] if goes_to_reader"


def too_long(gateway: Gateway) -> str:
    """The answer to a body that is longer than the gateway takes."""
    return error(413, f"The body is longer than the {gateway.max_body_mib} MiB that this gateway takes.")


def judge_body(api: Api, posted: str) -> Iterator[str]:
    """The refusals that a read body is worth. The process that has the whole body gives them.

    Args:
        api: the gateway.
        posted: the condition of the requests that are meant.
    """
    if not api.routes:
        yield f"http-request return {error(503, 'This gateway has no server.')} if {posted}"
        return
    yield f"acl is_response_page path_beg {RESPONSES_PATH}/"
    created = f"{posted} !is_response_page"
    not_json = error(400, "The body is not a JSON object, so its 'model' cannot be read.")
    much = error(413, "The body has too many parts. Send fewer keys, lists and quotes in one request.")
    yield f"http-request return {much} if {created} {{ var(txn.read) -m str much }}"
    yield f"http-request return {not_json} if {created} !{{ var(txn.read) -m str whole }}"
    yield from _choose_backend(api, posted)
    unknown = error(404, f"The model does not exist. {api.served}", "model_not_found")
    none = error(400, f"The body has no 'model'. {api.served}")
    yield f"http-request return {none} if {created} !{{ var(txn.backend) -m found }} !{{ var(txn.model) -m found }}"
    yield f"http-request return {unknown} if {created} !{{ var(txn.backend) -m found }}"
    if not api.gateway.responses_store:
        off = "This gateway keeps no responses (responses_store is off in its fleet.yml), so"
        for name, param, text in (
            ("previous", "previous_response_id", "cannot be found. Send the whole conversation as input."),
            ("background", "background", "is not possible. Use stream, or wait for the answer."),
        ):
            answer = error(400, f"{off} {param} {text}", "responses_store_off", param)
            where = f"{created} {{ path {RESPONSES_PATH} }}"
            yield f"http-request return {answer} if {where} {{ var(txn.{name}) -m found }}"
    no_tools = (
        "The servers have no tool server, so the built-in tools code_interpreter, web_search_preview and mcp are not "
        "available. Use functions."
    )
    for route in api.routes:
        if not route.tool_server:
            asked = f"{created} {{ path {RESPONSES_PATH} }} {{ var(txn.tool) -m found }}"
            yield (
                f"http-request return {error(400, no_tools, 'no_tool_server', 'tools')} if {asked} "
                f"{{ var(txn.backend) -m str {route.backend} }}"
            )


def _choose_backend(api: Api, posted: str) -> Iterator[str]:
    """Sets txn.backend by the model; with one route, a request without a model goes there too."""
    for route in api.routes:
        names = f"{posted} {{ var(txn.model) -m str {' '.join(route.names)} }}"
        yield f"http-request set-var(txn.backend) str({route.backend}) if {names}"
        yield f"http-request set-var(txn.seats) int({route.seats}) if {names}"
    if len(api.routes) == 1:
        lacks = f"{posted} !{{ var(txn.model) -m found }}"
        yield f"http-request set-var(txn.backend) str({api.routes[0].backend}) if {lacks}"
        yield f"http-request set-var(txn.seats) int({api.routes[0].seats}) if {lacks}"


def _find_response(api: Api, condition: str) -> Iterator[str]:
    """A stored response is on one server: requests that name it go there, and to each server where it is unknown."""
    if not api.gateway.responses_store or not api.routes:
        return
    yield f"http-request set-var(txn.previous) path,field(4,/) if {{ path_beg {RESPONSES_PATH}/resp_ }}"
    known = f"{condition} {{ var(txn.previous) -m found }}"
    yield f"http-request set-var(txn.server) var(txn.previous),table_gpt0(responses),lua.server_in_traffic if {known}"
    yield f"http-request set-var(txn.backend) str(any_response) if {{ path_beg {RESPONSES_PATH}/resp_ }}"
    yield f"http-request set-var(txn.backend) str(any_response) if {known} !{{ var(txn.server) -m len gt 0 }}"


def _admit() -> Iterator[str]:
    """The limits of the key."""
    yield "http-request lua.admit if METH_POST"
    for kind, text in (
        ("requests", "This API key sends too many requests a second."),
        ("in_flight", "This API key has too many requests in flight."),
        ("tokens", "This API key has used its tokens of this minute."),
    ):
        yield _refused(kind, text)


def _refused(kind: str, text: str) -> str:
    answer = error(429, text, "rate_limit_exceeded")
    return f"http-request return {answer} hdr Retry-After %[var(txn.wait)] if {{ var(txn.refused) -m str {kind} }}"


def _send(api: Api, condition: str) -> Iterator[str]:
    """The server of the request's session, its place in the queue, and its backend."""
    if not api.routes:
        return
    yield f"http-request lua.take {api.gateway.queue_seconds} if METH_POST {condition} {{ var(txn.backend) -m found }}"
    yield _refused("places", "The servers have had no place for so many answers to one request.")
    if api.gateway.affinity != "none":
        yield from _session(api.gateway, condition)
    yield "http-request set-var(txn.priority) var(txn.key),field(6,:)"
    yield "http-request set-priority-class int(9),sub(txn.priority)"
    yield "http-request set-priority-offset var(txn.turn)"
    yield f"use_backend %[var(txn.backend)] if {condition} {{ var(txn.backend) -m found }}"


def _session(gateway: Gateway, condition: str) -> Iterator[str]:
    """Sets txn.session by what names it, and txn.server by where it was."""
    named = f"{condition} !{{ var(txn.previous) -m found }} {{ var(txn.backend) -m found }}".strip()
    yield f"http-request set-var(txn.named) req.hdr(x-session-id) if {named} {{ req.hdr(x-session-id) -m found }}"
    if gateway.affinity == "conversation":
        yield f"http-request set-var(txn.named) var(txn.beginning) if {named} !{{ var(txn.named) -m found }}"
    whole = f"{named} {{ var(txn.named) -m found }}"
    # Two clients may give their sessions the same name.
    yield f"http-request set-var-fmt(txn.session) %[var(txn.key),field(1,:)]:%[var(txn.backend)]: if {whole}"
    yield f"http-request set-var(txn.session) var(txn.session),concat(,txn.named),sha2(256),hex if {whole}"
    yield (
        "http-request set-var(txn.server) var(txn.session),table_server_id(sessions),lua.server_in_traffic "
        "if { var(txn.session) -m found }"
    )


def _backend(api: Api, route: Route) -> Iterator[str]:
    gateway = api.gateway
    yield f"backend {route.backend}"
    yield "  balance leastconn"
    yield "  option httpchk"
    # An instance that serves another model, since its host has not changed yet, is not ready for this one.
    yield f"  http-check send meth GET uri /ready/{route.servers[0].model}"
    yield "  http-check expect status 200"
    yield "  default-server inter 1s fall 2 rise 1 check observe layer4"
    if gateway.affinity != "none" or gateway.responses_store:
        yield "  use-server %[var(txn.server)] if { var(txn.server) -m len gt 0 }"
    if gateway.affinity != "none":
        yield "  stick store-request var(txn.session) table sessions if { var(txn.session) -m found }"
    if gateway.responses_store:
        yield from _learn_response()
    for server in route.servers:
        yield f"  {_server(server, f'port {server.port + READINESS_OFFSET}')}{_limits(server)}"


def _learn_response() -> Iterator[str]:
    """Remembers which server has a new response; its id is in the first bytes of the answer."""
    new = f"{{ var(txn.path) -m str {RESPONSES_PATH} }} {{ status 200 }}"
    yield f"  http-response wait-for-body time 10s at-least 1024 if {new}"
    yield f"  http-response set-var(txn.new) res.body,lua.response_id if {new}"
    yield "  http-response track-sc1 var(txn.new) table responses if { var(txn.new) -m len gt 4 }"
    yield "  http-response sc-set-gpt0(1) srv_id if { var(txn.new) -m len gt 4 }"


def _server(server: Backend, options: str) -> str:
    address = host_port(server.address, server.port)
    return f"server {server.server} {address} id {server.number} {options}"


def _limits(server: Backend) -> str:
    """More requests wait here and not in the engine; where many wait, a session goes to another server."""
    return f" maxconn {server.seats} maxqueue {max(1, server.seats // 4)}" if server.seats else ""


def shares_tables(gateway: Gateway, count: int) -> bool:
    """Whether the gateways of a fleet tell each other which server has a session or a response.

    Args:
        gateway: the gateways' keys in the fleet.yml.
        count: how many gateways there are.
    """
    return count > 1 and (gateway.affinity != "none" or gateway.responses_store)


def _bind(port: int, addresses: Sequence[str]) -> str:
    # A kernel without IPv6 refuses the second form.
    return f"bind [::]:{port} v4v6" if any(":" in address for address in addresses) else f"bind :{port}"


def _share(members: Members, bind: str) -> Iterator[str]:
    """The tables that gateways share. HAProxy takes them from any address, so a frontend lets only gateways in."""
    yield "peers gateways"
    yield f"  bind 127.0.0.1:{OWN_TABLES_PORT}"
    yield f"  server {members.own}"
    for name, address in members.addresses.items():
        if name != members.own:
            yield f"  server {name} {host_port(address, TABLES_PORT)}"
    yield "frontend tables"
    yield "  mode tcp"
    yield "  option tcplog"
    yield f"  {bind}"
    yield f"  tcp-request connection reject unless {{ src {' '.join(members.sources)} }}"
    yield "  timeout client 1h"
    yield "  default_backend own_tables"
    yield "backend own_tables"
    yield "  mode tcp"
    yield "  timeout server 1h"
    yield f"  server own 127.0.0.1:{OWN_TABLES_PORT}"


def _any_response(api: Api) -> Iterator[str]:
    """Asks one server after the other for a response that the gateway does not know."""
    servers = [(route.backend, server) for route in api.routes for server in route.servers]
    yield "backend any_response"
    yield "  balance roundrobin"
    yield "  retry-on conn-failure 404"
    yield f"  retries {len(servers)}"
    yield "  use-server %[var(txn.server)] if { var(txn.server) -m len gt 0 }"
    for backend, server in servers:
        yield f"  {_server(server, f'track {backend}/{server.server}')}"
