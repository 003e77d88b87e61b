"""Hosts -> the text of a ``fleet.yml``: a new one, or an existing one with the hosts added and its comments kept."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError, raise_all
from vllm_fleet.base.field_types import Name
from vllm_fleet.base.foreign_text import clean_text
from vllm_fleet.catalogue.catalogue import Catalog, SizedClass
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.model_source import ModelSource

#: The models to try, in this order, for a pool without a model.
MODELS = ("openai/gpt-oss-120b", "openai/gpt-oss-20b")
#: What a new pool's model comes from: the hosts download it, so that nothing has to be done before site.yml.
DEFAULT_SOURCE = {"hub": "hosts"}
#: A line ``---`` with what is above it, but for directives, and a line ``...`` with what is below it.
_HEAD = re.compile(r"(?:[ \t]*(?:#.*)?\n)*---[ \t]*(?:#.*)?\n")
_TAIL = re.compile(r"^\.\.\.(?:[ \t].*)?(?:\n|\Z)[\s\S]*", re.MULTILINE)
_HEADER = """\
# Existing hosts, found by 'vllm-fleet init'. Other keys: docs/fleets.md and inventories/example-aws/fleet.yml.
#   vllm-fleet check --fleet {name}
#   ansible-playbook -i inventories/{name}/fleet.yml site.yml --check
fleet: {name}
# balanced, min-latency or max-throughput; a pool may have its own, as it may have its own model.
defaults: {{profile: balanced}}
pools: {{}}
artifacts:
  # Where each model comes from; docs/models.md has every source.
  models: {{}}
"""


@dataclass(frozen=True)
class Wishes:
    """What the user wants of the hosts.

    Attributes:
        models: host class -> the model that it serves; the others serve the largest that fits.
        source: where the models come from, as ``artifacts.models`` has it.
        mirror: ``mirror`` of a new fleet; empty for none.
        encodings: the folder of the vocabularies on the controller; empty: hosts download them.
    """

    models: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_SOURCE)
    mirror: Mapping[str, Any] = field(default_factory=dict)
    encodings: str = ""


@dataclass(frozen=True)
class IdentifiedHost:
    """A host whose facts were read.

    Attributes:
        address: its address.
        port: the port of its sshd.
        user: the user that Ansible logs in as.
        ssh_host_key: its public host key, ``type base64``.
        sized: its class; None for a gateway, which needs no GPU.
        says: its GPUs and its driver, for people.
        ssh_alias: its name in ssh's configuration, where the address alone is reached in another way; else empty.
        name: its name in the user's own inventory; it is kept where a fleet can have it.
        private_address: its IP address, where this machine does not resolve its name; else empty.
    """

    address: str
    port: int
    user: str
    ssh_host_key: str
    sized: SizedClass | None
    says: str = ""
    ssh_alias: str = ""
    name: str = ""
    private_address: str = ""


def fleet_text(
    name: str, hosts: Sequence[IdentifiedHost], catalog: Catalog, wishes: Wishes, access: Mapping[str, Any]
) -> str:
    """A new ``fleet.yml``.

    Args:
        name: the fleet.
        hosts: its hosts; those without a class are gateways.
        catalog: the recipes.
        wishes: what the user wants of them.
        access: how the hosts are reached, as ``fleet.yml`` has it; empty: by ssh's configuration and agent.

    Raises:
        FleetError: a class can serve no model, or not the given one.
    """
    text = _load(_HEADER.format(name=name))
    data = text.data
    if access:
        data["access"] = CommentedMap(access)
    if wishes.encodings:
        data["artifacts"]["encodings"] = wishes.encodings
    if wishes.mirror:
        data["mirror"] = CommentedMap(wishes.mirror)
    _add_hosts(data, hosts, catalog, wishes)
    return text.dump()


def add_hosts(old: str, hosts: Sequence[IdentifiedHost], catalog: Catalog, wishes: Wishes) -> str:
    """The text of a ``fleet.yml`` with more hosts. Everything else stays, comments and anchors too.

    Only blanks take one form: between a key and its value, at the ends of lines, and before the items of lists.

    Args:
        old: the present text.
        hosts: the hosts to add.
        catalog: the recipes.
        wishes: what the user wants of new pools.

    Raises:
        FleetError: as :func:`fleet_text`.
    """
    text = _load(old)
    _add_hosts(text.data, hosts, catalog, wishes)
    return text.dump()


def set_model_source(old: str, model: str, source: Mapping[str, Any]) -> str:
    """The text of a ``fleet.yml`` in which a model comes from a source. Everything else stays, the comments too.

    Args:
        old: the present text.
        model: the model.
        source: the keys of :class:`ModelSource`, such as ``{"on_host": "/data/models/gpt-oss-120b"}``.

    Raises:
        FleetError: it is not a source.
    """
    check_model_source(model, source)
    text = _load(old)
    models = text.data.setdefault("artifacts", CommentedMap()).setdefault("models", CommentedMap())
    models.fa.set_block_style()
    models[model] = _flow(source)
    return text.dump()


def check_model_source(model: str, source: Mapping[str, Any]) -> None:
    """Checks the keys of a source.

    Raises:
        FleetError: it is not a source.
    """
    try:
        yaml_document.parse(yaml_document.Document("", dict(source)), ModelSource)
    except FleetError as fault:
        hint = "docs/models.md has an example of each"
        raise_all(
            [
                FleetError(f"not a source of {model}: {f'{each.key}: ' if each.key else ''}{each.message}", hint)
                for each in (fault, *fault.others)
            ]
        )


def fitting_models(catalog: Catalog, sized: SizedClass) -> tuple[str, ...]:
    """The models that a class can serve, the one to choose first; the other models only where none of OpenAI's fits.

    Raises:
        FleetError: it can serve no model.
    """
    others = [name for name in sorted(catalog.models) if name not in MODELS]
    errors: list[FleetError] = []
    for names in (MODELS, others):
        fitting = []
        for model in names:
            try:
                resolve(catalog, Question(sized.id, model))
            except FleetError as error:
                errors.append(error)
            else:
                fitting.append(model)
        if fitting:
            return tuple(fitting)
    raise FleetError(f"{sized.id} can serve none of {', '.join(MODELS)}: {errors[0].message}", errors[0].hint)


def pool_of_class(spec: Any, class_id: str, model: str | None) -> str | None:
    """The pool of static hosts in the data of a ``fleet.yml`` that takes more hosts of a class; None: a new one."""
    for name, pool in (spec.get("pools") or {}).items():
        if pool.get("cloud") == "static" and pool.get("host_class") == class_id and model in (None, pool.get("model")):
            return str(name)
    return None


def _flow(source: Mapping[str, Any]) -> CommentedMap:
    """A mapping on one line."""
    entry = CommentedMap(source)
    entry.fa.set_flow_style()
    return entry


def static_addresses(spec: Any) -> dict[tuple[str, int], str]:
    """Address and port -> name of each static host in the data of a ``fleet.yml``."""
    sections = [*(spec.get("pools") or {}).values(), spec.get("gateway") or {}]
    return {
        (host["address"], host.get("port", 22)): name
        for section in sections
        for name, host in (section.get("static") or {}).items()
    }


@dataclass(frozen=True)
class _Text:
    """A ``fleet.yml`` that is changed.

    Attributes:
        yaml: reads and writes it.
        data: its values, with their comments.
        head: the lines up to the line ``---``, which no reader of YAML gives back; empty without one.
        tail: the lines from the line ``...`` on.
    """

    yaml: YAML
    data: CommentedMap
    head: str
    tail: str

    def dump(self) -> str:
        """The text with the changes."""
        out = io.StringIO()
        self.yaml.dump(self.data, out)
        return f"{self.head}{out.getvalue()}{self.tail}"


def _load(text: str) -> _Text:
    head, tail = _HEAD.match(text), _TAIL.search(text)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    data: CommentedMap = yaml.load(text[head.end() if head else 0 : tail.start() if tail else None])
    _keep_anchors(data)
    return _Text(yaml, data, head[0] if head else "", tail[0] if tail else "")


def _keep_anchors(node: Any) -> None:
    """Lets anchors be written that no alias names."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return
    if node.anchor.value:
        node.anchor.always_dump = True
    for value in node.values() if isinstance(node, CommentedMap) else node:
        _keep_anchors(value)
    for value in node.merge if isinstance(node, CommentedMap) else ():
        _keep_anchors(value)


