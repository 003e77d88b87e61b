"""Engines as images: what pins them, what a host gets, and the words of its docker run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import https_files
import pytest
import yaml

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.yaml_document import Document
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan
from vllm_fleet.host import apt_repositories, container, host_paths, instance_files, serve_command
from vllm_fleet.host.manifest_items import image_item
from vllm_fleet.inventory import Site, SiteHost
from vllm_fleet.on_host import probe
from vllm_fleet.resolve.image_digest import image_errors, pinned, refusal
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Overrides
from vllm_fleet.schema.mirror import Mirror
from vllm_fleet.schema.recipe import DockerInstall

ENGINE = "vllm-0.12.0-cuda"
X86, ARM = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


def fleet(fleets: Path, **changes: Any) -> Path:
    """The golden fleet with one pool of its own, whose engine is an image."""
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    for pool in spec["pools"].values():
        pool["install"] = "docker"
    spec |= {key: value for key, value in changes.items() if key != "images"}
    spec["artifacts"] |= {"images": changes.get("images", {})}
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return file.parent


def built(catalog: Catalog, folder: Path) -> Site:
    return inventory.build(plan.load(folder, catalog), catalog)


@pytest.mark.parametrize(
    ("machine", "given", "digest"),
    [
        ("x86_64", X86, X86),
        ("aarch64", X86, X86),
        ("x86_64", {"x86_64": X86, "aarch64": ARM}, X86),
        ("aarch64", {"x86_64": X86, "aarch64": ARM}, ARM),
        ("aarch64", {"x86_64": X86}, None),
        (None, {"x86_64": X86}, None),
    ],
)
def test_a_digest_is_that_of_a_list_or_of_the_machine(
    catalog: Catalog, machine: Any, given: Any, digest: str | None
) -> None:
    engine = pinned(catalog.engine(ENGINE), {ENGINE: given}, machine)
    assert engine.docker
    assert engine.docker.digest == digest


def test_the_fleet_s_digest_goes_before_the_recipe_s(catalog: Catalog) -> None:
    engine = pinned(catalog.engine(ENGINE), {ENGINE: X86}, "x86_64")
    docker = pinned(engine, {ENGINE: ARM}, "x86_64").docker
    assert docker
    assert docker.digest == ARM
    assert pinned(engine, {"another": ARM}, "x86_64") == engine


def test_another_digest_is_another_engine_and_a_wheel_is_the_same(catalog: Catalog) -> None:
    def directory(install: Any, digest: str) -> str:
        asked = Question("h200-8", "openai/gpt-oss-120b", engine=ENGINE, install=install, images={ENGINE: digest})
        return resolve(catalog, asked).engine_directory_id

    assert directory("docker", X86) != directory("docker", ARM)
    assert directory("wheel", X86) == directory("wheel", ARM)


def test_a_pinned_image_is_no_note(catalog: Catalog) -> None:
    asked = Question("h200-8", "openai/gpt-oss-120b", engine=ENGINE, install="docker")
    assert any("no lock or digest" in note for note in resolve(catalog, asked).notes)
    asked = Question("h200-8", "openai/gpt-oss-120b", engine=ENGINE, install="docker", images={ENGINE: X86})
    assert not any("no lock or digest" in note for note in resolve(catalog, asked).notes)


def test_without_a_digest_a_fleet_is_refused_and_told_how_to_get_one(catalog: Catalog, fleets: Path) -> None:
    with pytest.raises(FleetError) as fault:
        built(catalog, fleet(fleets, mirror={"registry": "192.0.2.1:5000"}))
    assert (fault.value.code, fault.value.key) == ("refused", "pools.lab")
    assert "the tag vllm-fleet/lab:0.32.0-cpu can change to another image" in fault.value.message
    assert "artifacts.images: {vllm-0.32.0-cpu: sha256:...}" in fault.value.hint


def test_an_image_that_no_registry_has_needs_the_fleet_s_own(catalog: Catalog, fleets: Path) -> None:
    with pytest.raises(FleetError) as fault:
        built(catalog, fleet(fleets, images={"vllm-0.32.0-cpu": X86}))
    assert fault.value.code == "refused"
    assert "no registry has vllm-fleet/lab" in fault.value.message
    assert "mirror.registry" in fault.value.hint


def test_a_published_image_needs_no_registry_of_the_fleet(catalog: Catalog) -> None:
    assert refusal(pinned(catalog.engine(ENGINE), {ENGINE: X86}, "x86_64"), None) is None


def test_entries_that_pin_nothing_are_named(catalog: Catalog) -> None:
    document = Document("fleet.yml", {})
    bare = catalog.engines["vllm-0.14.1-rocm"].model_copy(update={"docker": None})
    catalog = replace(catalog, engines={**catalog.engines, bare.id: bare})
    found = list(image_errors({"vllm-9": X86, bare.id: X86, ENGINE: X86}, catalog, document))
    assert [(fault.key, fault.message.split(":")[0]) for fault in found] == [
        ("artifacts.images.vllm-9", "there is no engine 'vllm-9'"),
        ("artifacts.images.vllm-0.14.1-rocm", "vllm-0.14.1-rocm does not come as an image"),
    ]


@pytest.mark.parametrize("bad", ["latest", "sha256:1", {"arm64": X86}])
def test_what_is_no_digest_is_a_fault_of_the_file(catalog: Catalog, fleets: Path, bad: Any) -> None:
    with pytest.raises(FleetError) as fault:
        built(catalog, fleet(fleets, images={"vllm-0.32.0-cpu": bad}))
    assert str(fault.value.key).startswith("artifacts.images.vllm-0.32.0-cpu")


def serving(found: Site) -> SiteHost:
    return next(host for host in found.hosts if host.plan.kind == "serving")


def env_of(host: SiteHost) -> dict[str, str]:
    (text,) = [file["content"] for file in host.variables["vllm_service_files"] if file["name"] == "0.env"]
    return {line.split("=", 1)[0]: shlex.split(line)[0].split("=", 1)[1] for line in text.splitlines()}


def test_a_host_runs_just_the_digest_from_the_fleet_s_registry(image_site: Site) -> None:
    host = serving(image_site)
    reference = f"192.0.2.1:5000/vllm-fleet/lab@sha256:{'1' * 64}"
    assert env_of(host)["FLEET_IMAGE"] == reference
    assert host.variables["vllm_image_reference"] == reference
    assert host.variables["vllm_image_tag"] == "vllm-fleet/lab:deploy"
    assert host.variables["vllm_image_platform"] == "linux/amd64"
    assert {"role": "vllm_image", "kind": "image", "name": reference, "tag": "vllm-fleet/lab:deploy"} in (
        host.manifest.items
    )


def test_a_host_of_images_has_no_wheel_and_another_unit(image_site: Site) -> None:
    host = serving(image_site)
    assert not [name for name in host.variables if name.startswith("vllm_engine")]
    assert "FLEET_ENGINE" not in env_of(host)
    units = {item["name"] for item in host.manifest.items if item["kind"] == "unit"}
    assert {"vllm-docker@0.service", "docker.service"} <= units
    assert "vllm@0.service" not in units


def test_the_words_mount_and_name_what_vllm_needs_and_tell_no_value(image_site: Site) -> None:
    env = env_of(serving(image_site))
    words = shlex.split(env["FLEET_RUN"])
    assert words[:2] == list(serve_command.RUN_OPTIONS)
    for name in ("HOME", "HF_HOME", "USER", "TIKTOKEN_ENCODINGS_BASE", "VLLM_CACHE_ROOT", "VLLM_CPU_KVCACHE_SPACE"):
        assert f"--env={name}" in words
    assert not [word for word in words if word.startswith("--env=") and word.count("=") > 1]
    mounts = {word.removeprefix("--volume=").split(":")[0]: word for word in words if word.startswith("--volume=")}
    assert mounts.pop(env["HOME"]).endswith(f":{env['HOME']}")
    assert all(mount.endswith(f"{path}:{path}:ro") for path, mount in mounts.items())
    assert set(mounts) == {
        host_paths.ENCODINGS,
        next(path for path in mounts if path.startswith(host_paths.MODELS)),
    }
    assert "seccomp=unconfined" in words


def image(catalog: Catalog, engine: str, vendor: str, mirror: Mirror | None = None) -> container.Image:
    docker = pinned(catalog.engine(engine), {engine: X86}, "x86_64").docker
    assert isinstance(docker, DockerInstall)
    toolkit = toolkit_of(catalog) if vendor == "nvidia" else None
    return container.Image(docker, "x86_64", vendor, container.fleet_registry(mirror or Mirror(), Path()), toolkit)


def toolkit_of(catalog: Catalog, managed: bool = True) -> container.Toolkit:
    recipe = catalog.drivers.container_toolkit
    repository = apt_repositories.choose_repository(catalog, recipe.repository, "x86_64", {})
    return container.Toolkit(repository, recipe.packages, managed)


@pytest.mark.parametrize(
    ("host_class", "engine", "vendor", "wanted", "other"),
    [
        (
            "h200-8",
            ENGINE,
            "nvidia",
            ["--env=NVIDIA_VISIBLE_DEVICES=nvidia.com/gpu=all", "--runtime=nvidia", "--ulimit=memlock=-1:-1"],
            "--gpus",
        ),
        (
            "mi300x-8",
            "rocm-open-mi300",
            "amd",
            ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=video", "--cap-add=SYS_PTRACE"],
            "--runtime=nvidia",
        ),
        (
            "mi300x-8",
            "vllm-0.32.0-rocm",
            "amd",
            ["--device=/dev/kfd", "--device=/dev/dri", "--group-add=video", "--ulimit=memlock=-1:-1"],
            "--runtime=nvidia",
        ),
    ],
)
def test_the_devices_are_those_of_the_vendor(
    catalog: Catalog, host_class: str, engine: str, vendor: str, wanted: list[str], other: str
) -> None:
    model = "openai/gpt-oss-120b"
    deployment = resolve(catalog, Question(host_class, model, engine=engine, install="docker"))
    words = container.run_options(image(catalog, engine, vendor), deployment, "/m", "/c", {})
    assert [word for word in wanted if word not in words] == []
    assert other not in words
    assert "--ipc=host" in words


def test_a_lab_host_raises_no_limit_of_its_machine(catalog: Catalog) -> None:
    engine = "vllm-0.32.0-rocm"
    deployment = resolve(catalog, Question("mi300x-1", "openai/gpt-oss-20b", engine=engine, install="docker"))
    here, there = (replace(image(catalog, engine, "amd"), lab=lab) for lab in (True, False))
    words = [set(container.run_options(each, deployment, "/m", "/c", {})) for each in (here, there)]
    assert words[1] - words[0] == {"--ulimit=memlock=-1:-1"}


@pytest.mark.parametrize(("tensor_parallel", "devices"), [(1, ["0", "1"]), (2, ["0,1", "2,3"]), (8, [None])])
def test_each_instance_has_devices_of_its_own(
    catalog: Catalog, tensor_parallel: int, devices: list[str | None]
) -> None:
    own = Overrides(args={"tensor-parallel-size": tensor_parallel}, why="the test wants this many")
    model = "openai/gpt-oss-120b"
    deployment = resolve(catalog, Question("h200-8", model, engine=ENGINE, install="docker", overrides=own))
    for name, wanted in zip(("0", "1"), devices, strict=False):
        assert instance_files.serving_env(deployment, "/c", name).get("CUDA_VISIBLE_DEVICES") == wanted
    words = container.run_options(
        image(catalog, ENGINE, "nvidia"), deployment, "/m", "/c", instance_files.serving_env(deployment, "/c")
    )
    assert ("--env=CUDA_VISIBLE_DEVICES" in words) == (tensor_parallel < 8)


def test_without_a_mirror_an_image_comes_from_where_its_name_says(catalog: Catalog) -> None:
    assert image(catalog, ENGINE, "nvidia").reference == f"vllm/vllm-openai@{X86}"


def test_only_a_registry_that_is_named_goes_without_tls(catalog: Catalog, tmp_path: Path) -> None:
    def config(mirror: Mirror | None = None) -> Any:
        return image(catalog, ENGINE, "cpu", mirror).daemon_settings

    assert "insecure-registries" not in config()
    assert config(Mirror(registry="r:5000"))["insecure-registries"] == ["r:5000"]
    ca = tmp_path / "ca.pem"
    _, certificate = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
    ca.write_text(certificate, encoding="utf-8")
    secured = image(catalog, ENGINE, "cpu", Mirror(registry="r:5000", registry_ca_file=str(ca)))
    assert "insecure-registries" not in secured.daemon_settings
    assert "/etc/docker/certs.d/r:5000/ca.crt" in [item.get("path") for item in container.image_items(secured)]
    assert secured.daemon_settings["live-restore"] is True


def test_a_file_of_the_registry_that_is_not_there_is_a_fault_with_its_place(catalog: Catalog, fleets: Path) -> None:
    mirror = {"registry": "192.0.2.1:5000", "registry_ca_file": "none.pem"}
    with pytest.raises(FleetError) as fault:
        built(catalog, fleet(fleets, images={"vllm-0.32.0-cpu": X86}, mirror=mirror))
    assert fault.value.key == "mirror.registry_ca_file"


def test_nvidia_gets_the_toolkit_and_the_names_of_its_gpus(catalog: Catalog) -> None:
    found = {item.get("name") or item["path"] for item in container.image_items(image(catalog, ENGINE, "nvidia"))}
    extra = {*catalog.drivers.container_toolkit.packages, "nvidia-cdi.service", "/etc/cdi/nvidia.yaml"}
    assert "nvidia-container-toolkit" in extra
    assert extra <= found
    assert not extra & {item.get("name") for item in container.image_items(image(catalog, ENGINE, "amd"))}


def test_a_host_whose_image_brings_the_toolkit_keeps_its_version(catalog: Catalog) -> None:
    for managed in (True, False):
        found = replace(image(catalog, ENGINE, "nvidia"), toolkit=toolkit_of(catalog, managed))
        (item,) = [each for each in container.image_items(found) if each.get("name") == "nvidia-container-toolkit"]
        assert ("version" in item) == managed
        assert container.image_variables(found)["container_engine_toolkit_managed"] == managed


def test_an_image_that_no_registry_has_shows_no_line(catalog: Catalog) -> None:
    docker = catalog.engine("vllm-0.32.0-cpu").docker
    assert docker
    assert serve_command.docker_lines(docker, "m", {}, {}) == []
    assert "is in no registry" in str(serve_command.docker_note(docker))


STAND_IN = """\
#!/bin/sh
# Stands in for docker: says what 'docker image inspect' of Debian's docker 20.10 says.
for name; do
    case $name in
        *GONE*) echo "Error: No such image: $name" >&2; status=1 ;;
        *=*) ;;
        *old*) echo sha256:1 ;;
        *there*) echo sha256:2 ;;
        *away*) echo "Cannot connect to the Docker daemon" >&2; exit 1 ;;
    esac
done
exit ${status:-0}
"""


@pytest.mark.parametrize(
    ("name", "tag", "difference"),
    [
        ("r/there@sha256:0", "there:deploy", None),
        ("r/GONE@sha256:0", "there:deploy", ("missing", "is missing")),
        ("r/there@sha256:0", "GONE:deploy", ("wrong_tag", "is not what GONE:deploy names")),
        ("r/there@sha256:0", "old:deploy", ("wrong_tag", "is not what old:deploy names")),
        ("r/away@sha256:0", "away:deploy", ("no_answer", "is unknown: docker does not answer")),
    ],
)
def test_the_probe_asks_docker_for_the_image_and_its_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tag: str, difference: tuple[str, str] | None
) -> None:
    (tmp_path / "docker").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert probe.check_image(image_item("r", name, tag)) == difference


def test_a_host_without_docker_has_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.check_image(image_item("r", "r/a@sha256:0", "a:deploy")) == ("no_tool", "is missing, and so is docker")
