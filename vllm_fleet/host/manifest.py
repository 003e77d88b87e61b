"""Host -> Manifest: everything that must be true on it, each item owned by the role that brings it about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue.catalogue import SizedClass
from vllm_fleet.host import container, haproxy, host_paths, instance_files
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.host.serving_host import ServingHost

Item = dict[str, Any]
RELEASES = "/opt/vllm/releases"
CURRENT = "/opt/vllm/current"
STAMP = ".verified.json"
#: The unit of each install form; the part after the @ is the instance.
UNITS = {"wheel": "vllm", "docker": "vllm-docker"}


def instance_unit(install: str, name: str) -> str:
    """The unit of an instance.

    Args:
        install: the install form, ``wheel`` or ``docker``.
        name: the instance.
    """
    return f"{UNITS[install]}@{name}.service"


def runtime_directory(name: str) -> str:
    """The directory of an instance under /run, in which it writes what it has loaded."""
    return f"/run/vllm-{name}"


@dataclass(frozen=True)
class Manifest:
    """The items of one host and the facts that it must have."""

    host: str
    items: tuple[Item, ...]
    facts: Mapping[str, Any]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that own items, in the order of their first one."""
        return tuple(dict.fromkeys(item["role"] for item in self.items))

    @property
    def text(self) -> str:
        """The manifest as JSON, the same bytes for the same content."""
        record = {"version": 1, "host": self.host, "facts": dict(self.facts), "items": list(self.items)}
        return json.dumps(record, indent=1, sort_keys=True) + "\n"


def file_item(role: str, path: str, sha256: str, mode: str = "0644", group: str = "root") -> Item:
    """A file of root with its content, mode and group."""
    return {"role": role, "kind": "file", "path": path, "sha256": sha256, "mode": mode, "owner": "root", "group": group}


def _directory(role: str, path: str, mode: str, owner: str = "root", group: str = "root") -> Item:
    return {"role": role, "kind": "directory", "path": path, "mode": mode, "owner": owner, "group": group}


def _unit(role: str, name: str, *, active: bool | None = None, enabled: bool | None = None) -> Item:
    wanted = {"active": active, "enabled": enabled}
    return {"role": role, "kind": "unit", "name": name, **{k: v for k, v in wanted.items() if v is not None}}


def _package(role: str, name: str) -> Item:
    return {"role": role, "kind": "package", "name": name}


def baseline_items() -> Iterable[Item]:
    """What the role host_baseline brings about on every host."""
    role = "host_baseline"
    for name in ("python3-venv", "nftables", "systemd-timesyncd"):
        yield _package(role, name)
    yield {"role": role, "kind": "user", "name": "vllm", "home": "/var/lib/vllm", "shell": "/usr/sbin/nologin"}
    yield _directory(role, "/opt/vllm", "0755")
    yield _directory(role, "/var/lib/vllm", "0755")
    yield _directory(role, "/var/cache/vllm", "0750", "vllm", "vllm")
    yield file_item(role, "/etc/sysctl.d/60-vllm-fleet.conf", role_file_sha256(role, "sysctl.conf"))
    yield file_item(role, "/etc/security/limits.d/60-vllm-fleet.conf", role_file_sha256(role, "limits.conf"))
    yield _unit(role, "systemd-timesyncd.service", enabled=True)


def _engine_items(host: ServingHost) -> Iterable[Item]:
    role, engine, deployment = "vllm_engine", host.engine_directory, host.deployment
    yield from (_package(role, name) for name in deployment.packages)
    yield {"role": role, "kind": "file", "path": f"{engine}/bin/vllm", "mode": "0555"}
    yield file_item(role, f"{engine}/.complete", text_sha256(f"{deployment.engine_directory_id}\n"))


def _firewall_items(rules: str) -> Iterable[Item]:
    role, unit = "vllm_firewall", "vllm-firewall.service"
    yield file_item(role, f"/etc/systemd/system/{unit}", role_file_sha256(role, unit))
    yield file_item(role, "/etc/vllm/firewall.nft", text_sha256(rules))
    yield _unit(role, unit, active=True, enabled=True)


