"""What another engine changes in each deployment, from names files and rules alone; installs nothing, needs no host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.merge import leaves
from vllm_fleet.catalogue import spellings
from vllm_fleet.catalogue.catalogue import Catalog, in_range
from vllm_fleet.catalogue.engine_names_diff import Default, Gone, NewRelease, defaults, gone
from vllm_fleet.resolve.resolve import (
    Combination,
    Deployment,
    Question,
    builds_for,
    combination,
    resolve,
    selects,
    supports,
)
from vllm_fleet.schema.recipe import Engine, Feature, Rule


@dataclass(frozen=True)
class Case:
    """A pool, or a class and profile. Rules are looked at with ``rule_features``, the question has its own."""

    name: str
    question: Question
    rule_features: tuple[Feature, ...]


@dataclass(frozen=True)
class RuleChange:
    """A rule that holds under one of the engines only, for the cases that are named."""

    file: str
    rule: int
    starts: bool
    because: str
    why: str
    note: str | None
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """One value of a deployment before and after; None: not set."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Effect:
    """``unchanged``, ``changed``, ``refused`` or ``possible`` (refused before); ``reason``: of a refusal."""

    model: str
    cases: tuple[str, ...]
    outcome: str
    changes: tuple[Change, ...]
    reason: str | None


@dataclass(frozen=True)
class Report:
    """The whole answer."""

    before: str
    after: str
    gone: tuple[Gone, ...]
    defaults: tuple[Default, ...]
    rules: tuple[RuleChange, ...]
    effects: tuple[Effect, ...]

    @property
    def changes(self) -> bool:
        """Whether any deployment changes, is refused or becomes possible."""
        return any(effect.outcome != "unchanged" for effect in self.effects)


@dataclass(frozen=True)
class _Side:
    """A case under one engine; None, with the reason, where it is refused."""

    combination: Combination | None
    deployment: Deployment | None
    reason: str | None
    rules: Mapping[tuple[str, int], Rule]


def engines(catalog: Catalog, before: str, after: str) -> tuple[Engine, Engine]:
    """The two engines.

    Raises:
        FleetError: one is unknown, both are the same, or they are for different accelerators.
    """
    old, new = catalog.engine(before), catalog.engine(after)
    if old is new:
        raise FleetError(f"--from and --to are both {before!r}", "name two engines", key="--to")
    if old.accelerator != new.accelerator:
        raise FleetError(
            f"{before} is for {old.accelerator} and {after} for {new.accelerator}: no host can change to the other",
            "name two engines for the same accelerator",
            key="--to",
        )
    return old, new


def catalogue_cases(catalog: Catalog, old: Engine, new: Engine, features: tuple[Feature, ...]) -> list[Case]:
    """Every model, class and profile that both engines have a recipe for.

    Raises:
        FleetError: unknown engine.
    """
    cases: list[Case] = []
    for model in catalog.models.values():
        for host in catalog.sized_classes():
            known = [(builds_for(e, host), supports(model, host, e)) for e in (old, new)]
            if all(built and support and support.status != "unsupported" for built, support in known):
                for profile in catalog.profiles:
                    question = Question(host.id, model.name, profile)
                    cases.append(Case(f"{host.id} {profile}", question, features))
    if not cases:
        what = f"no host class has a recipe with both {old.id} and {new.id}"
        raise FleetError(what, "docs/matrix.md lists them", code=ErrorCode.REFUSED)
    return cases


def fleet_cases(catalog: Catalog, old: Engine, pools: Mapping[str, Question]) -> list[Case]:
    """The pools that name the old engine, and those that name none and have devices it is built for."""
    return [
        Case(name, question, question.features)
        for name, question in pools.items()
        if question.engine == old.id
        or (question.engine is None and builds_for(old, catalog.host_class(question.host_class)))
    ]


def compare(catalog: Catalog, old: Engine, new: Engine, cases: Iterable[Case]) -> Report:
    """Resolves every case under both engines and lists the differences; refusals are included."""
    pairs = [(case, _side(catalog, case, old), _side(catalog, case, new)) for case in cases]
    old_names, new_names = catalog.names(old), catalog.names(new)
    used: dict[tuple[str, str], dict[str, None]] = {}
    for _, side, _ in pairs:
        for group, key, origin in _uses(catalog, side):
            used.setdefault((group, key), {})[origin] = None
    held = [rule for _, _, side in pairs for rule in side.rules.values()]
    notes = {rule.note: None for rule in held if rule.note}
    notes |= {note: None for _, _, side in pairs if side.deployment for note in side.deployment.notes}
    replaced = spellings.replacements(catalog, new)
    replaced |= {name: text for rule in held for name, text in rule.replaces.items()}
    return Report(
        old.id,
        new.id,
        tuple(gone(used, old_names, NewRelease(new.id, new_names, notes, replaced))),
        tuple(defaults(old_names, new_names, {key.split(".")[0] for group, key in used if group == "args"})),
        tuple(_rules(pairs)),
        tuple(_effects(pairs)),
    )


