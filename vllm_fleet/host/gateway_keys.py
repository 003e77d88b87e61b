"""API keys of a fleet -> the map that its gateways look them up in."""

from __future__ import annotations

from vllm_fleet.schema.api_keys import ApiKeys, KeyRecord, end_seconds


def key_map_text(keys: ApiKeys) -> str:
    """The map of HAProxy, one line for each digest; no host has the keys themselves.

    A line is the SHA-256 in hexadecimal digits, a blank and, separated by colons: the owner, the end in seconds since
    1970, requests per second, requests in flight, tokens per minute, priority and scope. A 0 is no end or no limit. An
    expired key stays in it: the gateway says that its time is over.
    """
    lines: dict[str, str] = {}
    for owner, record in keys.records.items():
        for each in record.dated_digests:
            # The first owner counts, where two have one key.
            lines.setdefault(each.digest.removeprefix("sha256:"), _value(owner, each.ends, record))
    return "".join(f"{digest} {value}\n" for digest, value in sorted(lines.items()))


def _value(owner: str, ends: str | None, record: KeyRecord) -> str:
    limits = (record.requests_per_second, record.in_flight, record.tokens_per_minute)
    parts = (owner, end_seconds(ends) if ends else 0, *(limit or 0 for limit in limits), record.priority, record.scope)
    return ":".join(map(str, parts))
