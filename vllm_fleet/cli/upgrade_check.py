"""``vllm-fleet upgrade-check``: what another engine changes in each deployment, before anything restarts."""

from __future__ import annotations

import dataclasses
import json as text_of
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

from vllm_fleet.catalogue import catalogue
from vllm_fleet.catalogue.engine_names_diff import AT_RUN_TIME
from vllm_fleet.cli.output import DRIFT_EXIT, JsonOption, fleet_directory, print_json, print_text
from vllm_fleet.fleet import plan
from vllm_fleet.reports import upgrade
from vllm_fleet.reports.recipe_check import FEATURES

EPILOG = """\b
Examples:
  vllm-fleet upgrade-check --from vllm-0.12.0-cuda --to vllm-0.32.0-cuda
  vllm-fleet upgrade-check --from vllm-0.12.0-cuda --to vllm-0.32.0-cuda --fleet prod --json

Exit code 0: no deployment changes. Exit code 3: a deployment changes, is refused, or is no longer refused."""


def command(
    before: Annotated[str, typer.Option("--from", help="The engine that serves now.")],
    after: Annotated[str, typer.Option("--to", help="The new engine.")],
    fleet: Annotated[
        str | None, typer.Option("--fleet", help="Compare the pools of this fleet that use the engine, or name none.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what another engine changes in each deployment.

    Lists removed names, changed defaults, rules that start or stop to apply, and each deployment before and after.
    """
    recipes = catalogue.load()
    old, new = upgrade.engines(recipes, before, after)
    if fleet:
        planned = plan.load(fleet_directory(fleet), recipes)
        questions = {
            name: plan.question(name, pool, planned.spec, planned.document) for name, pool in planned.spec.pools.items()
        }
        cases = upgrade.fleet_cases(recipes, old, questions)
    else:
        cases = upgrade.catalogue_cases(recipes, old, new, FEATURES)
    report = upgrade.compare(recipes, old, new, cases)
    if json:
        print_json({"fleet": fleet, **dataclasses.asdict(report), "changes": report.changes})
    else:
        _say(f"{before} -> {after}, {f'fleet {fleet}' if fleet else 'every recipe that both have'}")
        _print(report)
    if report.changes:
        raise typer.Exit(DRIFT_EXIT)


def _say(text: str = "") -> None:
    print_text(text)


def _print(report: upgrade.Report) -> None:
    _say(f"\nnames in use that {report.after} does not read: {len(report.gone)}")
    for gone in report.gone:
        _say(f"  {gone.kind} {gone.name} ({gone.why})")
        _say(f"    used by {'; '.join(gone.used_by)}")
        if gone.instead:
            _say(f"    replacement: {gone.instead}")
        for note in gone.notes:
            _say(f"    note: {note}")
    used = [default for default in report.defaults if default.used]
    _say(f"\nflags with another default: {len(report.defaults)}, of those in use: {len(used)} (--json lists all)")
    for default in used:
        _say(f"  {default.flag}: {_value(default.before)} -> {_value(default.after)}")
    for starts, title in ((True, "start"), (False, "stop")):
        rules = [rule for rule in report.rules if rule.starts is starts]
        _say(f"\nrules that {title} to apply: {len(rules)}")
        for rule in rules:
            _say(f"  {rule.file}, rule {rule.rule}: {rule.because} ({len(rule.cases)} deployments)")
            _say(f"    why: {rule.why}")
            if rule.note and starts:
                _say(f"    note: {rule.note}")
    _say("\ndeployments")
    if not report.effects:
        _say("  no deployment is affected")
    for effect in report.effects:
        _say(f"  {effect.model}: {effect.outcome}: {_grouped(effect.cases)}")
        for change in effect.changes:
            if change.before is None:
                _say(f"    + {change.key} = {_value(change.after)}")
            elif change.after is None:
                _say(f"    - {change.key} = {_value(change.before)}")
            else:
                _say(f"    ~ {change.key}: {_value(change.before)} -> {_value(change.after)}")
        if effect.reason:
            _say(f"    {_REASONS[effect.outcome]}: {effect.reason}")


_REASONS: Mapping[str, str] = {
    "refused": "refused because",
    "possible": "was refused because",
    "unchanged": "refused as before",
}


def _value(value: Any) -> str:
    return value if value == AT_RUN_TIME else text_of.dumps(value)


def _grouped(cases: Iterable[str]) -> str:
    """Cases such as ``h100-1 balanced`` with the profiles of each class together; pools as they are."""
    profiles: dict[str, list[str]] = {}
    for case in cases:
        name, _, profile = case.partition(" ")
        profiles.setdefault(name, []).append(profile)
    classes: dict[tuple[str, ...], list[str]] = {}
    for name, held in profiles.items():
        classes.setdefault(tuple(held), []).append(name)
    return "; ".join(
        ", ".join(names) + (f" ({', '.join(held)})" if any(held) else "") for held, names in classes.items()
    )
