"""Own SSH host keys of hosts, from one to the next: the file, the host's steps, and runs that were cut off."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from host_keys import public_key

from vllm_fleet.base import yaml_document
from vllm_fleet.fleet import host_keys_file
from vllm_fleet.fleet.host_keys_file import Shown
from vllm_fleet.on_host import ssh_host_key
from vllm_fleet.schema.cloud import HostKeys

OLD, NEW, NEWER = public_key("Old"), public_key("New"), public_key("Newer")


@pytest.mark.parametrize(
    ("known", "shown", "wanted"),
    [
        ((OLD,), Shown(OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), Shown(OLD, NEW), (NEW, OLD)),
        ((NEW, OLD), Shown(NEW, None), (NEW, OLD)),
        ((NEW, OLD), Shown(OLD, NEWER), (NEWER, OLD)),
    ],
    ids=["begun", "cut off before the host took it", "cut off after that", "the next key was lost"],
)
def test_both_keys_are_trusted_before_the_host_changes_its_own(
    known: tuple[str, ...], shown: Shown, wanted: tuple[str, ...]
) -> None:
    assert host_keys_file.both(known, shown) == wanted


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    keys, ids = {"b-0": (NEW, OLD), "a-0": (NEW,)}, {"b-0": 'i-"1'}
    (tmp_path / host_keys_file.FILE).write_text(host_keys_file.text(keys, ids), encoding="utf-8")
    found = host_keys_file.load(tmp_path)
    assert {name: tuple(each) for name, each in found.keys.items()} == keys
    assert found.hosts == ids
    assert host_keys_file.load(tmp_path / "nowhere").keys == {}
    (tmp_path / host_keys_file.FILE).write_text(host_keys_file.text({}, {}), encoding="utf-8")
    assert yaml_document.parse(yaml_document.read(tmp_path / host_keys_file.FILE), HostKeys).keys == {}


def test_the_key_of_a_host_that_was_made_again_is_not_its_own_any_more() -> None:
    found = HostKeys(hosts={"a-0": "i-1", "b-0": "i-2"}, keys={"a-0": [NEW], "b-0": [NEW], "rack": [NEW]})
    assert host_keys_file.standing(found, {"a-0": "i-1", "b-0": "i-9"}) == {"a-0": (NEW,), "rack": (NEW,)}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /etc/ssh; sshd and systemd are not asked."""
    if not shutil.which("ssh-keygen"):
        pytest.skip("there is no ssh-keygen")
    key = tmp_path / "ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    real = ssh_host_key._run
    monkeypatch.setattr(ssh_host_key, "_run", lambda *words: "" if "sshd" in words[0] else real(*words))
    monkeypatch.setattr(ssh_host_key.subprocess, "call", lambda *_: 3)
    return tmp_path


def step(host: Path, name: str, capsys: pytest.CaptureFixture[str], create: bool = True) -> Shown:
    assert ssh_host_key.main(json.dumps({"step": name, "create": create}), str(host)) == 0
    said = json.loads(capsys.readouterr().out)
    return Shown(said["current"], said["next"])


def test_a_host_makes_a_key_and_takes_it(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = step(host, "look", capsys)
    made = step(host, "make", capsys)
    assert (made.current, made.next is not None) == (before.current, True)
    assert step(host, "make", capsys) == made, "a key that stands ready is not made again"
    taken = step(host, "take", capsys)
    assert taken == Shown(str(made.next), None)
    assert (host / "ssh_host_ed25519_key.pub").read_text(encoding="ascii").strip() == made.next
    assert (host / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in host.iterdir()) == ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]


def test_steps_that_were_cut_off_are_done_again(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "ssh_host_ed25519_key.next.part").write_text("half a key", encoding="ascii")
    made = step(host, "make", capsys)
    (host / "ssh_host_ed25519_key.next").rename(host / "ssh_host_ed25519_key")  # and then the power went
    assert step(host, "make", capsys, create=False) == Shown(str(made.next), None)
    assert step(host, "take", capsys) == Shown(str(made.next), None)
    assert (host / "ssh_host_ed25519_key.pub").read_text(encoding="ascii").strip() == made.next


def test_a_host_without_that_key_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has keys of other types"):
        ssh_host_key.main('{"step": "look"}', str(tmp_path))
