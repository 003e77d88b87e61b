"""What undoes the firewall and the sandbox of a running host is found by name and repaired; with a stand-in engine."""

from __future__ import annotations

import base64
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import driver_lab
import engine_host
import pytest
from engine_host import EngineHost

from lab.rootfs import File, write_files
from vllm_fleet.base import paths
from vllm_fleet.edge import ssh
from vllm_fleet.host.manifest_items import Item, directory_item, table_item, unit_item
from vllm_fleet.mirror import apt_lists

pytestmark = [pytest.mark.root, pytest.mark.network]

#: As it is sent to hosts.
PROBE = ssh.pack_program("probe", "docker_engine", "neighbours")
ITEMS = (
    unit_item(
        "vllm_firewall",
        "vllm-firewall.service",
        active=True,
        enabled=True,
        files=("/etc/systemd/system/vllm-firewall.service",),
    ),
    table_item("vllm_firewall", "inet vllm_fleet", "/etc/vllm/firewall.nft"),
    unit_item("vllm_service", "vllm@0.service", active=True, enabled=True, files=driver_lab.UNIT_FILES),
)
FOLDERS = (("vllm_service", "/opt/vllm/releases"), ("vllm_firewall", "/etc/vllm"))
ROLES = ("vllm_firewall", "vllm_service")
TABLE = "/usr/sbin/nft list table inet vllm_fleet"


