"""The records of ``fleet.yml`` -> its JSON Schema, with which an editor completes keys and underlines mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from vllm_fleet.base import paths
from vllm_fleet.schema.cloud import PLACEMENTS, LabPlacement, Placement
from vllm_fleet.schema.fleet import Fleet

#: Where the schema is in the checkout.
FILE = "docs/fleet.schema.json"
#: The dialect that editors know best. Nothing in the schema needs a newer one.
_DIALECT = "http://json-schema.org/draft-07/schema#"


class _Generator(GenerateJsonSchema):
    """Without titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def fleet_schema() -> dict[str, Any]:
    """The JSON Schema of ``fleet.yml``.

    It knows every key, type and choice, and which keys ``placement`` has in each cloud. What keys must agree on, such
    as a zone with its region, is checked by ``vllm-fleet check`` alone.
    """
    models: tuple[type[BaseModel], ...] = (Fleet, Placement, *_placements().values())
    _, together = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    definitions: dict[str, Any] = together["$defs"]
    for definition in definitions.values():
        _close_patterns(definition)
    fleet = definitions.pop("Fleet")
    pool, gateway = definitions["Pool"], definitions["Gateway"]
    pool["allOf"] = [
        {
            "if": {"properties": {"cloud": {"const": cloud}}, "required": ["cloud"]},
            "then": {"properties": {"placement": {"$ref": f"#/$defs/{model.__name__}"}}, "required": ["placement"]},
        }
        for cloud, model in _placements().items()
    ]
    # A folder on the controller may be given as text.
    sources = definitions["Artifacts"]["properties"]["models"]
    sources["additionalProperties"] = {"anyOf": [{"type": "string"}, sources["additionalProperties"]]}
    # A gateway takes missing keys from the first pool, whose cloud may have further ones.
    beside = definitions.pop("Placement")
    del beside["required"]
    # Of the first pool's network, a gateway gives only what differs.
    existing = beside["properties"]["existing"]
    beside["properties"]["existing"] = {"type": "object", "description": existing["description"]}
    definitions["GatewayPlacement"] = {**beside, "additionalProperties": True}
    gateway["properties"]["placement"] = {
        "$ref": "#/$defs/GatewayPlacement",
        "description": gateway["properties"]["placement"]["description"],
    }
    return {"$schema": _DIALECT, "title": "fleet.yml", **fleet, "$defs": dict(sorted(definitions.items()))}


def _placements() -> dict[str, type[BaseModel]]:
    return {"lab": LabPlacement, **PLACEMENTS}


def fleet_schema_text() -> str:
    """The schema as it is printed and kept in :data:`FILE`."""
    return json.dumps(fleet_schema(), indent=2, ensure_ascii=False) + "\n"


def schema_line(folder: Path) -> str:
    """The first line of a ``fleet.yml``, which tells editors where its schema is.

    Args:
        folder: the fleet's folder.
    """
    file = os.path.relpath(paths.root() / FILE, paths.absolute(folder))
    return f"# yaml-language-server: $schema={file}\n"


def _close_patterns(part: Any) -> None:
    """Refuses the keys of a mapping that match no pattern; JSON Schema allows them by default."""
    if isinstance(part, dict):
        if "patternProperties" in part:
            part["additionalProperties"] = False
        for value in part.values():
            _close_patterns(value)
    elif isinstance(part, list):
        for value in part:
            _close_patterns(value)
