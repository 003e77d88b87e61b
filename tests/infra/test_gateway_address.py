"""Two gateways share an address by keepalived: it leaves one that fails, and stays where it then is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import driver_lab
import pytest
from driver_lab import DriverLab, Place
from hanging import HANGING_SECONDS

from lab import cleanup, state
from lab.rootfs import File, write_files
from vllm_fleet.base import paths
from vllm_fleet.host import haproxy, keepalived
from vllm_fleet.host.gateway_keys import key_map_text
from vllm_fleet.host.gateway_routes import Backend
from vllm_fleet.host.haproxy_reader import reader_config
from vllm_fleet.host.manifest import shared_address_items
from vllm_fleet.schema.api_keys import ApiKeys
from vllm_fleet.schema.fleet import Gateway
from vllm_fleet.schema.virtual_address import VirtualAddress

pytestmark = [pytest.mark.root, pytest.mark.network]

SUBNET = "10.79.25"
PLACE = Place("vf-address", SUBNET, {"gateway-0": f"{SUBNET}.2", "gateway-1": f"{SUBNET}.3", "gpu-0": f"{SUBNET}.11"})
SHARED = VirtualAddress(address=f"{SUBNET}.9", interface="host0")
MEMBERS = tuple(keepalived.Member(name, PLACE.addresses[name], "host0") for name in PLACE.gateways)
MODEL = "stand-in"
#: The longest time without the address when its gateway fails.
MOVE_SECONDS = 5
BOOK = paths.root() / "playbooks" / "gateways.yml"


def configure(lab: DriverLab) -> str:
    """Runs the role on both gateways, one after the other; returns what Ansible prints."""
    groups = {"needs_image_ports": (), "needs_host_baseline": (), "gateway": PLACE.gateways}
    done = lab.playbook(BOOK, {**groups, "needs_gateway": PLACE.gateways})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DriverLab]:
    with (paths.cache_dir() / "test-address.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if PLACE.bridge in state.labs():
            cleanup.down(PLACE.bridge)
        try:
            yield start(tmp_path_factory.mktemp("address"))
        finally:
            cleanup.down(PLACE.bridge)


def start(folder: Path) -> DriverLab:
    lab = driver_lab.boot(folder, PLACE)
    files = {"usr/local/lib/instance.py": File(driver_lab.INSTANCE)}
    files["etc/systemd/system/vllm@.service"] = File(driver_lab.UNIT)
    write_files(state.host_dir(PLACE.bridge, "gpu-0") / "root", files)
    lab.on("gpu-0", "systemctl daemon-reload; systemctl enable --now vllm@0")
    backends = [Backend("gpu-0", "0", PLACE.addresses["gpu-0"], 8000, MODEL)]
    digest = f"sha256:{hashlib.sha256(driver_lab.KEY.encode()).hexdigest()}"
    for name in PLACE.gateways:
        # As host_baseline does.
        lab.on(name, "useradd --system --no-create-home --user-group --home-dir /var/lib/vllm vllm")
        lab.variables[name] = {
            "gateway_config": haproxy.haproxy_config(Gateway(), backends),
            "gateway_reader_config": reader_config(Gateway(), backends),
            "gateway_api_key_digests": key_map_text(ApiKeys(keys={"test": digest})),
            "gateway_address_config": keepalived.keepalived_config(Gateway(), SHARED, MEMBERS, name),
        }
    configure(lab)
    return lab


def holders(lab: DriverLab) -> list[str]:
    """The gateways that have the address now."""
    show = "ip -json address show dev host0"
    return [
        name
        for name in PLACE.gateways
        if any(each["local"] == str(SHARED.ip) for each in json.loads(lab.on(name, show))[0]["addr_info"])
    ]


def wait_until(condition: Callable[[], bool], seconds: float = HANGING_SECONDS) -> float:
    """Waits for a state; returns the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "the state has not come"
        time.sleep(0.1)
    return time.monotonic() - begin


