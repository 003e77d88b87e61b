"""``vllm-fleet lock``: asks the hub once for the digests of the models of a fleet, and keeps them in the fleet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from vllm_fleet.base import paths
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import FleetOption, JsonOption, fleet_directory, print_json, print_text
from vllm_fleet.edge import hub
from vllm_fleet.fleet import plan
from vllm_fleet.host import model_sources

EPILOG = """\b
Examples:
  vllm-fleet lock --fleet prod
  vllm-fleet lock --fleet prod --hub-token-file ~/hub-token"""


def command(
    fleet: FleetOption = "lab",
    hub_token_file: Annotated[Path | None, typer.Option(help="File with the hub's token, mode 0600.")] = None,
    json: JsonOption = False,
) -> None:
    """Ask the hub for the digests of models once, and keep them.

    Writes models.lock.json into the fleet's folder: the files of each model whose recipe has no digests, at its pinned
    commit. Later runs trust this file, and neither the hub nor a mirror.
    """
    recipes = catalogue.load()
    planned = plan.load(fleet_directory(fleet), recipes)
    # Before it is known whether the hub is asked: an option with a wrong file is never taken in silence.
    token = hub.read_token(hub_token_file)
    locked = dict(model_sources.read_lock(planned))
    asked = []
    for name in model_sources.served_models(planned):
        source = model_sources.model_source(planned, name)
        if source.controller or model_sources.known_digests(planned, recipes, name):
            continue
        revision = model_sources.pinned_revision(planned, recipes, name)
        weights = recipes.model(name).weights
        ignore = tuple(weights.ignore) if weights else ()
        locked[name] = hub.list_digests(name, revision, ignore, token)
        asked.append(name)
    file = model_sources.write_lock(planned, locked, datetime.now(UTC).date().isoformat()) if asked else None
    if json:
        print_json({"fleet": fleet, "locked": asked, "file": str(file) if file else None})
    elif file:
        print_text(f"{paths.display(file)}: {', '.join(asked)}; keep it with the fleet")
    else:
        print_text("the digests of every model are known; the hub was not asked")
