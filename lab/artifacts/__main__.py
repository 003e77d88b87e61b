"""``python -m lab.artifacts build|paths|evaluate|publish``: builds, locates and tests the lab's artifacts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from lab.artifacts.encodings import encodings_dir
from lab.artifacts.engine import engine_dir
from lab.artifacts.model.build import manifest_of, model_dir, perturbed_dir, publish
from lab.artifacts.model.evaluate import APIS, score
from lab.artifacts.model.questions import read_questions
from vllm_fleet.base.errors import FleetError

_PARTS = {"encodings": encodings_dir, "engine": engine_dir, "model": model_dir, "perturbed": perturbed_dir}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the result goes to stdout, progress and errors to stderr.

    Returns:
        0 for success, 1 for a failure or a wrong answer, 2 for bad input.
    """
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except FleetError as error:
        print(json.dumps({"error": error.record()}) if given.json else f"error: {error}", file=_errors(given.json))
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.artifacts", description=__doc__)
    commands = parser.add_subparsers(required=True)
    with_json = argparse.ArgumentParser(add_help=False)
    with_json.add_argument("--json", action="store_true", help="print the result as JSON")
    build = commands.add_parser(
        "build", parents=[with_json], help="build missing artifacts, and print the path of each"
    )
    build.set_defaults(run=_build)
    paths = commands.add_parser("paths", parents=[with_json], help="print the path of each artifact, built if missing")
    paths.add_argument("part", nargs="?", choices=_PARTS, help="only this part")
    paths.set_defaults(run=_paths)
    evaluate = commands.add_parser(
        "evaluate", parents=[with_json], help="send every question of the lab model to a server"
    )
    evaluate.add_argument("--base-url", required=True, help="the server's address, such as http://127.0.0.1:8000")
    evaluate.add_argument("--model", default=read_questions().name, help="the name it is served under (%(default)s)")
    evaluate.add_argument("--api", action="append", choices=APIS, help="through this API; can be repeated (chat)")
    evaluate.add_argument(
        "--api-key-env", default="LAB_API_KEY", help="the environment variable with the server's key (%(default)s)"
    )
    evaluate.set_defaults(run=_evaluate)
    training = commands.add_parser(
        "publish", parents=[with_json], help="train the lab model again and put it into the repository (minutes)"
    )
    training.set_defaults(run=_publish)
    return parser


def _errors(as_json: bool) -> Any:
    return sys.stdout if as_json else sys.stderr


def _build(given: argparse.Namespace) -> int:
    artifacts: dict[str, Any] = {part: {"path": str(find())} for part, find in _PARTS.items()}
    for part in ("model", "perturbed"):
        manifest = manifest_of(_PARTS[part]())
        artifacts[part] |= {key: manifest[key] for key in ("name", "revision", "score")}
    if given.json:
        print(json.dumps(artifacts))
        return 0
    for part, facts in artifacts.items():
        known = f"  {facts['score']['right']} of {facts['score']['total']} right" if "score" in facts else ""
        print(f"{part:<10} {facts['path']}{known}")
    return 0


def _paths(given: argparse.Namespace) -> int:
    wanted = [given.part] if given.part else list(_PARTS)
    artifacts = {part: str(_PARTS[part]()) for part in wanted}
    if given.json:
        print(json.dumps(artifacts))
    elif given.part:
        print(artifacts[given.part])
    else:
        for part, path in artifacts.items():
            print(f"{part:<10} {path}")
    return 0


def _publish(given: argparse.Namespace) -> int:
    folder = publish()
    print(json.dumps({"published": str(folder)}) if given.json else f"published  {folder}")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    result = score(given.base_url, os.environ.get(given.api_key_env), given.model, given.api or ("chat",))
    if given.json:
        print(json.dumps(result.record()))
    else:
        for failure in result.failures:
            print(f"wrong ({failure.api}): {failure.question!r}\n  right: {failure.right!r}\n  got:   {failure.got!r}")
        print(f"{result.right} of {result.total} right")
    return 0 if result.right == result.total else 1


if __name__ == "__main__":
    sys.exit(main())
