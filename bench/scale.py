"""One Pulumi program of N hosts under recording mocks, for a fresh process: ``python -m bench.scale WHAT N``.

Prints the seconds of the program, the seconds of the imports before it, its peak memory and its number of resources.
``plain`` is the peer: N instances of the SDK without this project.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import load
from bench.measure import busy_processors, children_seconds, machine_seconds
from bench.results import Runs
from vllm_fleet.base import paths
from vllm_fleet.base.errors import ErrorCode, FleetError

HOSTS = 1000
FLEET = "demo"
GATEWAYS = 2
#: Of the time that the peer needs in the same run: as many instances as there are hosts, and nothing else.
GOAL_RATIO = 1.15
GOAL_MIB = 400.0
#: Program -> its name in the table. The first is the peer of all others.
WHATS: Mapping[str, str] = {
    "plain": "{0} x aws.ec2.Instance, no components",
    "aws": "fleet of {0} AWS hosts",
    "gcp": "fleet of {0} Google Cloud hosts",
}
_PLACEMENTS: Mapping[str, Mapping[str, Any]] = {
    "aws": {"region": "us-east-1", "zones": ["us-east-1a", "us-east-1b"]},
    "gcp": {"region": "us-central1", "zone": "us-central1-b", "project": "demo-project", "capacity": {"kind": "spot"}},
}
_FUNCTIONS: Mapping[str, Mapping[str, Any]] = {
    "aws:ssm/getParameter:getParameter": {"value": "ami-1", "name": "p", "type": "String", "version": 1},
    "gcp:compute/getImage:getImage": {"selfLink": "projects/p/global/images/i-1", "name": "i-1"},
}


@dataclass(frozen=True)
class Sample:
    """One program in a process of its own.

    Attributes:
        seconds: time of the program, from its first resource to the last answer.
        cpu_seconds: CPU of the process in that time; a busy machine changes it less.
        import_seconds: time of the imports before it.
        peak_mib: peak memory of the process.
        resources: number of resources.
        load: processors that other programs kept busy, before the process or beside it; None if it was not measured.
    """

    seconds: float
    cpu_seconds: float
    import_seconds: float
    peak_mib: float
    resources: int
    load: float | None = None


@dataclass(frozen=True)
class Row(Runs[Sample]):
    """All runs of one program."""

    @property
    def seconds(self) -> float:
        """Median seconds of the program."""
        return self.median(lambda sample: sample.seconds)

    @property
    def cpu_seconds(self) -> float:
        """Median CPU seconds of the program."""
        return self.median(lambda sample: sample.cpu_seconds)

    @property
    def import_seconds(self) -> float:
        """Median seconds of the imports."""
        return self.median(lambda sample: sample.import_seconds)

    @property
    def peak_mib(self) -> float:
        """Peak memory of all runs."""
        return max(sample.peak_mib for sample in self.samples)

    @property
    def resources(self) -> int:
        """Number of resources."""
        return self.samples[0].resources

    @property
    def load(self) -> float | None:
        """Processors that other programs kept busy, in the worst run; None if it was not measured."""
        return load.worst(sample.load for sample in self.samples)

    def reaches_goal(self, peer: Row) -> bool:
        """Whether time and memory are below the goals.

        Args:
            peer: the peer's row of the same run.
        """
        return self.seconds < GOAL_RATIO * peer.seconds and self.peak_mib < GOAL_MIB

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            **super().record(),
            "resources": self.resources,
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "import_seconds": round(self.import_seconds, 2),
            "peak_mib": round(self.peak_mib),
        }


def measure_programs(hosts: int, runs: int, report: Callable[[str], None]) -> list[Row]:
    """Measures all programs in turns, each in a process of its own.

    Args:
        hosts: number of hosts of each program.
        runs: number of runs.
        report: takes a line of text after each run.

    Raises:
        FleetError: a program failed.
    """
    samples: dict[str, list[Sample]] = {what: [] for what in WHATS}
    for number in range(1, runs + 1):
        for what, name in WHATS.items():
            sample = _sample(what, hosts)
            samples[what].append(sample)
            report(
                f"run {number} of {runs}, {name.format(hosts)}: {sample.seconds:.1f} s, {sample.peak_mib:.0f} MiB, "
                f"{sample.resources} resources"
            )
    return [Row(name.format(hosts), hosts, tuple(samples[what])) for what, name in WHATS.items()]


def _sample(what: str, hosts: int) -> Sample:
    words = [sys.executable, "-m", "bench.scale", what, str(hosts)]
    before = busy_processors()
    busy, own, began = machine_seconds(), children_seconds(), time.monotonic()
    done = subprocess.run(words, cwd=paths.root(), capture_output=True, text=True, check=False)
    others = (machine_seconds() - busy - children_seconds() + own) / (time.monotonic() - began)
    if done.returncode != 0:
        print("\n".join(done.stderr.splitlines()[-25:]), file=sys.stderr)
        raise FleetError(f"{' '.join(words[1:])} ended with {done.returncode}", "see above", code=ErrorCode.WORK_FAILED)
    return replace(Sample(**json.loads(done.stdout)), load=max(before, others))


def main(arguments: Sequence[str]) -> int:
    """Runs one program and prints its sample."""
    what, hosts = arguments[0], int(arguments[1])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        program, resources = _program(what, hosts, Path(folder))
        ready = time.monotonic()
        cpu = time.process_time()
        program()
        seconds, cpu = time.monotonic() - ready, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(Sample(seconds, cpu, ready - began, peak, len(resources)).__dict__))
    return 0


def _program(what: str, hosts: int, folder: Path) -> tuple[Callable[[], Any], list[str]]:
    """Imports everything; returns the program and the list that it fills with the names of its resources."""
    import pulumi
    from pulumi.runtime import settings

    resources: list[str] = []

    class Mocks(pulumi.runtime.Mocks):
        """Returns the outputs that the program reads of a real provider, and records the name of each resource."""

        def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
            resources.append(args.name)
            if args.typ.endswith(":SshKeyPair"):
                return args.name, {"private_key": "PRIVATE", "public_key": "ssh-ed25519 PUBLIC"}
            outputs: dict[str, Any] = {
                "privateIp": "10.0.0.1",
                "publicIp": "192.0.2.1",
                "address": "192.0.2.1",
                "instanceId": "1",
            }
            if args.typ.startswith("gcp:compute/instance"):
                interface = args.inputs["networkInterfaces"][0]
                outputs["networkInterfaces"] = [{**interface, "networkIp": "10.0.0.1"}]
            return args.name, {**args.inputs, **outputs}

        def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
            return dict(_FUNCTIONS[args.token]), []

        def register_resource_hook(self, hook: pulumi.ResourceHook) -> None:
            """The engine's part of a hook; the SDK's mocks lack it."""

        def register_error_hook(self, hook: pulumi.ErrorHook) -> None:
            """The same for an error hook."""

    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="bench", stack=FLEET)
    settings.SETTINGS.callbacks = mocks
    run = _plain(hosts) if what == "plain" else _fleet(what, hosts, folder)
    return pulumi.runtime.test(run), resources


def _plain(hosts: int) -> Callable[[], Any]:
    import pulumi
    import pulumi_aws as aws

    def run() -> Any:
        made = [
            aws.ec2.Instance(
                f"main-{number}",
                ami="ami-1",
                instance_type="p5.48xlarge",
                subnet_id="subnet-1",
                vpc_security_group_ids=["sg-1"],
                user_data="#cloud-config\n",
                metadata_options={"http_tokens": "required", "http_put_response_hop_limit": 1},
                root_block_device={"encrypted": True, "volume_type": "gp3", "volume_size": 300},
                tags={"Name": f"main-{number}"},
            )
            for number in range(hosts)
        ]
        return pulumi.Output.all(*(instance.private_ip for instance in made))

    return run


def _fleet(cloud: str, hosts: int, folder: Path) -> Callable[[], Any]:
    from infra import clouds
    from infra.fleet import build
    from infra.state import State
    from vllm_fleet.fleet import plan

    clouds.component(cloud)  # imports the cloud's SDK
    directory = folder / FLEET
    directory.mkdir()
    (directory / "fleet.yml").write_text(fleet_text(cloud, hosts), encoding="utf-8")

    os.environ["VLLM_FLEET_INVENTORIES"] = str(folder)

    def run() -> Any:
        # Without the checks of plugins and state, which ask Pulumi: there is no engine here.
        return build(plan.load(directory), State()).inventory

    return run


def fleet_text(cloud: str, hosts: int) -> str:
    """``fleet.yml`` with that many serving hosts in a cloud, and two gateways."""
    fleet = {
        "fleet": FLEET,
        "defaults": {"model": "openai/gpt-oss-120b"},
        "pools": {"main": {"host_class": "h100-8", "cloud": cloud, "hosts": hosts, "placement": _PLACEMENTS[cloud]}},
        "gateway": {"hosts": GATEWAYS, "plain": True},
        "access": {"ssh_from": ["10.1.0.0/16"], "api_from": ["10.2.0.0/16"]},
    }
    # JSON is YAML.
    return json.dumps(fleet)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
