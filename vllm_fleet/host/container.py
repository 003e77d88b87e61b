"""An engine as an image on a host: which image is pulled, how its container runs, and what must be true on the host.

The program ``vllm-container-root`` adds what only the host knows: its name, its user and groups, and the config.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_fleet.base import certificates, digests
from vllm_fleet.host import apt_repositories, host_paths, serve_command
from vllm_fleet.host.apt_repositories import Repository
from vllm_fleet.host.manifest_items import (
    FileItem,
    Item,
    file_item,
    image_item,
    package_item,
    settings_item,
    unit_item,
)
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.on_host import docker_engine
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.recipe import DockerInstall

#: Machine, as the kernel names it -> docker's name of the platform.
PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
#: All devices by CDI, which works with any docker; ``--gpus`` loses devices after a daemon-reload.
_CDI = ("--runtime=nvidia", "--env=NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=all")
#: vLLM needs no capability; the options of an image may add some.
_LIMITS = ("--cap-drop=ALL", "--security-opt=no-new-privileges")
#: Devices need locked memory.
_LOCKED = "--ulimit=memlock=-1:-1"
#: Variables that systemd sets for the account: libraries look up its name, which the image does not have.
_ACCOUNT = ("LOGNAME", "USER")
#: Packages of the distribution that containers need; the first one is for a host without docker.
PACKAGES = ("docker.io", "python3-requests")
_ENGINE_ROLE = "container_engine"
_IMAGE_ROLE = "vllm_image"
#: Holds the digest of the settings that the daemon has loaded; the role writes it after a reload.
LOADED = "/etc/docker/vllm-fleet.loaded"
CDI = "/etc/cdi/nvidia.yaml"


@dataclass(frozen=True)
class Toolkit:
    """The container toolkit, which gives containers NVIDIA's GPUs.

    Attributes:
        repository: where its packages come from.
        versions: package -> pattern of its version.
        managed: whether the host gets exactly these versions; False keeps the toolkit of the host's image.
    """

    repository: Repository
    versions: Mapping[str, str]
    managed: bool

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages in the form NAME=VERSION."""
        return tuple(f"{name}={version}" for name, version in sorted(self.versions.items()))


@dataclass(frozen=True)
class Registry:
    """A registry that hosts pull from.

    Attributes:
        address: ``host:port``.
        ca: the certificate of the authority that signs the registry's own, PEM; None: the registry has no TLS.
    """

    address: str
    ca: str | None = None

    @property
    def ca_path(self) -> str:
        """Where docker looks for that certificate."""
        return f"/etc/docker/certs.d/{self.address}/ca.crt"


def fleet_registry(mirror: Mirror, folder: Path, served: str | None = None) -> Registry | None:
    """The registry that the hosts of a fleet pull from; None: the one in the name of each image.

    Args:
        mirror: the fleet's mirror, which may name a registry of the fleet's own.
        folder: the fleet's folder, for its files.
        served: ``host:port`` of the registry that the mirror itself is; it comes before the other, and has no TLS.

    Raises:
        FleetError: the file of its authority is wrong.
    """
    if served:
        return Registry(served)
    if mirror.registry is None:
        return None
    ca = mirror.registry_ca_file
    return Registry(mirror.registry, certificates.read_authority(folder / ca) if ca else None)


@dataclass(frozen=True)
class Image:
    """The image of one host.

    Attributes:
        install: the engine's image, with its digest.
        machine: the kind of the host's processors; None: any kind.
        vendor: of the host's devices.
        registry: where it is pulled from; None: the registry in its name.
        toolkit: what gives its containers NVIDIA's GPUs; None for other vendors.
        lab: the host is a container, whose limits are those of its machine.
    """

    install: DockerInstall
    machine: str | None
    vendor: str
    registry: Registry | None = None
    toolkit: Toolkit | None = None
    lab: bool = False

    @property
    def reference(self) -> str:
        """The name with the digest, for pull and run; never a tag."""
        name = f"{self.registry.address}/{self.install.image}" if self.registry else self.install.image
        return f"{name}@{self.install.digest}"

    @property
    def tag(self) -> str:
        """The name that the guides use; for people only, no unit uses it."""
        return f"{self.install.image}:{serve_command.DEPLOY_TAG}"

    @property
    def daemon_settings(self) -> dict[str, Any]:
        """The settings that the containers need: they survive a restart of the daemon, one registry may have no TLS.

        dockerd reads each of them at a reload, so a docker that others use is not restarted.
        """
        config: dict[str, Any] = {"live-restore": True}
        if self.registry and self.registry.ca is None:
            config["insecure-registries"] = [self.registry.address]
        if self.vendor == "nvidia":
            config["runtimes"] = {"nvidia": {"path": "nvidia-container-runtime"}}
        return config


