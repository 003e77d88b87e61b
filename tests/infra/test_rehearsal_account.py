"""What an account does not have: an image, a reservation, a region, a zone. Nothing that is paid is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rehearsing import Rehearsal, aws_fleet, rehearse

from lab.rehearsal.cloud import Account, Cloud, RefusedError
from lab.rehearsal.operations import Operations

IMAGE, RESERVATION = "ami-0123456789abcdef0", "cr-0123456789abcdef0"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    fleet = aws_fleet(main={"host_class": "h100-1", "hosts": 1, "placement": {"zones": ["us-east-1a"]}})
    with rehearse(tmp_path_factory.mktemp("account"), fleet) as found:
        found.keep("empty")
        yield found


# The engine is built from a package registry.
@pytest.mark.network
@pytest.mark.parametrize(
    ("account", "placement", "says"),
    [
        (Account(have={"images": []}), {"image": IMAGE}, f"InvalidAMIID.NotFound: The image id '[{IMAGE}]'"),
        (
            Account(have={"reservations": []}),
            {"capacity": {"kind": "reservation", "id": RESERVATION}},
            f"InvalidCapacityReservationId.NotFound: The capacity reservation '{RESERVATION}'",
        ),
        (
            Account(places={"aws": {"us-east-1": ["us-east-1b", "us-east-1c"]}}),
            {},
            "Value (us-east-1a) for parameter availabilityZone is invalid. Subnets can currently only be created in "
            "the following availability zones: us-east-1b, us-east-1c",
        ),
        (Account(places={"aws": {"us-west-2": ["us-west-2a"]}}), {}, "invalid AWS Region: us-east-1"),
    ],
    ids=["image", "reservation", "zone", "region"],
)
def test_what_the_account_does_not_have_is_refused_in_the_cloud_s_words(
    stack: Rehearsal, account: Account, placement: dict[str, Any], says: str
) -> None:
    stack.put_back("empty")
    stack.fleet(lambda fleet: fleet["pools"]["main"]["placement"].update(placement))
    stack.cloud.account = account
    said = stack.up(check=False)
    assert says in said
    assert "main-0" not in stack.ids()
    assert not (stack.stage.folder / "stack.json").exists()


@pytest.mark.parametrize(
    ("plugin", "token", "inputs", "says"),
    [
        ("gcp", "gcp:compute/disk:Disk", {"name": "d", "zone": "us-central1-z"}, "'us-central1-z'. Unknown zone"),
        (
            "azure-native",
            "azure-native:resources:ResourceGroup",
            {"resourceGroupName": "g", "location": "atlantis"},
            "The provided location 'atlantis' is not available",
        ),
        ("digitalocean", "digitalocean:index/vpc:Vpc", {"name": "v", "region": "mars1"}, "an invalid region"),
        (
            "oci",
            "oci:Core/instance:Instance",
            {"availabilityDomain": "Uocm:US-CHICAGO-1-AD-9", "shape": "VM.Standard.E5.Flex"},
            "AD-9 does not exist in us-chicago-1",
        ),
        ("aws", "aws:ebs/volume:Volume", {"availabilityZone": "us-east-1z"}, r"Value \(us-east-1z\)"),
    ],
)
def test_a_place_that_no_cloud_has_is_refused(
    plugin: str, token: str, inputs: dict[str, Any], says: str, tmp_path: Path
) -> None:
    regions = {"aws": "us-east-1", "gcp": "us-central1", "oci": "us-chicago-1"}
    cloud = Operations(plugin, Cloud(tmp_path / "cloud.json"), None)
    cloud.config = {"project": "p", **({"region": regions[plugin]} if plugin in regions else {})}
    with pytest.raises(RefusedError, match=says):
        cloud.create(token, "it", inputs)
