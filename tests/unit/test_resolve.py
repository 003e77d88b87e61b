from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.merge import leaves
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.reports import recipe_check
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Overrides
from vllm_fleet.schema.recipe import Model, Rule, When

LAB = "vllm-fleet/lab-gpt-oss"


def ask(catalog: Catalog, **changes: Any) -> Any:
    question = {"host_class": "cpu-2", "model": LAB, **changes}
    return resolve(catalog, Question(**question))


def overridden(**layers: Any) -> Overrides:
    return Overrides(why="a test wants it so", **layers)


def with_rule(catalog: Catalog, rule: Rule) -> Catalog:
    """The catalogue with one more rule at the end of the lab model."""
    model = catalog.models[LAB]
    changed = model.model_copy(update={"rules": [*model.rules, rule]})
    return dataclasses.replace(catalog, models={**catalog.models, LAB: changed})


def test_the_lab_deployment(catalog: Catalog) -> None:
    deployment = ask(catalog)
    assert deployment.engine.id == "vllm-0.32.0-cpu"
    assert (deployment.instances, deployment.tensor_parallel_size, deployment.install) == (1, 1, "wheel")
    assert deployment.args["enforce-eager"] is True
    assert deployment.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert deployment.status == "verified"


@pytest.mark.parametrize(
    ("changes", "compiler"),
    [
        ({}, False),
        ({"overrides": overridden(args={"enforce-eager": None})}, False),
        ({"overrides": overridden(env={"TORCHDYNAMO_DISABLE": None})}, True),
        ({"overrides": overridden(env={"TORCHDYNAMO_DISABLE": "0"})}, True),
        ({"host_class": "xeon-16", "model": "openai/gpt-oss-20b"}, True),
        (
            {
                "host_class": "xeon-16",
                "model": "openai/gpt-oss-20b",
                "overrides": overridden(args={"enforce-eager": True}),
            },
            True,
        ),
    ],
)
def test_a_processor_compiles_at_run_time_with_a_compiler_or_not_at_all(
    catalog: Catalog, changes: dict[str, Any], compiler: bool
) -> None:
    assert ask(catalog, **changes).packages == (("g++", "python3-dev") if compiler else ())


def test_every_wheel_for_gpus_gets_a_compiler_eager_or_not(catalog: Catalog) -> None:
    eager = overridden(args={"enforce-eager": True}, env={"TORCHDYNAMO_DISABLE": "1"})
    engines = [engine for engine in catalog.engines.values() if engine.wheel and engine.accelerator != "cpu"]
    assert {engine.accelerator for engine in engines} == {"cuda", "rocm"}
    for overrides in (None, eager):
        for engine in engines:
            host_class = {"cuda": "h100-1", "rocm": "mi300x-1"}[engine.accelerator]
            deployment = ask(
                catalog,
                **{"host_class": host_class, "model": "openai/gpt-oss-20b", "engine": engine.id, "install": "wheel"},
                overrides=overrides,
            )
            assert deployment.packages == ("g++", "python3-dev"), engine.id


def test_an_image_for_processors_compiles_nothing(catalog: Catalog) -> None:
    """The image that the engine names has no compiler (lab/artifacts/image.py)."""
    for host_class, model in (("cpu-2", LAB), ("xeon-16", "openai/gpt-oss-20b")):
        deployment = ask(catalog, host_class=host_class, model=model, install="docker")
        assert deployment.env["TORCHDYNAMO_DISABLE"] == "1", host_class
        assert deployment.args["enforce-eager"] is True, host_class


def test_no_wheel_for_cuda_compiles_its_sampler_with_nvcc(catalog: Catalog) -> None:
    """No host of a wheel gets nvcc; images bring it, or the compiled sampler."""
    for engine in catalog.engines.values():
        if engine.accelerator != "cuda":
            continue
        for install in ("wheel", "docker"):
            for host_class in ("h100-1", "a100-80gb-1", "b200-1"):
                deployment = ask(
                    catalog, host_class=host_class, model="openai/gpt-oss-20b", engine=engine.id, install=install
                )
                value = deployment.env.get("VLLM_USE_FLASHINFER_SAMPLER")
                assert value == ("0" if install == "wheel" else None), (engine.id, host_class, install)