def run_options(image: Image, deployment: Deployment, model: str, cache: str, names: Mapping[str, str]) -> list[str]:
    """The options of ``docker run`` that do not depend on the host's accounts, without values of variables.

    Args:
        image: the image.
        deployment: what it serves.
        model: the directory that contains the model.
        cache: the directory of its caches.
        names: the variables that it gets from the unit's environment.
    """
    own = shlex.join(image.install.options).replace("--gpus all", shlex.join(_CDI))
    words = [
        *serve_command.RUN_OPTIONS,
        *_LIMITS,
        *([] if image.vendor == "cpu" or image.lab else [_LOCKED]),
        *shlex.split(own),
    ]
    words += [f"--volume={path}:{path}:ro" for path in (model, host_paths.ENCODINGS)]
    words += [f"--volume={cache}:{cache}"]
    return words + [f"--env={name}" for name in sorted({*names, *deployment.env, *_ACCOUNT})]


def image_env(image: Image, deployment: Deployment, model: str, cache: str, names: Mapping[str, str]) -> dict[str, str]:
    """The variables of the unit that describe the container; arguments as for :func:`run_options`."""
    home = {"HF_HOME": f"{cache}/huggingface"}
    words = run_options(image, deployment, model, cache, {**names, **home})
    return {**home, "FLEET_IMAGE": image.reference, "FLEET_RUN": shlex.join(words)}


def image_variables(image: Image) -> dict[str, Any]:
    """The variables of the roles container_engine and vllm_image."""
    toolkit = image.toolkit
    return {
        **({"apt_repository_tools": list(apt_repositories.TOOLS)} if toolkit else {}),
        "container_engine_toolkit_repositories": [toolkit.repository.variables] if toolkit else [],
        "container_engine_toolkit_packages": list(toolkit.packages) if toolkit else [],
        "container_engine_toolkit_managed": bool(toolkit and toolkit.managed),
        "container_engine_settings": image.daemon_settings,
        "container_engine_vendor": image.vendor,
        "container_engine_registry": image.registry.address if image.registry else "",
        "container_engine_registry_ca": (image.registry.ca if image.registry else None) or "",
        "vllm_image_reference": image.reference,
        "vllm_image_tag": image.tag,
        "vllm_image_platform": PLATFORMS.get(image.machine or "", ""),
    }


def loaded_text(settings: Mapping[str, Any]) -> str:
    """What the role writes when the daemon has loaded settings."""
    return f"{digests.text_sha256(json.dumps(settings, sort_keys=True))}\n"


def image_items(image: Image) -> Iterator[Item]:
    """The manifest items of the roles container_engine and vllm_image."""
    role = _ENGINE_ROLE
    for name in PACKAGES:
        others = [other for other in docker_engine.PACKAGES if other != name]
        yield package_item(role, name, alternatives=others if name in docker_engine.PACKAGES else ())
    if image.toolkit:
        for name, version in sorted(image.toolkit.versions.items()):
            yield package_item(role, name, version if image.toolkit.managed else None)
    yield settings_item(role, docker_engine.CONFIG, image.daemon_settings)
    yield file_item(role, LOADED, digests.text_sha256(loaded_text(image.daemon_settings)))
    if image.registry and image.registry.ca is not None:
        yield file_item(role, image.registry.ca_path, digests.text_sha256(image.registry.ca))
    if image.vendor == "nvidia":
        cdi_unit = "nvidia-cdi.service"
        yield file_item(role, f"/etc/systemd/system/{cdi_unit}", role_file_sha256(role, cdi_unit))
        yield unit_item(role, cdi_unit, active=True, enabled=True)
        yield FileItem(role=role, kind="file", path=CDI)
    yield unit_item(role, "docker.service", active=True, enabled=True)
    yield image_item(_IMAGE_ROLE, image.reference, image.tag)
