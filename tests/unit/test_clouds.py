"""Where a class can be rented: every row of recipes/clouds, and every placement that a careless hand can write."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from host_keys import public_key

from vllm_fleet.base.errors import FleetError
from vllm_fleet.catalogue import catalogue as catalogs
from vllm_fleet.catalogue import rental
from vllm_fleet.catalogue.catalogue import Catalog
from vllm_fleet.edge import names
from vllm_fleet.fleet import plan, stack
from vllm_fleet.reports import recipe_check

MODEL = "openai/gpt-oss-120b"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHostKeyHostKeyHostKeyHostKeyHostKeyHostKeyH"
ORDER = {"offering_id": "cb-1", "duration_hours": 24, "accept_cost_usd": 10.0}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "aws": {"region": "us-east-1", "zone": "us-east-1a"},
    "gcp": {"region": "us-central1", "zone": "us-central1-b", "project": "demo-project"},
    "azure": {"region": "westeurope"},
    "oci": {
        "region": "us-chicago-1",
        "zone": "Uocm:US-CHICAGO-1-AD-1",
        "compartment": "ocid1.compartment.a",
        "image": "ocid1.image.oc1..a",
    },
    "digitalocean": {"region": "nyc2"},
}
ROWS = [
    (cloud, name, kind)
    for cloud, table in sorted(catalogs.load().clouds.items())
    for name, shape in table.shapes.items()
    for kind in shape.capacity
]
CAPACITY_ERRORS = yaml.safe_load((Path(__file__).parents[1] / "fixtures/capacity_errors.yml").read_text("utf-8"))


def write(tmp_path: Path, change: dict[str, Any], placement: dict[str, Any] | None = None, cloud: str = "aws") -> Path:
    """A fleet of two h100-8 in a cloud, after changes at dotted keys."""
    fleet: dict[str, Any] = {
        "fleet": "demo",
        "defaults": {"model": MODEL},
        "pools": {"main": {"host_class": "h100-8", "cloud": cloud, "placement": placement, "hosts": 2}},
        "gateway": {"hosts": 1},
        "access": {"ssh_from": ["203.0.113.0/24"]},
    }
    fleet["pools"]["main"]["placement"] = PLACEMENTS[cloud] if placement is None else placement
    for key, value in change.items():
        *parents, last = key.split(".")
        at = fleet
        for parent in parents:
            at = at[parent]
        at[last] = value
    folder = tmp_path / "demo"
    folder.mkdir(exist_ok=True)
    (folder / "fleet.yml").write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")
    return folder


def capacity(kind: str) -> dict[str, Any]:
    return {"kind": kind, **({"id": "r-1"} if kind in ("reservation", "capacity-block") else {})}


@pytest.mark.parametrize(("cloud", "shape", "kind"), ROWS, ids=["-".join(row) for row in ROWS])
def test_every_row_of_every_table_can_be_asked_for(cloud: str, shape: str, kind: str, tmp_path: Path) -> None:
    catalog = catalogs.load()
    entry = catalog.clouds[cloud].shapes[shape]
    placement = {**PLACEMENTS[cloud], "shape": shape, "capacity": capacity(kind)}
    if kind == "flex-start":
        placement["run_hours"] = 24
    change: dict[str, Any] = {"pools.main.host_class": entry.host_class}
    if entry.host_class == "a100-40gb-1":  # the large model does not fit there
        change["defaults.model"] = "openai/gpt-oss-20b"
    image = "nvidia-aarch64" in catalog.clouds[cloud].images
    if not image and catalog.host_class(entry.host_class).family.facts.machine == "aarch64":
        placement["image"] = {"azure": "own:gpu:arm64:1.0.0", "oci": "ocid1.image.oc1..a"}[cloud]
    found = plan.load(write(tmp_path, change, placement, cloud))
    rented = found.hosts[0].rented
    assert rented is not None
    assert (rented.shape, rented.placement.capacity.kind) == (shape, kind)
    gateway = found.hosts[-1].rented
    assert gateway is not None
    assert (gateway.shape, gateway.image_kind) == (catalog.clouds[cloud].gateway_shape, "plain-x86_64")
    assert gateway.placement.capacity.kind == "on-demand"


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"host_class": "mi300x-8"}, "pools.main.host_class", "aws has no mi300x-8"),
        ({"placement": {"region": "us-east-1"}}, "pools.main.placement", "names no zone"),
        ({"placement.zones": ["us-east-1a"]}, "pools.main.placement", "gives 'zone' and 'zones'"),
        (
            {"placement.zone": None, "placement.zones": ["us-east-1a", "us-east-1a"]},
            "pools.main.placement",
            "names a zone twice",
        ),
        ({"placement.zone": "us-west-2a"}, "pools.main.placement", "is not a zone of us-east-1"),
        ({"placement.zon": "x"}, "pools.main.placement.zon", "unknown key"),
        ({"placement.shape": "p4d.24xlarge"}, "pools.main.placement.shape", "is not an instance type for h100-8"),
        ({"placement.capacity": {"kind": "flex-start"}}, "pools.main.placement.capacity.kind", "is not available as"),
        ({"placement.capacity": {"kind": "reservation"}}, "pools.main.placement.capacity", "needs the 'id'"),
        ({"placement.capacity": {"id": "cr-1"}}, "pools.main.placement.capacity", "on-demand takes no 'id'"),
        (
            {
                "placement.capacity": {
                    "kind": "spot",
                    "purchase": {"offering_id": "cb-1", "duration_hours": 24, "accept_cost_usd": 10.0},
                }
            },
            "pools.main.placement.capacity",
            "'purchase' buys a capacity block",
        ),
        ({"placement.model_disk_gib": 100}, "pools.main.placement.model_disk_gib", "100 GiB cannot hold the weights"),
        (
            {"placement.capacity": {"kind": "capacity-block", "id": "cr-1"}, "placement.placement_group": True},
            "pools.main.placement",
            "has its own placement",
        ),
        (
            {"placement.capacity": {"kind": "reservation", "id": "cr-1"}, "placement.placement_group": True},
            "pools.main.placement",
            "give the name of that group",
        ),
        (
            {
                "placement.capacity": {"kind": "capacity-block", "purchase": ORDER},
                "placement.zone": None,
                "placement.zones": ["us-east-1a", "us-east-1b"],
            },
            "pools.main.placement",
            "a capacity block is in one zone",
        ),
        (
            {"host_class": "gb200-4", "placement.capacity": {"kind": "capacity-block", "purchase": ORDER}},
            "pools.main.placement.capacity.purchase",
            "the stack cannot buy a block of p6e-gb200.36xlarge",
        ),
        ({"placement.image": "a;b"}, "pools.main.placement.image", "'a;b' is not an id"),
        ({"placement.capacity": {"kind": "reservation", "id": "a b"}}, "pools.main.placement.capacity.id", "not an id"),
        ({"placement.disk_gib": 10}, "pools.main.placement.disk_gib", "greater than or equal to 50"),
    ],
)
def test_a_wrong_placement_is_told_with_its_place(change: dict[str, Any], key: str, says: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {f"pools.main.{name}": value for name, value in change.items()}, dict(PLACEMENTS["aws"]))
    with pytest.raises(FleetError, match=says) as caught:
        plan.load(folder)
    found = {fault.key: fault for fault in (caught.value, *caught.value.others)}
    assert key in found
    assert found[key].exit_code == 2
    assert found[key].line is not None


@pytest.mark.parametrize(
    ("cloud", "change", "key", "says"),
    [
        ("aws", {"region": "mars"}, "pools.main.placement.region", "'mars' is not a region of this cloud"),
        ("gcp", {"region": "us-east-1"}, "pools.main.placement.region", "write it such as us-central1"),
        ("aws", {"zone": "us-west-2a"}, "pools.main.placement", "'us-west-2a' is not a zone of us-east-1"),
        ("aws", {"network": "8.8.0.0/16"}, "pools.main.placement.network", "is not a private range"),
    ],
)
def test_what_the_gateway_takes_over_is_told_once_and_alone(
    cloud: str, change: dict[str, Any], key: str, says: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, {}, {**PLACEMENTS[cloud], **change}, cloud)
    with pytest.raises(FleetError, match=says) as caught:
        plan.load(folder)
    assert (caught.value.key, caught.value.others) == (key, [])


def test_what_the_gateway_says_itself_is_told_beside_the_pool(tmp_path: Path) -> None:
    network = {"network": "8.8.0.0/16"}
    with pytest.raises(FleetError) as caught:
        plan.load(write(tmp_path, {"gateway.placement": network}, {**PLACEMENTS["aws"], **network}))
    errors = (caught.value, *caught.value.others)
    assert [error.key for error in errors] == ["pools.main.placement.network", "gateway.placement.network"]


@pytest.mark.parametrize(
    ("cloud", "region"),
    [
        *(("aws", region) for region in ("us-gov-west-1", "ap-southeast-3", "us-iso-east-1", "eusc-de-east-1")),
        *(("gcp", region) for region in ("northamerica-northeast1", "europe-west12")),
    ],
)
def test_regions_as_clouds_have_them_are_taken(cloud: str, region: str, tmp_path: Path) -> None:
    zone = f"{region}a" if cloud == "aws" else f"{region}-b"
    assert plan.load(write(tmp_path, {}, {**PLACEMENTS[cloud], "region": region, "zone": zone}, cloud)).hosts


@pytest.mark.parametrize(
    ("cloud", "change", "key", "says"),
    [
        ("aws", {"region": "us-east-9", "zone": "us-east-9a"}, "region", "'us-east-9' is not a region of aws"),
        ("aws", {"zone": "us-east-1g"}, "zone", "'us-east-1g' is not a zone of us-east-1"),
        ("aws", {"zone": "us-east-1-dfw-2a"}, "", "'us-east-1-dfw-2a' is a local zone"),
        ("gcp", {"region": "mars-north9", "zone": "mars-north9-a"}, "region", "'mars-north9' is not a region of gcp"),
        ("gcp", {"zone": "us-central1-d"}, "zone", "'us-central1-d' is not a zone of us-central1"),
        ("gcp", {"zone": "us-central1-ai1b"}, "zone", "the nearest is us-central1-ai1a"),
        ("azure", {"region": "atlantis"}, "region", "'atlantis' is not a region of azure"),
        ("azure", {"zones": ["1", "4"]}, "zones", "'4' is not a zone of westeurope"),
        ("azure", {"region": "westus", "zone": "1"}, "zone", "westus has no zones"),
        ("oci", {"region": "us-chicago-2"}, "region", "the nearest is us-chicago-1"),
        ("oci", {"zone": "US-CHICAGO-1-AD-1"}, "zone", "lacks the prefix of your tenancy"),
        ("oci", {"zone": "Uocm:US-CHICAGO-1-AD-4"}, "zone", "the nearest is Uocm:US-CHICAGO-1-AD-"),
        ("digitalocean", {"region": "nyc9"}, "region", "'nyc9' is not a region of digitalocean"),
    ],
)
def test_a_place_that_does_not_exist_is_refused_with_the_nearest_one(
    cloud: str, change: dict[str, Any], key: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(FleetError) as caught:
        plan.load(write(tmp_path, {}, {**PLACEMENTS[cloud], **change}, cloud))
    assert says in str(caught.value)
    assert caught.value.others == []
    assert caught.value.key == ".".join(filter(None, ("pools.main.placement", key)))
    assert caught.value.line is not None
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("cloud", "change"),
    [
        ("aws", {"region": "us-east-9", "zone": "us-east-9a"}),
        ("aws", {"zone": "us-east-1g"}),
        ("azure", {"region": "atlantis", "zone": "7"}),
        ("oci", {"region": "us-chicago-2", "zone": "AD-1"}),
        ("digitalocean", {"region": "nyc9"}),
    ],
)
def test_a_place_newer_than_the_table_is_taken_on_the_fleet_s_word(
    cloud: str, change: dict[str, Any], tmp_path: Path
) -> None:
    placement = {**PLACEMENTS[cloud], **change}
    with pytest.raises(FleetError):
        plan.load(write(tmp_path, {}, placement, cloud))
    assert plan.load(write(tmp_path, {}, {**placement, "unlisted": True}, cloud)).hosts


@pytest.mark.parametrize(
    ("cloud", "image", "fine"),
    [
        ("aws", "ami-0123456789abcdef0", True),
        ("aws", "ami-nonsense", False),
        ("aws", "ubuntu-24.04", False),
        ("gcp", "projects/own-images/global/images/gpu-v1", True),
        ("gcp", "projects/own-images/global/images/family/gpu", True),
        ("gcp", "https://www.googleapis.com/compute/v1/projects/p1/global/images/gpu-v1", True),
        ("gcp", "own-images/gpu-v1", True),
        ("gcp", "gpu-v1", True),
        ("gcp", "ami-0123456789abcdef0/x/y", False),
        ("gcp", "Own_Image", False),
        ("azure", "microsoft-dsvm:ubuntu-hpc:2404:24.04.2026072801", True),
        ("azure", "/subscriptions/0a-1/resourceGroups/own(1)/providers/Microsoft.Compute/images/gpu", True),
        (
            "azure",
            "/subscriptions/0a-1/resourceGroups/own/providers/Microsoft.Compute/galleries/g/images/i/versions/1.0.0",
            True,
        ),
        ("azure", "microsoft-dsvm:ubuntu-hpc:2404", False),
        ("azure", "/subscriptions/0a-1/resourceGroups/own/providers/Microsoft.Compute/disks/gpu", False),
        ("oci", "ocid1.image.oc1.iad.aaaabbbb", True),
        ("oci", "ocid1.instance.oc1.iad.aaaabbbb", False),
        ("digitalocean", "gpu-h100x8-base", True),
        ("digitalocean", "12345678", True),
        ("digitalocean", "GPU image", False),
    ],
)
def test_an_image_has_the_form_of_its_cloud(cloud: str, image: str, fine: bool, tmp_path: Path) -> None:
    folder = write(tmp_path, {}, {**PLACEMENTS[cloud], "image": image}, cloud)
    if fine:
        assert plan.load(folder).hosts
        return
    with pytest.raises(FleetError, match=r"is not an (image of this cloud|id)") as caught:
        plan.load(folder)
    assert (caught.value.key, caught.value.exit_code) == ("pools.main.placement.image", 2)
    assert caught.value.line is not None


def test_every_row_of_the_tables_names_where_and_when_it_was_read(catalog: Catalog) -> None:
    for table in catalog.clouds.values():
        rows = [*table.answers, *table.images.values(), *table.shapes.values(), table.regions]
        assert all(table.sources[source].read >= "2026-11-01" for row in rows for source in row.sources)


def test_the_image_of_eight_nvidia_gpus_at_digitalocean_is_the_one_with_nvlink(tmp_path: Path) -> None:
    images = {}
    for host_class in ("h100-1", "h100-8", "h200-8"):
        change = {"pools.main.host_class": host_class}
        rented = plan.load(write(tmp_path, change, cloud="digitalocean")).hosts[0].rented
        assert rented is not None
        images[host_class] = rented.image
    assert images == {"h100-1": "gpu-h100x1-base", "h100-8": "gpu-h100x8-base", "h200-8": "gpu-h100x8-base"}


def test_a_class_that_a_cloud_lacks_comes_with_where_it_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(FleetError) as caught:
        plan.load(write(tmp_path, {"pools.main.host_class": "mi355x-8"}))
    assert "oci (BM.GPU.MI355X.8)" in caught.value.hint
    assert "digitalocean (gpu-mi355x8-2304gb-spot)" in caught.value.hint


def test_the_first_shape_of_a_class_that_comes_in_the_wanted_way_is_taken(tmp_path: Path) -> None:
    change = {"pools.main.host_class": "mi350x-8"}
    placement = {**PLACEMENTS["digitalocean"], "capacity": {"kind": "spot"}}
    rented = plan.load(write(tmp_path, change, placement, "digitalocean")).hosts[0].rented
    assert rented is not None
    assert rented.shape == "gpu-mi350x8-2304gb-spot"


def test_a_gateway_stands_beside_the_first_pool_unless_it_says_otherwise(tmp_path: Path) -> None:
    placement = {**PLACEMENTS["aws"], "zone": None, "zones": ["us-east-1a", "us-east-1b"], "disk_gib": 500}
    beside = plan.load(write(tmp_path, {}, placement)).hosts[-1].rented
    assert beside is not None
    assert (beside.placement.all_zones, beside.placement.disk_gib) == (("us-east-1a", "us-east-1b"), 200)
    own = {"gateway.placement": {"zone": "us-east-1c", "shape": "m7i.large"}}
    elsewhere = plan.load(write(tmp_path, own, placement)).hosts[-1].rented
    assert elsewhere is not None
    assert (elsewhere.placement.all_zones, elsewhere.shape) == (("us-east-1c",), "m7i.large")


@pytest.mark.parametrize(
    ("networks", "key", "says"),
    [
        ([], "access.ssh_from", "no network may reach"),
        (["0.0.0.0/0"], "access.ssh_from.0", "opens SSH to the internet"),
    ],
)
def test_ssh_is_open_to_somebody_and_not_to_everybody(networks: list[str], key: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=says) as caught:
        plan.load(write(tmp_path, {"access.ssh_from": networks}))
    assert caught.value.key == key


def test_a_gateway_reaches_only_its_own_region_unless_the_networks_are_joined(tmp_path: Path) -> None:
    elsewhere: dict[str, Any] = {
        "gateway.placement": {"region": "us-west-2", "zone": "us-west-2a"},
        "access.ssh_through": "direct",
    }
    with pytest.raises(FleetError, match="is in aws us-east-1, and the gateway is in aws us-west-2") as caught:
        plan.load(write(tmp_path, elsewhere))
    assert caught.value.key == "pools.main"
    elsewhere["gateway.placement"] |= {"network": "10.61.0.0/16"}
    plan.load(write(tmp_path, {**elsewhere, "access.joined_networks": True}))


@pytest.mark.parametrize(
    ("cloud", "change", "wrong"),
    [
        ("aws", {"local_disks": False, "disk_gib": 100}, "disk_gib"),
        ("aws", {"local_disks": False, "disk_gib": 122}, None),
        ("aws", {"disk_gib": 100}, None),
        # The disk that is ordered is the one that is used, and judged, whatever else the host has.
        ("aws", {"disk_gib": 500, "model_disk_gib": 100}, "model_disk_gib"),
        ("aws", {"disk_gib": 50, "model_disk_gib": 200}, None),
        ("azure", {"disk_gib": 500, "model_disk_gib": 100}, "model_disk_gib"),
        ("gcp", {"disk_gib": 50}, None),
        ("gcp", {"local_disks": False, "disk_gib": 100}, "disk_gib"),
        ("oci", {"local_disks": False, "disk_gib": 100}, "disk_gib"),
        ("digitalocean", {"local_disks": False}, None),
    ],
)
def test_the_weights_fit_twice_on_the_disk_that_they_are_on(
    cloud: str, change: dict[str, Any], wrong: str | None, tmp_path: Path
) -> None:
    folder = write(tmp_path, {}, {**PLACEMENTS[cloud], **change}, cloud)
    if wrong is None:
        plan.load(folder)
        return
    with pytest.raises(FleetError, match=r"100 GiB cannot hold the weights of openai/gpt-oss-120b twice") as caught:
        plan.load(folder)
    assert (caught.value.key, caught.value.exit_code) == (f"pools.main.placement.{wrong}", 2)


def test_check_finds_a_shape_of_a_class_that_does_not_exist(catalog: Catalog) -> None:
    aws = catalog.clouds["aws"]
    shapes = {**aws.shapes, "p9.huge": aws.shapes["p5.48xlarge"].model_copy(update={"host_class": "x900-8"})}
    broken = dataclasses.replace(catalog, clouds={"aws": aws.model_copy(update={"shapes": shapes})})
    assert any("there is no host class 'x900-8'" in fault.message for fault in recipe_check.recipe_errors(broken))


def test_every_supported_class_says_where_it_can_be_had(catalog: Catalog) -> None:
    assert list(rental.offers(catalog, "r9700-1")) == []
    assert ("azure", "Standard_ND96isr_MI300X_v5") in [each[:2] for each in rental.offers(catalog, "mi300x-8")]


def located(tmp_path: Path, more: str = "") -> Path:
    folder = write(tmp_path, {})
    host = {"id": "i", "user": "ubuntu", "ssh_host_key": KEY, "zone": "us-east-1a"}
    hosts = {
        name: {"address": f"203.0.113.{n}", "private_address": f"10.0.0.{n}", **host}
        for n, name in enumerate(("main-0", "main-1", "gateway-0"), start=1)
    }
    (folder / "stack.json").write_text(json.dumps({"version": 1, "fleet": "demo", "hosts": hosts}), encoding="utf-8")
    if more:
        (folder / "host-keys.yml").write_text(more, encoding="utf-8")
    return folder


def test_services_talk_over_private_addresses(tmp_path: Path) -> None:
    found = stack.locations(plan.load(located(tmp_path)), names.resolve_names)["main-1"]
    assert (found.address, found.service_address, found.ssh_host_keys) == ("203.0.113.2", "10.0.0.2", (KEY,))


def waiting_fleet(tmp_path: Path, **block: str) -> plan.Plan:
    """A fleet whose stack has bought the capacity block of its pool, and has made the gateway alone."""
    change = {"pools.main.placement": {**PLACEMENTS["aws"], "capacity": {"kind": "capacity-block", "purchase": ORDER}}}
    folder = write(tmp_path, change)
    bought = {"offering": "cb-1", "id": "cr-5", "zone": "us-east-1a", "starts": "2099-01-01T11:30:00Z", **block}
    host = {"address": "203.0.113.3", "id": "i", "user": "ubuntu", "ssh_host_key": KEY, "zone": "us-east-1a"}
    blocks = {"main": {"ends": "2099-01-03T11:30:00Z", **bought}}
    made = {"version": 1, "fleet": "demo", "hosts": {"gateway-0": host}, "blocks": blocks}
    (folder / "stack.json").write_text(json.dumps(made), encoding="utf-8")
    return plan.load(folder)


def test_hosts_whose_capacity_block_has_not_begun_are_left_out_until_it_has(tmp_path: Path) -> None:
    found = waiting_fleet(tmp_path)
    stack.check_stack(found)
    assert [host.name for host in stack.without_waiting(found).hosts] == ["gateway-0"]
    assert stack.waiting_notes(found) == (
        "main: 2 hosts are left out: their capacity block cr-5 starts at 2099-01-01T11:30:00Z, and the first "
        "'pulumi up --stack demo' after that makes them",
    )


@pytest.mark.parametrize("block", [{"starts": "2026-01-01T11:30:00Z"}, {"offering": "cb-2"}], ids=["begun", "another"])
def test_hosts_that_wait_for_nothing_are_missed(block: dict[str, str], tmp_path: Path) -> None:
    found = waiting_fleet(tmp_path, **block)
    assert stack.without_waiting(found) == found
    assert stack.waiting_notes(found) == ()
    with pytest.raises(FleetError, match=r"main-0 is in \S+/fleet.yml but not in"):
        stack.check_stack(found)


def test_a_time_without_a_zone_in_the_stack_is_refused_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="'2099-01-01T11:30' has no time zone") as caught:
        stack.check_stack(waiting_fleet(tmp_path, starts="2099-01-01T11:30"))
    assert caught.value.key == "blocks.main.starts"


def test_a_key_that_a_host_made_itself_stands_in_place_of_the_stack_s(tmp_path: Path) -> None:
    new, old = public_key("New"), public_key("Old")
    keys = f"keys:\n  main-1: [{new}, {old}]\n"
    where = stack.locations(plan.load(located(tmp_path, keys)), names.resolve_names)
    assert where["main-1"].ssh_host_keys == (new, old)
    assert where["main-0"].ssh_host_keys == (KEY,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"keys: {{main-9: [{KEY}]}}\n", "the fleet has no such host"),
        ("keys: {main-1: []}\n", "at least one entry"),
        ("keys: {main-1: [not-a-key]}\n", "is not 'type base64'"),
    ],
)
def test_a_wrong_list_of_own_keys(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=says):
        stack.locations(plan.load(located(tmp_path, text)), names.resolve_names)


@pytest.mark.parametrize(("kind", "options"), [("spot", ("--refresh",)), ("on-demand", ())])
def test_only_a_refresh_sees_hosts_that_a_cloud_has_ended(kind: str, options: tuple[str, ...], tmp_path: Path) -> None:
    found = plan.load(write(tmp_path, {"pools.main.placement": {**PLACEMENTS["aws"], "capacity": {"kind": kind}}}))
    assert stack.refresh_options(found) == options


@pytest.mark.parametrize("report", CAPACITY_ERRORS, ids=lambda report: f"{report['cloud']}-{report['error'][:40]}")
def test_what_clouds_answer_in_public_reports(report: dict[str, Any], catalog: Catalog) -> None:
    answer = catalog.clouds[report["cloud"]].answer(report["error"])
    assert (answer.means if answer else None) == report["means"]
    if report["means"] == "quota":
        assert answer is not None
        assert answer.cure
