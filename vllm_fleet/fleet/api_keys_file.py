"""The text of ``api-keys.yml``: owner -> digest of a key that the gateway accepts."""

from __future__ import annotations

import yaml


class _Quoted(str):
    """Text that YAML writes in quotes."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes quoted text too."""


_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"')
)


def api_keys_text(owner: str, digest: str) -> str:
    """A file with one key.

    Args:
        owner: who has the key.
        digest: ``sha256:`` and the digest of the key in hexadecimal digits.
    """
    return str(yaml.dump({"keys": {owner: _Quoted(digest)}}, Dumper=_Dumper, width=4096))
