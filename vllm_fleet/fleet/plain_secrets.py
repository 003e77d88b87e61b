"""Secrets in plain in ``fleet.yml``, which is kept in a repository: by the name of a key, or by the form of a value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_reader import Location, is_secret_name

_IN_URL = "a URL with a password"
#: What it is -> the form in which its issuer hands it out. Source: the public rules of gitleaks (config/gitleaks.toml),
#: which those of GitLab and others are made from.
FORMS: dict[str, re.Pattern[str]] = {
    "an access key of AWS": re.compile(r"\b(AKIA|ASIA)[A-Z2-7]{16}\b"),
    "a private key": re.compile(r"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----"),
    "a token of Hugging Face": re.compile(r"\bhf_[A-Za-z0-9]{30,40}\b"),
    "a token of GitHub": re.compile(r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{82})\b"),
    "a token of GitLab": re.compile(r"\bglpat-[\w-]{20}"),
    "a key of Google": re.compile(r"\bAIza[\w-]{35}"),
    "a token of DigitalOcean": re.compile(r"\bdo[opr]_v1_[0-9a-f]{64}\b"),
    "a token of Pulumi": re.compile(r"\bpul-[0-9a-f]{40}\b"),
    "a token of Slack": re.compile(r"\bxox[abeoprs]-[\w-]{10,}"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\."),
    _IN_URL: re.compile(r"://[^/\s:@]+:[^/\s@]+@"),
}
#: Keys whose records refuse accounts in URLs themselves, and say what to write there.
_URLS = frozenset({"url", "uri", "http", "https"})
_HINT = "remove it, and hand out a new one if the file was ever shared: fleet.yml is no place for secrets"


def secret_errors(document: yaml_document.Document) -> Iterator[FleetError]:
    """Each secret of the file, by its place, and those of its comments; no error repeats one."""
    found = list(_below(document, (), document.data))
    yield from found
    told = {error.line for error in found}
    for number, line in enumerate(document.text.split("\n"), start=1):
        comment = line.partition("#")[2]
        if comment and number not in told and (what := _form(comment)):
            yield FleetError(f"contains {what} in plain, in a comment", _HINT, document.file, number)


def _below(document: yaml_document.Document, at: Location, value: Any) -> Iterator[FleetError]:
    if isinstance(value, dict):
        for key, item in value.items():
            # A secret as a key: the error names what is above it.
            if isinstance(key, str) and (what := _form(key)):
                yield document.error(at, f"contains {what} in plain", _HINT)
            else:
                yield from _below(document, (*at, key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _below(document, (*at, index), item)
    elif isinstance(value, str) and (what := _form(value)) and not (what == _IN_URL and at and at[-1] in _URLS):
        yield document.error(at, f"contains {what} in plain", _HINT)
    elif isinstance(value, str) and value and at and is_secret_name(str(at[-1])) and "overrides" not in at:
        # What overrides may contain, the recipes say: with a better hint.
        yield document.error(at, "is a secret in plain, by the name of its key", _HINT)


def _form(text: str) -> str | None:
    return next((what for what, form in FORMS.items() if form.search(text)), None)
