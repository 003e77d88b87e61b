"""The gRPC side of an emulated cloud: the calls of the engine, and how errors return to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, status_pb2

from lab.rehearsal import functions, wire
from lab.rehearsal.cloud import Record, RefusedError
from lab.rehearsal.difference import without
from lab.rehearsal.operations import BegunError, Operations
from lab.rehearsal.sdk import sdk_version
from vllm_fleet.base.errors import FleetError

_DETAILS = "grpc-status-details-bin"


class Provider:
    """One plugin. Its methods are the calls of the engine that it answers; :data:`CALLS` names them."""

    def __init__(self, operations: Operations) -> None:
        self._do = operations

    def attach(self, _request: Any, _context: Any) -> Any:
        """The engine introduces itself."""
        return empty_pb2.Empty()

    def handshake(self, _request: Any, _context: Any) -> Any:
        """The engine starts a run."""
        self._do.stopped.clear()
        return provider_pb2.ProviderHandshakeResponse()

    def info(self, _request: Any, _context: Any) -> Any:
        """The version that a plugin of this SDK has."""
        return plugin_pb2.PluginInfo(version=sdk_version(self._do.plugin))

    def check_config(self, request: Any, _context: Any) -> Any:
        """Takes every configuration."""
        return provider_pb2.CheckResponse(inputs=request.news)

    def diff_config(self, request: Any, _context: Any) -> Any:
        """A provider of another region or project would be another one."""
        olds, news = wire.plain(request.old_inputs or request.olds), wire.plain(request.news)
        replaces = [path for path in wire.changed(olds, news) if path in ("region", "project", "location")]
        return provider_pb2.DiffResponse(
            replaces=replaces,
            changes=provider_pb2.DiffResponse.DIFF_SOME if replaces else provider_pb2.DiffResponse.DIFF_NONE,
        )

    def configure(self, request: Any, _context: Any) -> Any:
        """Takes region, project and similar keys; secrets come in plain, and the engine keeps them secret."""
        self._do.config = wire.plain(request.args)
        self._refuse_account()
        self._do.stopped.clear()
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def _refuse_account(self) -> None:
        """Ends the run with credentials of another account than the program allows.

        Source: hashicorp/terraform-provider-aws#32352 has the message.

        Raises:
            RefusedError: they are.
        """
        mine = self._do.cloud.account.ids.get("aws")
        # The SDK sends lists of a provider as JSON.
        allowed = json.loads(str(self._do.config.get("allowedAccountIds") or "[]"))
        if mine and allowed and mine not in allowed:
            raise RefusedError(f"AWS account ID not allowed: {mine}")

    def check(self, request: Any, _context: Any) -> Any:
        """The errors in the form of the inputs."""
        try:
            errors = self._do.check(_type(request.urn), wire.plain(request.news))
        except RefusedError as fault:
            errors = [("", str(fault))]
        failures = [provider_pb2.CheckFailure(property=path, reason=f"{path} {reason}") for path, reason in errors]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def diff(self, request: Any, _context: Any) -> Any:
        """The effect of a change: none, an update, or a replacement."""
        token = _type(request.urn)
        state, olds, news = (wire.plain(bag) for bag in (request.olds, request.old_inputs, request.news))
        ignored = [wire.plain_path(path) for path in request.ignoreChanges]
        found = without(self._do.differences(token, state, olds, news), ignored)
        update, replace = provider_pb2.PropertyDiff.UPDATE, provider_pb2.PropertyDiff.UPDATE_REPLACE
        details = {
            _engine_path(item.path): provider_pb2.PropertyDiff(
                kind=replace if item.replaces else update, inputDiff=item.given
            )
            for item in found
        }
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if found else provider_pb2.DiffResponse.DIFF_NONE,
            replaces=[item.path.split(".")[0] for item in found if item.replaces],
            diffs=sorted({item.path.split(".")[0] for item in found}),
            detailedDiff=details,
            hasDetailedDiff=True,
            # Two resources cannot have the same name.
            deleteBeforeReplace=self._do.takes_its_name(token),
        )

    def create(self, request: Any, context: Any) -> Any:
        """Creates a resource; in a preview, returns its outputs."""
        token, inputs = _type(request.urn), wire.plain(request.properties)
        if request.preview:
            return provider_pb2.CreateResponse(properties=wire.bag(self._do.preview(token, inputs)))
        try:
            record = self._do.create(token, _name(request.urn), inputs)
        except BegunError as begun:
            _begun(context, begun)
        return provider_pb2.CreateResponse(id=record.id, properties=wire.bag(record.outputs))

    def read(self, request: Any, _context: Any) -> Any:
        """The current state of a resource."""
        record = self._do.read(_type(request.urn), request.id)
        if record is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(
            id=record.id, properties=wire.bag(record.outputs), inputs=wire.bag(record.inputs)
        )

    def update(self, request: Any, _context: Any) -> Any:
        """Updates a resource; in a preview, returns its outputs."""
        token, news = _type(request.urn), wire.plain(request.news)
        if request.preview:
            return provider_pb2.UpdateResponse(properties=wire.bag({**wire.plain(request.olds), **news}))
        olds = wire.plain(request.old_inputs)
        return provider_pb2.UpdateResponse(properties=wire.bag(self._do.update(token, request.id, olds, news).outputs))

    def delete(self, request: Any, _context: Any) -> Any:
        """Deletes a resource."""
        self._do.delete(_type(request.urn), request.id)
        return empty_pb2.Empty()

    def invoke(self, request: Any, _context: Any) -> Any:
        """Calls a function of the cloud."""
        project = str(self._do.config.get("project", ""))
        arguments = wire.plain(request.args)
        answer = functions.answer(self._do.table, self._do.cloud, request.tok, arguments, project)
        return provider_pb2.InvokeResponse(**{"return": wire.bag(answer)})

    def cancel(self, _request: Any, _context: Any) -> Any:
        """The engine cancels running operations."""
        self._do.stopped.set()
        return empty_pb2.Empty()


#: Call of the engine -> method, request and response.
CALLS: Mapping[str, tuple[str, Any, Any]] = {
    "Attach": ("attach", plugin_pb2.PluginAttach, empty_pb2.Empty),
    "Handshake": ("handshake", provider_pb2.ProviderHandshakeRequest, provider_pb2.ProviderHandshakeResponse),
    "GetPluginInfo": ("info", empty_pb2.Empty, plugin_pb2.PluginInfo),
    "CheckConfig": ("check_config", provider_pb2.CheckRequest, provider_pb2.CheckResponse),
    "DiffConfig": ("diff_config", provider_pb2.DiffRequest, provider_pb2.DiffResponse),
    "Configure": ("configure", provider_pb2.ConfigureRequest, provider_pb2.ConfigureResponse),
    "Check": ("check", provider_pb2.CheckRequest, provider_pb2.CheckResponse),
    "Diff": ("diff", provider_pb2.DiffRequest, provider_pb2.DiffResponse),
    "Create": ("create", provider_pb2.CreateRequest, provider_pb2.CreateResponse),
    "Read": ("read", provider_pb2.ReadRequest, provider_pb2.ReadResponse),
    "Update": ("update", provider_pb2.UpdateRequest, provider_pb2.UpdateResponse),
    "Delete": ("delete", provider_pb2.DeleteRequest, empty_pb2.Empty),
    "Invoke": ("invoke", provider_pb2.InvokeRequest, provider_pb2.InvokeResponse),
    "Cancel": ("cancel", empty_pb2.Empty, empty_pb2.Empty),
}


def handler(operations: Operations) -> Any:
    """The gRPC handler of one plugin."""
    provider = Provider(operations)
    methods = {
        call: grpc.unary_unary_rpc_method_handler(
            _report_refusals(getattr(provider, method)),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
        for call, (method, request, response) in CALLS.items()
    }
    return grpc.method_handlers_generic_handler("pulumirpc.ResourceProvider", methods)


def _report_refusals(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wraps a call: its errors return to the engine as messages."""

    def answer(request: Any, context: Any) -> Any:
        try:
            return call(request, context)
        except (RefusedError, FleetError) as fault:
            context.abort(grpc.StatusCode.UNKNOWN, str(fault))

    return answer


def _begun(context: Any, begun: BegunError) -> NoReturn:
    """Reports that a resource exists and is not ready, so that the engine keeps it in the state."""
    detail = any_pb2.Any()
    record: Record = begun.record
    detail.Pack(
        provider_pb2.ErrorResourceInitFailed(
            id=record.id,
            properties=wire.bag(record.outputs),
            inputs=wire.bag(record.inputs),
            reasons=[str(begun)],
        )
    )
    status = status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(begun), details=[detail])
    context.set_trailing_metadata(((_DETAILS, status.SerializeToString()),))
    context.abort(grpc.StatusCode.UNKNOWN, str(begun))
    raise AssertionError("a call continues after its abort")


def _type(urn: str) -> str:
    return urn.split("::")[2].rsplit("$", 1)[-1]


def _name(urn: str) -> str:
    return urn.split("::", 3)[3]


def _engine_path(path: str) -> str:
    """A path as the engine writes it: ``a[0].b``, names with other characters in quotes."""
    written = ""
    for part in path.split("."):
        if part.isdigit():
            written += f"[{part}]"
        elif part.replace("_", "").isalnum():
            written += f".{part}" if written else part
        else:
            written += f"[{json.dumps(part)}]"
    return written
