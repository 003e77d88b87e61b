"""``vllm-fleet key``: what it writes into api-keys.yml, what it prints where, and what it refuses."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.cli import app
from vllm_fleet.edge import keys
from vllm_fleet.fleet import api_keys_edit, api_keys_file
from vllm_fleet.operate import api_keys

ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
COMMENTED = f"""\
# The keys of prod.
---
keys:
  # of Ann
  team-a: "{ONE}"  # until spring

  # of Bob
  team-b:
    # high
    digest: "{TWO}"  # on his laptop
    priority: 7
  # the end
"""


@pytest.fixture
def file(fleets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "run_dir", lambda fleet: tmp_path / "run" / fleet)
    return fleets / "golden" / "api-keys.yml"


def key(*words: str) -> Result:
    return CliRunner().invoke(app, ["key", words[0], "--fleet", "golden", *words[1:]])


def key_error(*words: str) -> FleetError:
    """The error of a command, which exits with 2."""
    shown = key(*words)
    assert isinstance(shown.exception, FleetError), shown.output
    assert shown.exception.exit_code == 2
    return shown.exception


def entries(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8"))["keys"])


def today(days: int) -> str:
    return (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)).isoformat()


# -- add ----------------------------------------------------------------------------------------------------------


def test_a_new_key_is_alone_on_standard_output_and_its_digest_in_the_file(file: Path) -> None:
    shown = key("add", "team-c")
    secret = shown.stdout.removesuffix("\n")
    assert shown.exit_code == 0
    assert len(secret) == 43
    assert secret not in shown.stderr
    assert secret not in file.read_text(encoding="utf-8")
    assert entries(file) == {"team-a": ONE, "team-b": TWO, "team-c": keys.digest(secret)}
    assert "next: ansible-playbook -i golden/fleet.yml site.yml --limit gateway" in shown.stderr


def test_a_new_key_has_its_end_and_its_limits(file: Path) -> None:
    limits = ["--requests-per-second=5", "--in-flight=8", "--tokens-per-minute=9000", "--priority=9", "--scope=metrics"]
    shown = json.loads(key("add", "team-c", "--days", "30", *limits, "--json").stdout)
    assert shown["digest"] == keys.digest(shown["key"])
    assert entries(file)["team-c"] == {
        "digest": shown["digest"],
        "ends": today(30),
        "requests_per_second": 5,
        "in_flight": 8,
        "tokens_per_minute": 9000,
        "priority": 9,
        "scope": "metrics",
    }
    assert key("add", "team-d", "--ends", "2099-01-31T18:00:00+01:00").exit_code == 0
    assert entries(file)["team-d"]["ends"] == "2099-01-31T18:00:00+01:00"


def test_the_first_key_makes_a_file_for_its_owner_alone(file: Path, fleets: Path) -> None:
    fleet = fleets / "golden" / "fleet.yml"
    fleet.write_text(fleet.read_text(encoding="utf-8").replace("access:\n", "access:\n  api_keys: file\n"))
    file.unlink()
    assert key("list", "--json").stdout == "[]\n"
    assert key("add", "no").exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert [each.owner for each in api_keys.list_keys(_plan())] == ["no"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["My Secret"], "OWNER: is not the name of an owner"),
        (["a:b"], "OWNER: is not the name of an owner"),
        (["a\nb"], "OWNER: is not the name of an owner"),
        (["team-c", "--ends", "tomorrow"], "--ends: is not a date"),
        (["team-c", "--ends", "2099-01-31T18:00:00"], "--ends: is not a date"),
        (["team-c", "--ends", "2020-01-01"], "--ends: is in the past"),
        (["team-c", "--days", "0"], "--days: must be 1 to 36500"),
        (["team-c", "--days", "5", "--ends", "2099-01-01"], "--ends and --days exclude each other"),
        (["team-a"], "golden/api-keys.yml:2:3: has keys of team-a already"),
        (["golden"], "golden/api-keys.yml: the stack makes the key of golden"),
    ],
)
def test_a_wrong_word_is_named_and_nothing_is_written(file: Path, words: list[str], says: str) -> None:
    before = file.read_bytes()
    fault = str(key_error("add", *words))
    assert says in fault
    assert "Secret" not in fault
    assert file.read_bytes() == before


@pytest.mark.parametrize("option", ["--priority=10", "--in-flight=0", "--requests-per-second=x", "--scope=all"])
def test_a_limit_out_of_its_range_is_refused(file: Path, option: str) -> None:
    before = file.read_bytes()
    assert key("add", "team-c", option).exit_code == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize("command", [["add", "c"], ["list"], ["rotate", "a"], ["revoke", "a"]])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("keys:\n  my-secret-1: x\n", "2:3: is not a digest"),
        (f'keys:\n  a: {{digest: "{ONE}", ends: my-secret-1}}\n', "2:90: is not a date"),
        (f'keys:\n  a:\n    digest: "{ONE}"\n    priority: 10\n', "4:5: must be less than or equal to 9"),
        (f'keys:\n  a:\n    digest: "{ONE}"\n    in_flight: my-secret-1\n', "4:5: must be a valid integer"),
        (f'keys:\n  a:\n    digest: "{ONE}"\n    scope: my-secret-1\n', "4:5: must be 'api' or 'metrics'"),
        (f'keys:\n  a:\n    digest: "{ONE}"\n    my-secret-1: 1\n', "4:5: unknown key"),
        (f'keys:\n  a:\n    digest: "{ONE}"\n    digests: ["{TWO}"]\n', "2:3: needs 'digest', or 'digests'"),
        ("keys:\n  a: {priority: 1}\n", "2:3: needs 'digest', or 'digests'"),
        ("keys:\n  a: {digests: [my-secret-1]}\n", "2:17: is not a digest"),
        ("keys:\n  a:\n    digests:\n    - {ends: 2027-01-01}\n", "4:7: the key 'digest' is missing"),
        (f'keys:\n  a: "{ONE}"\n  b: {{digest: "{ONE}"}}\n', "3:3: has the digest of another owner"),
    ],
)
def test_a_malformed_file_is_named_by_line_and_stays(file: Path, command: list[str], text: str, place: str) -> None:
    file.write_text(text, encoding="utf-8")
    fault = str(key_error(*command))
    assert f"golden/api-keys.yml:{place}" in fault
    assert "my-secret-1" not in fault
    assert file.read_text(encoding="utf-8") == text


# -- list, rotate, revoke -----------------------------------------------------------------------------------------


def test_the_list_has_states_and_limits_and_no_whole_digest(file: Path) -> None:
    digests = [ONE, {"digest": TWO, "ends": today(3)}, {"digest": THREE, "ends": "2020-01-01"}]
    file.write_text(yaml.safe_dump({"keys": {"a": {"digests": digests, "ends": "2099-01-01", "in_flight": 3}}}))
    listed = json.loads(key("list", "--json").stdout)
    assert [(row["digest"], row["ends"], row["state"], row["in_flight"]) for row in listed] == [
        ("1" * 12, "2099-01-01", "valid", 3),
        ("2" * 12, today(3), "ends soon", 3),
        ("3" * 12, "2020-01-01", "expired", 3),
    ]
    shown = key("list").stdout
    assert "1" * 12 in shown
    assert "1" * 13 not in shown


def test_a_rotated_key_is_valid_for_some_days_beside_the_new_one(file: Path) -> None:
    file.write_text(COMMENTED, encoding="utf-8")
    shown = key("rotate", "team-b", "--keep", "5")
    new = keys.digest(shown.stdout.strip())
    assert entries(file)["team-b"] == {"digests": [new, {"digest": TWO, "ends": today(5)}], "priority": 7}
    shown = key("rotate", "team-b", "--keep", "0")
    assert entries(file)["team-b"] == {"digest": keys.digest(shown.stdout.strip()), "priority": 7}
    shown = key("rotate", "team-a", "--keep", "0")
    assert entries(file)["team-a"] == keys.digest(shown.stdout.strip())


def test_an_end_that_is_earlier_stays_and_an_expired_key_goes(file: Path) -> None:
    digests = [{"digest": ONE, "ends": today(1)}, {"digest": TWO, "ends": "2020-01-01"}]
    file.write_text(yaml.safe_dump({"keys": {"a": {"digests": digests}}}))
    new = keys.digest(key("rotate", "a").stdout.strip())
    assert entries(file)["a"] == {"digests": [new, {"digest": ONE, "ends": today(1)}]}


def test_an_owner_whose_time_is_over_gets_no_key(file: Path) -> None:
    file.write_text(f'keys:\n  a:\n    digest: "{ONE}"\n    ends: 2020-01-01\n', encoding="utf-8")
    assert "golden/api-keys.yml:4:5: is over" in str(key_error("rotate", "a"))


def test_a_revoked_owner_is_gone_and_one_digest_can_go_alone(file: Path) -> None:
    file.write_text(yaml.safe_dump({"keys": {"a": {"digests": [ONE, TWO], "priority": 1}, "b": THREE}}))
    assert "left: 1" in key("revoke", "a", "--digest", "1111").stdout
    assert entries(file) == {"a": {"digest": TWO, "priority": 1}, "b": THREE}
    assert "left: 0" in key("revoke", "a", "--digest", f"sha256:{'2' * 64}").stdout
    assert entries(file) == {"b": THREE}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["revoke", "team-c"], "golden/api-keys.yml:1:1: has no key of team-c"),
        (["rotate", "team-c"], "golden/api-keys.yml:1:1: has no key of team-c"),
        (["revoke", "team-a", "--digest", "2"], "--digest: no key has a digest of team-a that begins so"),
        (["revoke", "team-a", "--digest", ""], "--digest: no key has a digest of team-a that begins so"),
        (["revoke", "golden"], "the stack makes the key of golden, and 'pulumi up' would bring it back"),
        (["rotate", "golden"], "pulumi up --stack golden --replace '**ApiKey::golden-api-key'"),
    ],
)
def test_a_key_that_is_not_there_or_is_the_stacks_is_refused(file: Path, words: list[str], says: str) -> None:
    file.write_text(f'keys:\n  team-a: "{ONE}"\n  golden: "{TWO}"\n', encoding="utf-8")
    before = file.read_bytes()
    assert says in str(key_error(*words))
    assert file.read_bytes() == before


def test_the_last_key_is_replaced_and_not_removed(file: Path) -> None:
    file.write_text(f'keys:\n  a: "{ONE}"\n', encoding="utf-8")
    fault = key_error("revoke", "a")
    assert "key rotate a --keep 0 --fleet golden" in fault.hint
    assert key("rotate", "a", "--keep", "0").exit_code == 0
    assert ONE not in file.read_text(encoding="utf-8")


# -- The text -----------------------------------------------------------------------------------------------------


def document(text: str) -> yaml_document.Document:
    found = yaml_document.from_text(text, "api-keys.yml", secret=True)
    api_keys_file.parse(found)
    return found


def test_every_other_line_stays_as_it_is(file: Path) -> None:
    file.write_text(COMMENTED, encoding="utf-8")
    new = keys.digest(key("add", "team-c").stdout.strip())
    added = COMMENTED.replace("    priority: 7\n", f'    priority: 7\n  team-c: "{new}"\n')
    assert file.read_text(encoding="utf-8") == added
    key("revoke", "team-c")
    assert file.read_text(encoding="utf-8") == COMMENTED
    new = keys.digest(key("rotate", "team-b", "--keep", "0").stdout.strip())
    assert file.read_text(encoding="utf-8") == COMMENTED.replace(TWO, new)
    key("revoke", "team-a")
    without = f'  team-a: "{ONE}"  # until spring\n'
    assert file.read_text(encoding="utf-8") == COMMENTED.replace(TWO, new).replace(without, "")


@pytest.mark.parametrize(
    "text",
    [
        f"keys: {{a: '{ONE}'}}  # all",
        f"keys: {{\n  a: '{ONE}',\n}}\n",
        f"keys:\n    a:\n      digests:\n      - '{ONE}'\n      - {{digest: '{TWO}', ends: 2027-01-01}}\n",
        f"keys:\n  'a' : {{digest: '{ONE}', priority: 3}}   # one\n...\n",
        f"keys:\n  a:\n\n    # one\n    digest:\n      {ONE}\n\n\n",
        f"---\nkeys:\n  ? a\n  : '{ONE}'\n",
        f'{{"keys": {{"a": "{ONE}"}}}}',
        f"keys: &all\n  a: &one '{ONE}'\n",
    ],
)
def test_any_form_is_edited_or_refused(text: str) -> None:
    before = document(text)
    for change in ({"b": THREE}, {"b": {"digest": THREE, "ends": "2027-01-01"}}, {"a": THREE}, {"a": {"digest": TWO}}):
        ((owner, entry),) = change.items()
        try:
            after = document(api_keys_edit.with_owner(before, owner, entry))
        except FleetError as fault:
            assert "in a form that this command cannot edit" in fault.message
        else:
            assert after.data["keys"] == {**before.data["keys"], **change}


def test_the_key_of_a_stack_is_put_beside_those_of_others() -> None:
    assert api_keys_edit.with_key_of_stack(None, "prod", ONE) == api_keys_file.api_keys_text("prod", ONE)
    assert api_keys_edit.with_key_of_stack(document(COMMENTED), "team-a", ONE) == COMMENTED
    assert api_keys_edit.with_key_of_stack(document(COMMENTED), "team-b", THREE) == COMMENTED.replace(TWO, THREE)
    added = api_keys_edit.with_key_of_stack(document(COMMENTED), "prod", THREE)
    assert document(added).data["keys"] == {**document(COMMENTED).data["keys"], "prod": THREE}


# -- Two at once --------------------------------------------------------------------------------------------------

_ADD = """
import sys
from pathlib import Path
from vllm_fleet.base import paths
from vllm_fleet.fleet import plan
from vllm_fleet.operate import api_keys
paths.run_dir = lambda fleet: Path(sys.argv[1]) / fleet
planned = plan.load(Path("golden"))
print("ready", flush=True)
input()
for number in range(20):
    api_keys.add_key(planned, f"{sys.argv[2]}-{number}", {"priority": 1})
"""


def test_two_processes_at_once_lose_no_key(file: Path, fleets: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", _ADD, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen([*words, name], cwd=fleets, text=True, **pipes) for name in "xyz"]  # type: ignore[call-overload]
    for each in processes:
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in processes:
        each.communicate(timeout=120)
        assert each.returncode == 0
    assert set(entries(file)) == {"team-a", "team-b", *(f"{name}-{number}" for name in "xyz" for number in range(20))}


def _plan() -> Any:
    from vllm_fleet.fleet import plan

    return plan.load(Path("golden"))
