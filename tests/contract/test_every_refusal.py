"""Every refusal of the roles and of the modules: said by check and plan before, or known on the host alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths

sys.path.insert(0, str(paths.root() / "tests" / "unit"))
import test_refusals as unit

_REFUSE = ("ansible.builtin.assert", "ansible.builtin.fail")
_BLOCKS = ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks")

#: Refusal -> the case of tests/unit/test_refusals.py in which check and plan say the same words.
CHECKED = {
    "harmony_encodings/preflight.yml: Preflight | Expect the digests of the official vocabularies": (
        "a vocabulary that is another file"
    ),
    # On a host whose distribution a mirror decides; else the host alone knows it.
    "apt_repository/preflight.yml: Preflight | Refuse a distribution that the vendor does not support": (
        "a distribution that the vendor has no driver for"
    ),
    # The list of digests; what the files on the host are, the host alone knows.
    "verified_store.py: str(fault)": "no digests of the model",
    "vllm_engine/preflight.yml: Preflight | Refuse a host that the lock is not for": "an engine without a lock",
    "vllm_image/pull.yml: Pull | Refuse an image for another platform": "an image without a digest",
}
#: Refusal -> why no file of the fleet can say it before, and who does.
HOST_ONLY = {
    "apt_repository/key-url.yml: Key url | Expect one key with the fingerprint of the recipe": (
        "the vendor's server decides which key it gives; the fingerprint is the recipe's"
    ),
    "container_engine/service.yml: Service | Expect the daemon to use the settings": "the running docker",
    "docker_settings.py: 'nothing was changed: ' + '; '.join((text for _, text in conflicts))": (
        "the host's own daemon.json"
    ),
    "driver_packages/ask.yml: Ask | Refuse a distribution without packages": (
        "the host's /etc/os-release; of a mirror's distribution, check says it"
    ),
    "driver_packages/ask.yml: Ask | Refuse what apt cannot install, or would install at the cost of other packages": (
        "the host's apt: its sources and the packages that are there"
    ),
    "foreign_unit_files/main.yml: Fail if a drop-in for all services changes the unit": (
        "the host's own service.d, which is for other units too"
    ),
    "host_baseline/first-boot.yml: First boot | Refuse a host whose first boot is not complete": (
        "the host's cloud-init"
    ),
    "driver_packages/install.yml: Install | Expect the same kernels as before": (
        "apt's packages decide whether a kernel comes with them"
    ),
    "harmony_encodings/install.yml: Install | Expect the digests of the official vocabularies": (
        "what arrived on the host's disk; drift says it later"
    ),
    "host_reboot/prepare.yml: Prepare | Refuse a restart that is not allowed": (
        "whether a driver needs a restart is seen when it is loaded; drift says that it is not loaded"
    ),
    "model_store/await.yml: Await | Fail if a model was not fetched": (
        "the network between the host and its source; the journal of vllm-fetch says why"
    ),
    "model_store/preflight.yml: Preflight | Refuse a system without apt": "the host's /etc/os-release",
    "model_store/prepare.yml: Prepare | Refuse a disk that cannot hold the store": (
        "what is on the host's disks; of their size, check says it"
    ),
    "model_store/preflight.yml: Preflight | Refuse a mount point that is not mounted": "the host's mounts",
    "model_store/preflight.yml: Preflight | Refuse a folder that is not there": "the host's disk; drift says it later",
    "vllm_engine/prove.yml: Prove | Refuse an engine that does not work": "it is tried on the host's own hardware",
    "rollout.yml: Fail with the first error": "it repeats the error of the role that has failed on the host",
    "dpkg_info.py: dpkg-query failed: …": "the host's dpkg",
    "engine_clone.py: … exists already": "the host's disk",
    "engine_clone.py: … cannot be cloned to …: …": "the host's disk",
    "host_files.py: … is no directory: remove it, and run again": "the host's disk",
    "host_files.py: … is no file: remove it, and run again": "the host's disk",
    "verified_store.py: … cannot be read: …": "the host's disk",
}


def find_tasks(tasks: Any) -> Iterator[str]:
    """The names of the tasks that refuse."""
    for task in tasks or []:
        for block in _BLOCKS:
            yield from find_tasks(task.get(block))
        if any(name in task for name in _REFUSE):
            yield str(task["name"])


def find_messages(tree: ast.AST) -> Iterator[str]:
    """The fixed text of each message with which a module fails; the source of one without text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "fail_json":
            (message,) = (word.value for word in node.keywords if word.arg == "msg")
            parts = message.values if isinstance(message, ast.JoinedStr) else [message]
            texts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts]
            yield ast.unparse(message) if texts == ["…"] else "".join(texts)


def refusals() -> Iterator[str]:
    roles = paths.root() / "roles"
    for file in sorted([*roles.glob("*/tasks/**/*.yml"), *(paths.root() / "playbooks").glob("**/*.yml")]):
        where = f"{file.relative_to(roles).parts[0]}/{file.name}" if file.is_relative_to(roles) else file.name
        for name in find_tasks(yaml.safe_load(file.read_text(encoding="utf-8"))):
            yield f"{where}: {name}"
    for file in sorted((paths.root() / "plugins" / "modules").glob("*.py")):
        for message in find_messages(ast.parse(file.read_text(encoding="utf-8"))):
            yield f"{file.name}: {message}"


def test_every_refusal_is_said_before_or_is_known_on_the_host_alone() -> None:
    found = set(refusals())
    unknown = sorted(found - set(CHECKED) - set(HOST_ONLY))
    assert not unknown, (
        "a new refusal: let inventory.find_refusals say it and add a case to tests/unit/test_refusals.py, or add it to "
        f"HOST_ONLY with the reason why the host alone knows it: {unknown}"
    )
    assert sorted({*CHECKED, *HOST_ONLY} - found) == []
    assert not set(CHECKED) & set(HOST_ONLY)


@pytest.mark.parametrize("case", sorted(set(CHECKED.values())))
def test_what_check_says_has_a_case(case: str) -> None:
    assert case in unit.CASES


def test_a_new_refusal_is_found(tmp_path: Path) -> None:
    tasks = [{"name": "Outer", "block": [{"name": "Refuse", "ansible.builtin.assert": {"that": "false"}}]}]
    assert list(find_tasks(tasks)) == ["Refuse"]
    assert list(find_messages(ast.parse("module.fail_json(msg=f'{a} is wrong: {b}')"))) == ["… is wrong: …"]
