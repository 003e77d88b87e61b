"""The strict records of a fleet: ``fleet.yml`` (To-Be) and ``stack.json`` (As-Is)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vllm_fleet.base.addresses import HostAddress
from vllm_fleet.base.field_types import (
    MOST_GATEWAYS,
    MOST_HOSTS,
    GatewayMembers,
    HostMembers,
    SshPublicKey,
    User,
)
from vllm_fleet.base.text_form import Form
from vllm_fleet.schema.account import Account
from vllm_fleet.schema.acme import LETS_ENCRYPT, LETS_ENCRYPT_GATEWAYS, Tls
from vllm_fleet.schema.capacity_block import CapacityBlock
from vllm_fleet.schema.cloud import Prices
from vllm_fleet.schema.driver import DriverMode, RepositoryMirror
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.model_source import ModelSource
from vllm_fleet.schema.proxy import Proxy
from vllm_fleet.schema.recipe import (
    Affinity,
    Args,
    Cloud,
    Digest,
    Env,
    Feature,
    Install,
    Line,
    Machine,
    Name,
    Network,
    Port,
    Profile,
    Strict,
)
from vllm_fleet.schema.rollout import Rollout
from vllm_fleet.schema.virtual_address import VirtualAddress

#: A name that clients write as a model. No space and no quote: it is part of the gateways' rules.
ServedName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}$")]


#: The origin of a page, as browsers send it (RFC 6454).
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?$")]


class Overrides(Strict):
    """A fleet's own values for one pool, with their reason."""

    args: Args = Field(
        default={}, description="Arguments of 'vllm serve' without the leading dashes; null removes one of the recipe."
    )
    env: Env = Field(default={}, description="Environment variables, as strings; null removes one of the recipe.")
    why: str = Field(min_length=10, description="Why the recipe's values do not fit here.")


def count(hosts: int | list[str] | None) -> int:
    """How many hosts a number, or a list of names, means."""
    return len(hosts) if isinstance(hosts, list) else hosts or 0


def size_fault(hosts: int, gateways: int) -> str | None:
    """Why a fleet cannot have so many serving hosts and gateways; None: it can."""
    if hosts > MOST_HOSTS:
        return f"has {hosts} hosts: docs/performance.md measures {MOST_HOSTS}; split it into several fleets"
    if gateways > MOST_GATEWAYS:
        return f"has {gateways} gateways, and a fleet has at most {MOST_GATEWAYS}: each host's firewall names them"
    return None


#: No option of ``ssh``, no word of a shell.
_SSH_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:%-]*$"
_PUBLIC_KEY = Form(r"(ssh-|ecdsa-|sk-)\S+ \S+", "a public key", "write it as 'type base64', without its comment")
_SSH_USER = r"^[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?$"


class StaticHost(Strict):
    """A host that exists already."""

    address: HostAddress = Field(
        description="IPv4 address, IPv6 address or DNS name at which the controller reaches the host by SSH."
    )
    port: Port = Field(default=22, description="Port of its SSH server.")
    ssh_host_key: SshPublicKey | None = Field(
        default=None,
        description="Its public SSH host key: 'type base64'. Only hosts with a certificate of "
        "access.ssh_host_authorities need none.",
    )
    user: User | None = Field(default=None, description="Who logs in. Default: access.ssh_user.")
    private_address: HostAddress | None = Field(
        default=None,
        description="Address of one of its interfaces, at which other hosts of the fleet reach it. Default: address.",
    )
    ssh_alias: str | None = Field(
        default=None,
        pattern=_SSH_NAME,
        description="The host's name in ssh's configuration, whose HostName, ProxyCommand and keys ssh then uses. "
        "Default: address.",
    )