@pytest.mark.parametrize(
    ("host_class", "model", "engine"),
    [
        ("cpu-2", LAB, "vllm-0.32.0-cpu"),
        ("xeon-16", "openai/gpt-oss-20b", "vllm-0.32.0-cpu"),
        ("h100-8", "openai/gpt-oss-120b", "vllm-0.32.0-cuda"),
        ("b200-8", "openai/gpt-oss-20b", "vllm-0.33.0-cuda"),
        ("mi300x-8", "openai/gpt-oss-120b", "vllm-0.32.0-rocm"),
        ("mi355x-8", "amd/gpt-oss-120b-w-mxfp4-a-fp8", "vllm-0.33.0-rocm"),
    ],
)
def test_a_schema_never_reaches_a_library_that_writes_it_out(
    catalog: Catalog, host_class: str, model: str, engine: str
) -> None:
    deployment = ask(catalog, host_class=host_class, model=model, engine=engine)
    assert deployment.args["structured-outputs-config"] == {"backend": "xgrammar"}


def test_every_value_has_its_origin(catalog: Catalog) -> None:
    deployment = ask(catalog)
    keys = {key for key, _ in leaves({"args": deployment.args, "env": deployment.env})}
    assert set(deployment.provenance) == keys
    rules = catalog.models[LAB].rules
    for origin in deployment.provenance.values():
        assert origin.rule is not None
        assert rules[origin.rule - 1].why == origin.why


def test_an_override_wins_and_says_so(catalog: Catalog) -> None:
    deployment = ask(catalog, overrides=overridden(args={"max-model-len": 512, "dtype": None}), overrides_file="f.yml")
    assert deployment.args["max-model-len"] == 512
    assert "dtype" not in deployment.args
    assert "args.dtype" not in deployment.provenance
    origin = deployment.provenance["args.max-model-len"]
    assert (origin.file, origin.rule, origin.why) == ("f.yml", None, "a test wants it so")


def test_the_later_rule_wins(catalog: Catalog) -> None:
    later = Rule(args={"max-num-seqs": 3}, why="a later rule of a test", source="test")
    deployment = ask(with_rule(catalog, later))
    assert deployment.args["max-num-seqs"] == 3
    assert deployment.provenance["args.max-num-seqs"].rule == len(catalog.models[LAB].rules) + 1


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"host_class": "h1000-8"}, "bad-input", "there is no host class 'h1000-8'"),
        ({"host_class": "cpu"}, "bad-input", "there is no host class 'cpu'"),
        ({"host_class": "cpu-3"}, "bad-input", "has no size 3"),
        ({"model": "openai/gpt-oss-9b"}, "bad-input", "there is no model"),
        ({"engine": "vllm-9"}, "bad-input", "there is no engine"),
        (
            {
                "host_class": "r9700-1",
                "model": "openai/gpt-oss-20b",
                "engine": "rocm-open-r9700",
                "install": "wheel",
            },
            "refused",
            "cannot be installed as 'wheel'",
        ),
        ({"overrides": overridden(args={"max-modle-len": 1})}, "bad-input", "does not read the flag 'max-modle-len'"),
        ({"overrides": overridden(args={"max_model_len": 1})}, "bad-input", "does not read the flag 'max_model_len'"),
        ({"overrides": overridden(env={"VLLM_NO_SUCH": "1"})}, "bad-input", "environment variable 'VLLM_NO_SUCH'"),
        ({"overrides": overridden(args={"headless": False})}, "bad-input", "cannot be set to false"),
        ({"overrides": overridden(args={"max-num-seqs": 0})}, "bad-input", "'max-num-seqs' is 0: vLLM serves nothing"),
        ({"overrides": overridden(args={"max-num-batched-tokens": -1})}, "bad-input", "is -1: vLLM serves nothing"),
        ({"overrides": overridden(args={"block-size": 0})}, "bad-input", "'block-size' is 0: vLLM serves nothing"),
        ({"overrides": overridden(args={"port": 1})}, "bad-input", "'port' is set for each instance"),
        ({"overrides": overridden(args={"tensor-parallel-size": 2})}, "refused", "does not divide the 1 devices"),
        (
            {"overrides": overridden(env={"VLLM_CPU_KVCACHE_SPACE": "99"})},
            "refused",
            "does not fit: 0.1 GiB of weights",
        ),
        (
            {"overrides": overridden(args={"compilation-config": {"pass_config": {"enable_noops": True}}})},
            "bad-input",
            "does not read the key 'compilation-config.pass_config.enable_noops'",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    catalog: Catalog, changes: dict[str, Any], code: str, says: str
) -> None:
    with pytest.raises(FleetError) as caught:
        ask(catalog, **changes)
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.exit_code == 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from vllm_fleet.catalogue import catalogue as catalogs

    recipes = catalogs.load()
    if "asked" in metafunc.fixturenames:
        sized = [each.id for each in recipes.sized_classes()]
        metafunc.parametrize("asked", list(itertools.product(sized, recipes.models)), ids=" ".join)
    if "rule_of" in metafunc.fixturenames:
        rows = [(model, index) for model in recipes.models.values() for index in range(len(model.rules))]
        metafunc.parametrize("rule_of", rows, ids=lambda row: f"{row[0].name} rule {row[1] + 1}")


