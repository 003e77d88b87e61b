"""``vllm-fleet schema``: the JSON Schema of ``fleet.yml``."""

from __future__ import annotations

import typer

from vllm_fleet.schema.fleet_schema import fleet_schema_text

EPILOG = """\b
Examples:
  vllm-fleet schema
  vllm-fleet schema > fleet.schema.json

The first line of a fleet.yml names its schema: '# yaml-language-server: $schema=../../docs/fleet.schema.json'."""


def command() -> None:
    """Print the JSON Schema of fleet.yml, for editors.

    Editors complete keys, show their descriptions and underline mistakes with it. 'make golden' writes it to
    docs/fleet.schema.json.
    """
    typer.echo(fleet_schema_text(), nl=False)
