"""The program with which hosts fetch models, run as they run it, against a stand-in of the mirror's nginx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in_origin import Origin, serving, sha256

from vllm_fleet.base import paths

PROGRAM = paths.root() / "roles" / "model_store" / "files" / "vllm-fetch"
LARGE = os.urandom(5 << 20)


@pytest.fixture
def origin() -> Iterator[Origin]:
    with serving(Origin(files={"/m/weights": LARGE, "/m/config.json": b"{}"})) as found:
        yield found


def fetch(tmp_path: Path, origin: Origin, **other: Any) -> tuple[int, str]:
    files = [{"name": "weights", "sha256": sha256(LARGE)}, {"name": "config.json", "sha256": sha256(b"{}")}]
    request = {"url": f"{origin.url}/m", "directory": str(tmp_path / "model"), "files": files, **other}
    (tmp_path / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-IS", PROGRAM, tmp_path / "request.json"], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_files_are_fetched_verified_and_stamped(tmp_path: Path, origin: Origin) -> None:
    code, said = fetch(tmp_path, origin)
    assert (code, said.splitlines()[-1]) == (0, f"{tmp_path}/model is complete")
    assert (tmp_path / "model" / "weights").read_bytes() == LARGE
    assert set(json.loads((tmp_path / "model" / ".verified.json").read_text())) == {"weights", "config.json"}
    sent = origin.sent
    assert fetch(tmp_path, origin)[0] == 0
    assert origin.sent == sent


def test_what_is_there_of_a_file_is_not_fetched_again(tmp_path: Path, origin: Origin) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".weights.part").write_bytes(LARGE[: 4 << 20])
    assert fetch(tmp_path, origin)[0] == 0
    assert (tmp_path / "model" / "weights").read_bytes() == LARGE
    assert origin.sent == (1 << 20) + 2


def test_a_cut_connection_goes_on_where_it_stopped(tmp_path: Path, origin: Origin) -> None:
    origin.cuts["/m/weights"] = 2 << 20
    assert fetch(tmp_path, origin)[0] == 0
    assert f"bytes={2 << 20}-" in [asked for _, _, asked in origin.requests]


def test_a_corrupted_byte_on_the_way_is_fetched_again(tmp_path: Path, origin: Origin) -> None:
    origin.wrong["/m/weights"] = LARGE[::-1]
    assert fetch(tmp_path, origin)[0] == 0
    assert (tmp_path / "model" / "weights").read_bytes() == LARGE


def test_a_file_of_the_host_that_was_changed_is_fetched_again(tmp_path: Path, origin: Origin) -> None:
    assert fetch(tmp_path, origin)[0] == 0
    (tmp_path / "model" / "weights").write_bytes(LARGE[::-1])
    assert fetch(tmp_path, origin)[0] == 0
    assert (tmp_path / "model" / "weights").read_bytes() == LARGE


def test_a_mirror_with_another_file_is_hopeless_and_says_what_to_do(tmp_path: Path, origin: Origin) -> None:
    origin.files["/m/weights"] = LARGE[::-1]
    code, said = fetch(tmp_path, origin)
    assert code == 2
    assert "has the SHA-256" in said
    assert "vllm-fleet mirror --verify" in said
    assert not (tmp_path / "model" / "weights").exists()


def test_a_mirror_without_the_file_is_hopeless(tmp_path: Path, origin: Origin) -> None:
    del origin.files["/m/weights"]
    code, said = fetch(tmp_path, origin)
    assert (code, "HTTP 404" in said) == (2, True)


def test_a_mirror_that_is_not_there_may_come_back(tmp_path: Path, origin: Origin) -> None:
    code, said = fetch(tmp_path, origin, url="http://127.0.0.1:9/m")
    assert (code, said.startswith("error: ")) == (1, True)
