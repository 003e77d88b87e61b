"""``vllm-fleet check``: validates the recipes and the fleets and reports every error at once."""

from __future__ import annotations

from typing import Annotated

import typer

from vllm_fleet import inventory
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.catalogue.catalogue import raise_all
from vllm_fleet.cli.output import JsonOption, fleet_directories, fleet_directory, print_json, print_text
from vllm_fleet.fleet import api_address, placeholders, plan, stack_faults
from vllm_fleet.reports import recipe_check

EPILOG = """\b
Examples:
  vllm-fleet check
  vllm-fleet check --fleet prod --json"""


def command(
    fleet: Annotated[str | None, typer.Option("--fleet", help="Check this fleet. Default: all fleets.")] = None,
    json: JsonOption = False,
) -> None:
    """Validate the recipes and the fleets.

    Prints every error with its file and line. What the recipes must agree on is checked too. What is not on this
    machine yet, such as a download or the file of API keys, is named and is no error: site.yml will refuse it.
    """
    recipes = catalogue.load()
    errors: list[FleetError] = list(recipe_check.recipe_errors(recipes))
    missing: list[FleetError] = []
    unmade: list[FleetError] = []
    if fleet is not None:
        folders = [fleet_directory(fleet)]
    else:
        folders, unread = fleet_directories()
        errors += unread.values()
    plans: list[plan.Plan] = []
    for folder in folders:
        try:
            planned = plan.load(folder, recipes)
            plans.append(planned)
            for refusal in inventory.find_refusals(planned, recipes):
                (errors if refusal.is_wrong else missing).append(refusal.error)
            for fault, is_wrong in stack_faults.find(planned, recipes):
                (errors if is_wrong else unmade).append(fault)
        except FleetError as fault:
            errors += [fault, *fault.others, *placeholders.find_in_wrong_file(folder)]
    errors += api_address.clashes(plans)
    raise_all(errors)
    result = {
        "host_classes": len(list(recipes.sized_classes())),
        "engines": len(recipes.engines),
        "models": len(recipes.models),
        "fleets": [folder.name for folder in folders],
        "up_refuses": [each.record() for each in unmade],
        "site_refuses": [each.record() for each in missing],
    }
    if json:
        print_json(result)
    else:
        for each in unmade:
            print_text(f"pulumi up will refuse: {each}")
        for each in missing:
            print_text(f"site.yml will refuse: {each}")
        print_text(
            f"OK: {result['host_classes']} host classes, {result['engines']} engines, {result['models']} models; "
            f"fleets: {', '.join(folder.name for folder in folders) or 'none'}"
        )
