"""What all tests share: the golden fleet in a folder of its own, and --update-golden."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from e2e import conformance_table
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from vllm_fleet import inventory as sites
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.fleet import plan as plans
from vllm_fleet.inventory import Site

#: End-to-end tests with a lab that no other file uses.
OWN_LAB = frozenset({"tests/e2e/test_image_serving.py"})
#: Tests of Pulumi programs against mocks. One process runs them all: it takes ten seconds to import every cloud's SDK.
PROGRAMS = frozenset(
    f"tests/infra/test_{name}.py"
    for name in ("amd_clouds", "aws", "gcp", "joined_networks", "mirror_access", "policy", "rehearsal_cloud", "safety")
)
FIXTURES = Path(__file__).parent / "fixtures"

# 'python -m pytest' works without '. ./activate' too: the tests start programs of this environment by name.
_PROGRAMS_OF_THIS = str(Path(sys.executable).parent)
if _PROGRAMS_OF_THIS not in os.environ.get("PATH", "").split(os.pathsep):
    os.environ["PATH"] = os.pathsep.join(filter(None, (_PROGRAMS_OF_THIS, os.environ.get("PATH"))))
os.environ.setdefault("ANSIBLE_CONFIG", str(Path(__file__).parents[1] / "ansible.cfg"))

# The SDKs of the clouds are fifteen thousand classes, and their programs make garbage fast: with Python's own
# thresholds a third of their tests' time goes into garbage collection.
gc.set_threshold(100_000, 50, 1000)

# No test fails for time: not for a slow example, and not for slow generation on a busy machine.
settings.register_profile("fleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fleet")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden copies again")
    parser.addoption("--long", action="store_true", help="run the tests marked 'long' too")
    parser.addoption("--heartbeat", type=float, metavar="SECONDS", help="with -n: say what runs after so much silence")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--heartbeat") and config.getoption("numprocesses", None):
        config.pluginmanager.register(Heartbeat(config, config.getoption("--heartbeat")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes longest first, so that no process is left alone with it at the end: labs, hosts, downloads."""
    order = ("e2e", "root", "network")
    items.sort(key=lambda item: next((rank for rank, name in enumerate(order) if item.get_closest_marker(name)), 9))


def pytest_collection_finish() -> None:
    """Takes what is imported by now out of the garbage collector's sight."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out what is marked ``root`` or ``long`` before any of its fixtures begins; CI is root."""
    if item.get_closest_marker("long") and not item.config.getoption("--long"):
        pytest.skip("it takes minutes: 'make test-long' runs it")
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("systemd-nspawn hosts need root")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what the clients of the gateway got, if the end-to-end tests of them ran."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [
        value for report in reports for name, value in report.user_properties if name == conformance_table.PROPERTY
    ]
    if found:
        terminalreporter.section("conformance of the gateway")
        for line in conformance_table.terminal_lines(found):
            terminalreporter.write_line(line)


class Heartbeat:
    """Prints what runs, and since when, where nothing else has been printed for a while."""

    def __init__(self, config: pytest.Config, seconds: float) -> None:
        self._config = config
        self._seconds = seconds
        self._started: dict[str, float] = {}
        self._finished = 0
        self._last = time.monotonic()
        self._stopped = threading.Event()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Iterator[None]:
        threading.Thread(target=self._beat, daemon=True).start()
        try:
            return (yield)
        finally:
            self._stopped.set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._started[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._started.pop(nodeid, None)
        self._finished += 1
        self._last = time.monotonic()

    def _beat(self) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        while not self._stopped.wait(min(1.0, self._seconds)):
            now = time.monotonic()
            if now - self._last < self._seconds:
                continue
            self._last = now
            running = sorted((began, name) for name, began in tuple(self._started.items()))
            names = ", ".join(f"{name} ({now - began:.0f} s)" for began, name in running)
            reporter.write(f"\n{self._finished} tests done; running: {names or 'none yet'}\n", flush=True)


class ByLab(LoadScopeScheduling):
    """The tests of a file stay in one worker, and so do the files that share a lab or the SDKs of the clouds.

    xdist's own groups (loadgroup) have no effect with this pytest: it keeps no ``_nodeid`` that they could change.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file in PROGRAMS:
            return "programs"
        return "lab" if file.startswith("tests/e2e/") and file not in OWN_LAB else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByLab | None:
    """Takes the place of ``--dist loadfile``."""
    return ByLab(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return catalogs.load()


@pytest.fixture
def fleets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog: Catalog) -> Path:
    """A folder of fleets that a test may change, with the golden fleet in it.

    The catalogue is read before the folder changes: its files are named as seen from where it was read.
    """
    shutil.copytree(FIXTURES, tmp_path / "fixtures")
    folder = tmp_path / "fixtures" / "fleets"
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def image_site(fleets: Path, catalog: Catalog) -> Site:
    """The golden fleet with every engine as an image, from a registry of its own."""
    file = fleets / "golden" / "fleet.yml"
    spec = yaml.safe_load(file.read_text(encoding="utf-8"))
    for pool in spec["pools"].values():
        pool["install"] = "docker"
    spec["artifacts"]["images"] = {"vllm-0.32.0-cpu": f"sha256:{'1' * 64}"}
    spec["mirror"] = {"registry": "192.0.2.1:5000"}
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return sites.build(plans.load(file.parent, catalog), catalog)


@pytest.fixture
def golden_site() -> Site:
    return sites.load(FIXTURES / "fleets" / "golden")