class Pool(Strict):
    """Hosts of one class that serve one model with one profile."""

    host_class: Line = Field(
        description="The kind of host and its number of devices, such as h100-8; 'vllm-fleet matrix' lists them."
    )
    cloud: Cloud = Field(description="Where the hosts come from; 'static' for hosts that exist already.")
    placement: dict[str, Any] = Field(
        default={}, description="Where in the cloud the hosts are, and how they are rented."
    )
    hosts: HostMembers | None = Field(
        default=None,
        description="The number of hosts, which are then called POOL-0, POOL-1 and so on, or a list of their names. "
        "With names, one in the middle can be retired. Static pools list their hosts under 'static'.",
    )
    static: dict[Name, StaticHost] = Field(default={}, description="The hosts of a static pool, by name.")
    model: Line | None = Field(default=None, description="The model to serve. Default: defaults.model.")
    profile: Profile | None = Field(
        default=None, description="What the recipe optimises for. Default: defaults.profile."
    )
    engine: Line | None = Field(
        default=None, description="The engine of recipes/engines. Default: the newest verified one for the class."
    )
    install: Install | None = Field(
        default=None,
        description="Whether the engine is installed as wheels or as an image. Default: the engine's first.",
    )
    features: list[Feature] = Field(default=[], description="What the hosts must be good at besides plain serving.")
    overrides: Overrides | None = Field(default=None, description="Values that override the recipe.")
    served_model_names: list[ServedName] = Field(
        default=[],
        description="The names under which clients reach the pool's model at the gateways. Default: the model's own. "
        "Pools with the same names share their traffic.",
    )
    driver: DriverMode | None = Field(
        default=None,
        description="Who installs the GPU driver: the project ('managed') or the image ('verified'). "
        "Default: 'verified' on rented hosts, 'managed' on others.",
    )

    @model_validator(mode="after")
    def _one_kind_of_hosts(self) -> Pool:
        if self.cloud == "static" and not self.static:
            raise ValueError("a static pool lists its hosts under 'static'")
        if self.cloud != "static" and (self.static or self.hosts is None):
            raise ValueError(f"a pool in {self.cloud!r} gives 'hosts', a number or names, and no 'static'")
        return self


class Gateway(Strict):
    """The hosts that clients talk to."""

    name: Name = Field(
        default="gateway",
        description="What the names of the gateways begin with. Two fleets in one inventory need different ones.",
    )
    hosts: GatewayMembers | None = Field(
        default=None, description="The number of gateways, which are then called NAME-0 and so on, or their names."
    )
    static: dict[Name, StaticHost] = Field(default={}, description="Gateways that exist already, by name.")
    cloud: Cloud | None = Field(default=None, description="Default: the cloud of the first pool.")
    placement: dict[str, Any] = Field(default={}, description="What differs from the placement of the first pool.")
    affinity: Affinity = Field(
        default="none",
        description="'session' sends the requests of a session to the same instance, whose cache has their beginning. "
        "X-Session-ID names the session, else prompt_cache_key, else user. 'conversation': where a request names none, "
        "its messages up to the first one of the user do.",
    )
    responses_store: bool = Field(
        default=False,
        description="True: instances keep responses, so that previous_response_id, background and GET of a response "
        "work until the instance restarts. vLLM never removes one: see rollout.restarted.",
    )
    max_body_mib: int = Field(
        default=16, ge=1, le=64, description="The longest body of a request that is taken, in MiB."
    )
    cors_origins: list[Origin] = Field(
        default=[], description="Origins whose pages may use the API in a browser, such as https://chat.example.com."
    )
    balancer_seconds: int = Field(
        default=0,
        ge=0,
        le=600,
        description="How long a load balancer before the gateways may take to see that a gateway leaves. A gateway "
        "that must restart answers 503 at /healthz for this time before.",
    )
    queue_seconds: int = Field(
        default=60, ge=1, le=3600, description="How long a request waits for a place on a server before it gets a 503."
    )
    port: Port = Field(default=8080, description="Port of the API.")
    tls: Tls | None = Field(
        default=None, description="Default: the API is served without TLS, at private addresses only."
    )
    plain: bool = Field(
        default=False,
        description="True: the API is served without TLS at public addresses too, where everyone on the way can read "
        "the API keys. For gateways behind a load balancer that ends TLS.",
    )
    virtual_address: VirtualAddress | None = Field(
        default=None,
        description="An address for clients that gateways of your own share; one that fails gives it to another one.",
    )
    api_keys_file: Line = Field(
        default="api-keys.yml",
        description="File with the digests of the API keys and their limits, relative to the fleet's folder: "
        "docs/api-keys.md. 'vllm-fleet key' writes it.",
    )

    @field_validator("affinity", mode="before")
    @classmethod
    def _is_not_prefix(cls, value: Any) -> Any:
        if value == "prefix":
            raise ValueError(
                "is 'prefix', which sent 45 % of the turns of a session back to their instance: write 'session', or "
                "'conversation' for clients that name no session"
            )
        return value

    @model_validator(mode="after")
    def _tls_or_plain(self) -> Gateway:
        if self.tls and self.plain:
            raise ValueError("is either with 'tls' or 'plain'")
        acme = self.tls.acme if self.tls else None
        gateways = count(self.hosts) + len(self.static)
        if acme and acme.directory == LETS_ENCRYPT and gateways > LETS_ENCRYPT_GATEWAYS:
            raise ValueError(
                f"has {gateways} gateways, each with a certificate of its own, and Let's Encrypt signs 5 with the same "
                f"names in a week: have at most {LETS_ENCRYPT_GATEWAYS}, give another 'directory' or 'certificate_file'"
            )
        return self