def _add_hosts(data: CommentedMap, hosts: Sequence[IdentifiedHost], catalog: Catalog, wishes: Wishes) -> None:
    taken = set(static_addresses(data).values())
    data["pools"].fa.set_block_style()
    for host in hosts:
        if host.sized is None:
            if "gateway" not in data:
                data.insert(
                    list(data).index("artifacts") if "artifacts" in data else len(data), "gateway", CommentedMap()
                )
            section, prefix = data["gateway"], "gateway"
        else:
            prefix = _pool_name(data, host.sized, catalog, wishes)
            section = data["pools"][prefix]
        own = [host.name] if _is_name(host.name) else []
        name = _take_free_name(itertools.chain(own, _numbered(prefix)), taken)
        static = section.setdefault("static", CommentedMap())
        static[name] = _host_entry(host)
        if host.says:
            static.yaml_set_comment_before_after_key(name, before=clean_text(host.says), indent=6 if host.sized else 4)


def _pool_name(data: CommentedMap, sized: SizedClass, catalog: Catalog, wishes: Wishes) -> str:
    """The name of the pool of static hosts of a class; creates the pool if it is missing."""
    pools, model = data["pools"], wishes.models.get(sized.id)
    if known := pool_of_class(data, sized.id, model):
        return known
    name = _take_free_name(itertools.chain((sized.family.name, sized.id), _numbered(sized.id)), set(pools))
    serves = model or fitting_models(catalog, sized)[0]
    pools[name] = CommentedMap(host_class=sized.id, cloud="static", model=serves)
    artifacts = data.setdefault("artifacts", CommentedMap())
    models = artifacts.setdefault("models", CommentedMap())
    models.fa.set_block_style()
    if serves not in models:
        check_model_source(serves, wishes.source)
        models[serves] = _flow(wishes.source)
    return name


def _is_name(text: str) -> bool:
    try:
        TypeAdapter(Name).validate_python(text)
    except ValidationError:
        return False
    return True


def _host_entry(host: IdentifiedHost) -> CommentedMap:
    entry = CommentedMap(address=host.address)
    if host.private_address:
        entry["private_address"] = host.private_address
    if host.port != 22:
        entry["port"] = host.port
    if host.user != "root":
        entry["user"] = host.user
    if host.ssh_alias:
        entry["ssh_alias"] = host.ssh_alias
    entry["ssh_host_key"] = host.ssh_host_key
    return entry


def _take_free_name(names: Iterable[str], taken: set[str]) -> str:
    """The first free name; adds it to the used names."""
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _numbered(prefix: str) -> Iterator[str]:
    return (f"{prefix}-{number}" for number in itertools.count())
