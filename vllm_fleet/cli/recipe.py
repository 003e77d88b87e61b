"""``vllm-fleet recipe``: what a host class would run, without a fleet."""

from __future__ import annotations

from typing import Annotated, Any, cast, get_args

import typer

from vllm_fleet.base import did_you_mean
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import JsonOption, print_json, print_text
from vllm_fleet.host import instance_files, serve_command
from vllm_fleet.resolve import known_issues
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.recipe import Feature, Install, Profile

EPILOG = """\b
Examples:
  vllm-fleet recipe --host-class b200-8 --model openai/gpt-oss-120b
  vllm-fleet recipe --host-class h100-1 --model openai/gpt-oss-20b --profile min-latency --json
  vllm-fleet recipe --host-class mi300x-8 --model openai/gpt-oss-120b --issues"""


def _one_of(kind: Any, option: str, value: str | None) -> Any:
    if value is not None and value not in get_args(kind):
        raise FleetError(
            f"{option} {value!r} is not known",
            did_you_mean.hint(value, get_args(kind), f"choose one of {', '.join(get_args(kind))}"),
            key=option,
        )
    return value


def command(
    host_class: Annotated[str, typer.Option("--host-class", help="A host class, such as cpu-2.")],
    model: Annotated[str, typer.Option("--model", help="A model, such as openai/gpt-oss-120b.")],
    engine: Annotated[str | None, typer.Option("--engine", help="An engine. Default: the newest verified one.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="max-throughput, balanced or min-latency.")] = "balanced",
    install: Annotated[str | None, typer.Option("--install", help="wheel or docker.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option("--feature", help="function-calling, structured-output, eagle3 or benchmark. Repeat it for more."),
    ] = None,
    every_issue: Annotated[bool, typer.Option("--issues", help="Print every known issue that can concern it.")] = False,
    json: JsonOption = False,
) -> None:
    """Show what a host class would run, without a fleet.

    Prints arguments, environment, config file, the 'vllm serve' line and the known issues that are closest to it.
    """
    question = Question(
        host_class=host_class,
        model=model,
        profile=cast(Profile, _one_of(Profile, "--profile", profile)),
        engine=engine,
        install=cast(Install | None, _one_of(Install, "--install", install)),
        features=tuple(cast(Feature, _one_of(Feature, "--feature", name)) for name in feature or ()),
    )
    recipes = catalogue.load()
    deployment = resolve(recipes, question)
    issues = known_issues.concerning(recipes, deployment, question.features)
    record = deployment.record()
    config = instance_files.config_text(deployment.args, mappings_as_text=deployment.mappings_as_text)
    line = serve_command.serve_line(deployment.model, deployment.args, deployment.env)
    image = deployment.engine.docker
    lines = serve_command.docker_lines(image, deployment.model, deployment.args, deployment.env) if image else []
    docker = "\n".join(lines) or None
    docker_note = serve_command.docker_note(image) if image else None
    if json:
        listed = [known_issues.record(issue) for issue in issues]
        shown = {"config": config, "serve": line, "docker": docker, "docker_note": docker_note, "known_issues": listed}
        print_json({**record, **shown})
        return
    fit = record["fit"]
    print_text(
        f"{deployment.model} on {deployment.host_class} with {deployment.engine.id}, {deployment.profile}: "
        f"{deployment.instances} x TP{deployment.tensor_parallel_size}, {deployment.status}",
    )
    print_text(
        f"memory: weights {fit['weights_gib']} GiB, KV cache {fit['kv_cache_gib']} GiB, "
        f"{fit['max_num_seqs']} sequences of full length",
    )
    print_text(f"evidence: {deployment.evidence}")
    for note in deployment.notes:
        print_text(f"note: {note}")
    print_text("\n# config file")
    print_text(config, end="")
    print_text("\n# environment")
    print_text(instance_files.env_text(deployment.env), end="")
    print_text("\n# the same by hand")
    print_text(line)
    if docker:
        print_text("\n# the same in the image")
        print_text(docker)
        if docker_note:
            print_text(f"note: {docker_note}")
    print_text("\n# known issues")
    told = issues if every_issue else known_issues.closest(issues)
    for issue in told:
        print_text(f"{issue.id}: {issue.cause} Fix: {issue.fix}")
    if more := len(issues) - len(told):
        print_text(f"{more} more concern this vendor, release or model: --issues prints them")