class Bastion(Strict):
    """A host that SSH passes through on its way to the hosts of a fleet."""

    address: HostAddress = Field(description="Name or address at which the controller reaches the bastion.")
    port: Port = Field(default=22, description="Port of its SSH server.")
    user: str | None = Field(
        default=None, pattern=_SSH_USER, description="Who logs in there. Default: access.ssh_user, or root."
    )
    ssh_host_key: SshPublicKey = Field(description="Its public SSH host key: 'type base64'.")


class Access(Strict):
    """Who may reach the hosts, and how Ansible does."""

    ssh_from: list[Network] = Field(default=[], description="Networks that may open SSH, in CIDR form.")
    api_from: list[Network] = Field(default=[], description="Networks that may open the API, in CIDR form.")
    engine_to: list[Network] = Field(
        default=[],
        description="Networks that vLLM may connect to besides the gateways, such as those of a trace collector or a "
        "tool server, in CIDR form. A firewall on the hosts refuses all others.",
    )
    ssh_user: User | None = Field(
        default=None, description="Who logs in. Default: root, or the user of the cloud's image."
    )
    joined_networks: bool = Field(
        default=False,
        description="True: you have joined the networks of several clouds or regions, so gateways reach all of them.",
    )
    ssh_through: Literal["gateway", "direct"] = Field(
        default="gateway",
        description="How the controller reaches hosts without a public address: through a gateway of their network, or "
        "directly from inside (VPN, peering, a controller in the same network).",
    )
    bastion: Bastion | None = Field(
        default=None,
        description="The host through which the controller reaches every host of the fleet. It resolves their names.",
    )
    ssh_private_key_file: Line | None = Field(
        default=None,
        description="Private key, relative to the fleet's folder. Default: ssh's own configuration and agent.",
    )
    ssh_config_file: Line | None = Field(
        default=None,
        description="Configuration of ssh, relative to the fleet's folder, in place of the user's and the system's. "
        "Default: ~/.ssh/config and /etc/ssh/ssh_config.",
    )
    ssh_host_authorities: list[SshPublicKey] = Field(
        default=[],
        description="Public keys of the certificate authorities whose host certificates are accepted: 'type base64'. "
        "A certificate must name the host's address.",
    )
    ssh_authorised_keys: list[Annotated[str, _PUBLIC_KEY]] = Field(
        default=[],
        description="Public keys that may log in: 'type base64'. Default: the stack makes a key, in ssh/id_ed25519.",
    )
    api_keys: Literal["generated", "file"] = Field(
        default="generated",
        description="'generated': the stack makes one and writes its digest; 'vllm-fleet key' adds others. 'file': the "
        "stack makes none.",
    )
    reboot: bool = Field(
        default=False,
        description="Whether a run may drain and restart a host where a driver needs it; also -e fleet_reboot=true.",
    )


class Defaults(Strict):
    """Values for pools that do not give their own."""

    model: Line | None = Field(default=None, description="The model to serve, such as openai/gpt-oss-120b.")
    profile: Profile = Field(default="balanced", description="What the recipe optimises for.")


class Artifacts(Strict):
    """Where artifacts come from; in paths on the controller ``{cache}`` is the project's cache folder."""

    models: dict[Line, ModelSource] = Field(
        default={}, description="Model -> where it comes from; text is a folder with its files on the controller."
    )
    encodings: Line | None = Field(default=None, description="Folder with the vocabularies on the controller.")
    locks: dict[Line, Line] = Field(
        default={},
        description="Engine -> a lock of your own, made by tools.locks; {machine} is x86_64 or aarch64.",
    )
    repositories: dict[str, RepositoryMirror] = Field(
        default={}, description="Repository of recipes/drivers.yml -> your own copy of it."
    )
    images: dict[str, Digest | dict[Machine, Digest]] = Field(
        default={},
        description="Engine -> digest of its image: of a list of platforms, or one for each kind of machine.",
    )


