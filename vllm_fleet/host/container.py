"""An engine as an image on a host: what is pulled, how its container is run, and what must be true of both.

The program ``vllm-container`` adds what only the host knows: its name, its user and its groups, and the config.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_fleet.base import digests
from vllm_fleet.host import apt_repositories, host_paths, serve_command
from vllm_fleet.host.apt_repositories import Repository
from vllm_fleet.host.role_files import role_file_sha256
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.recipe import DockerInstall

#: What docker calls the machines whose kernels call themselves so.
PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
#: The toolkit's way to all devices by CDI, with any docker; what ``--gpus`` gives, a daemon-reload may take away.
_CDI = ("--runtime=nvidia", "--env=NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=all")
#: vLLM needs no right over the host; an image's own options may give some back.
_LIMITS = ("--cap-drop=ALL", "--security-opt=no-new-privileges")
#: Memory that devices reach by themselves is locked.
_LOCKED = "--ulimit=memlock=-1:-1"
#: Variables that systemd sets for the account: libraries ask for a name that the image does not know.
_ACCOUNT = ("LOGNAME", "USER")
#: What containers need of the distribution.
PACKAGES = ("docker.io", "python3-requests")
_ENGINE_ROLE = "container_engine"
_IMAGE_ROLE = "vllm_image"
CONFIG = "/etc/docker/daemon.json"
#: The digest of the config that the daemon has read; the role writes it after a restart.
LOADED = "/etc/docker/vllm-fleet.loaded"
CDI = "/etc/cdi/nvidia.yaml"


@dataclass(frozen=True)
class Toolkit:
    """What lets containers reach NVIDIA's GPUs.

    Attributes:
        repository: where it comes from.
        versions: package -> pattern of its version.
        managed: whether the host gets just these versions; else what its image has is left as it is.
    """

    repository: Repository
    versions: Mapping[str, str]
    managed: bool

    @property
    def packages(self) -> tuple[str, ...]:
        """What is installed, as apt takes it."""
        return tuple(f"{name}={version}" for name, version in sorted(self.versions.items()))


@dataclass(frozen=True)
class Image:
    """The image of one host.

    Attributes:
        install: the engine's image, with its digest.
        registry: where it is pulled from; None: where its own name says.
        machine: the kind of the host's processors; None: whatever it is.
        vendor: of the host's devices.
        ca: who signs the registry's certificate, PEM; None: the registry is asked without TLS.
        toolkit: what lets its containers reach NVIDIA's GPUs; None for other vendors.
        lab: the host is a container, whose limits are those of its machine.
    """

    install: DockerInstall
    registry: str | None
    machine: str | None
    vendor: str
    ca: str | None = None
    toolkit: Toolkit | None = None
    lab: bool = False

    @property
    def reference(self) -> str:
        """What is pulled and run: never a tag."""
        name = f"{self.registry}/{self.install.image}" if self.registry else self.install.image
        return f"{name}@{self.install.digest}"

    @property
    def tag(self) -> str:
        """The name that the guides run; for people, as no unit does."""
        return f"{self.install.image}:{serve_command.DEPLOY_TAG}"

    @property
    def daemon_config(self) -> str:
        """The daemon's settings: its restart ends no container, logs end, and one named registry has no TLS."""
        config: dict[str, Any] = {"live-restore": True, "log-opts": {"max-file": "3", "max-size": "50m"}}
        if self.registry and self.ca is None:
            config["insecure-registries"] = [self.registry]
        if self.vendor == "nvidia":
            config["runtimes"] = {"nvidia": {"path": "nvidia-container-runtime", "runtimeArgs": []}}
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @property
    def ca_path(self) -> str:
        """Where docker looks for who signs that registry's certificate."""
        return f"/etc/docker/certs.d/{self.registry}/ca.crt"


