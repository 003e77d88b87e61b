"""What keeps a fleet as planned: runs that change nothing, drift that is named, repairs of just that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from e2e.running_lab import Lab
from lab import job

PLAYS = re.compile(r"^TASK \[(\w+) : ", re.MULTILINE)


def roles_run(output: str) -> set[str]:
    return set(PLAYS.findall(output))


def changed(output: str) -> int:
    return sum(int(count) for count in re.findall(r"changed=(\d+)", output))


def test_a_second_run_changes_nothing_and_starts_no_role(lab: Lab) -> None:
    done = lab.playbook()
    assert done.returncode == 0, done.stdout + done.stderr
    assert changed(done.stdout) == 0
    assert roles_run(done.stdout) == set()
    assert lab.drift() == (0, {"fleet": "labtest", "hosts": 3, "drift": [], "unreachable": [], "vetoes": []})


def test_every_role_run_again_changes_nothing(lab: Lab) -> None:
    done = lab.playbook("-e", "fleet_probe=false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert changed(done.stdout) == 0, done.stdout
    assert len(roles_run(done.stdout)) == 8


def test_drift_is_named_and_just_that_is_repaired(lab: Lab) -> None:
    release = lab.on("lab-0", "readlink -f /opt/vllm/accepted").stdout.strip()
    for host, command in (
        ("lab-0", f"echo max-model-len: 1 >> {release}/0.yaml"),
        ("lab-1", "echo broken >> /var/lib/vllm/encodings/o200k_base.tiktoken"),
        ("lab-1", "echo WatchdogSec=1 >> /etc/systemd/system/vllm-firewall.service"),
        ("gateway-0", "chmod 0666 /etc/haproxy/haproxy.cfg"),
    ):
        assert lab.on(host, command).returncode == 0
    code, found = lab.drift()
    assert code == 3
    assert {(item["host"], item["role"], item["what"]) for item in found["drift"]} == {
        ("lab-0", "vllm_service", f"{release}/0.yaml"),
        ("lab-1", "harmony_encodings", "/var/lib/vllm/encodings/o200k_base.tiktoken"),
        ("lab-1", "vllm_firewall", "/etc/systemd/system/vllm-firewall.service"),
        ("lab-1", "vllm_firewall", "vllm-firewall.service"),
        ("gateway-0", "gateway", "/etc/haproxy/haproxy.cfg"),
    }

    checked = lab.playbook("--check", "--diff")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "lab-1: harmony_encodings: /var/lib/vllm/encodings/o200k_base.tiktoken content differs" in checked.stdout
    assert lab.drift() == (code, found), "check mode has changed something"

    started = {
        host: lab.on(host, "systemctl show -p ActiveEnterTimestamp vllm@0").stdout for host in ("lab-0", "lab-1")
    }
    repaired = lab.playbook()
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    serving = {"vllm_firewall", "vllm_service"}
    around = {"foreign_unit_files", "harmony_encodings", "gateway"}
    assert roles_run(repaired.stdout) == serving | around
    assert lab.drift()[0] == 0
    for host, since in started.items():
        now = lab.on(host, "systemctl show -p ActiveEnterTimestamp vllm@0").stdout
        assert now == since, "no instance had loaded anything wrong, so none is restarted"


def test_limit_probes_only_those_hosts(lab: Lab) -> None:
    assert lab.on("lab-1", "chmod 0700 /var/lib/vllm/encodings").returncode == 0
    done = lab.playbook("--limit", "lab-0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lab-1" not in done.stdout
    assert lab.drift()[0] == 3
    done = lab.playbook("--limit", "lab-1")
    # A host without cloud-init has no first boot to wait for.
    assert roles_run(done.stdout) == {"harmony_encodings"}
    assert lab.drift()[0] == 0


def states(lab: Lab) -> dict[str, str]:
    """Host -> what the gateway says of its server."""
    ask = (
        r"import socket; c = socket.socket(socket.AF_UNIX); c.connect(\"/run/haproxy/admin.sock\"); "
        r"c.send(b\"show stat\n\"); print(c.makefile().read())"
    )
    table = lab.on("gateway-0", f'python3 -c "{ask}"').stdout
    rows = [line.split(",") for line in table.lstrip("# ").splitlines() if line]
    at = rows[0].index("status")
    return {row[1].rpartition("_")[0]: row[at] for row in rows[1:] if row[1].startswith("lab-")}


def test_a_host_is_drained_by_name_at_the_gateways_and_site_yml_gives_it_its_traffic_back(lab: Lab) -> None:
    assert "give the host: -e fleet_drain_host=NAME" in lab.playbook(book="playbooks/drain.yml").stdout
    unknown = lab.playbook("-e", "fleet_drain_host=lab-9", book="playbooks/drain.yml")
    assert unknown.returncode != 0
    assert "no gateway has a server of lab-9: nothing was changed" in " ".join(unknown.stdout.split())
    assert states(lab) == {"lab-0": "UP", "lab-1": "UP"}
    done = lab.playbook("-e", "fleet_drain_host=lab-0", book="playbooks/drain.yml")
    assert (done.returncode, changed(done.stdout)) == (0, 1), done.stdout + done.stderr
    assert states(lab) == {"lab-0": "DRAIN", "lab-1": "UP"}
    again = lab.playbook("-e", "fleet_drain_host=lab-0", book="playbooks/drain.yml")
    assert (again.returncode, changed(again.stdout)) == (0, 0), again.stdout + again.stderr
    back = lab.playbook()
    assert back.returncode == 0, back.stdout + back.stderr
    assert states(lab) == {"lab-0": "UP", "lab-1": "UP"}


def test_a_stopped_instance_loses_no_answer_and_is_started_again(lab: Lab) -> None:
    assert lab.on("lab-0", "systemctl stop vllm@0").returncode == 0
    for _ in range(6):
        job.show(lab.gateway)
    _, found = lab.drift()
    assert {(item["host"], item["role"], item["what"]) for item in found["drift"]} == {
        ("lab-0", "vllm_service", "vllm@0.service"),
        ("lab-0", "vllm_service", "/run/vllm-0/loaded"),
    }
    done = lab.playbook()
    assert done.returncode == 0, done.stdout + done.stderr
    # The host has its own start cache.
    assert roles_run(done.stdout) == {"vllm_service"}
    assert lab.drift()[0] == 0


def with_stack(lab: Lab, old: str, new: str) -> str:
    path = lab.folder / "stack.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ssh_host_key", None, ("10.77.9.11 shows another SSH host key than ", "stack.json has: ")),
        ("address", "10.77.9.77", ("cannot be reached at 10.77.9.77 port 22",)),
    ],
)
def test_a_host_that_is_not_the_one_stops_the_run_before_anything(
    lab: Lab, field: str, value: str | None, says: tuple[str, ...]
) -> None:
    path = lab.folder / "stack.json"
    text = path.read_text(encoding="utf-8")
    data = json.loads(text)
    data["hosts"]["lab-0"][field] = value or data["hosts"]["lab-1"][field]
    path.write_text(json.dumps(data), encoding="utf-8")
    try:
        code, found = lab.drift()
        assert code == 1
        assert [silent["host"] for silent in found["unreachable"]] == ["lab-0"]
        why = found["unreachable"][0]["why"]
        assert all(part in why for part in says), why
        done = lab.playbook()
        assert done.returncode != 0
        assert all(part in done.stdout + done.stderr for part in says)
        assert roles_run(done.stdout) == set()
    finally:
        path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("host", "unit", "threshold"), [("lab-0", "vllm@0.service", 20), ("gateway-0", "haproxy.service", 15)]
)
def test_the_units_are_hardened(lab: Lab, host: str, unit: str, threshold: int) -> None:
    done = lab.on(host, f"systemd-analyze security --no-pager --threshold={threshold} {unit}")
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_no_secret_is_in_a_process_list_a_log_or_the_state(lab: Lab) -> None:
    secrets = [lab.gateway.api_key, (lab.folder / "ssh" / "id_ed25519").read_text(encoding="utf-8").splitlines()[1]]
    for host in ("lab-0", "gateway-0"):
        seen = lab.on(
            host, "ps axwwe; journalctl --no-pager; cat /etc/haproxy/* /etc/systemd/system/* 2>/dev/null"
        ).stdout
        assert seen
        assert not any(secret in seen for secret in secrets)
    states = [path for path in (lab.folder.parent.parent / "pulumi").rglob("*") if path.is_file()]
    assert states
    for path in states:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        assert not any(secret in text for secret in secrets), path
