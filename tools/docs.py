"""Writes the generated documents: the README of each role, and the tables of the recipes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tools import pictures
from vllm_fleet.base import paths
from vllm_fleet.catalogue import catalogue
from vllm_fleet.edge.uv import uv_program
from vllm_fleet.facts import questions, states
from vllm_fleet.host import manifest_items
from vllm_fleet.reports import cloud_table, matrix_page, support_matrix
from vllm_fleet.resolve.device_memory import Device, Served, estimate
from vllm_fleet.schema import fleet_schema

#: Packages that only 'pulumi up' needs.
_CONTROLLER_ONLY = ("pulumi", "pulumi-aws", "pulumi-gcp", "pip")
#: Public starts of vLLM with their numbers.
STARTS = paths.root() / "tests" / "fixtures" / "published_starts.yml"


def role_readme(role: Path) -> str:
    """The README of a role: purpose, scope, and every variable."""
    main: dict[str, Any] = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))[
        "argument_specs"
    ]["main"]
    lines = [f"# {role.name}", "", f"{main['short_description']}.", ""]
    lines += [f"- {text}" for text in main["description"]]
    lines += ["", "| variable | type | default | meaning |", "|---|---|---|---|"]
    lines += list(_rows(main["options"], ""))
    lines += ["", "Made from `meta/argument_specs.yml` by `make golden`.", ""]
    return "\n".join(lines)


def _rows(options: dict[str, Any], prefix: str) -> list[str]:
    rows = []
    for name, spec in options.items():
        kind = spec["type"] + (f" of {spec['elements']}" if "elements" in spec else "")
        default = "required" if spec.get("required") else f"`{spec['default']}`" if "default" in spec else "-"
        rows.append(f"| `{prefix}{name}` | {kind} | {default} | {spec['description']} |")
        rows += _rows(spec.get("options", {}), f"{prefix}{name}.")
    return rows


def worker_requirements() -> str:
    """The text of execution-environment/requirements.txt: what runs of Ansible need of uv.lock."""
    pruned = [word for name in _CONTROLLER_ONLY for word in ("--prune", name)]
    words = [
        "export",
        "--frozen",
        "--offline",
        "--no-dev",
        "--no-emit-project",
        "--no-annotate",
        "--no-header",
        *pruned,
    ]
    done = subprocess.run(
        [uv_program(), *words, *pruned, "--project", str(paths.root())],
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    return f"# From uv.lock by 'make golden': what workers and the execution environment install.\n{done.stdout}"


def support_matrix_page() -> str:
    """The text of docs/matrix.md."""
    return support_matrix.document(catalogue.load())


def memory_page() -> str:
    """The text of docs/memory.md: how the memory of a device is counted, and the public starts that it reproduces."""
    recipes = catalogue.load()
    lines = [
        "# The memory of a device",
        "",
        "vLLM takes a share of a GPU (`gpu-memory-utilization`). What weights, activations, the runtime and, from 0.21",
        "on, the graphs leave of it is the KV cache. A start fails if that does not hold one sequence of",
        "`max-model-len`. The toolkit makes the same sum before anything is installed, with the numbers of",
        "`recipes/memory.yml`, and refuses what would not start. `recipe`, `explain` and `plan` show it.",
        "",
        "The sum is compared with every public start that prints its numbers. GiB of one device:",
        "",
        "| start | device | release | settings | printed KV cache | the sum | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for start in yaml.safe_load(STARTS.read_text(encoding="utf-8"))["starts"]:
        served = Served(start["model"], recipes.models[start["model"]].shape)
        found = estimate(recipes.memory, served, Device(**start["device"], args=start.get("args", {})))
        settings = ", ".join(f"`{name} {value}`" for name, value in start.get("args", {}).items()) or "none"
        device = f"{start['device']['arch']}, {start['device']['total']} GiB"
        size = start["device"].get("tensor_parallel", 1)
        lines.append(
            f"| {start['source']}: {start['model'].rpartition('-')[2]} | {device}{f', TP{size}' if size > 1 else ''} | "
            f"{start['device']['engine']} | {settings} | {start.get('kv', '-')} | {found.kv_cache:.2f} "
            f"({found.kernel}) | {start['outcome']} |"
        )
    lines += [
        "",
        "`failed`: out of memory before the KV cache; such starts are in `failures` of the table and refused with",
        "their source. What a start does not print is taken as its release has it (`assumed` in the list of starts).",
        "",
        "Made from `recipes/memory.yml` and `tests/fixtures/published_starts.yml` by `make golden`.",
        "",
    ]
    return "\n".join(lines)


def matrix_html() -> str:
    """The text of docs/matrix-table.html."""
    return matrix_page.html(catalogue.load())


def clouds_page() -> str:
    """The text of docs/clouds.md."""
    return cloud_table.markdown(catalogue.load())


def manifest_page() -> str:
    """The text of docs/manifest.md: kinds of items from their types, states and codes from their enumerations."""
    lines = [
        "# What a manifest can ask of a host",
        "",
        "A manifest lists everything that must be true on one host. Each item has a `kind`, the `role` that owns it,",
        "and the keys of its kind. The probe checks every item and reports those that differ, with a `state` for",
        "programs and a `why` for people. A role repairs the items that it owns.",
        "",
        "| kind | keys (`?`: may be left out) | what the probe checks | owner roles |",
        "|---|---|---|---|",
    ]
    for kind, item_type in manifest_items.KINDS.items():
        keys = ", ".join(
            f"`{key}`" if key in item_type.__required_keys__ else f"`{key}`?"
            for key in item_type.__annotations__
            if key not in ("role", "kind")
        )
        checks = " ".join(inspect.cleandoc(item_type.__doc__ or "").replace("``", "`").split())
        owners = ", ".join(f"`{role}`" for role in manifest_items.OWNERS[kind])
        lines.append(f"| `{kind}` | {keys} | {checks} | {owners} |")
    lines += [
        "",
        "Drift of the kind `driver` belongs to no item: where a role installs the driver, the facts of the host show",
        "what is wrong with it, and its state is a code of a veto.",
        "",
        "## States of drift",
        "",
        "| state | meaning |",
        "|---|---|",
        *(f"| `{state}` | {state.meaning} |" for state in states.DriftState),
        "",
        "## Codes of vetoes",
        "",
        "A veto stops a run before a host is touched, since the host is not what its class says.",
        "",
        "| code | meaning |",
        "|---|---|",
        *(f"| `{code}` | {code.meaning} |" for code in states.VetoCode),
        "",
        "Made from `vllm_fleet/on_host/manifest_items.py`, `vllm_fleet/host/manifest_items.py` and",
        "`vllm_fleet/facts/states.py` by `make golden`.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Writes every generated file."""
    for source in pictures.sources():
        source.with_suffix(".svg").write_text(pictures.svg(source), encoding="utf-8")
    for role in sorted((paths.root() / "roles").iterdir()):
        if role.is_dir():
            (role / "README.md").write_text(role_readme(role), encoding="utf-8")
    (paths.root() / "docs" / "matrix.md").write_text(support_matrix_page(), encoding="utf-8")
    (paths.root() / "docs" / "memory.md").write_text(memory_page(), encoding="utf-8")
    (paths.root() / "docs" / "matrix-table.html").write_text(matrix_html(), encoding="utf-8")
    (paths.root() / "docs" / "clouds.md").write_text(clouds_page(), encoding="utf-8")
    (paths.root() / "docs" / "manifest.md").write_text(manifest_page(), encoding="utf-8")
    (paths.root() / "docs" / "facts.md").write_text(questions.facts_page(), encoding="utf-8")
    (paths.root() / "execution-environment" / "requirements.txt").write_text(worker_requirements(), encoding="utf-8")
    (paths.root() / fleet_schema.FILE).write_text(fleet_schema.fleet_schema_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
