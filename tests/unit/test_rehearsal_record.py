"""What an emulated cloud keeps: its records in a file, found by what is in them, and addresses without an end."""

from __future__ import annotations

import signal
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from lab.rehearsal.addresses import PUBLIC
from lab.rehearsal.cloud import Account, Cloud, Record, RefusedError

HOST = "aws:ec2/instance:Instance"
SUBNET = IPv4Network("10.60.0.0/16")


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path / "cloud.db")


def host(number: int, **inputs: Any) -> Record:
    return Record(f"i-{number}", HOST, f"main-{number}", inputs, {**inputs, "arn": f"arn:{number}"})


def placed(cloud: Cloud, number: int, subnet: str = "subnet-1", block: IPv4Network = SUBNET) -> Record:
    record = host(number)
    record.address, record.subnet = cloud.new_address(), subnet
    record.private = cloud.new_address(subnet, block)
    cloud.put(record)
    return record


def test_five_thousand_hosts_have_addresses_of_their_own_in_the_range_of_their_subnet(cloud: Cloud) -> None:
    made = [placed(cloud, number) for number in range(5000)]
    assert len({record.address for record in made}) == len({record.private for record in made}) == 5000
    assert {IPv4Address(record.address) in PUBLIC for record in made} == {True}
    assert {IPv4Address(record.private) in SUBNET for record in made} == {True}


def test_two_networks_with_one_range_give_the_same_addresses(cloud: Cloud) -> None:
    assert placed(cloud, 1, "subnet-1").private == placed(cloud, 2, "subnet-2").private


def test_an_address_is_free_again_once_nothing_has_it(cloud: Cloud, tmp_path: Path) -> None:
    first, second, third = (placed(cloud, number) for number in range(3))
    # The host's own address, lent to it by another resource.
    lender = Record("eip-1", "aws:ec2/eip:Eip", "main-1", {}, {}, address=second.address)
    cloud.put(lender)
    cloud.drop(second)
    assert placed(Cloud(tmp_path / "cloud.db"), 3).private == second.private
    assert cloud.new_address() not in {first.address, second.address, third.address}
    cloud.drop(lender)
    assert cloud.new_address() == second.address


def test_a_subnet_that_is_full_refuses_the_next_host(cloud: Cloud) -> None:
    small = IPv4Network("10.60.0.0/28")
    made = [placed(cloud, number, block=small).private for number in range(11)]
    assert made == [f"10.60.0.{number}" for number in range(4, 15)]
    with pytest.raises(RefusedError, match=r"subnet-1 has no free address in 10\.60\.0\.0/28"):
        placed(cloud, 11, block=small)


def test_a_record_is_found_by_what_it_has_now(cloud: Cloud) -> None:
    for number in range(3):
        cloud.put(host(number, tags={"Name": "a"}, cards=[{"id": f"eni-{number}"}]))
    one = cloud.named(":Instance", "main-1")
    assert cloud.find(HOST, "arn", "arn:1") is one
    assert cloud.mentioning(["eni-1"]) == [one]
    assert len(cloud.with_inputs(HOST, ("tags.Name",), ["a"])) == 3
    cloud.change(one, "tags.Name", "b")
    assert cloud.with_inputs(HOST, ("tags.Name",), ["b"]) == [one]
    assert one not in cloud.with_inputs(HOST, ("tags.Name",), ["a"])
    cloud.drop(one)
    assert cloud.find(HOST, "arn", "arn:1") is None
    assert cloud.mentioning(["eni-1"]) == cloud.with_inputs(HOST, ("tags.Name",), ["b"]) == []
    assert [record.name for record in cloud.records_of(HOST)] == ["main-0", "main-2"]


def test_what_is_kept_is_there_again_in_its_order(cloud: Cloud, tmp_path: Path) -> None:
    records = [placed(cloud, number) for number in range(3)]
    cloud.account = Account(have={"images": ["ami-1"]})
    numbers = {cloud.number(), cloud.number()}
    cloud.change(records[0], "tags.pool", "other")
    again = Cloud(tmp_path / "cloud.db")
    assert again.records == records
    assert again.account == cloud.account
    assert again.number() not in numbers


KILLED = """
import sys
from pathlib import Path
from lab.rehearsal.cloud import Cloud, Record
cloud = Cloud(Path(sys.argv[1]))
for number in range(1_000_000):
    cloud.put(Record(f"i-{number}", "a:b:C", "x" * 4000, {}, {}))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_record_that_it_had_put(tmp_path: Path) -> None:
    file = tmp_path / "cloud.db"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(file)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    for line in writer.stdout:
        if line == "300\n":
            writer.send_signal(signal.SIGKILL)
            break
    said = [300, *map(int, writer.stdout)]
    writer.wait()
    found = [int(record.id.removeprefix("i-")) for record in Cloud(file).records]
    assert found == list(range(len(found)))
    assert len(found) - 1 in {said[-1], said[-1] + 1}
