"""The contract between the inventory and the roles, both ways, and what every role must have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.inventory import ALL_ROLES, HELPERS, ROLES, Site, SiteHost
from vllm_fleet.operate.rollout import hosts as rollout_hosts

ROLE_FOLDERS = sorted(path for path in (paths.root() / "roles").iterdir() if path.is_dir())


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def options(role: Path) -> dict[str, Any]:
    return dict(read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"])


@pytest.mark.parametrize("role", ROLE_FOLDERS, ids=lambda path: path.name)
class TestRole:
    def test_defaults_are_those_of_the_specs_to_the_value(self, role: Path) -> None:
        specs = {name: spec["default"] for name, spec in options(role).items() if "default" in spec}
        assert read(role / "defaults" / "main.yml") == specs

    def test_every_variable_has_the_role_as_its_prefix(self, role: Path) -> None:
        assert all(name.startswith(f"{role.name}_") for name in options(role))
        assert (
            all(name.startswith(f"__{role.name}_") for name in read(role / "vars" / "main.yml"))
            if (role / "vars").is_dir()
            else True
        )

    def test_every_variable_that_tasks_and_templates_use_is_specified(self, role: Path) -> None:
        files = [*(role / "tasks").glob("*.yml"), *(role / "templates").glob("*.j2")]
        text = "".join(path.read_text(encoding="utf-8") for path in files)
        # This action reads the variables of all hosts of a batch by itself.
        if "  fleet_rollout:" in text:
            text += Path(str(rollout_hosts.__file__)).read_text(encoding="utf-8")
            text += (paths.root() / "plugins" / "action" / "fleet_rollout.py").read_text(encoding="utf-8")
        used = set(re.findall(rf"(?<![\w_]){role.name}_\w+", text))
        assert used - set(options(role)) == set()
        unused = {name for name in options(role) if name not in used}
        assert unused == set()

    def test_a_role_has_few_variables(self, role: Path) -> None:
        assert len(options(role)) <= 20

    def test_registers_and_facts_are_private(self, role: Path) -> None:
        for path in (role / "tasks").glob("*.yml"):
            for task in read(path):
                assert str(task.get("register", f"__{role.name}_")).startswith(f"__{role.name}_"), path

    def test_the_readme_is_generated_from_the_specs(self, role: Path) -> None:
        from tools.docs import role_readme

        assert (role / "README.md").read_text(encoding="utf-8") == role_readme(role)


@pytest.fixture
def hosts(golden_site: Site, image_site: Site) -> list[SiteHost]:
    return [*golden_site.hosts, *image_site.hosts]


def test_every_variable_of_a_host_is_specified_by_just_one_of_its_roles(hosts: list[SiteHost]) -> None:
    specs = {role: options(paths.root() / "roles" / role) for role in (*ALL_ROLES, *HELPERS)}
    for host in hosts:
        for name in host.variables:
            owners = [role for role in (*host.manifest.roles, *HELPERS) if name in specs[role]]
            assert name.startswith("fleet_") or len(owners) == 1, (host.plan.name, name, owners)


def test_every_required_variable_is_given_to_every_host_of_the_role(hosts: list[SiteHost]) -> None:
    for host in hosts:
        for role in host.manifest.roles:
            for name, spec in options(paths.root() / "roles" / role).items():
                assert name in host.variables or not spec.get("required"), (host.plan.name, name)


def test_every_item_of_a_manifest_is_owned_by_a_role_of_the_host_in_their_order(hosts: list[SiteHost]) -> None:
    for host in hosts:
        assert host.manifest.roles == tuple(role for role in ROLES[host.plan.kind] if role in host.manifest.roles)


def test_every_role_is_some_host_s(hosts: list[SiteHost]) -> None:
    assert {role for host in hosts for role in host.manifest.roles} == set(ALL_ROLES) - {
        "nvidia_driver",
        "amd_driver",
        "image_ports",
        "mirror",
    }


def all_tasks(tasks: Any) -> Iterator[Any]:
    """Tasks of a playbook with those of their blocks and of the files that they include."""
    for task in tasks:
        yield task
        for block in ("block", "rescue", "always"):
            yield from all_tasks(task.get(block, ()))
        if file := task.get("ansible.builtin.include_tasks"):
            yield from all_tasks(read(paths.root() / "playbooks" / file))


def test_every_role_has_its_play_and_every_play_its_group() -> None:
    run: dict[str, set[str]] = {}
    for play in (play for path in (paths.root() / "playbooks").glob("*.yml") for play in read(path)):
        for task in all_tasks(play.get("tasks", ())):
            if included := task.get("ansible.builtin.include_role"):
                run.setdefault(included["name"], set()).add(play["hosts"])
    drivers = {"nvidia_driver", "amd_driver"}
    rolled_out = ("vllm_service", "vllm_firewall")
    rollout = "rollout"
    gateways_first = ("image_ports", "host_baseline")
    assert run == {
        **{role: {rollout} for role in rolled_out},
        # The gateways drain a host that may have left fleet.yml.
        "gateway_traffic": {rollout, "gateway", "{{ fleet_leave_host | default('fleet_leave_host') }}"},
        **{role: {f"needs_{role}:&idle", rollout} for role in drivers},
        **{role: {f"needs_{role}"} for role in ALL_ROLES if role not in {*drivers, *rolled_out, *gateways_first}},
        **{role: {f"needs_{role}:&gateway", f"needs_{role}:!gateway"} for role in gateways_first},
        # Its tasks for the first boot run on every host that a role will change.
        "host_baseline": {"needs_any", "needs_host_baseline:&gateway", "needs_host_baseline:!gateway"},
    }


@pytest.mark.parametrize("path", sorted((paths.root() / "playbooks").glob("*.yml")), ids=lambda path: path.name)
def test_a_playbook_reads_a_role_only_where_a_host_needs_it(path: Path) -> None:
    for play in read(path):
        assert "roles" not in play
        assert not [task for task in play.get("tasks", ()) if "ansible.builtin.import_role" in task]
