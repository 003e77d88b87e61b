"""The strict records of a fleet: ``fleet.yml`` (To-Be), ``api-keys.yml`` and ``stack.json`` (As-Is)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vllm_fleet.schema.cloud import Prices
from vllm_fleet.schema.driver import DriverMode, RepositoryMirror
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.recipe import (
    Affinity,
    Args,
    Cloud,
    Digest,
    Env,
    Feature,
    Install,
    Machine,
    Name,
    Network,
    Profile,
    Strict,
)


class Overrides(Strict):
    """A fleet's own values for one pool, with their reason."""

    args: Args = {}
    env: Env = {}
    why: str = Field(min_length=10)


class StaticHost(Strict):
    """A host that exists already."""

    address: str
    port: int = Field(default=22, gt=0, lt=65536)
    ssh_host_key: str = Field(pattern=r"^(ssh-ed25519|ecdsa-sha2-\S+|ssh-rsa) \S+")
    user: str | None = None


class Pool(Strict):
    """Hosts of one class that serve one model with one profile."""

    host_class: str
    cloud: Cloud
    placement: dict[str, Any] = {}
    hosts: int | None = Field(default=None, ge=0)
    static: dict[Name, StaticHost] = {}
    model: str | None = None
    profile: Profile | None = None
    engine: str | None = None
    install: Install | None = None
    features: list[Feature] = []
    overrides: Overrides | None = None
    #: Who brings the GPU driver. None: ``verified`` on rented hosts, whose images bring one, ``managed`` on others.
    driver: DriverMode | None = None

    @model_validator(mode="after")
    def _one_kind_of_hosts(self) -> Pool:
        if self.cloud == "static" and not self.static:
            raise ValueError("a static pool lists its hosts under 'static'")
        if self.cloud != "static" and (self.static or self.hosts is None):
            raise ValueError(f"a pool in {self.cloud!r} gives 'hosts', a number, and no 'static'")
        return self


class Tls(Strict):
    """TLS at the gateway: a PEM file with certificate chain and key, relative to the fleet's folder."""

    certificate_file: str


class Gateway(Strict):
    """The hosts that clients talk to."""

    #: What their names begin with; another one where two fleets are in one inventory.
    name: Name = "gateway"
    hosts: int | None = Field(default=None, ge=0)
    static: dict[Name, StaticHost] = {}
    cloud: Cloud | None = None
    placement: dict[str, Any] = {}
    affinity: Affinity = "none"
    port: int = Field(default=8080, gt=0, lt=65536)
    tls: Tls | None = None
    #: name -> ``sha256:<hex>`` of each key that may ask; relative to the fleet's folder.
    api_keys_file: str = "api-keys.yml"


class Access(Strict):
    """Who may reach the hosts, and how Ansible does."""

    ssh_from: list[Network] = []
    api_from: list[Network] = []
    ssh_user: str | None = None
    #: The networks of several clouds or regions are joined by means of your own, so gateways reach all of them.
    joined_networks: bool = False
    #: How the controller reaches hosts without a public address: through a gateway of their network, or straight, from
    #: inside (VPN, peering, a controller in the same network).
    ssh_through: Literal["gateway", "direct"] = "gateway"
    #: Private key, relative to the fleet's folder; without it ssh's own configuration and agent decide.
    ssh_private_key_file: str | None = None
    #: Public keys that may log in, ``type base64``. None: the stack makes a key, in ``ssh/id_ed25519``.
    ssh_authorised_keys: list[Annotated[str, Field(pattern=r"^(ssh-|ecdsa-|sk-)\S+ \S+$")]] = []
    #: ``generated``: the stack makes one key and writes its digest; ``file``: ``gateway.api_keys_file`` is yours.
    api_keys: Literal["generated", "file"] = "generated"
    #: Whether a run may restart a host, drained first, where a driver needs it; also ``-e fleet_reboot=true``.
    reboot: bool = False


class Defaults(Strict):
    """Values for pools that do not give their own."""

    model: str | None = None
    profile: Profile = "balanced"


class Artifacts(Strict):
    """Copies on the controller; ``{cache}`` stands for the project's cache folder."""

    models: dict[str, str] = {}
    encodings: str | None = None
    #: Engine id -> a lock of your own; ``{machine}`` stands for x86_64 or aarch64. tools.locks makes it.
    locks: dict[str, str] = {}
    #: Repository of ``recipes/drivers.yml`` -> the fleet's own copy of it.
    repositories: dict[str, RepositoryMirror] = {}
    #: Engine -> digest of its image: of a list of platforms, or of the platform of each kind of machine.
    images: dict[str, Digest | dict[Machine, Digest]] = {}


class Fleet(Strict):
    """``inventories/<fleet>/fleet.yml``: the To-Be of one fleet."""

    fleet: Name
    defaults: Defaults = Defaults()
    pools: dict[Name, Pool] = Field(min_length=1)
    gateway: Gateway = Gateway(hosts=0)
    access: Access = Access()
    artifacts: Artifacts = Artifacts()
    mirror: Mirror = Mirror()
    #: Rented hosts and volumes cannot be deleted or replaced until this is false.
    protect: bool = True
    prices: Prices | None = None


class ApiKeys(Strict):
    """``api-keys.yml``: the digests of the keys that the gateway takes, by the name of their owner."""

    keys: dict[Name, Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]]


class StackHost(Strict):
    """One host as the stack made it."""

    address: str
    #: Where the other hosts of the fleet reach it; the same as ``address`` unless given.
    private_address: str | None = None
    id: str
    user: str
    ssh_host_key: str = Field(pattern=r"^\S+ \S+")
    zone: str


class Stack(Strict):
    """``stack.json``, version 1."""

    version: Literal[1]
    fleet: Name
    hosts: dict[Name, StackHost]
