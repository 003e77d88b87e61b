"""What is pinned is installed: a fleet's own lock or digest counts, and every command tells a lock that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vllm_fleet.base import paths
from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.cli import check
from vllm_fleet.cli import plan as plan_command
from vllm_fleet.fleet import plan
from vllm_fleet.host import engine_install
from vllm_fleet.resolve.engine_choice import choose_install
from vllm_fleet.resolve.image_digest import pinned
from vllm_fleet.resolve.resolve import Question, resolve

CPU, UNLOCKED = "vllm-0.32.0-cpu", "vllm-0.10.1-cuda"
DIGEST = f"sha256:{'1' * 64}"


@pytest.mark.parametrize(
    ("digest", "own", "wanted", "chosen"),
    [
        (None, (), None, "wheel"),
        (DIGEST, (), None, "docker"),
        (None, (UNLOCKED,), None, "wheel"),
        (DIGEST, (UNLOCKED,), None, "wheel"),
        (DIGEST, (), "wheel", "wheel"),
    ],
)
def test_a_form_that_is_pinned_goes_before_one_that_is_not(
    catalog: Catalog, digest: str | None, own: tuple[str, ...], wanted: Any, chosen: str
) -> None:
    engine = pinned(catalog.engine(UNLOCKED), {UNLOCKED: digest} if digest else {}, "x86_64")
    assert choose_install(engine, wanted, "x86_64", own) == chosen


def test_a_locked_wheel_goes_before_an_image(catalog: Catalog) -> None:
    engine = pinned(catalog.engine("vllm-0.12.0-cuda"), {"vllm-0.12.0-cuda": DIGEST}, "x86_64")
    assert choose_install(engine, None, "x86_64") == "wheel"
    assert choose_install(engine, None, "aarch64") == "docker", "it is locked for x86_64 alone"


def test_a_fleet_with_a_lock_of_its_own_is_not_told_that_it_has_none(catalog: Catalog) -> None:
    asked = Question("h100-8", "openai/gpt-oss-120b", engine=UNLOCKED)
    assert any("has no lock or digest yet" in note for note in resolve(catalog, asked).notes)
    asked = Question("h100-8", "openai/gpt-oss-120b", engine=UNLOCKED, locks=frozenset({UNLOCKED}))
    assert not any("has no lock or digest yet" in note for note in resolve(catalog, asked).notes)


def fleet(fleets: Path, text: str | None, **locks: str) -> Path:
    """The golden fleet with locks of its own."""
    folder = fleets / "golden"
    spec = yaml.safe_load((folder / "fleet.yml").read_text(encoding="utf-8"))
    spec["artifacts"]["locks"] = {CPU: "own.txt", **locks}
    (folder / "fleet.yml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    if text is not None:
        (folder / "own.txt").write_text(text, encoding="utf-8")
    return folder


RIGHT = (paths.root() / "recipes" / "engines" / "locks" / f"{CPU}-x86_64.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        (None, {}, "does not exist"),
        ("torch==2.0\n", {}, "is not a lock"),
        (RIGHT.replace(f"# engine: {CPU}", "# engine: another"), {}, "is for the engine another"),
        (RIGHT, {"vllm-9": "own.txt"}, "there is no engine"),
    ],
)
def test_a_lock_that_is_wrong_is_told_by_check_and_plan_alike(
    catalog: Catalog, fleets: Path, text: str | None, more: dict[str, str], says: str
) -> None:
    folder = fleet(fleets, text, **more)
    told = []
    for run in (
        lambda: check.command("golden", json=True),
        lambda: plan_command.command("golden", json=True),
        lambda: engine_install.with_engine_locks(plan.load(folder, catalog), catalog),
    ):
        with pytest.raises(FleetError, match=says) as fault:
            run()
        assert fault.value.exit_code == 2
        assert not fault.value.others, "once, for all hosts of the pool"
        told.append(str(fault.value))
    assert len(set(told)) == 1


def test_a_lock_that_is_right_is_taken(catalog: Catalog, fleets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fleet(fleets, RIGHT)
    check.command("golden", json=True)
    found = plan.load(folder, catalog)
    lock = engine_install.host_lock(found, catalog, found.hosts[0])
    assert lock is not None
    assert lock.path == (folder / "own.txt").resolve()


def test_plan_tells_once_what_site_yml_will_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before money is spent on the hosts."""
    monkeypatch.setenv("VLLM_FLEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_FLEET_INVENTORIES", str(paths.root() / "inventories"))
    plan_command.command("example-amd", json=True)
    record = json.loads(capsys.readouterr().out)
    (refused,) = record["site_refuses"]
    assert "vllm-0.33.0-rocm is not locked for x86_64" in refused["message"]
    plan_command.command("example-amd")
    assert "site.yml will refuse: " in capsys.readouterr().out
    plan_command.command("example-aws", json=True)
    (refused,) = json.loads(capsys.readouterr().out)["site_refuses"]
    assert refused["message"].startswith("the mirror of this machine lacks ")
