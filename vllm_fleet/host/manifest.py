"""Host -> Manifest: everything that must be true on it. Each item is owned by the role that repairs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.versions import version_key
from vllm_fleet.catalogue.catalogue import SizedClass
from vllm_fleet.fleet.host_plan import READINESS_OFFSET
from vllm_fleet.host import container, haproxy, host_paths, instance_files, keepalived
from vllm_fleet.host.acme import NO_CERTIFICATE, PROGRAM, SETTINGS, Certificate
from vllm_fleet.host.manifest_items import (
    FileItem,
    Item,
    absent_item,
    certificate_item,
    directory_item,
    file_item,
    keys_item,
    link_item,
    package_item,
    store_item,
    table_item,
    traffic_item,
    unit_item,
    user_item,
)
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.host.serving_host import ServingHost

RELEASES = "/opt/vllm/releases"
#: The directory of links, one for each instance, to the release that its next start reads.
CURRENT = "/opt/vllm/current"
#: The link to the release that a rollout has accepted last.
ACCEPTED = "/opt/vllm/accepted"
RETURN_TIMER = "vllm-return.timer"
STAMP = ".verified.json"
FIREWALL_RULES = "/etc/vllm/firewall.nft"
IMAGE_PORTS = "/etc/vllm/image-ports"
#: The drop-in of HAProxy.
GATEWAY_DROP_IN = "/etc/systemd/system/haproxy.service.d/vllm-fleet.conf"
#: The second process of a gateway, which reads long bodies.
_READER = "vllm-gateway-reader.service"
#: The units that end drains whose time is over.
_DRAINS = ("vllm-drains.service", "vllm-drains.timer")
#: The units that renew the certificate at the CA.
_RENEWAL = ("vllm-certificate.service", "vllm-certificate.timer")
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


class Port(TypedDict):
    """A TCP port that a service of the fleet listens on; an empty address stands for all of the host."""

    port: int
    address: str


@dataclass(frozen=True)
class Manifest:
    """The items of one host, the facts that it must have, the ports that its services listen on, and its fleet."""

    host: str
    items: tuple[Item, ...]
    facts: Mapping[str, Any]
    ports: tuple[Port, ...] = ()
    fleet: str = ""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that own items, in the order of their first one."""
        return tuple(dict.fromkeys(item["role"] for item in self.items))

    @property
    def text(self) -> str:
        """The manifest as JSON, the same bytes for the same content."""
        record = {"version": 1, "host": self.host, "facts": dict(self.facts), "items": list(self.items)}
        if self.ports:
            record["ports"] = list(self.ports)
        if self.fleet:
            record["fleet"] = self.fleet
        return json.dumps(record, indent=1, sort_keys=True) + "\n"


def baseline_items() -> Iterable[Item]:
    """The items of the role host_baseline, on every host."""
    role = "host_baseline"
    for name in ("python3-venv", "nftables", "systemd-timesyncd"):
        yield package_item(role, name)
    yield user_item(role, "vllm", "/var/lib/vllm", "/usr/sbin/nologin")
    yield directory_item(role, "/opt/vllm", "0755")
    yield directory_item(role, "/var/lib/vllm", "0755")
    yield directory_item(role, "/var/cache/vllm", "0750", "vllm")
    yield file_item(role, "/etc/sysctl.d/60-vllm-fleet.conf", role_file_sha256(role, "sysctl.conf"))
    yield file_item(role, "/etc/security/limits.d/60-vllm-fleet.conf", role_file_sha256(role, "limits.conf"))
    for path, name in (
        ("/etc/needrestart/conf.d/60-vllm-fleet.conf", "needrestart.conf"),
        ("/etc/apt/apt.conf.d/61vllm-fleet-services", "unattended-upgrades.conf"),
    ):
        yield file_item(role, path, role_file_sha256(role, name))
    yield unit_item(role, "systemd-timesyncd.service", enabled=True)


def _engine_items(host: ServingHost) -> Iterable[Item]:
    role, engine, deployment = "vllm_engine", host.engine_directory, host.deployment
    yield from (package_item(role, name) for name in deployment.packages)
    yield directory_item(role, host_paths.ENGINES, "0755")
    yield FileItem(role=role, kind="file", path=f"{engine}/bin/vllm", mode="0555")
    yield file_item(role, f"{engine}/.complete", text_sha256(f"{deployment.engine_directory_id}\n"))


