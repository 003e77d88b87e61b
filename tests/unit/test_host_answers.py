"""The answer of a host is a stranger's: whatever it is, it is a report or the state of that one host."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from healthy_host import HEALTHY
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ssh_servers import ADDRESS, Loop

from vllm_fleet.base.foreign_text import UnreadableError, clean_bytes, clean_text
from vllm_fleet.catalogue import catalogue
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import remote_answer, ssh
from vllm_fleet.edge.connection import NoAnswerError
from vllm_fleet.edge.ssh_target import Target
from vllm_fleet.facts import host_answer, states
from vllm_fleet.facts.states import VetoCode
from vllm_fleet.facts.vetoes import TEXTS
from vllm_fleet.fleet.host_keys_file import Shown
from vllm_fleet.host.manifest import Manifest, wanted_facts
from vllm_fleet.on_host import gpu_facts, probe
from vllm_fleet.operate import drift, new_fleet, probing
from vllm_fleet.operate.new_fleet import IdentifiedHost
from vllm_fleet.operate.probing import Report

ITEMS: Any = (
    {"role": "vllm_service", "kind": "unit", "name": "vllm@0.service", "active": True},
    {"role": "vllm_service", "kind": "file", "path": "/opt/vllm/releases/a/0.yaml"},
)
UNIT = {"role": "vllm_service", "kind": "unit", "what": "vllm@0.service", "state": "failed", "why": "is failed (dead)"}
FILE = {"role": "vllm_service", "kind": "file", "what": ITEMS[1]["path"], "state": "missing", "why": "is missing"}
GOOD: dict[str, Any] = {"drift": [UNIT, FILE], "veto": [], "facts": {**HEALTHY, "problems": {}, "xid": []}}
PLAIN = Manifest("main-0", ITEMS, {})
#: Clears a screen, sets a title, starts a line of YAML, turns the text around.
HOSTILE = ("\x1b[2J", "\x1b]0;title\x07", "\r", "\n", "\x85", "\u2028", "\u2029", "\u202e", "\x9b31m", "\x00", "\x7f")


@pytest.fixture(scope="module")
def with_gpus(catalog: Catalog) -> Manifest:
    return Manifest("main-0", ITEMS, wanted_facts(catalog.host_class("h100-8")))


def parse(manifest: Manifest, answer: Any) -> Report:
    return probing.parse_report("main-0", manifest, answer if isinstance(answer, str) else json.dumps(answer))


def without_facts(**changes: Any) -> dict[str, Any]:
    return {"drift": [UNIT, FILE], "veto": [], **changes}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "Invalid JSON"),
        ("Welcome!", "Invalid JSON"),
        ("null", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("{}", "drift: is missing"),
        ('{"drift": [], "veto": []} bye', "Invalid JSON"),
        ('{"drift": NaN, "veto": []}', "drift: Input should be a valid"),
        ('{"drift": ' + "[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        ('{"drift": [], "veto": [], "\\ud800": 1}', "Invalid JSON"),
        ("\ufeff" + json.dumps(without_facts()), "Invalid JSON"),
        (without_facts(drift=None), "drift: Input should be a valid"),
        (without_facts(drift={}), "drift: Input should be a valid"),
        (without_facts(extra=1), "extra: unknown key"),
        (without_facts(**{"\x1b[2J": 1}), "\\x1b[2J: unknown key"),
        (without_facts(drift=[{**UNIT, "state": "fine"}]), "drift.0.state: unknown value"),
        (without_facts(drift=[{**UNIT, "state": None}]), "drift.0.state"),
        (without_facts(drift=[{**UNIT, "why": 7}]), "drift.0.why"),
        (without_facts(drift=[{**UNIT, "why": "x" * 100_000}]), "drift.0.why"),
        (without_facts(drift=[{name: UNIT[name] for name in ("role", "kind", "what", "why")}]), "state: is missing"),
        (without_facts(drift=[{**UNIT, "role": "gateway"}]), "is no item of the manifest"),
        (without_facts(drift=[{**UNIT, "kind": "file"}]), "is no item of the manifest"),
        (
            without_facts(drift=[FILE, {**UNIT, "what": "\x1b[2J"}]),
            "drift.1: 'vllm_service unit \\\\x1b[2J' is no item",
        ),
        (without_facts(drift=[UNIT, UNIT]), "drift.1: 'vllm_service unit vllm@0.service' is no item of the manifest"),
        (without_facts(veto=[{"code": "nonsense", "why": "x"}]), "veto.0.code: unknown value"),
        (without_facts(veto=[{"code": "no_driver", "why": "x"}]), "veto.0.code: the probe does not report no_driver"),
        (without_facts(facts=GOOD["facts"]), "facts: not asked for"),
    ],
)
def test_an_odd_answer_says_what_is_odd(answer: Any, why: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse(PLAIN, answer)
    assert str(caught.value).startswith("gave an answer that cannot be read: ")
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpus": None}, "facts.gpus"),
        ({"gpus": [None]}, "facts.gpus.0: is not a JSON object"),
        ({"gpus": [{"name": "NVIDIA H100"}]}, "facts.gpus.0.memory_mib: is missing"),
        ({"gpus": [{"name": "x", "memory_mib": 1e999, "arch": None}]}, "facts.gpus.0.memory_mib"),
        ({"gpus": [{"name": "x", "memory_mib": 10**400, "arch": None}]}, "facts.gpus.0.memory_mib"),
        ({"gpus": [{"name": "x", "memory_mib": "80", "arch": None}]}, "facts.gpus.0.memory_mib"),
        ({"gpus": [HEALTHY["gpus"][0]] * 2000}, "facts.gpus"),  # type: ignore[index]
        ({"vendor": "intel"}, "facts.vendor: unknown value"),
        ({"driver": 580}, "facts.driver"),
        ({"driver": "1" * 5000}, "facts.driver"),
        ({"xid": ["79"]}, "facts.xid.0"),
        ({"ecc_uncorrected": -1}, "facts.ecc_uncorrected"),
        ({"problems": {"amd": {"state": "wrong_driver", "why": "x"}}}, "facts.problems.amd.state"),
        ({"problems": {"amd": None}}, "facts.problems.amd: is not a JSON object"),
        ({"surprise": 1}, "facts.surprise: unknown key"),
    ],
)
def test_odd_facts_say_what_is_odd(with_gpus: Manifest, changes: dict[str, Any], why: str) -> None:
    text = json.dumps({**GOOD, "facts": {**GOOD["facts"], **changes}}).replace("Infinity", "1e999")
    with pytest.raises(UnreadableError) as caught:
        parse(with_gpus, text)
    assert why in str(caught.value)
    with pytest.raises(UnreadableError, match="facts: is missing"):
        parse(with_gpus, without_facts())


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def shown(report: Report) -> list[str]:
    """Every text of a report that a terminal, a log or a file gets."""
    errors = drift.blocking_errors({report.host: report})
    return list(texts_in([[item.record() for item in report.drift], list(map(str, errors)), dict(report.facts)]))


@pytest.mark.parametrize("letters", HOSTILE)
def test_control_characters_become_visible(with_gpus: Manifest, letters: str) -> None:
    gpu = {**HEALTHY["gpus"][0], "name": f"NVIDIA H100{letters}"}  # type: ignore[index, dict-item]
    changed = {
        "drift": [{**UNIT, "why": f"is {letters}"}],
        "veto": [{"code": "wrong_machine", "why": letters}],
        "facts": {**GOOD["facts"], "driver": f"580{letters}", "gpus": [gpu] * 8},
    }
    report = parse(with_gpus, changed)
    assert report.facts["driver"] == f"580{letters}".encode("unicode_escape").decode()
    assert all(text.isprintable() for text in shown(report))


@given(st.text())
def test_clean_text_is_one_printable_line(text: str) -> None:
    assert clean_text(text).isprintable()
    assert len(clean_text(text, 20)) <= 20
    assert clean_text(text) == text or not text.isprintable() or len(text) > 1000
    assert clean_bytes(text.encode("utf-8", "surrogatepass")).isprintable()


@pytest.mark.parametrize("letters", HOSTILE)
def test_no_fact_adds_a_host_to_a_fleet(catalog: Catalog, letters: str) -> None:
    key = " ".join(asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()[:2])
    says = f"8 x NVIDIA H100, driver 580{letters}      evil: {{address: 10.0.0.66}}"
    host = IdentifiedHost("10.0.0.5", 22, "root", key, catalog.host_class("h100-8"), says)
    for text in (
        new := new_fleet.fleet_text("rack", [host], catalog, new_fleet.Wishes(), {}),
        new_fleet.add_hosts(new, [replace(host, address="10.0.0.6")], catalog, new_fleet.Wishes()),
    ):
        assert {at for at, _ in new_fleet.static_addresses(YAML(typ="safe").load(text))} <= {"10.0.0.5", "10.0.0.6"}
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("---\n", ""),
        ("# ours\n\n--- # a document\n", "...\n"),
        ("", "# the end\n...\n# and more\n"),
        ("%YAML 1.1\n---\n", ""),
    ],
)
def test_what_yaml_does_not_read_stays_in_a_fleet_yml(catalog: Catalog, before: str, after: str) -> None:
    key = " ".join(asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()[:2])
    host = IdentifiedHost("10.0.0.5", 22, "root", key, catalog.host_class("h100-8"))
    old = (
        "fleet: &name rack\n"
        "defaults: &defaults {profile: balanced}  # ours\n"
        "pools: &pools {}\n"
        "access: {<<: &access {ssh_user: deploy}}\n"
        "artifacts:\n"
        "  models: &models\n"
        "    openai/gpt-oss-120b: &source {hub: hosts}\n"
    )
    text = new_fleet.add_hosts(f"{before}{old}{after}", [host], catalog, new_fleet.Wishes())
    added, _, rest = text.partition("access:")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "10.0.0.5" in added
    for line in old.replace(" {}", "").splitlines():
        assert line in text
    assert rest.startswith(" {<<: &access {ssh_user: deploy}}\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(HOSTILE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in an answer that can be changed."""
    found = [at]
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        found += places(item, (*at, key))
    return found


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]], at[1:], new)
    return copy


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
def test_a_changed_answer_is_a_report_or_unreadable(data: st.DataObject) -> None:
    manifest = Manifest("main-0", ITEMS, wanted_facts(catalogue.load().host_class("h100-8")))
    answer: Any = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(places(answer)))
        answer = changed(answer, at, data.draw(JSON))
    text = json.dumps(answer)
    if data.draw(st.booleans()):
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + data.draw(st.text(max_size=3)) + text[cut + data.draw(st.integers(0, 3)) :]
    try:
        report = parse(manifest, text)
    except UnreadableError as error:
        assert str(error).isprintable()
        return
    own = {(item["role"], item["kind"], item.get("path") or item.get("name")) for item in ITEMS}
    assert {(item.role, item.kind, item.what) for item in report.drift} <= own
    assert all(text.isprintable() for text in shown(report))
    probing.parse_facts(json.dumps(report.facts))