def _side(catalog: Catalog, case: Case, engine: Engine) -> _Side:
    question = replace(case.question, engine=engine.id)
    combined, rules = None, {}
    try:
        combined, _ = combination(catalog, question)
        seen = replace(combined, features=case.rule_features)
        for file, number, rule in catalog.rules(catalog.model(question.model)):
            # Rules that select by final values are kept: they name arguments too, and an override may make them apply.
            fixed = rule.when.model_copy(update={"at_least": None, "env_set": None})
            if selects(fixed, seen):
                rules[file, number] = rule
        return _Side(combined, resolve(catalog, question), None, rules)
    except FleetError as fault:
        return _Side(combined, None, str(fault), rules)


def _uses(catalog: Catalog, side: _Side) -> Iterator[tuple[str, str, str]]:
    """Group, dotted key and place of every name that the rules or the deployment of a side use.

    The names are those of that side's release, also where a rule spells them differently.
    """
    active = spellings.applying(catalog, side.combination.engine) if side.combination else {}
    for (file, number), rule in side.rules.items():
        own = spellings.translate(rule.args, rule.env, active)
        keys = [*(("args", key) for key, _ in leaves(own.args)), *(("env", key) for key in own.env)]
        keys += [("args", key) for key in rule.when.at_least or ()] + [("env", key) for key in rule.when.env_set or ()]
        for group, key in keys:
            yield group, key, f"{file}, rule {number}"
    for key, origin in (side.deployment.provenance if side.deployment else {}).items():
        if origin.rule is None:
            group, _, name = key.partition(".")
            yield group, name, origin.file


def _rules(pairs: Iterable[tuple[Case, _Side, _Side]]) -> Iterator[RuleChange]:
    """Rules that hold on one side only, where both sides have a recipe; not those that only list replacements."""
    changes: dict[tuple[str, int, bool, str], tuple[Rule, list[str]]] = {}
    for case, old, new in pairs:
        if old.combination is None or new.combination is None:
            continue
        for place in old.rules.keys() ^ new.rules.keys():
            rule = new.rules.get(place) or old.rules[place]
            if not (rule.args or rule.env or rule.note or rule.refuse):
                continue
            because = _because(rule, old.combination, new.combination)
            entry = changes.setdefault((*place, place in new.rules, because), (rule, []))
            entry[1].append(f"{case.question.model} {case.name}")
    for (file, number, starts, because), (rule, cases) in sorted(changes.items(), key=lambda item: item[0]):
        yield RuleChange(file, number, starts, because, rule.why, rule.note, tuple(cases))


def _because(rule: Rule, old: Combination, new: Combination) -> str:
    wanted = rule.when.engine
    if wanted and in_range(old.engine.release, wanted) != in_range(new.engine.release, wanted):
        return f"it is for engine {wanted}"
    if rule.when.install and old.install != new.install:
        return f"it is for {rule.when.install}, and the engine comes as {new.install} in place of {old.install}"
    return f"tensor-parallel-size is {new.tensor_parallel} in place of {old.tensor_parallel}"


def _effects(pairs: Iterable[tuple[Case, _Side, _Side]]) -> Iterator[Effect]:
    """The outcomes, equal ones together; values are compared by their text, since mappings have no hash."""
    groups: dict[str, tuple[Effect, list[str]]] = {}
    for case, old, new in pairs:
        changes = tuple(_changes(old.deployment, new.deployment)) if old.deployment and new.deployment else ()
        if new.deployment is None:
            outcome = "refused" if old.deployment else "unchanged"
        else:
            outcome = "possible" if old.deployment is None else "changed" if changes else "unchanged"
        effect = Effect(case.question.model, (), outcome, changes, new.reason or old.reason)
        groups.setdefault(repr(effect), (effect, []))[1].append(case.name)
    for effect, names in groups.values():
        yield replace(effect, cases=tuple(names))


def _changes(old: Deployment, new: Deployment) -> Iterator[Change]:
    before, after = _values(old), _values(new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield Change(key, before.get(key), after.get(key))


def _values(deployment: Deployment) -> dict[str, Any]:
    return {
        "install": deployment.install,
        "instances": deployment.instances,
        **dict(leaves({"args": deployment.args, "env": deployment.env})),
    }
