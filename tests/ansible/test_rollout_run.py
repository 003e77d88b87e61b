"""A rollout as a command drives it: what it makes of the playbook's events and of its record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hanging import HANGING_SECONDS

from vllm_fleet.base import paths, processes
from vllm_fleet.base.errors import ErrorCode
from vllm_fleet.operate.rollout import run
from vllm_fleet.operate.rollout.record import Event
from vllm_fleet.operate.rollout.timeline import Timeline


class Heard:
    """All that a run says."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.output: list[str] = []
        self.events: list[str] = []

    def hear_event(self, event: Event, timeline: Timeline) -> None:
        del timeline
        self.events.append(event.event)

    def hear_task(self, task: str) -> None:
        self.tasks.append(task)

    def hear_output(self, text: str) -> None:
        self.output.append(text)

    def hear_interrupt(self, text: str) -> None:
        print(text, flush=True)

    def look_on(self, timeline: Timeline) -> None: ...


def order(folder: Path, *tasks: dict[str, Any]) -> run.Order:
    (folder / "hosts.yml").write_text(
        json.dumps(
            {"all": {"hosts": {"a": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}}}
        )
    )
    (folder / "book.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": list(tasks)}]))
    return run.Order("none", folder / "hosts.yml", folder / "book.yml")


def test_a_playbook_that_ends_well_has_no_record_and_no_error(tmp_path: Path) -> None:
    heard = Heard()
    task = {"name": "Show the variable", "ansible.builtin.debug": {"var": "fleet_rollout_stop"}}
    finished = run.drive(order(tmp_path, task), heard)
    assert (finished.returncode, finished.error(), finished.file) == (0, None, None)
    assert heard.tasks == ["Show the variable"]
    assert "/stop" in "".join(heard.output)


def test_host_keys_are_checked(tmp_path: Path) -> None:
    heard = Heard()
    ask = "{{ lookup('ansible.builtin.config', 'HOST_KEY_CHECKING') }}"
    run.drive(order(tmp_path, {"name": "Ask", "ansible.builtin.debug": {"msg": f"checked {ask}"}}), heard)
    assert "checked True" in "".join(heard.output)


def test_a_task_that_fails_is_the_error(tmp_path: Path) -> None:
    finished = run.drive(order(tmp_path, {"name": "Break", "ansible.builtin.fail": {"msg": "it is broken"}}), Heard())
    error = finished.error()
    assert error
    assert (finished.returncode, error.code) == (2, ErrorCode.WORK_FAILED)
    assert str(error) == "a: Break: it is broken"


def test_the_errors_that_a_task_returns_keep_their_code() -> None:
    record = {"code": "refused", "message": "another run works on the fleet", "hint": "wait", "file": None, "key": None}
    news = run.News()
    failed = {"event": "runner_on_failed", "event_data": {"task": "T", "host": "a", "res": {"errors": [record]}}}
    news.hear(failed)
    news.hear(failed)
    error = run.Finished(Timeline(), None, 2, list(news.errors.values()), 0).error()
    assert error
    assert (error.exit_code, error.hint, error.others) == (2, "wait", [])


def test_ctrl_c_twice_ends_everything_at_once(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/pid; sleep 1000"
    order(tmp_path, {"name": "Wait", "ansible.builtin.command": {"argv": ["sh", "-c", script]}})
    code = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_rollout_run
from vllm_fleet.operate.rollout import run
at = Path(sys.argv[1])
print(run.drive(run.Order("none", at / "hosts.yml", at / "book.yml"), test_rollout_run.Heard()).error())
"""
    folders = [str(Path(__file__).parent), str(paths.root() / "tests")]
    words = [sys.executable, "-c", code, str(tmp_path), *folders]
    env = {**os.environ, "PYTHONPATH": str(paths.root())}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as process:
        deadline = time.monotonic() + HANGING_SECONDS
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout
        assert "press Ctrl-C again" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=HANGING_SECONDS)
    assert "interrupted: hosts that were at work go back to their last good release by themselves" in out
    assert processes.find_process(int((tmp_path / "pid").read_text())) is None


def test_ctrl_c_once_is_an_interruption_also_where_all_went_well() -> None:
    error = run.Finished(Timeline(), None, 0, [], 1).error()
    assert error
    assert error.exit_code == 130
