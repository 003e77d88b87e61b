"""The controller's store of start caches."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_fleet.base.errors import FleetError
from vllm_fleet.operate.start_cache_store import Record, Store, describe_start

CONTENT = b"compiled"
RECORD = Record("0123456789abcdef", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "gpu-0", 79.9)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "start-caches")


def keep(store: Store, record: Record = RECORD, content: bytes = CONTENT) -> None:
    with store.incoming_archive() as archive:
        archive.write_bytes(content)
        store.keep(archive, record)


def files(store: Store) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_what_was_kept_is_read_and_verified(store: Store) -> None:
    assert store.read_record(RECORD.key) is None
    keep(store)
    assert store.read_record(RECORD.key) == RECORD
    assert store.verify_archive(RECORD)
    assert files(store) == {f"{RECORD.key}.json", f"{RECORD.sha256}.tar.gz"}


def test_an_archive_with_another_digest_gets_no_record(store: Store) -> None:
    with pytest.raises(FleetError, match="gpu-0 has the SHA-256"):
        keep(store, content=b"cut off")
    assert store.read_record(RECORD.key) is None
    assert files(store) == set()


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"other"), lambda path: path.unlink()])
def test_an_archive_that_changed_or_is_gone_is_not_verified(store: Store, change: object) -> None:
    keep(store)
    change(store.archive(RECORD))  # type: ignore[operator]
    assert not store.verify_archive(RECORD)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "0"}', '{"other": 1}'])
def test_a_record_that_cannot_be_read_is_none(store: Store, text: str) -> None:
    keep(store)
    (store.folder / f"{RECORD.key}.json").write_text(text, encoding="utf-8")
    assert store.read_record(RECORD.key) is None


def test_a_record_that_another_run_has_replaced_stays(store: Store) -> None:
    keep(store)
    other = replace(RECORD, host="gpu-1")
    keep(store, other)
    assert store.remove_record(RECORD) is False
    assert store.read_record(RECORD.key) == other
    assert store.remove_record(other) is True
    assert store.read_record(RECORD.key) is None
    assert store.remove_record(other) is False


def test_one_writer_claims_a_key(store: Store) -> None:
    with store.claim(RECORD.key) as first, store.claim(RECORD.key) as second, store.claim("other") as other:
        assert (first, second, other) == (True, False, True)
    with store.claim(RECORD.key) as again:
        assert again is True


def test_a_start_is_described_by_the_cache_that_it_had() -> None:
    assert describe_start(79.94, "none", None) == "79.9 s to the first completion without a cache"
    assert describe_start(5, "own", None) == "5.0 s to the first completion with its own cache"
    text = "57.1 s to the first completion with the cache of gpu-0"
    assert describe_start(57.1, "store", RECORD) == f"{text}, which took 79.9 s without one"
    assert describe_start(57.1, "store", replace(RECORD, cold_start_seconds=None)) == text
