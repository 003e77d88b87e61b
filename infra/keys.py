"""SSH key pairs and API keys of a stack, generated once; their private parts are secrets of the state."""

from __future__ import annotations

from typing import Any

import pulumi
from pulumi import dynamic


class SshKeyPairProvider(dynamic.ResourceProvider):
    """Generates an ed25519 key once."""

    serialize_as_secret_always = False

    def create(self, props: dict[str, Any]) -> dynamic.CreateResult:
        """Generates the key."""
        from vllm_fleet.edge import keys

        private, public = keys.ssh_key_pair()
        made = {"private_key": private, "public_key": public, "fleet": props.get("fleet"), "host": props.get("host")}
        return dynamic.CreateResult(public.split()[1][-12:], made)

    def diff(self, _id: str, _olds: dict[str, Any], _news: dict[str, Any]) -> dynamic.DiffResult:
        """Reports no changes."""
        return dynamic.DiffResult(changes=False)

    def delete(self, _id: str, props: dict[str, Any]) -> None:
        """Forgets the host of the key, which was deleted before it. A key of an earlier release names no host."""
        from infra.gone import forget

        if props.get("host"):
            forget(props["fleet"], props["host"])


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
    """An ed25519 key; the private part is a secret of the stack.

    Args:
        name: the resource's name.
        opts: the options of the resource.
        host: the fleet, and the host whose key it is; None for a key of another kind.
    """

    private_key: pulumi.Output[str]
    public_key: pulumi.Output[str]

    def __init__(
        self, name: str, opts: pulumi.ResourceOptions | None = None, host: tuple[str, str] | None = None
    ) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["private_key"])
        fleet, host_name = host or (None, None)
        props = {"private_key": None, "public_key": None, "fleet": fleet, "host": host_name}
        super().__init__(SshKeyPairProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))


class ApiKey(dynamic.Resource, module="fleet", name="ApiKey"):
    """An API key, a secret of the stack, with its digest for ``api-keys.yml``."""

    key: pulumi.Output[str]
    digest: pulumi.Output[str]

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None = None) -> None:
        secret = pulumi.ResourceOptions(additional_secret_outputs=["key"])
        props = {"key": None, "digest": None}
        super().__init__(ApiKeyProvider(), name, props, pulumi.ResourceOptions.merge(opts, secret))