class ServingHost:
    """A host with the stand-in engine behind the real units, and the probe as a run sends it."""

    def __init__(self, host: EngineHost, variables: Mapping[str, Any]) -> None:
        self.host, self.variables = host, variables

    def play(self, *roles: str) -> tuple[int, dict[str, int], str]:
        """Runs roles: exit code, counts, output."""
        code, (counts,), said = self.host.run(self.variables, roles=roles)
        return code, counts, said

    def on(self, command: str) -> str:
        """What a command of root prints."""
        done = self.host.on(command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def drift(self, *items: Item) -> list[tuple[str, str, str]]:
        """Item, state and text of each difference."""
        manifest = base64.b64encode(json.dumps({"items": items or ITEMS}).encode()).decode()
        answer = self.on(f"echo {manifest} | base64 -d | /usr/bin/python3 -IS -c {PROBE}")
        return [(item["what"], item["state"], item["why"]) for item in json.loads(answer)["drift"]]

    def started(self) -> str:
        """When the instance has started."""
        return self.on("systemctl show --property=ActiveEnterTimestampMonotonic vllm@0.service")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingHost]:
    paths.cache_dir().mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("host")
    with (paths.cache_dir() / "test-wheels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with engine_host.made(folder) as host:
            variables = {
                **{"host_baseline_apt_config": apt_lists.host_apt_config(None), "host_baseline_apt_sources": ""},
                **{"gateway_traffic_gateways": [], "gateway_traffic_servers": []},
                **driver_lab.release_at(engine_host.ADDRESS, host.gateway, folder / "caches", "the first"),
            }
            write_files(host.root, {"opt/vllm/engines/stand-in/bin/vllm": File(driver_lab.ENGINE, 0o755)})
            found = ServingHost(host, variables)
            code, _, said = found.play("host_baseline", *ROLES)
            assert code == 0, said
            yield found


def test_a_host_as_the_roles_leave_it_has_no_drift_and_a_second_run_changes_nothing(serving: ServingHost) -> None:
    assert serving.drift() == []
    code, counts, said = serving.play(*ROLES)
    assert (code, counts["changed"]) == (0, 0), said


def test_the_account_packs_and_unpacks_the_start_cache(serving: ServingHost) -> None:
    cache = serving.variables["vllm_service_start_cache"]
    record = Path(serving.variables["vllm_service_start_cache_store"]) / f"{Path(cache).name}.json"
    assert json.loads(record.read_text(encoding="utf-8"))["host"] == "gpu-0"
    serving.on(f"systemctl stop vllm@0 && rm -r {cache}")
    code, _, said = serving.play("vllm_service")
    assert code == 0, said
    assert "with the cache of gpu-0" in said
    assert serving.on(f"stat --format='%U %G %a' {cache}") == "vllm vllm 750"
    assert serving.drift() == []


def test_nobody_but_root_writes_what_root_and_vllm_run(serving: ServingHost) -> None:
    """Also not vllm: it owns its caches, which only its own processes read, and its directory under /run."""
    places = "/opt/vllm /etc/vllm /etc/systemd/system /usr/local/libexec /var/lib/vllm"
    writable = "-perm /022 -a ! -type l -o ! -user root -o ! -group root"
    assert serving.on(f"find {places} -xdev \\( {writable} \\) -printf '%p %M %u\\n'") == ""
    assert serving.on("stat --format=%a /opt/vllm/current/0/0.yaml /opt/vllm/current/0/0.env").split() == ["600", "600"]
    serving.on("chmod 0777 /opt/vllm/releases /etc/vllm")
    items = [directory_item(role, path, "0755") for role, path in FOLDERS]
    assert [(what, state) for what, state, _ in serving.drift(*items)] == [
        ("/opt/vllm/releases", "wrong_mode"),
        ("/etc/vllm", "wrong_mode"),
    ]
    code, _, said = serving.play(*ROLES)
    assert code == 0, said
    assert serving.drift(*items) == []


@pytest.mark.parametrize("action", ["start", "restart", "reload", "stop"])
def test_the_rules_outlive_nftables_service(serving: ServingHost, action: str) -> None:
    """The unit of the distribution deletes all tables in each of these."""
    before = serving.started()
    serving.on(f"systemctl start nftables.service && systemctl {action} nftables.service")
    assert serving.drift() == []
    assert serving.started() == before, "no instance was restarted"


def test_rules_that_were_flushed_are_drift_and_come_back_without_a_restart(serving: ServingHost) -> None:
    before = serving.started()
    serving.on("/usr/sbin/nft flush ruleset")
    assert serving.drift() == [("inet vllm_fleet", "not_loaded", "is not loaded")]
    code, counts, said = serving.play("vllm_firewall")
    assert (code, counts["changed"]) == (0, 1), said
    assert serving.drift() == []
    assert serving.started() == before


@pytest.mark.parametrize("folder", ["/etc/systemd/system", "/run/systemd/system"])
def test_a_drop_in_that_undoes_the_sandbox_is_drift_by_name_and_removed(serving: ServingHost, folder: str) -> None:
    path, before = f"{folder}/vllm@.service.d/override.conf", serving.started()
    serving.on(f"mkdir -p {folder}/vllm@.service.d && printf '[Service]\\nNoNewPrivileges=no\\n' > {path}")
    # Until it is told to reload, systemd knows the folders that it has read, and uses nothing of a new one.
    known = folder.startswith("/etc")
    assert [state for _, state, _ in serving.drift()] == (["not_reloaded"] if known else [])
    serving.on("systemctl daemon-reload && systemctl restart vllm@0")
    assert serving.on("systemctl show --value --property=NoNewPrivileges vllm@0") == "no"
    assert serving.drift() == [("vllm@0.service", "foreign_unit_file", f"is changed by {path}")]
    code, _, said = serving.play("vllm_service")
    assert code == 0, said
    assert serving.drift() == []
    assert serving.started() != before
    pid = serving.on("systemctl show --value --property=MainPID vllm@0")
    assert serving.on(f"grep NoNewPrivs /proc/{pid}/status").split() == ["NoNewPrivs:", "1"]


def test_another_unit_file_of_one_instance_is_drift_by_name_and_removed(serving: ServingHost) -> None:
    """As systemctl edit --full leaves it."""
    path = "/etc/systemd/system/vllm@0.service"
    serving.on(f"sed s/NoNewPrivileges=yes// {path.replace('@0', '@')} > {path} && systemctl daemon-reload")
    assert serving.drift() == [("vllm@0.service", "foreign_unit_file", f"is changed by {path}")]
    code, _, said = serving.play("vllm_service")
    assert code == 0, said
    assert serving.drift() == []


def test_a_drop_in_of_the_firewall_is_drift_by_name_and_removed(serving: ServingHost) -> None:
    path, before = "/run/systemd/system/vllm-firewall.service.d/x.conf", serving.started()
    serving.on(f"mkdir -p {path.rsplit('/', 1)[0]} && printf '[Service]\\nExecReload=\\n' > {path}")
    serving.on("systemctl daemon-reload")
    assert serving.drift() == [("vllm-firewall.service", "foreign_unit_file", f"is changed by {path}")]
    code, _, said = serving.play("vllm_firewall")
    assert code == 0, said
    assert serving.drift() == []
    assert serving.started() == before


def test_a_drop_in_for_all_services_is_an_error_that_names_it(serving: ServingHost) -> None:
    path, before = "/etc/systemd/system/service.d/all.conf", serving.started()
    serving.on(f"mkdir -p {path.rsplit('/', 1)[0]} && printf '[Service]\\nProtectSystem=no\\n' > {path}")
    try:
        serving.on("systemctl daemon-reload")
        assert {state for _, state, _ in serving.drift()} == {"foreign_unit_file"}
        for role in ("vllm_firewall", "vllm_service"):
            code, _, said = serving.play(role)
            assert code != 0
            assert path in said
        assert serving.started() == before
    finally:
        serving.on(f"rm {path} && systemctl daemon-reload")
    assert serving.drift() == []
