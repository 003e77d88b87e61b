"""Numbers, names and keys of fleet.yml and stack.json have bounds, and what goes into other programs has a form."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from host_keys import public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from pydantic import TypeAdapter, ValidationError

from vllm_fleet import inventory
from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.base.field_types import SshPublicKey
from vllm_fleet.fleet import plan
from vllm_fleet.schema import fleet_schema
from vllm_fleet.schema.api_keys import ApiKeys

HOST = {"address": "10.0.0.5", "ssh_host_key": public_key("A")}
POOL = {"host_class": "h100-8", "cloud": "static", "model": "openai/gpt-oss-120b", "static": {"gpu-a": HOST}}
RENTED = {
    "host_class": "h100-8",
    "cloud": "aws",
    "model": "openai/gpt-oss-120b",
    "hosts": 1,
    "placement": {"region": "us-east-1", "zone": "us-east-1a", "public_address": True},
}


def fleet_of(pool: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"fleet": "mine", "pools": {"main": pool}, "access": {"ssh_from": ["198.51.100.0/24"]}, **parts}


def with_host(**host: Any) -> dict[str, Any]:
    return fleet_of({**POOL, "static": {"gpu-a": {**HOST, **host}}})


def load(tmp_path: Path, data: dict[str, Any]) -> plan.Plan:
    folder = tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return plan.load(folder)


def refusal(tmp_path: Path, data: dict[str, Any]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        load(tmp_path, data)
    assert caught.value.line is not None
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("data", "key", "says"),
    [
        (fleet_of({**RENTED, "hosts": 100_000_000}), "pools.main.hosts", "at most 1000 hosts: docs/performance.md"),
        (fleet_of({**RENTED, "hosts": 1001}), "pools.main.hosts", "at most 1000 hosts"),
        (fleet_of({**RENTED, "hosts": -1}), "pools.main.hosts", "greater than or equal to 0"),
        (fleet_of({**RENTED, "hosts": {"gpu-a": HOST}}), "pools.main.hosts", "list those that exist already under"),
        (fleet_of(RENTED, gateway={"hosts": 65}), "gateway.hosts", "at most 64 gateways: each serving host's firewall"),
        (fleet_of(RENTED, gateway={"hosts": 100_000_000}), "gateway.hosts", "at most 64 gateways"),
        (
            {**fleet_of(RENTED), "pools": {"one": {**RENTED, "hosts": 600}, "two": {**RENTED, "hosts": 600}}},
            None,
            "has 1200 hosts: docs/performance.md measures 1000",
        ),
        (fleet_of({**RENTED, "hosts": 1.5}), "pools.main.hosts", "valid integer"),
        (fleet_of(RENTED, gateway={"hosts": 1, "port": 65536}), "gateway.port", "less than 65536"),
        (fleet_of(RENTED, mirror={"url": "http://10.0.0.1:99999"}), "mirror.url", "is not a host with a port"),
        (fleet_of(RENTED, mirror={"registry": "10.0.0.1:99999"}), "mirror.registry", "is not a host with a port"),
        (
            fleet_of(RENTED, prices={"as_of": "2026-99-01", "source": "a list", "usd_per_hour": {}}),
            "prices.as_of",
            "day",
        ),
        ({**fleet_of(RENTED), "fleet": "m" * 43}, "fleet", "is not a name"),
        (fleet_of({**RENTED, "model": "m" * 1001}), "pools.main.model", "has 1001 letters"),
        (fleet_of({**RENTED, "model": "a\nb"}), "pools.main.model", "line break"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_its_reason(
    data: dict[str, Any], key: str | None, says: str, tmp_path: Path
) -> None:
    error = refusal(tmp_path, data)
    assert error.key == key
    assert says in error.message


def test_the_largest_fleet_that_is_measured_is_planned(tmp_path: Path) -> None:
    data = fleet_of({**RENTED, "hosts": 1000}, gateway={"hosts": 64})
    assert len(load(tmp_path, data).hosts) == 1064


@pytest.mark.parametrize(
    "user",
    ["-oProxyCommand=touch /tmp/x", "a b", "a\nb", "{{ lookup('pipe', 'id') }}", "", "a;b", "$(id)", "a'b", "u" * 65],
)
def test_a_user_is_a_name(user: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, with_host(user=user))
    assert error.key == "pools.main.static.gpu-a.user"
    assert "is not the name of a user" in error.message
    error = refusal(tmp_path, {**fleet_of(RENTED), "access": {"ssh_user": user, "ssh_from": ["198.51.100.0/24"]}})
    assert error.key == "access.ssh_user"


@pytest.mark.parametrize("user", ["root", "ubuntu", "cloud_user", "first.last", "admin@example.org", "svc-gpu", "_apt"])
def test_users_as_hosts_have_them_are_taken(user: str, tmp_path: Path) -> None:
    assert load(tmp_path, with_host(user=user)).hosts[0].user == user


@pytest.mark.parametrize(
    "key",
    [
        "ssh-ed25519 AAAA",
        "ssh-ed25519 not/base64!",
        public_key("A") + " a comment",
        public_key("A") + "\n10.0.0.9 " + public_key("B"),
        public_key("A").replace("ssh-ed25519 ", "ssh-rsa "),
        public_key("A")[:-4],
        public_key("A") + "AAAA",
        "ssh-dss AAAAB3NzaC1kc3M=",
        "{{ x }}",
        "-oProxyCommand=x",
        "",
    ],
)
def test_a_host_key_is_a_whole_key_of_its_type(key: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, with_host(ssh_host_key=key))
    assert error.key == "pools.main.static.gpu-a.ssh_host_key"


@pytest.mark.parametrize("kind", [("ed25519",), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")])
def test_the_keys_of_ssh_keygen_are_taken_and_damaged_ones_refused_as_it_refuses_them(
    kind: tuple[str, ...], tmp_path: Path
) -> None:
    program = shutil.which("ssh-keygen")
    assert program, "ssh-keygen is part of OpenSSH, which ssh needs too"
    name, *bits = kind
    file = tmp_path / "key"
    made = [program, "-q", "-t", name, *(["-b", *bits] if bits else []), "-N", "", "-f", str(file)]
    subprocess.run(made, check=True)
    known, encoded = (tmp_path / "key.pub").read_text(encoding="utf-8").split()[:2]
    check = TypeAdapter(SshPublicKey).validate_python
    assert check(f"{known} {encoded}") == f"{known} {encoded}"
    blob = base64.b64decode(encoded)
    for damaged in (blob[:-1], blob[:20], blob + b"\0", b"", blob.replace(known.encode(), known.encode()[:-1] + b"X")):
        text = f"{known} {base64.b64encode(damaged).decode()}"
        (tmp_path / "damaged.pub").write_text(text + "\n", encoding="utf-8")
        judged = subprocess.run([program, "-lf", str(tmp_path / "damaged.pub")], capture_output=True, check=False)
        assert judged.returncode != 0, text
        with pytest.raises(ValidationError):
            check(text)


@given(st.text(max_size=90) | st.binary(max_size=80).map(lambda data: f"ssh-rsa {base64.b64encode(data).decode()}"))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_key_or_an_error(text: str) -> None:
    try:
        assert TypeAdapter(SshPublicKey).validate_python(text) == text
    except ValidationError as fault:
        assert "\n" not in fault.errors()[0]["msg"]


# The schema for editors and check agree


@pytest.mark.parametrize(
    ("data", "valid"),
    [
        (fleet_of({**RENTED, "hosts": 2.0}), True),
        (fleet_of({**RENTED, "hosts": 2.5}), False),
        (fleet_of({**RENTED, "hosts": 1001}), False),
        (fleet_of(RENTED, gateway={"hosts": 1, "port": 8080.0}), True),
        (fleet_of(RENTED, gateway={"hosts": 1, "port": 65536}), False),
        (fleet_of(RENTED, gateway={"hosts": 65}), False),
        (fleet_of({**RENTED, "placement": {**RENTED["placement"], "disk_gib": 500.0}}), True),
        (fleet_of({**RENTED, "placement": {**RENTED["placement"], "disk_gib": 500.5}}), False),
        (with_host(user="-x"), False),
        (with_host(user="x"), True),
        (with_host(ssh_host_key="ssh-ed25519 AAAA BBBB"), False),
        (fleet_of({**POOL, "cloud": "lab", "static": {}, "hosts": 1, "placement": {"bridge": "vf-x"}}), False),
        (
            fleet_of(
                {
                    **RENTED,
                    "cloud": "lab",
                    "placement": {"bridge": "vf-x", "subnet": "10.70.0.0/24", "first": 5.0},
                }
            ),
            True,
        ),
        (
            fleet_of({**RENTED, "cloud": "lab", "placement": {"bridge": "vf-x", "subnet": "10.70.0.0/24", "zone": 1}}),
            False,
        ),
    ],
)
def test_editors_and_check_agree(data: dict[str, Any], valid: bool, tmp_path: Path) -> None:
    assert Draft7Validator(fleet_schema.fleet_schema()).is_valid(data) is valid
    if valid:
        assert load(tmp_path, data).hosts
    else:
        refusal(tmp_path, data)


def test_a_whole_number_with_a_point_becomes_an_integer(tmp_path: Path) -> None:
    hosts = load(tmp_path, fleet_of({**RENTED, "hosts": 2.0})).spec.pools["main"].hosts
    assert (hosts, type(hosts)) == (2, int)


# stack.json and api-keys.yml


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"user": "-oProxyCommand=x"}, "user", "is not the name of a user"),
        ({"ssh_host_key": "ssh-ed25519 AAAA"}, "ssh_host_key", "is not a whole key"),
        ({"address": "a\nb"}, "address", "control characters"),
        ({"address": 5}, "address", "valid string"),
        ({"zone": None}, "zone", "valid string"),
        ({"other": 1}, "other", "unknown key"),
    ],
)
def test_an_error_in_stack_json_names_file_and_line(change: dict[str, Any], key: str, says: str, fleets: Path) -> None:
    file = fleets / "golden" / "stack.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    data["hosts"]["lab-0"] |= change
    file.write_text(json.dumps(data, indent=1), encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        inventory.load(fleets / "golden")
    error = caught.value
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if '"lab-0"' in text)
    assert (error.file, error.key) == ("golden/stack.json", f"hosts.lab-0.{key}")
    assert line < (error.line or 0) <= line + 7
    assert says in error.message
    assert "pulumi up" in error.hint


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("{\n 'a': 1}", 2, "is not JSON"),
        ('{"version": 1,\n"version": 1}', 1, "duplicate key 'version'"),
        ('{"version": NaN}', 1, "NaN is not a number"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"version": ' + "1" * 5000 + "}", 1, "is not JSON"),
        ('{\n"version": 2}', 2, "has version 2"),
        ("\0", 1, "is not JSON"),
    ],
)
def test_a_stack_json_that_is_not_one_names_file_and_line(text: str, line: int, says: str, fleets: Path) -> None:
    (fleets / "golden" / "stack.json").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError, match=says) as caught:
        inventory.load(fleets / "golden")
    assert (caught.value.file, caught.value.line) == ("golden/stack.json", line)
    assert "pulumi up" in caught.value.hint


@pytest.mark.parametrize("secret", ["my-secret-key", "sha256:my-secret-key", "12345678901", "[my-secret-key]"])
def test_an_error_in_api_keys_yml_does_not_repeat_the_key(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "api-keys.yml"
    file.write_text(f"keys:\n  team-a: {secret}\n", encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        yaml_document.parse(yaml_document.read(file), ApiKeys)
    assert (caught.value.line, caught.value.key) == (2, "keys.team-a")
    assert "secret" not in str(caught.value)
    assert "12345678901" not in json.dumps(caught.value.record())