def _firewall_items(rules: str, unit_filter: str) -> Iterable[Item]:
    role, unit = "vllm_firewall", "vllm-firewall.service"
    for template in UNITS.values():
        yield file_item(role, f"/etc/systemd/system/{template}@.service.d/addresses.conf", text_sha256(unit_filter))
    yield file_item(role, f"/etc/systemd/system/{unit}", role_file_sha256(role, unit))
    path = "/etc/systemd/system/nftables.service.d/vllm-fleet.conf"
    yield file_item(role, path, role_file_sha256(role, "nftables.service.d.conf"))
    yield directory_item(role, str(Path(FIREWALL_RULES).parent), "0755")
    yield file_item(role, FIREWALL_RULES, text_sha256(rules))
    yield unit_item(role, unit, active=True, enabled=True, files=[f"/etc/systemd/system/{unit}"])
    yield table_item(role, "inet vllm_fleet", FIREWALL_RULES)


def instance_unit_files(install: str, items: Iterable[Item]) -> list[str]:
    """The files in /etc that the units of instances are read from: the unit files, and their drop-ins in a manifest.

    Args:
        install: the install form, ``wheel`` or ``docker``.
        items: the items of the manifest.
    """
    unit = f"/etc/systemd/system/{UNITS[install]}@.service"
    container = [f"/etc/systemd/system/vllm-container@.{kind}" for kind in ("service", "socket")]
    drop_ins = [item["path"] for item in items if item["kind"] == "file" and item["path"].startswith(f"{unit}.d/")]
    return [unit, *(container if install == "docker" else ()), *drop_ins]


def _service_items(install: str, release: instance_files.Release, files: Sequence[str]) -> Iterable[Item]:
    role = "vllm_service"
    units = ("vllm@.service", "vllm-docker@.service", "vllm-container@.service", "vllm-container@.socket")
    for name in (*units, "vllm-return.service", RETURN_TIMER):
        yield file_item(role, f"/etc/systemd/system/{name}", role_file_sha256(role, name))
    for name in ("vllm-instance", "vllm-container", "vllm-container-root", "vllm-release"):
        yield file_item(role, f"/usr/local/libexec/{name}", role_file_sha256(role, name), "0755")
    yield unit_item(role, RETURN_TIMER, active=True, enabled=True)
    yield from (directory_item(role, path, "0755") for path in (RELEASES, f"{RELEASES}/{release.digest}"))
    for name, text in release.files.items():
        yield file_item(role, f"{RELEASES}/{release.digest}/{name}", text_sha256(text), "0600")
    # A release that runs and was not accepted is one of a rollout that has died.
    yield link_item(role, ACCEPTED, f"releases/{release.digest}")
    for instance in release.instances:
        yield link_item(role, f"{CURRENT}/{instance.name}", f"../releases/{release.digest}")
        yield unit_item(role, instance_unit(install, instance.name), active=True, enabled=True, files=files)
        if install == "docker":
            # It runs as root when the unit of the instance starts.
            yield unit_item(role, f"vllm-container@{instance.name}.service", files=files)
        loaded = f"{runtime_directory(instance.name)}/loaded"
        yield FileItem(role=role, kind="file", path=loaded, sha256=text_sha256(instance.loaded))


def serving_manifest(host: ServingHost, release: instance_files.Release) -> Manifest:
    """The manifest of a host that serves.

    Args:
        host: the host.
        release: its data files.
    """
    deployment = host.deployment
    items = list(baseline_items())
    items.append(directory_item("harmony_encodings", host_paths.ENCODINGS, "0755"))
    items += [
        file_item("harmony_encodings", f"{host_paths.ENCODINGS}/{encoding.name}", encoding.sha256)
        for encoding in host.encodings
    ]
    if host.model.adopted:
        items += host.model.adopted.items(host.model.sha256)
    else:
        items.append(store_item("model_store", host.model_directory, STAMP, host.model.sha256))
    items += container.image_items(host.image) if host.image else _engine_items(host)
    items += _firewall_items(host.firewall, host.unit_filter)
    items += _service_items(deployment.install, release, instance_unit_files(deployment.install, items))
    facts = wanted_facts(host.host_class, host.required_facts)
    return Manifest(host.plan.name, tuple(items), facts, serving_ports(host))


def serving_ports(host: ServingHost) -> tuple[Port, ...]:
    """The ports of the instances of a host, and those of their readiness."""
    address = host.location.service_address
    return tuple(
        Port(port=number, address=address)
        for _, port in host.plan.instances
        for number in (port, port + READINESS_OFFSET)
    )


