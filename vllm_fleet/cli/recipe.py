"""``vllm-fleet recipe``: what a host class would run, without a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast, get_args

import typer

from vllm_fleet.base import did_you_mean, yaml_reader
from vllm_fleet.base.errors import FleetError, raise_all
from vllm_fleet.catalogue import catalogue
from vllm_fleet.cli.output import JsonOption, print_json, print_text
from vllm_fleet.host import hand_commands, instance_files, serve_command
from vllm_fleet.resolve import known_issues
from vllm_fleet.resolve.resolve import Question, resolve
from vllm_fleet.schema.fleet import Overrides
from vllm_fleet.schema.recipe import Feature, Install, Profile

_SHOWN = ("serve", "docker", *hand_commands.COMMANDS)

EPILOG = """\b
Examples:
  vllm-fleet recipe --host-class b200-8 --model openai/gpt-oss-120b
  vllm-fleet recipe --host-class h100-1 --model openai/gpt-oss-20b --profile min-latency --json
  vllm-fleet recipe --host-class mi300x-8 --model openai/gpt-oss-120b --issues
  vllm-fleet recipe --host-class h100-8 --model openai/gpt-oss-120b --override max-num-seqs=64 --show bench"""


def _one_of(choices: Sequence[str], option: str, value: str | None) -> Any:
    if value is not None and value not in choices:
        hint = did_you_mean.hint(value, choices, f"choose one of {', '.join(choices)}")
        raise FleetError(f"{option} {value!r} is not known", hint, key=option)
    return value


def _overrides(texts: Sequence[str]) -> Overrides | None:
    """The overrides of a command line, as a fleet has them.

    Args:
        texts: ``KEY=VALUE``; a variable is in capitals, a key below a flag has dots before it.
    """
    args: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for text in texts:
        key, has_value, written = text.partition("=")
        if not (key and has_value):
            raise FleetError(f"{text!r} is not KEY=VALUE", "write it such as max-num-seqs=64", key="--override")
        content = yaml_reader.read_text(written, f"--override {key}")
        raise_all(content.errors)
        if key.isupper():
            env[key] = written
            continue
        *above, last = key.removeprefix("args.").split(".")
        into = args
        for part in above:
            into = into.setdefault(part, {})
            if not isinstance(into, dict):
                raise FleetError(f"gives {part!r} a value and keys", "give one of them", key="--override")
        into[last] = content.data
    return Overrides(args=args, env=env, why="given on the command line") if texts else None


def command(
    host_class: Annotated[str, typer.Option("--host-class", help="A host class, such as cpu-2.")],
    model: Annotated[str, typer.Option("--model", help="A model, such as openai/gpt-oss-120b.")],
    engine: Annotated[str | None, typer.Option("--engine", help="An engine. Default: the newest verified one.")] = None,
    profile: Annotated[str, typer.Option("--profile", help="max-throughput, balanced or min-latency.")] = "balanced",
    install: Annotated[str | None, typer.Option("--install", help="wheel or docker.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature", help="One of function-calling, structured-output, builtin-tools, eagle3, benchmark; repeat it."
        ),
    ] = None,
    every_issue: Annotated[bool, typer.Option("--issues", help="Print every known issue that can concern it.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option("--override", help="KEY=VALUE, as 'overrides' in fleet.yml sets it. Repeat it for more."),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option("--show", help="Print these commands alone: serve, docker, bench, eval, download or tools."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a host class would run, without a fleet.

    Prints arguments, environment, config file, the 'vllm serve' line and the known issues that are closest to it.
    """
    question = Question(
        host_class=host_class,
        model=model,
        profile=cast(Profile, _one_of(get_args(Profile), "--profile", profile)),
        engine=engine,
        install=cast(Install | None, _one_of(get_args(Install), "--install", install)),
        features=tuple(cast(Feature, _one_of(get_args(Feature), "--feature", name)) for name in feature or ()),
        overrides=_overrides(override or ()),
        overrides_file="--override",
    )
    _one_of(_SHOWN, "--show", show)
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
    others = {name: make(deployment, recipes.model(model)) for name, make in hand_commands.COMMANDS.items()}
    if json:
        listed = [known_issues.record(issue) for issue in issues]
        shown = {"config": config, "serve": line, "docker": docker, "docker_note": docker_note, "known_issues": listed}
        print_json({**record, **shown, "commands": others})
        return
    if show:
        if show == "docker" and not docker:
            why = docker_note or f"{deployment.engine.id} has no image"
            raise FleetError(why, "serve it from its wheel", key="--show")
        # Both are offline when they start, so the model has to be there.
        shown_lines = {"serve": [line], "docker": [*others["download"], *lines], **others}
        print_text("\n".join(shown_lines[show]))
        return
    print_text(
        f"{deployment.model} on {deployment.host_class} with {deployment.engine.id}, {deployment.profile}: "
        f"{deployment.instances} x TP{deployment.tensor_parallel_size}, {deployment.status}",
    )
    print_text(f"memory: {deployment.fit.text}")
    if deployment.fit.device:
        print_text(f"one device: {deployment.fit.device.text()}")
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
