"""SSH key pairs and API keys of a stack, generated once; their private parts are secrets of the state."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import dynamic


class SshKeyPairProvider(dynamic.ResourceProvider):
    """Generates an ed25519 key once."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:  # noqa: ARG002 - the engine's signature
        """Generates the key."""
        from vllm_fleet.edge import keys

        private, public = keys.ssh_key_pair()
        return dynamic.CreateResult(public.split()[1][-12:], {"private_key": private, "public_key": public})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Reports no changes."""
        return dynamic.DiffResult(changes=False)


class ApiKeyProvider(dynamic.ResourceProvider):
    """Generates a random API key once."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:  # noqa: ARG002 - the engine's signature
        """Generates the key."""
        from vllm_fleet.edge import keys

        key = keys.api_key()
        return dynamic.CreateResult(keys.digest(key)[-12:], {"key": key, "digest": keys.digest(key)})

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Reports no changes."""
        return dynamic.DiffResult(changes=False)


class SshKeyPair(dynamic.Resource, module="fleet", name="SshKeyPair"):
    """An ed25519 key; the private part is a secret of the stack."""

    private_key: pulumi.Output[str]
    public_key: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["private_key"])
        props = {"private_key": None, "public_key": None}
        super().__init__(SshKeyPairProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class ApiKey(dynamic.Resource, module="fleet", name="ApiKey"):
    """An API key, a secret of the stack, with its digest for ``api-keys.yml``."""

    key: pulumi.Output[str]
    digest: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key"])
        props = {"key": None, "digest": None}
        super().__init__(ApiKeyProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))
