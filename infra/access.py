"""The keys for a fleet's hosts and its gateway, as resources of the stack and files in the fleet's folder."""

from __future__ import annotations

from pathlib import Path

import pulumi

from infra.files import Content, TextFile
from infra.keys import ApiKey, SshKeyPair
from vllm_fleet.fleet import api_keys_edit, api_keys_file
from vllm_fleet.fleet.plan import Plan


class AccessKeys(pulumi.ComponentResource):
    """A deploy key, unless the fleet names SSH keys, and an API key, unless the fleet manages its API keys itself.

    Attributes:
        authorised_keys: the content of a host's ``authorized_keys``, one key a line.
    """

    authorised_keys: pulumi.Output[str]

    def __init__(self, name: str, plan: Plan, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("fleet:infra:AccessKeys", name, None, opts)
        mine = pulumi.ResourceOptions(parent=self)
        if plan.access.ssh_authorised_keys:
            self.authorised_keys = pulumi.Output.from_input("\n".join(plan.access.ssh_authorised_keys))
        else:
            deploy = SshKeyPair(f"{plan.fleet}-deploy-key", mine)
            self.authorised_keys = deploy.public_key
            file = Path(plan.fleet, "ssh", "id_ed25519")
            TextFile(f"{plan.fleet}-ssh-id_ed25519", file, Content(deploy.private_key, 0o600), mine)
        if plan.access.api_keys == "generated":
            api_key = ApiKey(f"{plan.fleet}-api-key", mine)
            # Others add owners of their own to the file, and this run keeps them.
            before = api_keys_file.read_if_there(plan.directory / api_keys_file.DEFAULT_FILE)
            digests = api_key.digest.apply(lambda digest: api_keys_edit.with_key_of_stack(before, plan.fleet, digest))
            TextFile(f"{plan.fleet}-api-key", Path(plan.fleet, "api-key"), Content(api_key.key, 0o600), mine)
            TextFile(f"{plan.fleet}-api-keys.yml", Path(plan.fleet, "api-keys.yml"), Content(digests, 0o644), mine)
        self.register_outputs({"authorised_keys": self.authorised_keys})