def wanted_facts(sized: SizedClass, lock_facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The facts that a host of a class must have before a run touches it; the engine's lock may add some.

    Only classes with GPUs have ``gpu_vendor``, ``gpu_arch`` and ``gpu_count``; without them the probe runs no vendor's
    tool.
    """
    family = sized.family
    facts = family.facts.model_dump(exclude_none=True)
    if family.vendor == "cpu":
        return facts
    for key, value in (lock_facts or {}).items():
        facts[key] = max(facts[key], value, key=version_key) if key.endswith("_min") and key in facts else value
    return facts | {"gpu_vendor": family.vendor, "gpu_arch": family.arch, "gpu_count": sized.count}


def open_image_ports(manifest: Manifest) -> Manifest:
    """A manifest with the items of the role image_ports, for a host whose image rejects everything but SSH.

    Args:
        manifest: the whole manifest; all of its ports are opened.
    """
    role, unit = "image_ports", "vllm-image-ports.service"
    path = f"/etc/systemd/system/{unit}"
    mine: tuple[Item, ...] = (
        file_item(role, IMAGE_PORTS, text_sha256("".join(f"{port}\n" for port in image_ports(manifest)))),
        file_item(role, "/usr/local/libexec/vllm-image-ports", role_file_sha256(role, "vllm-image-ports"), "0755"),
        file_item(role, path, role_file_sha256(role, unit)),
        unit_item(role, unit, active=True, enabled=True, files=[path]),
    )
    first = tuple(item for item in manifest.items if item["role"] in ("mirror", "host_baseline"))
    rest = tuple(item for item in manifest.items if item["role"] not in ("mirror", "host_baseline"))
    return replace(manifest, items=(*first, *mine, *rest))


def image_ports(manifest: Manifest) -> list[int]:
    """The TCP ports that other hosts, or clients, reach on a host."""
    return sorted({port["port"] for port in manifest.ports})


def gateway_items(config: str, reader: str, keys: str, certificate: Certificate = NO_CERTIFICATE) -> tuple[Item, ...]:
    """The items of every gateway of a fleet.

    Args:
        config: the configuration of HAProxy.
        reader: the configuration of its second process.
        keys: the digests of the API keys.
        certificate: where its certificate comes from; by default TLS ends elsewhere.
    """
    role = "gateway"
    items: list[Item] = [
        *baseline_items(),
        package_item(role, "haproxy"),
        file_item(role, "/etc/haproxy/haproxy.cfg", text_sha256(config), "0640", "haproxy"),
        file_item(role, haproxy.API_KEYS, text_sha256(keys), "0640", "haproxy"),
        file_item(role, haproxy.SCRIPT, role_file_sha256(role, "vllm-gateway.lua")),
        file_item(role, haproxy.READER_CONFIG, text_sha256(reader), "0640", "haproxy"),
        file_item(role, f"/etc/systemd/system/{_READER}", role_file_sha256(role, _READER)),
        unit_item(role, _READER, active=True, enabled=True),
        file_item(role, "/usr/local/libexec/vllm-gateway", role_file_sha256(role, "vllm-gateway"), "0755"),
        *(file_item(role, f"/etc/systemd/system/{name}", role_file_sha256(role, name)) for name in _DRAINS),
        unit_item(role, _DRAINS[1], active=True, enabled=True),
        file_item(role, GATEWAY_DROP_IN, role_file_sha256(role, "haproxy.service.d.conf")),
        unit_item(role, "haproxy.service", active=True, enabled=True, files=[GATEWAY_DROP_IN]),
        traffic_item(role, haproxy.ADMIN_SOCKET),
        keys_item(role, haproxy.API_KEYS, haproxy.ADMIN_SOCKET),
    ]
    return (*items, *_certificate_items(certificate))


def shared_address_items(config: str) -> tuple[Item, ...]:
    """The items of a gateway that shares a virtual address, or that may have shared one.

    Args:
        config: its ``keepalived.conf``; empty without such an address.
    """
    role = "gateway"
    if not config:
        # The drop-in says that keepalived was the fleet's; the role removes its other parts with it.
        return (absent_item(role, keepalived.DROP_IN),)
    return (
        package_item(role, "keepalived"),
        file_item(role, keepalived.CONFIG, text_sha256(config), "0600"),
        file_item(role, keepalived.DROP_IN, role_file_sha256(role, "keepalived.service.d.conf")),
        unit_item(role, keepalived.UNIT, active=True, enabled=True, files=[keepalived.DROP_IN]),
    )


def _certificate_items(certificate: Certificate) -> Iterable[Item]:
    role, path = "gateway", haproxy.CERTIFICATE
    if not certificate.file and not certificate.account:
        return
    yield package_item(role, "openssl")
    yield file_item(role, PROGRAM, role_file_sha256(role, "vllm-certificate"), "0755")
    if certificate.file:
        digest = hashlib.sha256(certificate.file.read_bytes()).hexdigest()
        yield file_item(role, path, digest, "0640", "haproxy")
        yield certificate_item(role, path)
    if certificate.account:
        yield package_item(role, "certbot")
        yield file_item(role, SETTINGS, text_sha256(certificate.settings), "0600")
        yield from (file_item(role, f"/etc/systemd/system/{name}", role_file_sha256(role, name)) for name in _RENEWAL)
        yield unit_item(role, _RENEWAL[1], active=True, enabled=True)
        yield FileItem(role=role, kind="file", path=path, mode="0640", owner="root", group="haproxy")
        yield certificate_item(role, path, certificate.account.acme.names)