def test_every_combination_resolves_or_is_refused_with_a_reason(catalog: Catalog, asked: tuple[str, str]) -> None:
    host_class, model = asked
    for engine, profile in itertools.product(catalog.engines, catalog.profiles):
        try:
            deployment = resolve(catalog, Question(host_class, model, profile, engine))
        except FleetError as fault:
            assert fault.code == "refused", fault
            assert len(fault.message) > 20
            continue
        assert deployment.instances >= 1
        assert deployment.fit.max_num_seqs >= 1


def test_every_rule_is_reached_and_explained(catalog: Catalog, rule_of: tuple[Model, int]) -> None:
    model, index = rule_of
    rule = model.rules[index]
    assert rule.args or rule.env or rule.note or rule.refuse or rule.replaces
    assert len(rule.why.split()) >= 4
    assert any(recipe_check.could_hold(rule.when, asked) for asked in recipe_check.combinations(catalog, model))


def test_the_recipes_agree_with_each_other(catalog: Catalog) -> None:
    assert [str(fault) for fault in recipe_check.recipe_errors(catalog)] == []


@pytest.mark.slow
def test_every_combination_resolves_or_is_refused_for_a_reason(catalog: Catalog) -> None:
    assert [str(fault) for fault in recipe_check.recipe_errors(catalog, every_combination=True)] == []


def test_the_check_tries_each_rule_class_form_and_profile_with_each_engine(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[Question] = []
    monkeypatch.setattr(recipe_check, "resolve", lambda _, question: questions.append(question))
    for model in catalog.models.values():
        assert list(recipe_check._resolutions(catalog, model, every=False)) == []
    cases = [case for model in catalog.models.values() for case in recipe_check._cases(catalog, model)]
    all_parts, tried = set(), set()
    for case, rules in cases:
        engine, form = case.engine.id, case.install
        parts = {(case.model, engine, part) for part in (*rules, case.host.family.name, form, case.profile)}
        all_parts |= parts
        if Question(case.host.id, case.model, case.profile, engine, form, case.features) in questions:
            tried |= parts
    assert tried == all_parts
    assert len(questions) * 10 < len(cases)


def test_hosts_that_are_refused_do_not_hide_an_error_on_larger_ones(catalog: Catalog) -> None:
    model = catalog.models["openai/gpt-oss-120b"]
    small = When(host_class=["h100"], devices=[1, 2])
    rules = [
        Rule(when=small, refuse="a test refuses small hosts", why="the test wants it so", source="test"),
        Rule(when=When(host_class=["h100"]), args={"max-model-len": -1}, why="a wrong value of a test", source="test"),
    ]
    changed = model.model_copy(update={"rules": [*model.rules, *rules]})
    faults = recipe_check.recipe_errors(dataclasses.replace(catalog, models={**catalog.models, model.name: changed}))
    assert any("max-model-len is -1" in str(fault) for fault in faults)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            Rule(when=When(arch=["sm_1"]), args={"dtype": "half"}, why="a dead rule of a test", source="test"),
            "matches no class",
        ),
        (
            Rule(when=When(engine=">>1"), args={"dtype": "half"}, why="a bad range of a test", source="test"),
            "not a range",
        ),
        (Rule(args={"no-such-flag": 1}, why="an unread name of a test", source="test"), "does not read the flag"),
    ],
)
def test_a_mutated_catalogue_is_caught(catalog: Catalog, rule: Rule, says: str) -> None:
    assert any(says in str(fault) for fault in recipe_check.recipe_errors(with_rule(catalog, rule)))
