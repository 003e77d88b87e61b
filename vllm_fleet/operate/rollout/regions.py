"""A rollout of a fleet with workers: the first region, then the others side by side, each with a canary of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from vllm_fleet.base import paths, private_keys
from vllm_fleet.base.digests import text_sha256
from vllm_fleet.base.errors import ErrorCode, FleetError, raise_all
from vllm_fleet.edge import ssh, worker
from vllm_fleet.edge.connection import CommandFailedError, NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.edge.worker import Transmitted, WorkerPlaybook
from vllm_fleet.fleet import private_key, region_workers
from vllm_fleet.inventory import Site
from vllm_fleet.operate import run_lock, run_owner
from vllm_fleet.operate.rollout import record, report, run
from vllm_fleet.operate.rollout.record import End, Ended, Event, Kept, Record, Run
from vllm_fleet.operate.rollout.references import take_over
from vllm_fleet.operate.rollout.run import Finished, Follower, Listener, News
from vllm_fleet.operate.rollout.timeline import Timeline

#: What a worker needs of the checkout.
PROJECT = ("Pulumi.yaml", "ansible.cfg", "site.yml", "playbooks", "plugins", "recipes", "roles", "vllm_fleet")
#: In the folder of a fleet: private keys, and a new API key.
_SECRET = ("ssh", "api-key")
#: The packages whose versions on a worker must be those of the controller.
PACKAGES = ("ansible-core", "ansible-runner", "asyncssh", "pydantic")
#: Where playbooks/workers.yml installs them.
DEFAULT_PYTHON = "/opt/vllm-fleet-worker/bin/python"
_PROBE_SECONDS = 60.0


@dataclass(frozen=True)
class Region:
    """One region of a fleet.

    Attributes:
        name: its name.
        worker: the machine in it that works on its hosts.
        python: the interpreter there that has the packages of the project.
        limit: the hosts of its run.
        serving: those of them that serve.
    """

    name: str
    worker: Target
    python: str
    limit: Sequence[str]
    serving: Sequence[str]


@dataclass(frozen=True)
class Order:
    """What is run.

    Attributes:
        fleet: the fleet's name.
        regions: the regions, in their order.
        sent: what each worker is sent, before its own arguments.
        check: whether nothing is changed.
        after: what of the first region must be accepted before the others begin.
        references: the folders in which references are kept: that of the fleet, and that of what is sent.
    """

    fleet: str
    regions: Sequence[Region]
    sent: Transmitted
    check: bool = False
    after: Literal["region", "canary"] = "region"
    references: Sequence[Path] = ()


def regions_of(site: Site) -> list[Region]:
    """The regions of a fleet that have hosts, in their order; empty if it has no workers."""
    access, document = site.plan.access, site.plan.document
    return [
        Region(
            each.name,
            Target(
                f"worker of {each.name}",
                each.worker.address,
                each.worker.port,
                each.worker.user or access.ssh_user or "root",
                (each.worker.ssh_host_key,),
                site.private_key_file,
                site.ssh_config_file,
                keys_file=document.file,
            ),
            each.worker.python or DEFAULT_PYTHON,
            [*each.others, *each.serving],
            each.serving,
        )
        for each in region_workers.list_regions(site.plan.hosts, site.plan.spec.workers)
        # Without hosts the run would have no limit.
        if each.others or each.serving
    ]


def copy_project(directory: Path, key_file: Path | None, folder: Path) -> Path:
    """Fills the private data directory of ansible-runner with the project and one fleet, without its private keys.

    Args:
        directory: the folder of the fleet.
        key_file: the private key that the fleet names.
        folder: the private data directory, which exists.

    Returns:
        The ``fleet.yml`` in it.
    """
    project = folder / "project"
    for name in PROJECT:
        source, target = paths.root() / name, project / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)

    def secrets(place: str, names: list[str]) -> set[str]:
        return {name for name in names if name in _SECRET or Path(place, name) == key_file}

    settings = folder / "env" / "settings"
    settings.parent.mkdir()
    settings.write_text(json.dumps(worker.SETTINGS), encoding="utf-8")
    shutil.copytree(directory, project / "inventories" / directory.name, ignore=secrets)
    return project / "inventories" / directory.name / "fleet.yml"


def pack_fleet(site: Site, folder: Path, arguments: Sequence[str], become_password: str | None) -> Transmitted:
    """What the workers of a fleet are sent.

    Args:
        site: the fleet.
        folder: an empty folder of this user alone.
        arguments: arguments of ``ansible-playbook``.
        become_password: the password for sudo on the hosts.

    Raises:
        FleetError: the private key of the fleet cannot be used, or has a passphrase.
    """
    key_file, key = site.private_key_file, None
    if fault := private_key.fleet_error(site.plan):
        raise fault
    if key_file:
        key = key_file.read_text(encoding="utf-8")
        if private_keys.has_passphrase(key_file):
            raise site.plan.document.error(
                ("access", "ssh_private_key_file"),
                "has a passphrase, which the agent of a worker cannot ask for",
                "name a key without one, or remove the key: then each worker uses its own keys",
            )
    inventory = copy_project(site.plan.directory, key_file, folder)
    return Transmitted(folder, "site.yml", inventory, arguments, key, become_password)


def look_at_workers(regions: Sequence[Region]) -> Mapping[str, str]:
    """Asks every worker whether it can work. Changes nothing.

    Returns:
        Region -> the folder of runs on its worker.

    Raises:
        FleetError: a worker does not answer, or lacks the packages of the project.
    """
    answers = asyncio.run(_look_at_all(regions))
    raise_all(sorted((each for each in answers if isinstance(each, FleetError)), key=lambda error: -error.exit_code))
    return {region.name: str(answer) for region, answer in zip(regions, answers, strict=True)}


async def _look_at_all(regions: Sequence[Region]) -> list[str | FleetError]:
    return await asyncio.gather(*map(_look, regions))


async def _look(region: Region) -> str | FleetError:
    wanted = {name: metadata.version(name) for name in PACKAGES}
    question = json.dumps({"command": "look", "python": region.python, "packages": list(wanted)}) + "\n"
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            answer = json.loads(await ssh.run_json(region.worker, worker.worker_command(), question))
        folder, versions = str(answer["folder"]), dict(answer["versions"])
    except CommandFailedError as fault:
        return _no_worker(region, str(fault))
    except NoAnswerError as fault:
        return _no_worker(region, str(fault), ErrorCode.WORK_FAILED)
    except TimeoutError:
        return _no_worker(region, f"gives no answer within {_PROBE_SECONDS:.0f} s", ErrorCode.WORK_FAILED)
    except (ValueError, KeyError, TypeError):
        return _no_worker(region, "gives an answer that cannot be read", ErrorCode.WORK_FAILED)
    wrong = [f"{name} {versions.get(name) or 'is missing'}" for name in wanted if versions.get(name) != wanted[name]]
    if wrong:
        need = ", ".join(f"{name} {version}" for name, version in wanted.items())
        return _no_worker(region, f"{region.python} has {', '.join(wrong)}, and the run needs {need}")
    return folder


def _no_worker(region: Region, why: str, code: ErrorCode = ErrorCode.REFUSED) -> FleetError:
    return FleetError(
        f"the worker cannot be used: {why}",
        "install it with playbooks/workers.yml, or correct workers in fleet.yml; nothing was touched",
        host=region.worker.name,
        code=code,
    )


@dataclass
class _Work:
    """The run of one region.

    Attributes:
        events: what it has added to the record.
        stopping: whether it was asked to begin no further batch.
        is_over: whether it has ended, and all that it has sent is in ``events``.
        fault: what is wrong with what the worker has sent; its run is ended then.
    """

    region: Region
    playbook: WorkerPlaybook
    news: News
    events: list[Event] = field(default_factory=list)
    stopping: bool = False
    is_over: bool = False
    fault: FleetError | None = None

    @property
    def ended(self) -> Ended | None:
        """How its record ends."""
        return next((event for event in reversed(self.events) if isinstance(event, Ended)), None)

    @property
    def is_accepted(self) -> bool:
        """Whether it has ended, and every host that it was to change serves the release."""
        well = self.is_over and self.playbook.returncode == 0
        return well and (self.ended is None or self.ended.state == "done")

    @property
    def is_refused(self) -> bool:
        """Whether one of its hosts does not serve the release, or it could not go on."""
        if self.fault or (self.ended and self.ended.state in ("refused", "failed")):
            return True
        return self.is_over and self.playbook.returncode != 0

    def error(self) -> FleetError | None:
        """What is wrong with its worker, or with what that has sent."""
        return self.fault or self.playbook.error()

    def stop(self) -> None:
        """Asks it once to begin no further batch."""
        if not self.stopping:
            self.stopping = True
            self.playbook.ask_to_stop()


class _Regions:
    """The state of a run over all regions."""

    def __init__(self, order: Order, folders: Mapping[str, str], listener: Listener) -> None:
        self.order = order
        self.timeline = Timeline()
        self.works: list[_Work] = []
        self._folders = folders
        self._listener = listener
        self._waiting = list(order.regions)
        self._record: Record | None = None
        self._follower = Follower(order.fleet)

    @property
    def file(self) -> Path | None:
        """The record; None before anything is to be rolled out."""
        return self._follower.file

    def begin(self, regions: Sequence[Region]) -> None:
        """Starts the runs of regions."""
        for region in regions:
            self._waiting.remove(region)
            name = text_sha256(f"{self.order.fleet} {region.name}")[:16]
            place = f"{self._folders[region.name]}/{name}"
            sent = self.order.sent
            stream = Transmitted(
                sent.folder,
                sent.book,
                sent.inventory,
                [
                    *sent.arguments,
                    *("--limit", ",".join(region.limit), "-e", f"fleet_region={region.name}"),
                    *("-e", f"fleet_rollout_stop={place}/stop", "-e", "fleet_rollout_events=true"),
                ],
                sent.private_key,
                sent.become_password,
            ).stream()
            project = f"{place}/run/project"
            environment = {
                "PYTHONPATH": project,
                "ANSIBLE_CONFIG": f"{project}/ansible.cfg",
                # Connections that ssh keeps open end with the run.
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{place}/cp",
            }
            if sent.private_key:
                environment |= private_key.OF_AGENT
            news = News()
            playbook = WorkerPlaybook(region.worker, region.python, place, environment, news.hear)
            self.works.append(_Work(region, playbook, news))
            playbook.start(stream)

    def go_on(self) -> None:
        """Starts the regions whose turn it is, or stops those that work if one has a host that was refused."""
        if any(work.is_refused for work in self.works):
            self.stop()
        elif self._waiting and not any(work.stopping for work in self.works) and self._first_is_accepted():
            self.begin(list(self._waiting))

    def _first_is_accepted(self) -> bool:
        first = self.works[0]
        if first.is_accepted:
            return True
        if self.order.after == "region" or self.order.check:
            return False
        hosts = [self.timeline.hosts[name] for name in first.region.serving if name in self.timeline.hosts]
        canaries = [host for host in hosts if host.batch == 1]
        return bool(canaries) and all(host.outcome and host.outcome.state == "serving" for host in canaries)

    def stop(self) -> None:
        """Asks all that work to begin no further batch; no further region begins."""
        for work in self.works:
            work.stop()

    def hear(self) -> None:
        """Takes in what the workers have sent."""
        for work in self.works:
            # Before what it has sent is taken: nothing can follow then.
            work.is_over = not work.playbook.is_running
            tasks, output = work.news.take()
            for text in output:
                self._listener.hear_output(text)
            for task in tasks:
                self._listener.hear_task(f"{work.region.name}: {task}")
            try:
                for event in record.read_lines(work.news.take_lines(), Path("worker")):
                    work.events.append(event)
                    self._keep(work.region, event)
            except FleetError:
                text, hint = (
                    "the worker has sent an event that cannot be read",
                    "end its run there and look at the worker",
                )
                work.fault = FleetError(text, hint, host=work.region.worker.name, code=ErrorCode.WORK_FAILED)
                work.playbook.kill()
        for event in self._follower.read(os.getpid()):
            self.timeline.add(event)
            self._listener.hear_event(event, self.timeline)
        self._listener.look_on(self.timeline)

    def _keep(self, region: Region, event: Event) -> None:
        if isinstance(event, Ended):
            return  # this run ends when all of them have
        if isinstance(event, Kept):
            for folder in self.order.references:
                take_over(folder, event)
            return
        values = {"region": region.name} if "region" in type(event).model_fields else {}
        if isinstance(event, Run):
            if self._record is None:
                self._open(event)
                return
            values["owner"] = run_owner.name_run(os.getpid())
        if self._record:
            self._record.write_again(event, **values)

    def _open(self, event: Run) -> None:
        fleet = self.order.fleet
        own = record.open_record({fleet: event.hosts}, os.getpid(), check=event.check)
        file = next(iter(own.files.values()))
        every = [name for region in self.order.regions for name in region.limit]
        self._record = Record(dict.fromkeys(every, file))

    def close(self) -> None:
        """Ends what works still."""
        for work in self.works:
            work.playbook.end()

    def end(self, interrupts: int) -> Finished:
        """Writes how all of it has ended, and the report."""
        faults = [fault for work in self.works if (fault := work.error())]
        errors = [*(error for work in self.works for error in work.news.errors.values()), *faults]
        if self._record:
            # An exit code of 2 says that nothing was touched.
            for error in errors:
                error.code = ErrorCode.WORK_FAILED
        failed = bool(errors) or any(work.playbook.returncode for work in self.works)
        if self._record:
            if self._waiting:
                self._record.write("left", hosts=[name for region in self._waiting for name in region.serving])
            state, why = self._state(failed=failed)
            self._record.write("ended", state=state, why="\n".join(filter(None, [why, *map(str, faults)])))
            report.write_reports(self._record)
            self.hear()
        return Finished(self.timeline, self.file, int(failed), errors, interrupts)

    def _state(self, *, failed: bool) -> tuple[End, str]:
        ends = [work.ended for work in self.works if work.ended]
        for state in ("refused", "failed", *(() if failed else ("paused",))):
            if found := [end for end in ends if end.state == state]:
                return found[0].state, "\n".join(end.why for end in found if end.why)
        if failed:
            return "failed", ""
        return ("paused", "the other regions have not begun") if self._waiting else ("done", "")


def drive(order: Order, listener: Listener) -> Finished:
    """Runs the rollout of a fleet with workers to its end.

    Ctrl-C once ends it after the batches in work, twice at once.

    Args:
        order: what is run.
        listener: hears how it goes on.

    Returns:
        How it has ended.

    Raises:
        FleetError: a worker cannot be used, or another run works on the fleet; nothing is touched.
    """
    if not order.check:
        run_lock.take(order.fleet, os.getpid())
    state = _Regions(order, look_at_workers(order.regions), listener)
    with ExitStack() as stack, run.counted_interrupts() as presses:
        stack.callback(state.close)
        state.begin(order.regions[:1])
        told = 0
        while True:
            state.hear()
            if not presses:
                state.go_on()
            if all(work.is_over for work in state.works):
                break
            if len(presses) > told:
                told = len(presses)
                listener.hear_interrupt(run.ENDS_SOON if told == 1 else run.ENDS_NOW)
                state.stop()
                if told > 1:
                    for work in state.works:
                        work.playbook.kill()
            time.sleep(run.LOOK_SECONDS)
        return state.end(len(presses))