@given(st.text() | JSON.map(json.dumps))
def test_any_answer_is_a_report_or_unreadable(text: str) -> None:
    for read in (lambda: parse(PLAIN, text), lambda: probing.parse_facts(text)):
        try:
            read()
        except UnreadableError as error:
            assert str(error).isprintable()


@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 255))
def test_any_output_is_an_answer_or_says_why_not(out: bytes, err: bytes, status: int) -> None:
    target = Target("main-0", ADDRESS, 22, "root", ())
    marked = b"\nvllm-fleet-answer-begins\n" + out + b"vllm-fleet-answer-ends\n"
    for text in (out, marked, b"noise" + marked + out, marked[: len(marked) // 2]):
        try:
            remote_answer.find_answer(target, status, remote_answer.Output(bytearray(text), err))
        except NoAnswerError as error:
            assert str(error).isprintable()


# -- What the records say is what the programs print ---------------------------------------------------------------


def test_the_records_know_what_the_programs_print() -> None:
    assert set(gpu_facts.read_facts()) == set(host_answer.HostFacts.model_fields)
    assert set(probe.VETO_TEXTS) | states.NEIGHBOURS == host_answer.PROBED_VETOES
    assert set(gpu_facts.TEXTS) == host_answer.PROBLEMS
    for code in host_answer.PROBLEMS:
        TEXTS[VetoCode(code)].format(why="", install="")


def test_a_host_key_is_one_key() -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()
    good = {"current": " ".join(key[:2]), "next": None}
    assert Shown(**probing.parse_record(host_answer.HostKeys, json.dumps(good)).model_dump()).current == good["current"]
    for odd in (f"{good['current']}\n10.0.0.9 {good['current']}", "ssh-rsa AAAA", "", None, f"{good['current']}\n"):
        with pytest.raises(UnreadableError):
            probing.parse_record(host_answer.HostKeys, json.dumps({**good, "current": odd}))


# -- From a real SSH server ------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Target]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(tmp_path / "id"))
    (tmp_path / "id").chmod(0o600)
    loop = Loop(key)
    running = loop.server()
    yield Target("main-0", ADDRESS, running.port, "root", (running.key,), tmp_path / "id")
    loop.stop()


def way(server: Target, openssh: bool) -> Target:
    return replace(server, program=shutil.which("ssh") or "none") if openssh else server


def ask(target: Target, command: str) -> str:
    return asyncio.run(ssh.run_json(target, command))


@pytest.mark.parametrize("openssh", [False, True], ids=["asyncssh", "ssh"])
@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("yes", "sends more than 1 MiB of output"),
        ("cat /dev/zero >&2", "sends more than 1 MiB of error output"),
        ("printf '\\377\\376'", "gave an answer that cannot be read: it is not UTF-8"),
        ("exit 9", "the probe failed on 127.0.0.1: exit status 9"),
        ("exit 255", "the probe failed on 127.0.0.1: exit status 255"),
        ("printf 'gone \\033[2J\\n' >&2; false", r"the probe failed on 127.0.0.1: gone \x1b[2J"),
        ("kill -9 $$", "the probe failed on 127.0.0.1"),
    ],
)
def test_a_program_that_does_not_answer_says_why(server: Target, openssh: bool, command: str, error: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NoAnswerError) as caught:
        ask(way(server, openssh), command)
    assert error in str(caught.value)
    assert str(caught.value).isprintable()
    # Kilobytes: the server of this process holds its windows too.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize("openssh", [False, True], ids=["asyncssh", "ssh"])
