"""Answers of registries, package indexes, archives and the hub: whatever they are, a result or one clear error."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.foreign_text import UnreadableError
from vllm_fleet.edge import hub, package_index, registry
from vllm_fleet.mirror import apt_lists, image_store, wheels
from vllm_fleet.mirror.apt_lists import Origin as Archive

DIGEST = "a" * 64
BLOB = f"sha256:{DIGEST}"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([DIGEST, BLOB, "../../etc/passwd", "\x1b[2J", "a-1.0-py3-none-any.whl", -1, 10**30]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("files", "filename", "url", "hashes", "sha256", "size", "token", "access_token", "expires_in"),
                    *("manifests", "layers", "config", "digest", "platform", "os", "architecture"),
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)
TOKENS = st.fixed_dictionaries({}, optional={"token": JSON, "access_token": JSON, "expires_in": JSON})
FILES = st.fixed_dictionaries(
    {"files": st.lists(st.fixed_dictionaries({"filename": JSON, "url": JSON, "hashes": JSON}, optional={"size": JSON}))}
)
MANIFESTS = st.dictionaries(st.sampled_from(["manifests", "layers", "config"]), JSON | st.lists(JSON))
FLAT = Archive("https://archive.invalid/debian", "stable", ("main",), "debs/d/0")


@given(JSON | TOKENS)
@settings(max_examples=200)
def test_any_token_is_a_header_or_an_error(answer: Any) -> None:
    try:
        token, seconds = registry._parse_token(json.dumps(answer).encode(), "https://registry.invalid")
    except FleetError as error:
        assert "returns no token" in str(error)
        assert str(error).isprintable()
        return
    assert token.isascii()
    assert token.isprintable()
    assert 0 < seconds <= 10**9


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"null", b'{"token": "a\\r\\nX: y"}', b'{"token": "\xc3\xa4"}', b"[" * 9999]
)
def test_a_token_that_is_no_header_is_refused(body: bytes) -> None:
    with pytest.raises(FleetError, match="returns no token"):
        registry._parse_token(body, "https://registry.invalid")


def parsed_manifest(answer: Any) -> None:
    body = json.dumps(answer).encode()
    manifest = image_store.parse_manifest(body, f"sha256:{hashlib.sha256(body).hexdigest()}", "")
    if image_store.select_platform(manifest, "linux/amd64") is None:
        assert all(blob.size >= 0 for blob in image_store.image_blobs(manifest))


@pytest.mark.slow
@given(JSON | MANIFESTS)
@settings(max_examples=300)
def test_any_manifest_has_parts_or_is_refused(answer: Any) -> None:
    try:
        parsed_manifest(answer)
    except FleetError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    "answer",
    [
        {"manifests": [1]},
        {"manifests": [{"digest": BLOB, "size": 1, "platform": "linux"}]},
        {"layers": [], "config": []},
        {"layers": [None], "config": {"digest": BLOB, "size": 1}},
        {"layers": [], "config": {"digest": BLOB, "size": -1}},
        {"layers": [], "config": {"digest": BLOB, "size": True}},
        {"layers": [], "config": {"digest": "\x1b[2J", "size": 1}},
    ],
)
def test_an_odd_manifest_is_refused(answer: Any) -> None:
    with pytest.raises(FleetError) as caught:
        parsed_manifest(answer)
    assert str(caught.value).isprintable()


def test_a_deep_manifest_is_refused() -> None:
    body = b'{"layers": ' + b"[" * 200_000
    with pytest.raises(FleetError, match="is not the manifest of an image"):
        image_store.parse_manifest(body, f"sha256:{hashlib.sha256(body).hexdigest()}", "")


@pytest.mark.slow
@given(JSON | FILES)
@settings(max_examples=300)
def test_any_page_of_an_index_offers_files_that_stay_in_the_mirror(answer: Any) -> None:
    try:
        offers = list(package_index._parse_json(json.dumps(answer), "https://index.invalid/simple/a/"))
    except UnreadableError as error:
        assert str(error).isprintable()
        return
    expect_in_mirror(offers)


@given(st.lists(st.text() | st.sampled_from(["..", "%2e%2e%2fx.whl", "a%0ab.whl", "//[::1", "a-1.0.tar.gz"])))
def test_any_html_page_offers_files_that_stay_in_the_mirror(links: list[str]) -> None:
    body = "".join(f'<a href="{link}#sha256={DIGEST}">x</a>\n' for link in links)
    expect_in_mirror(list(package_index._parse_html(body, "https://index.invalid/simple/a/")))


def expect_in_mirror(offers: list[wheels.Offer]) -> None:
    for offer in offers:
        path = PurePosixPath(wheels.offer_artifact(offer).path)
        assert path.parts[:2] == ("wheels", "files")
        assert len(path.parts) == 5
        assert not {"..", "."} & set(path.parts)
        assert str(path).isascii()
        assert str(path).isprintable()
        assert offer.url.isprintable()


@given(st.lists(st.tuples(st.sampled_from(["Package", "Filename", "Size", "SHA256", "X"]), st.text())))
@settings(max_examples=200)
def test_any_package_list_names_files_below_its_archive(fields: list[tuple[str, str]]) -> None:
    text = "".join(f"{name}: {value}\n" for name, value in fields)
    wanted = [f"{FLAT.uri}/{value}" for _, value in fields]
    try:
        found = list(apt_lists.pool_files(text, wanted, FLAT))
    except FleetError as error:
        assert str(error).isprintable()
        return
    for artifact in found:
        assert ".." not in PurePosixPath(artifact.path).parts
        assert artifact.path.isprintable()


def test_a_list_with_an_empty_line_in_a_value_is_an_error() -> None:
    with pytest.raises(FleetError, match=r"a package list of .* cannot be read: value must not have blank lines"):
        list(apt_lists.pool_files("Package: \n\x0c0\n", [], FLAT))


def test_a_package_outside_of_its_archive_is_not_listed() -> None:
    stanza = "Package: a\nFilename: {}\nSize: 1\nSHA256: " + DIGEST + "\n"
    for name, count in (("pool/a.deb", 1), ("../../../etc/cron.d/a", 0), ("/etc/a", 0), ("pool/\x1b[2J", 0)):
        found = list(apt_lists.pool_files(stanza.format(name), [f"{FLAT.uri}/{name}"], FLAT))
        assert len(found) == count, name


@given(st.lists(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n"))))
def test_any_release_has_its_lists_or_is_refused(rows: list[str]) -> None:
    text = "Acquire-By-Hash: yes\nSHA256:\n" + "".join(f" {row}\n" for row in rows)
    try:
        found = list(apt_lists.release_lists(text, FLAT, "amd64"))
    except FleetError as error:
        assert "has no list" in str(error)
        return
    assert [artifact.sha256 for artifact in found]


def test_a_release_with_odd_rows_is_refused() -> None:
    name = "main/binary-amd64/Packages"
    for row in (f"{DIGEST} one {name}", f"../../x 1 {name}", f"{DIGEST} -1 {name}", name):
        with pytest.raises(FleetError, match="has no list"):
            list(apt_lists.release_lists(f"SHA256:\n {row}\n", FLAT, "amd64"))


@pytest.mark.parametrize(
    ("entry", "good"),
    [
        (("config.json", "", 3, "b" * 40), True),
        (("weights.safetensors", DIGEST, 3, "b" * 40), True),
        (("a b@1+2.json", "", 0, "b" * 40), True),
        (("config.json", "", 3, ""), False),
        (("config.json", "x", 3, ""), False),
        (("config.json", DIGEST, -1, ""), False),
        (("config.json", DIGEST, True, ""), False),
        (("config.json", DIGEST, "3", ""), False),
        (("\x1b[2J", DIGEST, 3, ""), False),
        (("a\u202eb", DIGEST, 3, ""), False),
        (("a\n", DIGEST, 3, ""), False),
        ((None, DIGEST, 3, ""), False),
    ],
)
def test_a_file_of_the_hub_has_a_name_a_digest_and_a_size(entry: tuple[Any, ...], good: bool) -> None:
    assert hub._is_listed_file(*entry) is good


@given(st.tuples(JSON, JSON, JSON, JSON))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_any_entry_of_the_hub_is_judged(entry: tuple[Any, ...]) -> None:
    assert hub._is_listed_file(*entry) in (True, False)
