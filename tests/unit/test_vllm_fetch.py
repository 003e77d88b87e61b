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
from hanging import HANGING_SECONDS
from stand_in_origin import Origin, serving, sha256

from vllm_fleet.base import paths

sys.path.insert(0, str(paths.root() / "tests"))
import https_files

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
        [sys.executable, "-IS", PROGRAM, tmp_path / "request.json"],
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
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


@pytest.mark.parametrize("name", ["../../a", "/etc/passwd", ".hidden", "a\nb", ""])
def test_a_name_that_is_a_path_is_refused_before_anything_is_fetched(tmp_path: Path, origin: Origin, name: str) -> None:
    code, said = fetch(tmp_path, origin, files=[{"name": name, "sha256": sha256(LARGE)}])
    assert (code, "is not a plain file name" in said) == (2, True)
    assert origin.requests == []


class TestOutside:
    """What the program fetches from the hub or from object storage."""

    @pytest.fixture
    def hub(self, tmp_path: Path) -> Iterator[tuple[Origin, str]]:
        context, ca = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        files = {"/m/weights": LARGE, "/m/config.json": b"{}"}
        with serving(Origin(files=files), context=context) as found:
            yield found, ca

    def test_a_file_is_resumed_over_https(self, tmp_path: Path, hub: tuple[Origin, str]) -> None:
        origin, ca = hub
        origin.cuts["/m/weights"] = 2 << 20
        assert fetch(tmp_path, origin, outside=True, ca=ca)[0] == 0
        assert f"bytes={2 << 20}-" in [asked for _, _, asked in origin.requests]
        assert (tmp_path / "model" / "weights").read_bytes() == LARGE

    def test_a_server_that_is_not_trusted_gets_no_request(self, tmp_path: Path, hub: tuple[Origin, str]) -> None:
        code, said = fetch(tmp_path, hub[0], outside=True)
        assert (code, "ca_file" in said) == (2, True)
        assert hub[0].requests == []

    def test_known_sizes_need_no_further_request(self, tmp_path: Path, hub: tuple[Origin, str]) -> None:
        files = [{"name": "weights", "sha256": sha256(LARGE), "size": len(LARGE)}]
        assert fetch(tmp_path, hub[0], outside=True, ca=hub[1], files=files)[0] == 0
        assert [method for method, _, _ in hub[0].requests] == ["GET"]

    def test_a_server_that_sends_more_than_the_file_fills_no_disk(
        self, tmp_path: Path, hub: tuple[Origin, str]
    ) -> None:
        files = [{"name": "weights", "sha256": sha256(b"x"), "size": 1}]
        assert fetch(tmp_path, hub[0], outside=True, ca=hub[1], files=files)[0] == 2
        assert [path.stat().st_size for path in (tmp_path / "model").iterdir()] == []

    def test_the_token_goes_to_the_hub_alone_and_is_removed(self, tmp_path: Path) -> None:
        context, ca = https_files.server_context("127.0.0.1", tmp_path / "server.pem")
        origin = Origin(files={"/m/config.json": b"{}"})
        (tmp_path / "token").write_text("hf_secret\n")
        storage = Origin(files={"/blob": LARGE})
        with serving(storage, context=context), serving(origin, context=context):
            origin.redirects["/m/weights"] = f"{storage.url}/blob"
            token = str(tmp_path / "token")
            code, said = fetch(tmp_path, origin, outside=True, ca=ca, token=token)
            assert code == 0, said
            assert set(storage.authorizations) == {""}
        assert set(origin.authorizations) == {"Bearer hf_secret"}
        assert not (tmp_path / "token").exists()
        assert "hf_secret" not in said

    def test_a_redirect_to_plain_http_is_refused(self, tmp_path: Path, hub: tuple[Origin, str]) -> None:
        hub[0].redirects["/m/weights"] = "http://127.0.0.1:9/blob"
        code, said = fetch(tmp_path, hub[0], outside=True, ca=hub[1])
        assert (code, "without TLS" in said) == (2, True)

    def test_a_gated_model_without_a_token_says_what_to_do(self, tmp_path: Path, hub: tuple[Origin, str]) -> None:
        origin, ca = hub
        origin.token = "hf_secret"
        code, said = fetch(tmp_path, origin, outside=True, ca=ca, url=f"{origin.url}/a/b/resolve/1")
        assert (code, "token_file" in said) == (2, True)