def answers() -> bool:
    """Whether a client of the address gets an answer of the engine."""
    request = urllib.request.Request(
        f"http://{SHARED.ip}:8080/v1/completions",
        json.dumps({"model": MODEL, "pieces": 1}).encode(),
        {"Authorization": f"Bearer {driver_lab.KEY}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return bool(answer.read() == b"piece\n")
    except OSError:
        return False


def is_reachable(name: str) -> bool:
    """Whether a host takes a connection for SSH."""
    try:
        socket.create_connection((PLACE.addresses[name], 22), timeout=1).close()
    except OSError:
        return False
    return True


#: Prints each state that keepalived has entered.
STATES = "journalctl -u keepalived -o cat --no-pager | grep -oE 'Entering [A-Z]+ STATE'"


def last_state(lab: DriverLab, name: str) -> str:
    """The state of VRRP that keepalived has entered last: MASTER, BACKUP or FAULT."""
    said = lab.on(name, f"{STATES} | tail -n 1")
    return said.split()[1] if said else ""


def drain(lab: DriverLab, name: str, command: str = "drain") -> None:
    """Takes all servers of a gateway out of its traffic, or gives them back."""
    question = {"owner": "the tests", "reason": "a test", "seconds": 600, "servers": ["*"], "kind": "run"}
    lab.on(name, f"echo '{json.dumps(question)}' | /usr/local/libexec/vllm-gateway {command}")


def no_drift(lab: DriverLab) -> dict[str, list[str]]:
    """Gateway -> the differing items of the shared address; empty lists where it is as planned."""
    found = {}
    for name in PLACE.gateways:
        items = shared_address_items(lab.variables[name]["gateway_address_config"])
        found[name] = [f"{each.what} {each.state}" for each in lab.probe(name, items, {}).drift]
    return found


def test_one_gateway_has_the_address_and_a_second_run_changes_nothing(lab: DriverLab) -> None:
    wait_until(lambda: len(holders(lab)) == 1 and answers())
    assert configure(lab).count("changed=0") == 2
    assert no_drift(lab) == {name: [] for name in PLACE.gateways}
    assert len(holders(lab)) == 1


def test_a_changed_configuration_is_loaded_and_the_address_stays(lab: DriverLab) -> None:
    (before,) = holders(lab)
    process = "systemctl show --value --property=MainPID keepalived"
    since = lab.on(before, process)
    for name in PLACE.gateways:
        text = lab.variables[name]["gateway_address_config"]
        lab.variables[name]["gateway_address_config"] = text.replace("refresh 60", "refresh 61")
    states = lab.on(before, f"{STATES} | wc -l")
    configure(lab)
    assert lab.on(before, process) == since
    loaded = "journalctl -u keepalived -o cat --no-pager | grep -ci reload || true"
    wait_until(lambda: int(lab.on(before, loaded)) > 0)
    assert lab.on(before, f"{STATES} | wc -l") == states
    assert holders(lab) == [before]


def test_the_address_leaves_a_gateway_without_haproxy_and_does_not_come_back(lab: DriverLab) -> None:
    (before,) = holders(lab)
    (other,) = set(PLACE.gateways) - {before}
    wait_until(lambda: last_state(lab, other) == "BACKUP")
    begin = time.monotonic()
    lab.on(before, "systemctl stop haproxy")
    assert not answers()
    wait_until(answers, MOVE_SECONDS)
    took = time.monotonic() - begin
    print(f"the address moved in {took:.1f} s")
    assert took < MOVE_SECONDS
    assert holders(lab) == [other]
    lab.on(before, "systemctl start haproxy")
    wait_until(lambda: last_state(lab, before) == "BACKUP")
    # It is healthy again, has the higher priority or the lower one, and hears the other one.
    assert last_state(lab, other) == "MASTER"
    assert holders(lab) == [other]
    assert answers()


def test_a_drained_gateway_gives_the_address_to_one_with_traffic_and_keeps_it_where_none_has(lab: DriverLab) -> None:
    (before,) = holders(lab)
    (other,) = set(PLACE.gateways) - {before}
    wait_until(lambda: last_state(lab, other) == "BACKUP")
    drain(lab, before)
    wait_until(lambda: holders(lab) == [other])
    wait_until(lambda: last_state(lab, before) == "FAULT")
    # Without a green one the first is no worse than the second, and the address stays.
    drain(lab, other)
    wait_until(lambda: last_state(lab, before) == "BACKUP")
    assert holders(lab) == [other]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{SHARED.ip}:8080/healthz", timeout=HANGING_SECONDS)
    assert refused.value.code == 503
    for name in PLACE.gateways:
        drain(lab, name, "ready")
    wait_until(answers)
    assert holders(lab) == [other]


def test_a_gateway_without_a_network_loses_the_address_and_does_not_take_it_back(lab: DriverLab) -> None:
    (before,) = holders(lab)
    (other,) = set(PLACE.gateways) - {before}
    wait_until(lambda: last_state(lab, other) == "BACKUP")
    cut = "ip link set host0 down; sleep 15; ip link set host0 up"
    lab.on(before, f"systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms sh -c '{cut}'")
    wait_until(lambda: last_state(lab, other) == "MASTER", 1 + MOVE_SECONDS)
    assert answers()
    wait_until(lambda: is_reachable(before))
    wait_until(lambda: last_state(lab, before) == "BACKUP")
    assert holders(lab) == [other]


def test_the_unit_has_few_rights_and_the_check_none(lab: DriverLab) -> None:
    name = PLACE.gateways[0]
    said = lab.on(name, "systemd-analyze security --no-pager keepalived.service | tail -n 1")
    print(said)
    assert float(said.split(": ")[1].split()[0]) < 3
    # Of one who may read neither the keys nor the socket of HAProxy.
    lab.on(name, "setpriv --reuid vllm --regid vllm --clear-groups /usr/local/libexec/vllm-gateway healthy")
    log = lab.on(name, "journalctl -u keepalived -o cat --no-pager")
    assert "insecure" not in log.lower()
    assert "unsafe" not in log.lower()
    assert "Permission denied" not in log
    assert "Operation not permitted" not in log


def test_a_wrong_configuration_is_not_written(lab: DriverLab) -> None:
    name = PLACE.gateways[0]
    right = lab.variables[name]["gateway_address_config"]
    before = lab.on(name, "sha256sum /etc/keepalived/keepalived.conf")
    try:
        for wrong in (right.replace("interface host0", "interface no0"), right.replace("nopreempt", "nopreemt")):
            lab.variables[name]["gateway_address_config"] = wrong
            done = lab.play(name, "gateway")
            assert done.returncode == 2, done.stdout + done.stderr
            assert "failed to validate" in done.stdout
    finally:
        lab.variables[name]["gateway_address_config"] = right
    assert lab.on(name, "sha256sum /etc/keepalived/keepalived.conf") == before
    assert answers()


def test_without_the_key_keepalived_is_stopped_and_its_files_go(lab: DriverLab) -> None:
    for name in PLACE.gateways:
        lab.variables[name]["gateway_address_config"] = ""
    wanted = [f"{keepalived.DROP_IN} unwanted"]
    assert no_drift(lab) == dict.fromkeys(PLACE.gateways, wanted)
    configure(lab)
    assert holders(lab) == []
    assert no_drift(lab) == {name: [] for name in PLACE.gateways}
    for name in PLACE.gateways:
        gone = f"test ! -e {keepalived.CONFIG} && ! systemctl is-active --quiet keepalived"
        lab.on(name, f"{gone} && ! systemctl is-enabled --quiet keepalived")
    assert configure(lab).count("changed=0") == 2