def test_a_file_goes_to_a_host_and_comes_back(server: Target, openssh: bool, tmp_path: Path) -> None:
    sent, taken = tmp_path / "sent", tmp_path / "taken"
    # More than an answer may have, with what begins and ends one.
    sent.write_bytes(b"\nvllm-fleet-bytes 3\nvllm-fleet-answer-ends\n" * 50_000)
    size = sent.stat().st_size
    command = f"sh -c 'read -r line; echo vllm-fleet-bytes {size}; cat; echo \"$line\"'"
    files = remote_answer.Files(sent, taken, size)
    assert asyncio.run(ssh.run_json(way(server, openssh), command, '{"a": 1}\n', files=files)) == '{"a": 1}\n'
    assert taken.read_bytes() == sent.read_bytes()


@pytest.mark.parametrize("openssh", [False, True], ids=["asyncssh", "ssh"])
@pytest.mark.parametrize(
    ("command", "error"),
    [
        (f"echo vllm-fleet-bytes {(1 << 20) + 1}; yes", "sends more than 1 MiB of a file"),
        ("echo vllm-fleet-bytes 9; echo '{}'", "no whole answer"),
        ("echo vllm-fleet-bytes 99999999999999; yes", "sends more than 1 MiB of output"),
    ],
)
def test_a_file_is_no_longer_than_was_asked_for(
    server: Target, openssh: bool, command: str, error: str, tmp_path: Path
) -> None:
    files = remote_answer.Files(taken=tmp_path / "taken", limit_bytes=1 << 20)
    with pytest.raises(NoAnswerError, match=error):
        asyncio.run(ssh.run_json(way(server, openssh), command, files=files))
    assert (tmp_path / "taken").stat().st_size <= 1 << 20


