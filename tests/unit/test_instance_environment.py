"""The environment of an instance: vLLM warns about every VLLM_ variable that it does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet.host_plan import HostPlan
from vllm_fleet.fleet.stack import Location
from vllm_fleet.host import container
from vllm_fleet.host.firewall import Peers
from vllm_fleet.host.instance_files import instance_files
from vllm_fleet.host.model_files import ModelFiles
from vllm_fleet.host.serving_host import ServingHost
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.resolve.resolve import Question, resolve

#: What the programs of the units read, whatever the engine.
FOR_THE_UNIT = {
    "FLEET_MODEL",
    "FLEET_URL",
    "FLEET_READINESS",
    "FLEET_START_TIMEOUT_SECONDS",
    "FLEET_UNIT_DIGEST",
    "FLEET_ENV_DIGEST",
}


def deployments(catalog: Catalog) -> Iterator[Deployment]:
    """One deployment of each engine, install form, model and host class that resolves."""
    seen = set()
    for model in catalog.models.values():
        for asked in recipe_check.combinations(catalog, model):
            kind = (asked.engine.id, asked.install, model.name, asked.host.family.name)
            if kind in seen:
                continue
            question = Question(asked.host.id, model.name, asked.profile, asked.engine.id, asked.install)
            try:
                deployment = resolve(catalog, question)
            except FleetError as fault:
                assert fault.code == "refused", fault
                continue
            seen.add(kind)
            yield deployment


def variables(catalog: Catalog, deployment: Deployment) -> set[str]:
    """The names in the rendered environment files of a host."""
    host_class = catalog.host_class(deployment.host_class)
    image = None
    if deployment.install == "docker":
        assert deployment.engine.docker
        image = container.Image(deployment.engine.docker, vendor=host_class.family.vendor, machine=None, registry=None)
    plan = HostPlan("gpu-0", "serving", "gpu", "static", {}, deployment.host_class, 0, "root", deployment=deployment)
    host = ServingHost(
        plan=plan,
        location=Location("192.0.2.1", 22, "root", (), "192.0.2.1", ("192.0.2.1",)),
        deployment=deployment,
        host_class=host_class,
        peers=Peers(("192.0.2.1",), ("192.0.2.2",)),
        model=ModelFiles(Path(), "0123456789ab", {}),
        encodings=(),
        cache_key="0123456789abcdef",
        image=image,
    )
    instances = instance_files(host).instances
    assert instances
    return {line.split("=", 1)[0] for instance in instances for line in instance.env.splitlines()}


def test_no_engine_gets_a_vllm_variable_that_its_release_does_not_read(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The variables of the controller stay there.
    for name in ("VLLM_FLEET_CACHE", "VLLM_FLEET_INVENTORIES", "VLLM_FLEET_CHECKOUT"):
        monkeypatch.setenv(name, "/nowhere")
    engines = set()
    for deployment in deployments(catalog):
        engine = deployment.engine
        names = catalog.names(engine)
        rendered = variables(catalog, deployment)
        unread = {
            name for name in rendered if name.startswith("VLLM_") and not names.reads(f"env.{name}", engine.accelerator)
        }
        assert unread == set(), f"{engine.id} on {deployment.host_class}"
        assert rendered >= FOR_THE_UNIT
        start = {"FLEET_ENGINE"} if deployment.install == "wheel" else {"FLEET_IMAGE", "FLEET_RUN"}
        assert {name for name in rendered if name.startswith("FLEET_")} == FOR_THE_UNIT | start
        engines.add(engine.id)
    assert engines == set(catalog.engines)


def test_no_release_reads_a_variable_of_the_unit(catalog: Catalog) -> None:
    for engine in catalog.engines.values():
        names = catalog.names(engine)
        assert not [name for name in {*names.env, *names.env_unused, *names.beside} if name.startswith("FLEET_")]


@pytest.mark.parametrize("name", ["vllm@.service", "vllm-docker@.service", "vllm-container@.service"])
def test_a_unit_sets_no_vllm_variable(name: str) -> None:
    text = (paths.root() / "roles" / "vllm_service" / "files" / name).read_text(encoding="utf-8")
    assert not re.search(r"^(Pass|Set|Unset)?Environment=.*VLLM_", text, re.MULTILINE)
    assert "PassEnvironment" not in text


@pytest.mark.parametrize("name", ["vllm-instance", "vllm-container", "vllm-container-root"])
def test_the_programs_of_the_units_read_fleet_variables_alone(name: str) -> None:
    text = (paths.root() / "roles" / "vllm_service" / "files" / name).read_text(encoding="utf-8")
    read = set(re.findall(r'environment\["(\w+)"\]', text))
    of_systemd = {"CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "HOME", "PATH"}
    assert {variable for variable in read - of_systemd if not variable.startswith("FLEET_")} == set()
    assert "VLLM_FLEET" not in text