class RegionWorker(Strict):
    """The machine in a region that works on its hosts."""

    address: HostAddress = Field(description="Name or address at which the controller reaches the worker.")
    port: Port = Field(default=22, description="Port of its SSH server.")
    user: User | None = Field(default=None, description="Who logs in. Default: access.ssh_user, or root.")
    ssh_host_key: SshPublicKey = Field(description="Its public SSH host key: 'type base64'.")
    pools: list[Name] = Field(min_length=1, description="The pools of the region. Each pool is in one region.")
    python: str | None = Field(
        default=None,
        pattern=r"^(/[A-Za-z0-9._+-]+)+$",
        description="Path of a Python there that has the locked packages. Default: that of playbooks/workers.yml.",
    )


class Fleet(Strict):
    """``inventories/<fleet>/fleet.yml``: the To-Be of one fleet."""

    fleet: Name = Field(description="The name of the fleet, which is the name of its folder.")
    defaults: Defaults = Field(default_factory=Defaults, description="Model and profile of the pools that name none.")
    pools: dict[Name, Pool] = Field(min_length=1, description="The hosts that serve, in groups that are alike.")
    gateway: Gateway = Field(
        default_factory=lambda: Gateway(hosts=0), description="The hosts that clients talk to. Default: none."
    )
    access: Access = Field(
        default_factory=Access, description="Who may reach the hosts and the API, and how Ansible reaches the hosts."
    )
    artifacts: Artifacts = Field(
        default_factory=Artifacts, description="Copies on the controller that replace downloads."
    )
    mirror: Mirror = Field(
        default_factory=Mirror, description="Where the hosts download from. Default: from the origins."
    )
    proxy: Proxy | None = Field(
        default=None, description="The HTTP proxy through which the hosts download. Default: they connect directly."
    )
    rollout: Rollout = Field(
        default_factory=Rollout, description="The steps of a change. Default: one host, three, a quarter, all."
    )
    workers: dict[Name, RegionWorker] = Field(
        default={},
        description="Region -> the machine through which 'vllm-fleet rollout' works on its hosts. The first region is "
        "rolled out first. Default: the controller works on all hosts.",
    )
    protect: bool = Field(
        default=True, description="Rented hosts and volumes cannot be deleted or replaced until this is false."
    )
    prices: Prices | None = Field(default=None, description="Your own price list for 'vllm-fleet plan'.")
    account: Account = Field(
        default_factory=Account,
        description="The accounts that the stack may work in: with credentials of another one it stops before it reads "
        "or makes anything.",
    )
    tags: dict[Line, Line] = Field(
        default={},
        description="Your own tags, or labels, of everything that the stack makes: key -> value. Each cloud of the "
        "fleet must take them.",
    )

    @model_validator(mode="after")
    def _is_measured(self) -> Fleet:
        hosts = sum(len(pool.static) or count(pool.hosts) for pool in self.pools.values())
        if fault := size_fault(hosts, len(self.gateway.static) or count(self.gateway.hosts)):
            raise ValueError(fault)
        return self


class StackHost(Strict):
    """One host as the stack made it."""

    address: HostAddress
    #: Where the other hosts of the fleet reach it; the same as ``address`` unless given.
    private_address: HostAddress | None = None
    id: Line
    user: User
    ssh_host_key: SshPublicKey
    zone: Line
    #: The network that it stands in, by the name that errors give it; a file of an earlier release has none.
    network: Line | None = None
    #: What the cloud calls its disk for models; None for a host without one.
    model_volume: Line | None = None


class Stack(Strict):
    """``stack.json``, version 1."""

    version: Literal[1]
    fleet: Name
    hosts: dict[Name, StackHost]
    #: Network -> its range, None where the cloud chose it. A file of an earlier release has none.
    networks: dict[Line, Line | None] = {}
    #: Pool -> the capacity block that the stack bought for it last.
    blocks: dict[Name, CapacityBlock] = {}

    @model_validator(mode="before")
    @classmethod
    def _is_of_a_fleet(cls, data: Any) -> Any:
        """Before the hosts are read: a file of any size is refused at once."""
        hosts = data.get("hosts") if isinstance(data, dict) else None
        most = MOST_HOSTS + MOST_GATEWAYS
        if isinstance(hosts, dict) and len(hosts) > most:
            raise ValueError(f"has {len(hosts)} hosts, and a fleet has at most {most}")
        return data
