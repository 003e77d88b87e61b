"""fleet.yml, stack.json and api-keys.yml: what a careless hand can do to them, and the one error it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from host_keys import public_key

from vllm_fleet import inventory
from vllm_fleet.base import yaml_document
from vllm_fleet.base.errors import FleetError
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan, stack
from vllm_fleet.fleet.api_keys_file import api_keys_text
from vllm_fleet.schema.api_keys import ApiKeys

ENV = '{VLLM_CPU_KVCACHE_SPACE: "2"}'
STATIC = f"{{door: {{address: 192.0.2.9, ssh_host_key: {public_key('Door')}}}}}"


def change(folder: Path, old: str, new: str, file: str = "fleet.yml") -> None:
    path = folder / "golden" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_golden_fleet_is_right(fleets: Path) -> None:
    found = plan.load(fleets / "golden")
    assert [host.name for host in found.hosts] == ["lab-0", "lab-1", "rack-a", "gateway-0"]
    assert found.hosts[0].instances == (("0", 8000),)


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "says"),
    [
        ("host_class: cpu-2", "host_clas: cpu-2", 6, "pools.lab.host_clas", "unknown key"),
        ("host_class: cpu-2", "host_class: h1000-8", 6, "pools.lab.host_class", "there is no host class 'h1000-8'"),
        ("cloud: lab", "cloud: moon", 7, "pools.lab.cloud", "not 'moon'"),
        ("hosts: 2", 'hosts: "2"', 9, "pools.lab.hosts", "must be a valid integer, not '2'"),
        ("192.0.2.0/24", "192.0.2.0/33", 8, "pools.lab.placement.subnet", "is '192.0.2.0/33'"),
        ("{hosts: 1, affinity", f"{{hosts: 3, static: {STATIC}, affinity", 22, "gateway.hosts", "is 3, but gateway.st"),
        ("    static:", "    hosts: 4\n    static:", 13, "pools.rack.hosts", "is 4, but pools.rack.static lists 1"),
        ("hosts: 2", "hosts: two", 9, "pools.lab.hosts", "not 'two'"),
        ("hosts: 2", "hosts: -1", 9, "pools.lab.hosts", "greater than or equal to 0"),
        ("fleet: golden", "fleet: silver", 2, "fleet", "the name of the folder is 'golden'"),
        ("fleet: golden", "fleet: Golden Fleet", 2, "fleet", "is not a name"),
        ("      rack-a:", "      lab-0:", 10, "pools.rack", "the host 'lab-0' is in the pool 'lab' too"),
        ("why: our prompts end at 800 tokens", "why: x", 21, "pools.rack.overrides.why", "at least 10 characters"),
        ('KVCACHE_SPACE: "2"', 'KVCACHE_SPACE: "2\\n3"', 20, "pools.rack.overrides.env", "holds a line break"),
        ("max-model-len: 1024", "max-modl-len: 1024", 13, None, "does not read the flag 'max-modl-len'"),
        ("{hosts: 1, affinity", f"{{cloud: lab, static: {STATIC}, affinity", 22, "gateway.cloud", "is 'lab', but"),
    ],
)
def test_a_fault_in_fleet_yml(fleets: Path, old: str, new: str, line: int, key: str | None, says: str) -> None:
    change(fleets, old, new)
    with pytest.raises(FleetError) as caught:
        plan.load(fleets / "golden")
    fault = caught.value
    assert says in fault.message
    assert fault.exit_code == 2
    assert fault.file is not None
    if key is not None:
        assert (fault.line, fault.key) == (line, key)


def test_what_the_gateway_takes_over_is_told_where_it_is_written(fleets: Path) -> None:
    change(fleets, "hosts: 2", "hosts: 0")
    change(fleets, "192.0.2.0/24", "192.0.2.0/33")
    change(fleets, "{hosts: 1, affinity", "{hosts: 1, placement: {first: 9}, affinity")
    with pytest.raises(FleetError, match=r"is '192.0.2.0/33'") as caught:
        plan.load(fleets / "golden")
    assert (caught.value.line, caught.value.key, caught.value.others) == (8, "pools.lab.placement.subnet", [])
    change(fleets, "hosts: 0", "hosts: 2")
    with pytest.raises(FleetError, match=r"is '192.0.2.0/33'") as caught:
        plan.load(fleets / "golden")
    assert (caught.value.line, caught.value.key, caught.value.others) == (8, "pools.lab.placement.subnet", [])


def test_hints_of_a_number_in_quotes_and_of_an_empty_file(fleets: Path) -> None:
    change(fleets, "hosts: 2", 'hosts: "2"')
    with pytest.raises(FleetError) as caught:
        plan.load(fleets / "golden")
    assert caught.value.hint == "write it without quotes"
    (fleets / "golden" / "fleet.yml").write_text("")
    with pytest.raises(FleetError) as caught:
        plan.load(fleets / "golden")
    assert caught.value.hint == "see docs/fleets.md for the format of this file"


def test_static_gateways_that_are_only_counted_have_no_address(fleets: Path) -> None:
    change(fleets, "{hosts: 1, affinity", "{hosts: 1, cloud: static, affinity")
    hosts = json.loads((fleets / "golden" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    rewritten(fleets, hosts={name: host for name, host in hosts.items() if name != "gateway-0"})
    with pytest.raises(FleetError, match="the cloud 'static' creates none") as caught:
        stack.locations(plan.load(fleets / "golden"), names.resolve_names)
    assert (caught.value.line, caught.value.key, caught.value.exit_code) == (22, "gateway.hosts", 2)


def test_the_same_address_twice(fleets: Path) -> None:
    rack = f"{{address: 198.51.100.7, port: 2222, ssh_host_key: {public_key('Node')}}}"
    second = f"      rack-b: {rack}\n    overrides:"
    change(fleets, "    overrides:", second)
    with pytest.raises(FleetError, match=r"rack-b and rack-a both have the address 198\.51\.100\.7"):
        plan.load(fleets / "golden")


def rewritten(fleets: Path, **changes: object) -> None:
    path = fleets / "golden" / "stack.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")


def test_a_stack_of_another_version(fleets: Path) -> None:
    rewritten(fleets, version=2)
    with pytest.raises(FleetError, match="has version 2, this release reads version 1") as caught:
        inventory.load(fleets / "golden")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("version", [True, 1.0, "1"])
def test_only_the_number_1_is_version_1(fleets: Path, version: object) -> None:
    rewritten(fleets, version=version)
    with pytest.raises(FleetError, match="this release reads version 1"):
        inventory.load(fleets / "golden")


@pytest.mark.parametrize(
    ("key", "address", "says"),
    [
        ("address", "127.0.0.1", "127.0.0.1 is a loopback address"),
        ("private_address", "::1", "::1 is a loopback address"),
        ("address", None, "lab-1 and lab-0 both have the address"),
        ("private_address", None, "lab-1 and lab-0 both have the address"),
    ],
)
def test_a_stack_whose_addresses_cannot_be_is_refused_by_plan(
    fleets: Path, key: str, address: str | None, says: str
) -> None:
    hosts = json.loads((fleets / "golden" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    hosts["lab-1"][key] = address or hosts["lab-0"]["address"]
    rewritten(fleets, hosts=hosts)
    found = plan.load(fleets / "golden")
    for read in (stack.check_stack, stack.made_hosts):
        with pytest.raises(FleetError, match=says) as caught:
            read(found)
        assert (caught.value.key, caught.value.exit_code) == (f"hosts.lab-1.{key}", 2)
        assert caught.value.hint == "run 'pulumi up --stack golden --refresh' to write it again"


def test_a_stack_of_any_size_gives_a_short_error(fleets: Path) -> None:
    hosts = json.loads((fleets / "golden" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    one = hosts["lab-1"]
    more = {f"more-{number}": {**one, "address": f"10.9.{number >> 8}.{number & 255}"} for number in range(1, 51)}
    rewritten(fleets, hosts={**hosts, **more})
    found = plan.load(fleets / "golden")
    with pytest.raises(FleetError, match=r"; and 40 more hosts \(run") as caught:
        stack.check_stack(found)
    assert len(str(caught.value)) < 1000
    rewritten(fleets, hosts={f"more-{number}": {} for number in range(1100)})
    with pytest.raises(FleetError, match="has 1100 hosts, and a fleet has at most 1064") as caught:
        stack.check_stack(found)
    assert caught.value.others == []


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_stack_that_is_no_file_is_not_a_stack_that_is_missing(fleets: Path, kind: str) -> None:
    file = fleets / "golden" / "stack.json"
    file.unlink()
    file.mkdir() if kind == "folder" else file.symlink_to("nowhere")
    found = plan.load(fleets / "golden")
    with pytest.raises(FleetError) as caught:
        stack.made_hosts(found)
    assert caught.value.hint == "remove it, and run 'pulumi up --stack golden --refresh' to write it again"
    assert caught.value.exit_code == 2


def test_a_stack_of_another_fleet(fleets: Path) -> None:
    rewritten(fleets, fleet="silver")
    with pytest.raises(FleetError, match="belongs to the fleet 'silver'"):
        inventory.load(fleets / "golden")


def test_a_host_too_few_and_one_too_many_name_both_files(fleets: Path) -> None:
    hosts = json.loads((fleets / "golden" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    hosts["lab-7"] = hosts.pop("lab-1")
    rewritten(fleets, hosts=hosts)
    with pytest.raises(FleetError) as caught:
        inventory.load(fleets / "golden")
    assert "lab-1 is in golden/fleet.yml but not in golden/stack.json" in caught.value.message
    assert "lab-7 is in golden/stack.json but not in golden/fleet.yml" in caught.value.message


def test_a_host_that_leaves_is_left_out_of_the_inventory_and_told_by_the_plan(fleets: Path) -> None:
    """The gateways lose it first, by site.yml, then the stack."""
    hosts = json.loads((fleets / "golden" / "stack.json").read_text(encoding="utf-8"))["hosts"]
    other = {"address": "203.0.113.77", "private_address": "10.70.0.77"}
    rewritten(fleets, hosts={**hosts, "lab-7": {**hosts["lab-1"], **other}})
    site = inventory.load(fleets / "golden")
    assert "lab-7" not in {host.plan.name for host in site.hosts}
    with pytest.raises(FleetError, match=r"lab-7 is in golden/stack.json but not in golden/fleet.yml"):
        stack.check_stack(plan.load(fleets / "golden"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}'])
def test_a_stack_that_is_none(fleets: Path, text: str) -> None:
    (fleets / "golden" / "stack.json").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        inventory.load(fleets / "golden")
    assert caught.value.file == "golden/stack.json"


def test_no_stack_yet(fleets: Path) -> None:
    (fleets / "golden" / "stack.json").unlink()
    with pytest.raises(FleetError, match="do not exist yet") as caught:
        inventory.load(fleets / "golden")
    assert caught.value.hint == "run 'pulumi up --stack golden'"


@pytest.mark.parametrize("owner", ["prod", "no", "null"])
def test_the_file_of_api_keys_reads_back_whatever_the_fleet_is_called(owner: str, tmp_path: Path) -> None:
    digest = "sha256:" + "1" * 64
    file = tmp_path / "api-keys.yml"
    file.write_text(api_keys_text(owner, digest), encoding="utf-8")
    assert yaml_document.parse(yaml_document.read(file), ApiKeys).keys == {owner: digest}
    assert api_keys_text("prod", digest) == f'keys:\n  prod: "{digest}"\n'


def test_a_key_in_the_open_is_refused(fleets: Path) -> None:
    change(fleets, '"sha256:' + "1" * 64 + '"', "my-secret-key", "api-keys.yml")
    with pytest.raises(FleetError) as caught:
        inventory.load(fleets / "golden")
    assert "is not a digest" in caught.value.message
    assert (caught.value.line, caught.value.column, caught.value.key) == (2, 3, None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("keys: SECRET-1", "must be a mapping"),
        ("SECRET-1: x", "unknown key"),
        ("keys: {SECRET-1: x}", "is not the name of an owner"),
        ("keys: {secret-1: x}", "is not a digest"),
        ("keys: {bob: !SECRET-1 x}", "a tag is not supported"),
        ("keys: {bob: *SECRET-1}", "a word that begins with '*'"),
        ("keys: {bob: 01235813}", "readers of YAML read this word in different ways"),
        ("keys: {SECRET-1: 1, SECRET-1: 1}", "duplicate key"),
        ("keys: {bob: [SECRET-1]}", "is not a digest"),
        ("SECRET-1", "must be a mapping"),
        ('{"SECRET-1', "the file ends inside quotes"),
        ("{}", "the key 'keys' is missing"),
        ("root:SECRET-1:1:2\nbin: SECRET-1", "is not valid YAML"),
        ("root: SECRET-1\nbin: SECRET-1", "unknown key"),
    ],
)
def test_what_is_wrong_with_api_keys_yml_has_a_place_and_no_word_of_it(fleets: Path, text: str, says: str) -> None:
    (fleets / "golden" / "api-keys.yml").write_text(text, encoding="utf-8")
    with pytest.raises(FleetError) as caught:
        inventory.load(fleets / "golden")
    told = [str(error) + json.dumps(error.record()) for error in (caught.value, *caught.value.others)]
    assert says in told[0]
    assert "golden/api-keys.yml:" in told[0]
    assert caught.value.column is not None
    assert not any(word in one.lower() for one in told for word in ("secret-1", "1235813", "bob")), told


@pytest.mark.parametrize(
    ("old", "new", "key", "says"),
    [
        (ENV, "{HF_TOKEN: hf_x1}", "pools.rack.overrides.env.HF_TOKEN", "token_file"),
        (
            '{VLLM_CPU_KVCACHE_SPACE: "2"}',
            "{VLLM_API_KEY: x1}",
            "pools.rack.overrides.env.VLLM_API_KEY",
            "api_keys_file",
        ),
        (ENV, "{S3_SECRET_ACCESS_KEY: x1}", None, "a process of vLLM gets no secret"),
        (ENV, "{HF_TOKEN: 0712}", "pools.rack.overrides.env.HF_TOKEN", "put it in quotes"),
        (ENV, "{HF_TOKEN: 712}", "pools.rack.overrides.env.HF_TOKEN", "a valid string"),
        ("{max-model-len: 1024}", "{hf-token: hf_x1}", "pools.rack.overrides.args.hf-token", "token_file"),
        (
            "artifacts:",
            "mirror: {url: 'http://u:hf_x1@10.0.0.1'}\nartifacts:",
            "mirror.url",
            "the URL of the server alone",
        ),
        ("artifacts:", "mirror: {url: 'http://10.0.0.1/?t=hf_x1'}\nartifacts:", "mirror.url", "an account or a query"),
        ("artifacts:", "mirror: {registry: 'u:hf_x1@10.0.0.1:1'}\nartifacts:", "mirror.registry", "only host and port"),
        ("address: 198.51.100.7", "address: u:hf_x1@198.51.100.7", None, "an account with a password"),
        (
            "artifacts:",
            "artifacts:\n  repositories: {x: {uri: 'ftp://u:hf_x1@10.0.0.1'}}",
            None,
            "should match pattern",
        ),
    ],
)
def test_a_secret_in_fleet_yml_is_refused_and_not_repeated(
    fleets: Path, old: str, new: str, key: str | None, says: str
) -> None:
    change(fleets, old, new)
    with pytest.raises(FleetError) as caught:
        plan.load(fleets / "golden")
    told = [str(error) + json.dumps(error.record()) for error in (caught.value, *caught.value.others)]
    assert any(says in one for one in told), told
    assert not any(word in one for one in told for word in ("x1", "712")), told
    assert key in (None, caught.value.key)
    assert caught.value.line is not None


def test_a_model_whose_copy_is_missing(fleets: Path) -> None:
    change(fleets, "../../artifacts/model", "../../artifacts/none")
    with pytest.raises(FleetError, match="does not exist") as caught:
        inventory.load(fleets / "golden")
    assert "set mirror and leave this key out" in caught.value.hint


def test_a_model_list_with_a_path_in_it_is_refused(fleets: Path) -> None:
    path = fleets.parent / "artifacts" / "model" / "model.json"
    path.write_text(path.read_text(encoding="utf-8").replace("config.json", "../../etc/passwd"), encoding="utf-8")
    with pytest.raises(FleetError, match="not a plain file name"):
        inventory.load(fleets / "golden")


def test_locations_of_static_hosts_need_no_stack_entry(fleets: Path) -> None:
    where = stack.locations(plan.load(fleets / "golden"), names.resolve_names)
    assert (where["rack-a"].address, where["rack-a"].port, where["rack-a"].user) == ("198.51.100.7", 2222, "root")
    assert where["lab-1"].user == "deploy"
