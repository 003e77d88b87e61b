"""Writes the generated documents: the README of each role, and the tables of the recipes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tools import pictures
from vllm_fleet.base import paths
from vllm_fleet.catalogue import catalogue
from vllm_fleet.reports import cloud_table, support_matrix
from vllm_fleet.schema import fleet_schema


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


def support_matrix_page() -> str:
    """The text of docs/matrix.md."""
    return support_matrix.document(catalogue.load())


def clouds_page() -> str:
    """The text of docs/clouds.md."""
    return cloud_table.markdown(catalogue.load())


def main() -> int:
    """Writes every generated file."""
    for source in pictures.sources():
        source.with_suffix(".svg").write_text(pictures.svg(source), encoding="utf-8")
    for role in sorted((paths.root() / "roles").iterdir()):
        if role.is_dir():
            (role / "README.md").write_text(role_readme(role), encoding="utf-8")
    (paths.root() / "docs" / "matrix.md").write_text(support_matrix_page(), encoding="utf-8")
    (paths.root() / "docs" / "clouds.md").write_text(clouds_page(), encoding="utf-8")
    (paths.root() / fleet_schema.FILE).write_text(fleet_schema.fleet_schema_text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