def test_a_program_that_never_stops_printing_is_ended(tmp_path: Path) -> None:
    """As a ProxyCommand can: asyncio itself waits for it without end while its pipe holds output."""
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec yes\n", encoding="utf-8")
    (tmp_path / "ssh").chmod(0o755)
    with pytest.raises(NoAnswerError, match="sends more than 1 MiB of output"):
        ask(Target("main-0", ADDRESS, 22, "root", (), program=str(tmp_path / "ssh")), "true")


def test_a_strange_host_costs_no_other_its_report(server: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "good": json.dumps(without_facts()),
        "null": "null",
        "hostile": json.dumps(without_facts(drift=[{**UNIT, "what": "/etc/shadow"}])),
        "silent": "",
    }
    monkeypatch.setattr(probing, "remote_command", lambda _, manifest, **__: f"printf %s '{answers[manifest.host]}'")
    targets = [(replace(server, name=name), Manifest(name, ITEMS, {})) for name in answers]
    targets.append((replace(server, name="closed", port=1), Manifest("good", ITEMS, {})))
    reports = probing.probe_hosts(targets)
    assert [item.what for item in reports["good"].drift] == ["vllm@0.service", ITEMS[1]["path"]]
    assert {name for name, report in reports.items() if report.error} == {"null", "hostile", "silent", "closed"}
