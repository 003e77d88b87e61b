"""The gateway's own answers, in the form of the OpenAI API: its clients parse every answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Status -> what HAProxy itself has to say.
OWN_ERRORS = {
    400: "The request is not valid HTTP.",
    408: "The request took too long to arrive.",
    500: "The gateway failed.",
    502: "The server failed before it answered.",
    503: "No server is ready for this model, or the queue is full. Try again.",
    504: "The server did not answer in time.",
}
#: Clients read how long to wait from this header; the text is for people.
_RETRY = "hdr Retry-After 1"


def error(status: int, message: str, code: str | None = None, param: str | None = None) -> str:
    """An error as HAProxy's ``return`` and ``http-error`` take it.

    ``Error`` in openai/openai-openapi requires all four keys.

    Args:
        status: the HTTP status.
        message: what is wrong, for people.
        code: what is wrong, for programs; None: the API has no code for it.
        param: the key of the request that is wrong; None: none of them.
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    return document(status, {"error": {"message": message, "type": kind, "param": param, "code": code}})


def own_errors() -> list[str]:
    """The lines that replace HAProxy's pages."""
    return [
        f"http-error {error(status, message)}{f' {_RETRY}' if status == 503 else ''}"
        for status, message in OWN_ERRORS.items()
    ]


def document(status: int, body: Mapping[str, Any]) -> str:
    """A JSON document as HAProxy's ``return`` takes it."""
    text = json.dumps(body, separators=(",", ":")).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'status {status} content-type application/json string "{text}"'