def image_of(
    install: DockerInstall,
    machine: str | None,
    vendor: str,
    mirror: Mirror,
    folder: Path,
    served: str | None = None,
) -> Image:
    """The image of a host.

    Args:
        install: the engine's image, with its digest.
        machine: the kind of the host's processors.
        vendor: of the host's devices.
        mirror: the fleet's own registry.
        folder: the fleet's folder, for its files.
        served: ``host:port`` of the registry that the mirror itself is; then it is that one, without TLS.

    Returns:
        The image without a container toolkit, which depends on the fleet.
    """
    ca = mirror.registry_ca_file if mirror.registry and not served else None
    text = (folder / ca).read_text(encoding="utf-8") if ca else None
    return Image(install, served or mirror.registry, machine, vendor, text)


def run_words(image: Image, deployment: Deployment, model: str, cache: str, names: Mapping[str, str]) -> list[str]:
    """The options of ``docker run`` that do not depend on the host's accounts; no value of a variable is in them.

    Args:
        image: the image.
        deployment: what it serves.
        model: the model's directory.
        cache: the directory of what it compiles.
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


def start_env(image: Image, deployment: Deployment, model: str, cache: str, names: Mapping[str, str]) -> dict[str, str]:
    """What the unit's environment says of the container; arguments as for :func:`run_words`."""
    home = {"HF_HOME": f"{cache}/huggingface"}
    words = run_words(image, deployment, model, cache, {**names, **home})
    return {**home, "VLLM_FLEET_IMAGE": image.reference, "VLLM_FLEET_RUN": shlex.join(words)}


def variables(image: Image) -> dict[str, Any]:
    """The variables of the roles."""
    toolkit = image.toolkit
    return {
        **({"apt_repository_tools": list(apt_repositories.TOOLS)} if toolkit else {}),
        "container_engine_toolkit_repositories": [toolkit.repository.variables] if toolkit else [],
        "container_engine_toolkit_packages": list(toolkit.packages) if toolkit else [],
        "container_engine_toolkit_managed": bool(toolkit and toolkit.managed),
        "container_engine_config": image.daemon_config,
        "container_engine_vendor": image.vendor,
        "container_engine_registry": image.registry or "",
        "container_engine_registry_ca": image.ca or "",
        "vllm_image_reference": image.reference,
        "vllm_image_tag": image.tag,
        "vllm_image_platform": PLATFORMS.get(image.machine or "", ""),
    }


def items(image: Image) -> Iterator[dict[str, Any]]:
    """What the two roles bring about."""
    file = {"role": _ENGINE_ROLE, "kind": "file", "mode": "0644", "owner": "root", "group": "root"}
    for name in PACKAGES:
        yield {"role": _ENGINE_ROLE, "kind": "package", "name": name}
    if image.toolkit:
        for name, version in sorted(image.toolkit.versions.items()):
            wanted = {"version": version} if image.toolkit.managed else {}
            yield {"role": _ENGINE_ROLE, "kind": "package", "name": name, **wanted}
    digest = digests.text_sha256(image.daemon_config)
    yield {**file, "path": CONFIG, "sha256": digest}
    yield {**file, "path": LOADED, "sha256": digests.text_sha256(f"{digest}\n")}
    if image.ca is not None:
        yield {**file, "path": image.ca_path, "sha256": digests.text_sha256(image.ca)}
    unit = {"role": _ENGINE_ROLE, "kind": "unit", "active": True, "enabled": True}
    if image.vendor == "nvidia":
        path = "/etc/systemd/system/nvidia-cdi.service"
        yield {**file, "path": path, "sha256": role_file_sha256(_ENGINE_ROLE, "nvidia-cdi.service")}
        yield {**unit, "name": "nvidia-cdi.service"}
        yield {"role": _ENGINE_ROLE, "kind": "file", "path": CDI}
    yield {**unit, "name": "docker.service"}
    yield {"role": _IMAGE_ROLE, "kind": "image", "name": image.reference, "tag": image.tag}
