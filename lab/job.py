"""The main job on the lab: ``pulumi up``, ``ansible-playbook site.yml``, three questions and a tool call."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lab import cleanup, state
from lab.artifacts.model.questions import read_questions
from lab.progress import Board, exit_code_of
from vllm_fleet import inventory
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.edge.pulumi_cli import pulumi_output

#: The number of questions in the main job.
QUESTIONS = 3


@dataclass(frozen=True)
class Endpoint:
    """URL, API key and model for a client of the gateway."""

    url: str
    api_key: str
    model: str


#: Runs a program in the project's root; raises FleetError when it fails.
Run = Callable[..., None]


def say(text: str) -> None:
    """Prints one line of progress."""
    print(text, file=sys.stderr, flush=True)


def run(*words: str) -> None:
    """Runs a program in the project's root with its output on the terminal.

    Raises:
        FleetError: it failed.
    """
    say(f"$ {' '.join(words)}")
    done = subprocess.run(words, cwd=paths.root(), check=False, stdout=sys.stderr)
    if done.returncode:
        raise FleetError(
            f"{' '.join(words)} ended with exit code {done.returncode}",
            "see its output above; run the same command again to continue",
            code=ErrorCode.WORK_FAILED,
        )


def stack_up(fleet: str, run: Run = run) -> None:
    """Creates or repairs the hosts of a lab fleet with the real Pulumi engine.

    Args:
        fleet: a folder under ``inventories/``.
        run: runs a program, such as the one of a phase whose output goes to a log.
    """
    _fetch_no_plugins()
    _select(fleet, run)
    run("python", "-m", "infra.repair", fleet)
    run("pulumi", "up", "--yes", "--skip-preview", "--refresh", "--suppress-outputs", "--stack", fleet)


def stack_down(fleet: str) -> None:
    """Destroys the stack, then removes the traces of killed runs on this machine."""
    folder = paths.inventories_dir() / fleet
    _fetch_no_plugins()
    if _stacks_have(fleet):
        run("python", "-m", "infra.repair", fleet)
        try:
            run("pulumi", "destroy", "--yes", "--skip-preview", "--remove", "--stack", fleet)
        except FleetError as fault:
            say(f"warning: {fault}; removing the lab without it")
            run("pulumi", "stack", "rm", "--force", "--yes", fleet)
    for bridge in state.labs():
        owner = state.read(state.lab_dir(bridge) / "lab.json").get("owner", "")
        if owner == str(folder.resolve()):
            cleanup.down(bridge)
            say(f"removed the rest of the lab {bridge}")
    for name in ("stack.json", "api-key", "api-keys.yml", "ssh/id_ed25519"):
        (folder / name).unlink(missing_ok=True)


def _fetch_no_plugins() -> None:
    """Keeps Pulumi from looking for the plugins of clouds: a lab needs none, and the look alone costs seconds."""
    os.environ["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "true"


def _stacks_have(fleet: str) -> bool:
    listed = pulumi_output("stack", "ls", "--json", cwd=paths.root())
    return any(stack["name"].rsplit("/", 1)[-1] == fleet for stack in json.loads(listed))


def _select(fleet: str, run: Run) -> None:
    if not _stacks_have(fleet):
        run("pulumi", "stack", "init", fleet)


def roll_out(fleet: str, run: Run = run) -> None:
    """Applies the plan to the hosts of a lab fleet with Ansible; the arguments are those of :func:`stack_up`."""
    run("ansible-playbook", "-i", str(paths.inventories_dir() / fleet / "fleet.yml"), "site.yml")


def endpoint(fleet: str) -> Endpoint:
    """The lab's gateway, its key and its model."""
    folder = paths.inventories_dir() / fleet
    fleet_site = inventory.load(folder)
    address = next(host.location.address for host in fleet_site.hosts if host.plan.kind == "gateway")
    model = next(host.plan.deployment.model for host in fleet_site.hosts if host.plan.deployment)
    key = (folder / "api-key").read_text(encoding="utf-8").strip()
    return Endpoint(f"http://{address}:{fleet_site.plan.gateway.port}", key, model)


def ask(gateway: Endpoint, **body: Any) -> dict[str, Any]:
    """Requests one chat completion through the gateway.

    Raises:
        FleetError: the gateway does not answer with a completion.
    """
    request = urllib.request.Request(  # noqa: S310 - the address is the lab's own
        f"{gateway.url}/v1/chat/completions",
        json.dumps({"model": gateway.model, "temperature": 0, "max_tokens": 200, **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {gateway.api_key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
            choice: dict[str, Any] = json.load(answer)["choices"][0]
            return choice
    except (urllib.error.URLError, OSError, ValueError, KeyError) as fault:
        raise FleetError(f"{gateway.url} returned no completion: {fault}", code=ErrorCode.WORK_FAILED) from None


def show(gateway: Endpoint) -> None:
    """Sends three questions and one request for a tool call, and prints the answers.

    Raises:
        FleetError: an answer is wrong.
    """
    known = read_questions()
    for question in known.plain[:QUESTIONS]:
        answer = ask(gateway, messages=[{"role": "user", "content": question.ask}])["message"]["content"]
        _expect(question.ask, answer, question.right)
    tool = known.tools[0]
    city = "Paris"
    choice = ask(
        gateway,
        messages=[{"role": "user", "content": tool.ask.format(city=city)}],
        tools=[
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
            }
        ],
    )
    calls = choice["message"].get("tool_calls") or [{"function": {"name": "no tool", "arguments": ""}}]
    answer = f"{calls[0]['function']['name']}({calls[0]['function']['arguments']})"
    _expect(tool.ask.format(city=city), answer, f"{tool.name}({tool.call({'city': city})})")


def _expect(question: str, answer: str | None, right: str) -> None:
    if answer != right:
        raise FleetError(f"the answer to {question!r} is {answer!r} instead of {right!r}", code=ErrorCode.WORK_FAILED)
    print(f"{question:<40} {answer}", flush=True)


def up(fleet: str, setup_seconds: float) -> None:
    """Runs the whole job and prints the time of each phase."""
    with Board("lab") as board:
        stack = board.add("pulumi up", 10)
        hosts = board.add("ansible-playbook site.yml", 260)
        board.do(stack, lambda phase: stack_up(fleet, phase.run))
        board.do(hosts, lambda phase: roll_out(fleet, phase.run))
    began = time.monotonic()
    show(endpoint(fleet))
    times = {
        "set-up": setup_seconds,
        **{phase.name: phase.seconds for phase in board.phases},
        "questions": time.monotonic() - began,
    }
    print("\n".join(f"{name:<28} {seconds:7.1f} s" for name, seconds in times.items()))
    print(f"{'together':<28} {sum(times.values()):7.1f} s", flush=True)


def main() -> int:
    """The command line; the exit code is 0, or that of the error."""
    parser = argparse.ArgumentParser(prog="python -m lab.job", description=__doc__)
    parser.add_argument("--fleet", default="lab", help="a folder under inventories/ (default: lab)")
    parser.add_argument(
        "--setup-seconds", type=float, default=0.0, help="the seconds of the set-up, for the table of times"
    )
    parser.add_argument("--down", action="store_true", help="remove the lab")
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        print("error: the lab boots real hosts, which needs root (run this as root)", file=sys.stderr)
        return 2
    if chosen.down:
        return exit_code_of(lambda: stack_down(chosen.fleet))
    return exit_code_of(lambda: up(chosen.fleet, chosen.setup_seconds))


if __name__ == "__main__":
    sys.exit(main())