def _service_items(install: str, release: instance_files.Release) -> Iterable[Item]:
    role = "vllm_service"
    for path, name, mode in (
        ("/etc/systemd/system/vllm@.service", "vllm@.service", "0644"),
        ("/etc/systemd/system/vllm-docker@.service", "vllm-docker@.service", "0644"),
        ("/usr/local/libexec/vllm-instance", "vllm-instance", "0755"),
        ("/usr/local/libexec/vllm-container", "vllm-container", "0755"),
    ):
        yield file_item(role, path, role_file_sha256(role, name), mode)
    yield {"role": role, "kind": "link", "path": CURRENT, "target": f"releases/{release.digest}"}
    for instance in release.instances:
        yield _unit(role, instance_unit(install, instance.name), active=True, enabled=True)
        loaded = text_sha256(instance.loaded)
        yield {"role": role, "kind": "file", "path": f"{runtime_directory(instance.name)}/loaded", "sha256": loaded}


def serving_manifest(host: ServingHost, release: instance_files.Release) -> Manifest:
    """The manifest of a host that serves.

    Args:
        host: the host.
        release: its data files.
    """
    deployment = host.deployment
    items = list(baseline_items())
    items.append(_directory("harmony_encodings", host_paths.ENCODINGS, "0755"))
    items += [
        file_item("harmony_encodings", f"{host_paths.ENCODINGS}/{encoding.name}", encoding.sha256)
        for encoding in host.encodings
    ]
    items.append(
        {
            "role": "model_store",
            "kind": "store",
            "path": host.model_directory,
            "stamp": STAMP,
            "files": dict(host.model.sha256),
        }
    )
    items += container.image_items(host.image) if host.image else _engine_items(host)
    items += _firewall_items(host.firewall)
    items += [
        file_item("vllm_release", f"{RELEASES}/{release.digest}/{name}", text_sha256(text), "0600")
        for name, text in release.files.items()
    ]
    items += _service_items(deployment.install, release)
    facts = wanted_facts(host.host_class, host.required_facts)
    return Manifest(host.plan.name, tuple(items), facts)


def wanted_facts(sized: SizedClass, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a host of a class must be before anything is done to it; the engine's lock may ask for more.

    ``gpu_vendor``, ``gpu_arch`` and ``gpu_count`` are there only for classes with GPUs: without them no tool of a
    vendor is asked.
    """
    family = sized.family
    facts = family.facts.model_dump(exclude_none=True)
    if family.vendor == "cpu":
        return facts
    for key, value in (asked or {}).items():
        facts[key] = max(facts[key], value, key=version_key) if key.endswith("_min") and key in facts else value
    return facts | {"gpu_vendor": family.vendor, "gpu_arch": family.arch, "gpu_count": sized.count}


def gateway_items(config: str, keys: str, certificate: Path | None) -> tuple[Item, ...]:
    """What must be true on every gateway of a fleet."""
    role = "gateway"
    items = [
        *baseline_items(),
        _package(role, "haproxy"),
        file_item(role, "/etc/haproxy/haproxy.cfg", text_sha256(config), "0640", "haproxy"),
        file_item(role, haproxy.API_KEYS, text_sha256(keys), "0640", "haproxy"),
        file_item(
            role,
            "/etc/systemd/system/haproxy.service.d/vllm-fleet.conf",
            role_file_sha256(role, "haproxy.service.d.conf"),
        ),
        _unit(role, "haproxy.service", active=True, enabled=True),
        {"role": role, "kind": "traffic", "path": haproxy.ADMIN_SOCKET},
    ]
    if certificate:
        digest = hashlib.sha256(certificate.read_bytes()).hexdigest()
        items.append(file_item(role, haproxy.CERTIFICATE, digest, "0640", "haproxy"))
    return tuple(items)
