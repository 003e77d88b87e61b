"""A fleet of ``tests/fixtures/fleets`` -> its golden copies: name -> text, nothing that depends on this machine.

``plan.yml`` is what ``vllm-fleet plan --json`` prints, ``inventory.yml`` the groups of the inventory plugin,
``known_hosts`` the SSH host keys. Each host has a folder: ``variables.yml`` as the plugin hands them to Ansible,
``manifest.yml``, and every file whose text is among the variables, under its name on the host. A file with a copy, and
a constant file of a role, appears by name where its digest would be.

What repeats is written once: the other instances of a host, and the other hosts of a pool, are the lines in which they
differ from the first one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from plugin_modules import plugin_module
from typer.testing import CliRunner

from vllm_fleet.base import paths
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import app
from vllm_fleet.fleet import plan as plans
from vllm_fleet.host.model_files import model_files
from vllm_fleet.inventory import Site
from vllm_fleet.mirror import parts
from vllm_fleet.mirror.apt_packages import Debs
from vllm_fleet.mirror.store import Entry, Index, Store, default_directory
from vllm_fleet.operate import drift

#: Longer collections of plain values take one line a value.
_LONGEST_LIST, _LONGEST_MAPPING = 110, 320
_INSTANCE_FILE = re.compile(r"([1-9]\d*)(\.(?:env|yaml))")


@dataclass(frozen=True)
class Inventory:
    """What the inventory plugin made of a fleet: group -> hosts, host -> variables."""

    groups: Mapping[str, Sequence[str]]
    variables: Mapping[str, Mapping[str, Any]]


class _Dumper(yaml.SafeDumper):
    """Texts as blocks; short collections on one line; an anchor only for what is long."""

    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, dict) or len(json.dumps(data)) < _LONGEST_MAPPING

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = node.flow_style and len(json.dumps(sequence)) <= _LONGEST_LIST
        return node

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = node.flow_style and len(json.dumps(mapping)) <= _LONGEST_MAPPING
        return node


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)


def yaml_text(data: Any) -> str:
    """The data as YAML with sorted keys; equal long mappings appear once."""
    return yaml.dump(_share_equal(data, {}), Dumper=_Dumper, sort_keys=True, default_flow_style=None, width=1 << 20)


def _share_equal(data: Any, known: dict[str, Any]) -> Any:
    if isinstance(data, list):
        return [_share_equal(value, known) for value in data]
    if isinstance(data, dict):
        own = {key: _share_equal(value, known) for key, value in data.items()}
        return known.setdefault(json.dumps(own, sort_keys=True), own)
    return data


def fill_store(catalog: Catalog, directories: Sequence[Path]) -> None:
    """Writes the index of a mirror with all that the fleets with a mirror of their own need, without the files.

    Args:
        catalog: the recipes.
        directories: the folders of all fleets.
    """
    index = Index()
    for plan in (plans.load(directory, catalog) for directory in directories):
        for part in parts.list_parts(plan, catalog) if plan.spec.mirror.host else ():
            index = index.with_part(part.key, {name: Entry(digest, 1, 1) for name, digest in _part_files(part)})
    Store(default_directory()).write(index)


def _part_files(part: parts.Need) -> Iterator[tuple[str, str]]:
    digest = hashlib.sha256(part.key.encode()).hexdigest()
    if isinstance(part, parts.Wheels):
        yield f"wheels/files/{digest[:2]}/{part.name}-1-py3-none-any.whl", digest
    elif isinstance(part, parts.Encoding):
        yield f"encodings/{part.name}", part.sha256
    elif isinstance(part, parts.Model) and part.folder:
        yield from ((f"{part.path}/{name}", sha256) for name, sha256 in model_files(part.folder).sha256.items())
    elif isinstance(part, Debs):
        yield f"debs/{part.distribution}/pool/{part.architecture}.deb", digest
    else:
        raise AssertionError(f"add the files of {part.key} here: no other golden fleet has such a part")


def printed_plan(fleet: str) -> Any:
    """What ``vllm-fleet plan --json`` prints, where instances that differ in name and port alone are printed once."""
    result = CliRunner().invoke(app, ["plan", "--fleet", fleet, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    for host in record["hosts"]:
        host["instances"] = [_shorten_instance(instance, host["instances"][0]) for instance in host["instances"]]
    return record


def _shorten_instance(instance: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    own = {key: instance[key] for key in ("name", "port")}
    if instance is first or {**first, **own} != instance:
        return instance
    return {**own, "else": f"as instance {first['name']}"}


def read_inventory(directory: Path) -> Inventory:
    """The fleet as the inventory plugin reads it, where every host needs all of its roles (``fleet_probe=false``)."""
    module = plugin_module("inventory/fleet.py")
    vars(module)["load_extra_vars"] = lambda _: {"fleet_probe": False}
    data = InventoryData()
    data.current_source = str(directory / "fleet.yml")
    module.InventoryModule().parse(data, DataLoader(), str(directory / "fleet.yml"))
    groups = {name: sorted(host.name for host in group.get_hosts()) for name, group in data.groups.items()}
    variables = {name: json.loads(json.dumps(host.vars)) for name, host in data.hosts.items()}
    return Inventory({name: hosts for name, hosts in groups.items() if hosts and name != "all"}, variables)


def fleet_copies(directory: Path) -> dict[str, str]:
    """Every golden copy of one fleet.

    Args:
        directory: the folder of the fleet.
    """
    inventory = read_inventory(directory)
    site = drift.load_site_of_run(directory)
    replace_paths = _path_replacer(site)
    files = {
        "plan.yml": yaml_text(replace_paths(printed_plan(site.plan.fleet))),
        "inventory.yml": yaml_text(dict(inventory.groups)),
        "known_hosts": site.known_hosts,
    }
    first: dict[str, tuple[str, Mapping[str, str]]] = {}
    for host in site.hosts:
        name = host.plan.name
        own = _host_copies(
            replace_paths(dict(inventory.variables[name])), replace_paths(json.loads(host.manifest.text))
        )
        if host.plan.pool in first:
            files[f"{name}.diff"] = _differences(*first[host.plan.pool], name, own)
        else:
            first[host.plan.pool] = (name, own)
            files |= {f"{name}/{file}": text for file, text in _join_instances(own).items()}
    return files


def _path_replacer(site: Site) -> Callable[[Any], Any]:
    """A function that replaces the paths of this machine by words."""
    words = {
        site.control_path_dir: "CONTROL_PATH",
        str(paths.run_dir(site.plan.fleet)): "RUN",
        str(paths.cache_dir()): "CACHE",
        str(paths.root()): "ROOT",
    }

    def replace(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: replace(value) for key, value in data.items()}
        if isinstance(data, list):
            return [replace(value) for value in data]
        if isinstance(data, str):
            for path, word in words.items():
                data = data.replace(path, word)
        return data

    return replace


def _host_copies(variables: dict[str, Any], manifest: dict[str, Any]) -> dict[str, str]:
    where = {item["sha256"]: item["path"] for item in manifest["items"] if "sha256" in item and "path" in item}
    texts: dict[str, str] = {}

    def extract(data: Any) -> Any:
        """Replaces each text that the manifest has as a file by the name of its copy."""
        if isinstance(data, list):
            return [extract(value) for value in data]
        if isinstance(data, dict):
            if data.get("name") == "manifest.json":
                return {**data, "content": _release_manifest(data["content"], manifest)}
            return {key: extract(value) for key, value in data.items()}
        if not isinstance(data, str) or data.count("\n") < 2 or _sha256(data) not in where:
            return data
        path = where[_sha256(data)]
        name = PurePosixPath(path).name
        assert texts.setdefault(name, data) == data, f"two files are called {name}"
        return f"the copy {name}"

    shortened = extract(variables)
    names = {**_role_files(), **{_sha256(text): f"the copy {name}" for name, text in texts.items()}}
    copies = {
        "variables.yml": yaml_text(_name_digests(shortened, names)),
        "manifest.yml": yaml_text(_hide_release(_name_digests(manifest, names))),
    }
    return {**copies, **texts}


def _join_instances(copies: Mapping[str, str]) -> dict[str, str]:
    """The copies of a host, where all instances but the first are one file with their differences from it."""
    kept, others = {}, ""
    for name, text in sorted(copies.items()):
        if instance := _INSTANCE_FILE.fullmatch(name):
            first = f"0{instance[2]}"
            others += _difference(first, copies[first], name, text)
        else:
            kept[name] = text
    return {**kept, **({"instances.diff": others} if others else {})}


def _release_manifest(text: str, manifest: Mapping[str, Any]) -> str:
    """What the manifest within a release leaves out of the one that the host is probed for."""
    own = json.loads(text)
    assert {**own, "items": manifest["items"], "fleet": manifest["fleet"]} == manifest
    assert all(item in manifest["items"] for item in own["items"])
    left_out = [item.get("path") or item["name"] for item in manifest["items"] if item not in own["items"]]
    return f"manifest.yml without {', '.join(left_out)}" if left_out else "manifest.yml"


def _hide_release(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest where only the link names the release, whose digest changes with every file in it."""
    names = [item["target"] for item in manifest["items"] if item.get("target", "").startswith("releases/")]
    items = []
    for item in manifest["items"]:
        path = item.get("path", "")
        for name in names:
            path = path.replace(f"/{name}/", "/releases/RELEASE/")
        items.append({**item, "path": path} if path else item)
    return {**manifest, "items": items}


def _name_digests(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, dict):
        return {key: _name_digests(value, names) for key, value in data.items()}
    if isinstance(data, list):
        return [_name_digests(value, names) for value in data]
    return f"of {names[data]}" if isinstance(data, str) and data in names else data


def _role_files() -> dict[str, str]:
    """The digest of each constant file of a role -> its place in the repository."""
    files = (path for path in sorted((paths.root() / "roles").glob("*/files/*")) if path.is_file())
    return {hashlib.sha256(path.read_bytes()).hexdigest(): str(path.relative_to(paths.root())) for path in files}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _differences(first: str, copies: Mapping[str, str], second: str, others: Mapping[str, str]) -> str:
    return "".join(
        _difference(f"{first}/{name}", copies.get(name, ""), f"{second}/{name}", others.get(name, ""))
        for name in sorted({*copies, *others})
    )


def _difference(first: str, text: str, second: str, other: str) -> str:
    lines = difflib.unified_diff(text.splitlines(), other.splitlines(), first, second, n=0, lineterm="")
    return "".join(f"{line}\n" for line in lines if not line.startswith("@@"))
