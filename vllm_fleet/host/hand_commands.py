"""Deployment -> the guides' other commands, for those who test: benchmark, evaluation, download, tools.

Each is made of the deployment itself, so that a benchmark loads the server as far as it was set up for, and a download
is of the revision that the recipe names.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping

from vllm_fleet.resolve.deployment import Deployment
from vllm_fleet.resolve.memory_fit import LARGEST_BATCH
from vllm_fleet.schema.recipe import Model

#: Tokens in and out of the guides' benchmark, and how many prompts for each that runs at a time.
_TOKENS = 1024
_ROUNDS = 5
_EVALUATIONS = ("gpqa", "aime25")
#: What the guides' way to run Python without docker needs: gpt-oss, README.
_DEMO = "gpt-oss>=0.0.7"


def bench(deployment: Deployment, model: Model) -> list[str]:
    """The benchmark of the guides: as many requests at a time as the server takes, and five times as many prompts.

    Args:
        deployment: what is served.
        model: its recipe.
    """
    given = deployment.args.get("max-num-seqs")
    at_once = given if isinstance(given, int) else LARGEST_BATCH
    reason = "max-num-seqs of the server" if given else "what the release takes by default on large devices"
    words = ["vllm", "bench", "serve", "--host", "127.0.0.1", "--port", "8000", "--model", model.name]
    words += ["--dataset-name", "random", "--random-input-len", str(_TOKENS), "--random-output-len", str(_TOKENS)]
    words += ["--ignore-eos", "--max-concurrency", str(at_once), "--num-prompts", str(_ROUNDS * at_once)]
    words += ["--save-result", "--result-filename", "vllm_benchmark_serving_results.json"]
    return [
        f"# {at_once} requests at a time: {reason}; {_ROUNDS} times as many prompts for a steady state",
        "# serve with --feature benchmark: a prefix cache would answer what was not computed",
        shlex.join(words),
    ]


def evaluate(model: Model) -> list[str]:
    """The evaluations of the guides, with the published scores beside them.

    Args:
        model: its recipe.
    """
    lines = [f"# published: {model.scores_source}"] if model.scores else []
    for benchmark, scores in model.scores.items():
        lines.append(f"# {benchmark}: {', '.join(f'{effort} {score}' for effort, score in scores)}")
    lines.append("# the low effort takes minutes; the numbers vary from run to run")
    lines.append("pip install 'gpt-oss[eval]'    # in an environment of its own, Python 3.12")
    for name in _EVALUATIONS:
        command = ["python", "-m", "gpt_oss.evals", "--base-url", "http://127.0.0.1:8000/v1", "--model", model.name]
        command += ["--eval", name, "--n-threads", "128", "--reasoning-effort", "low"]
        lines.append(f"OPENAI_API_KEY=empty {shlex.join(command)}")
    return lines


def download(deployment: Deployment, model: Model) -> list[str]:
    """The download that a start with ``HF_HUB_OFFLINE=1`` needs to have happened before.

    Args:
        deployment: what is served.
        model: its recipe.
    """
    names = [model.name]
    draft = deployment.args.get("speculative-config", {})
    if isinstance(draft, Mapping) and "model" in draft:
        names.append(str(draft["model"]))
    lines = ["# before the first start: with HF_HUB_OFFLINE=1 the engine downloads nothing itself"]
    for name in names:
        words = ["hf", "download", name]
        if name == model.name and model.weights:
            words += ["--revision", model.weights.revision]
            words += [word for pattern in model.weights.ignore for word in ("--exclude", pattern)]
        lines.append(shlex.join(words))
    return lines


def tools(model: Model) -> list[str]:
    """The servers of the built-in tools, and how the engine finds them.

    Args:
        model: its recipe.
    """
    return [
        "# each in an environment of its own: the reference servers need mcp<2, and newer engines mcp>=2",
        f"pip install '{_DEMO}' 'mcp[cli]<2'    # then, in gpt-oss-mcp-server of github.com/openai/gpt-oss:",
        "mcp run -t sse browser_server.py:mcp    # with EXA_API_KEY in its environment",
        "mcp run -t sse python_server.py:mcp",
        f"vllm serve {shlex.quote(model.name)} ... --tool-server HOST-1:PORT-1,HOST-2:PORT-2",
    ]


#: Word of ``--show`` -> the lines.
COMMANDS: Mapping[str, Callable[[Deployment, Model], list[str]]] = {
    "bench": bench,
    "eval": lambda _, model: evaluate(model),
    "download": download,
    "tools": lambda _, model: tools(model),
}
