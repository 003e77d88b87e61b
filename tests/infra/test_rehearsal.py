"""What goes wrong in clouds, rehearsed: the real engine and the real SDKs against clouds that fail on demand."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rehearsing import QUIET, Rehearsal, aws_fleet, rehearse

from lab.rehearsal.cloud import Fault
from vllm_fleet.catalogue.catalogue import load as load_catalog

# The engine is built from a package registry.
pytestmark = pytest.mark.network

INSTANCE = "aws:ec2/instance:Instance"
BLOCK = "aws:ec2/capacityBlockReservation:CapacityBlockReservation"
MAIN = [f"main-{number}" for number in range(5)]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    fleet = aws_fleet(
        main={"host_class": "h100-1", "hosts": 5},
        newest={"host_class": "h100-1", "hosts": 1, "placement": {"image": "latest"}},
    )
    with rehearse(tmp_path_factory.mktemp("aws"), fleet) as found:
        found.keep("empty")
        # A cloud that is slow with one of them.
        found.cloud.faults = [Fault("create", INSTANCE, "main-2", seconds=4)]
        found.up()
        found.cloud.faults = []
        found.keep("whole")
        yield found


@pytest.fixture
def empty(stack: Rehearsal) -> Rehearsal:
    stack.put_back("empty")
    return stack


@pytest.fixture
def whole(stack: Rehearsal) -> Rehearsal:
    stack.put_back("whole")
    return stack


def add_host(fleet: Any) -> None:
    fleet["pools"]["main"]["hosts"] = 6


def add_two_hosts(fleet: Any) -> None:
    fleet["pools"]["main"]["hosts"] = 7


def test_a_zone_without_capacity_is_told_and_the_next_run_takes_the_next_zone(empty: Rehearsal) -> None:
    empty.cloud.faults = [Fault("create", INSTANCE, "main-[1-4]", "us-east-1a", "capacity")]
    said = empty.up(check=False)
    assert "InsufficientInstanceCapacity" in said
    assert "(us-east-1a)" in said
    made = empty.ids()
    assert not set(MAIN[1:]) & set(made)
    assert not (empty.stage.folder / "stack.json").exists()
    # One run more is enough, also for the hosts that the engine did not come to once something had failed.
    empty.up()
    zones = {name: host["zone"] for name, host in empty.stack().items()}
    assert {zones[name] for name in MAIN[1:]} == {"us-east-1b"}
    assert {zones[name] for name in made} <= {"us-east-1a"}
    assert made.items() <= empty.ids().items()


def test_a_limit_of_the_account_is_told_with_what_to_raise(empty: Rehearsal) -> None:
    limit = "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0 allows"
    empty.cloud.faults = [Fault("create", INSTANCE, "main-[0-4]", says=limit)]
    said = " ".join(empty.up(check=False).split())
    # The engine begins no host any more once one has failed, so it may not come to each of them.
    assert re.search(r"main-[0-4]: a limit of the account is reached, not the capacity of us-east-1a", said)
    assert "raise 'Running On-Demand P instances' (vCPUs) of this region in Service Quotas" in said
    empty.cloud.faults = []
    empty.up()
    assert {each.zone for each in empty.hosts()} == {"us-east-1a"}


def test_a_run_that_failed_after_three_of_five_hosts_is_completed_by_the_next(empty: Rehearsal) -> None:
    empty.cloud.faults = [
        Fault("create", INSTANCE, "main-3", says="InternalError: try again", times=1, after=(*MAIN,)),
        Fault(
            *("create", INSTANCE, "main-4"), says="it does not become ready", times=1, leaves="begun", after=(*MAIN,)
        ),
    ]
    said = empty.up(check=False)
    assert "InternalError: try again" in said
    assert "it does not become ready" in said
    assert not (empty.stage.folder / "stack.json").exists()
    made = empty.ids()
    assert "main-3" not in made
    assert {*MAIN[:3], "main-4"} <= set(made)
    empty.up()
    assert made.items() <= empty.ids().items()
    assert set(MAIN) < set(empty.ids())
    assert {name: host["id"] for name, host in empty.stack().items()} == empty.ids()


def test_the_state_of_a_host_names_the_line_that_made_it_and_no_more_of_the_stack(whole: Rehearsal) -> None:
    hosts = [found for found in whole.state()["resources"] if found["type"] == INSTANCE]
    assert len(hosts) == len(whole.ids())
    for found in hosts:
        assert "infra/clouds/aws/host.py#" in found["sourcePosition"]
        assert len(found["stackTrace"]) < 3


def test_drift_is_seen_by_a_refresh_and_repaired_by_the_next_run_and_changes_no_other_host(whole: Rehearsal) -> None:
    before = whole.ids()
    whole.cloud.change(whole.cloud.named(INSTANCE, "main-1"), "tags.pool", "somebody-else")
    whole.cloud.drop(whole.cloud.named(INSTANCE, "main-2"))
    said = whole.stage.pulumi("refresh", *QUIET)
    assert "~ 1 updated" in said
    assert "- 1 deleted" in said
    said = whole.up()
    assert "+ 1 created" in said, "the host that is gone, in the middle of its pool"
    assert "~ 2 updated" in said, "the tag, and stack.json"
    after = whole.ids()
    assert {name for name in before if before[name] != after[name]} == {"main-2"}
    assert whole.cloud.named(INSTANCE, "main-1").inputs["tags"]["pool"] == "main"


def test_a_run_that_was_killed_leaves_no_second_host_and_what_it_did_not_make_is_made(whole: Rehearsal) -> None:
    before = whole.ids()
    whole.fleet(add_two_hosts)
    whole.cloud.faults = [Fault("create", INSTANCE, "main-[56]", seconds=4)]
    engine = whole.begin("up", *QUIET)
    there, lost = (whole.wait_for(name, engine) for name in ("main-5", "main-6"))
    engine.kill()
    engine.communicate()
    assert "has been canceled" in whole.stage.pulumi("cancel", "--yes")
    said = whole.up(check=False)
    interrupted = "was interrupted while it created main-5 in us-east-1a and main-6 in us-east-1a: "
    assert interrupted + "they may exist and cost money" in said, said
    assert "python -m infra.repair demo --adopt main-5=ITS_ID --adopt main-6=ITS_ID" in said
    whole.cloud.drop(lost)
    half = whole.run_repair("--adopt", f"main-5={there.id}")
    assert (half.returncode, "the creation of main-6 is open too" in half.stderr) == (2, True), half.stderr
    assert len(whole.state()["pending_operations"]) == 2
    whole.repair("--adopt", f"main-5={there.id}", "--gone", "main-6")
    assert not whole.state().get("pending_operations")
    whole.up()
    after = whole.ids()
    assert after.pop("main-6") != lost.id
    assert after == {**before, "main-5": there.id}
    assert whole.stack()["main-5"]["id"] == there.id


def test_an_interrupted_run_keeps_the_state_and_is_completed_by_the_next(whole: Rehearsal) -> None:
    before = whole.ids()
    whole.fleet(add_host)
    whole.cloud.faults = [Fault("create", INSTANCE, "main-5", seconds=60, times=1)]
    engine = whole.begin("up", *QUIET)
    begun = whole.wait_for("main-5", engine)
    engine.send_signal(signal.SIGINT)
    said = engine.communicate()[0]
    assert engine.returncode != 0, said
    state = whole.state()
    assert not state.get("pending_operations")
    assert begun.id in [each.get("id") for each in state["resources"]]
    whole.up()
    assert whole.ids() == {**before, "main-5": begun.id}


def test_a_protected_stack_is_not_destroyed(whole: Rehearsal) -> None:
    before = whole.cloud.records
    said = whole.stage.pulumi("destroy", "--yes", check=False)
    for name in whole.ids():
        assert f'::{name}" cannot be deleted' in said
    assert whole.cloud.records == before
    # Without a preview the engine begins with what is not protected: the addresses that clients know are.
    whole.stage.pulumi("destroy", *QUIET[:2], check=False)
    assert [each.name for each in whole.cloud.records_of(":Eip")] == ["gateway-0"]
    assert len(whole.ids()) == 7
    whole.up()
    assert {each.id for each in before if each.shape} == set(whole.ids().values())


def newer_images(found: Rehearsal) -> None:
    table = load_catalog().clouds["aws"]
    found.cloud.account.versions = dict.fromkeys((image.name for image in table.images.values()), 1)


def test_a_newer_image_moves_only_hosts_that_ask_for_the_latest_and_only_by_name(whole: Rehearsal) -> None:
    before = whole.ids()
    newer_images(whole)
    said = whole.up(check=False)
    assert "newest-0" in said
    assert "currently marked for protection" in said
    assert whole.ids() == before
    code, told = whole.plan("--preview")
    assert (code, told["changes"]) == (2, [{"host": "newest-0", "what": "replace", "why": ["ami"]}])
    assert "--replace-serving newest-0" in told["error"]["hint"]
    code, told = whole.plan("--replace-serving", "newest-0")
    assert code == 0
    ups = [line for line in told["run"] if "pulumi" in line]
    assert ups == ["FLEET_REPLACE_SERVING=newest-0 pulumi up --stack demo"]
    whole.up(FLEET_REPLACE_SERVING="newest-0")
    after = whole.ids()
    assert {name for name in before if before[name] != after[name]} == {"newest-0"}
    assert whole.stack()["newest-0"]["id"] == after["newest-0"]


def ordered(price: float) -> dict[str, Any]:
    order = {"offering_id": "cb-0001", "duration_hours": 48, "accept_cost_usd": price}
    return {"kind": "capacity-block", "purchase": order}


def order_block(found: Rehearsal, zone: str = "us-east-1a") -> None:
    def block(fleet: Any) -> None:
        fleet["pools"] = {"block": fleet["pools"]["newest"]}
        fleet["pools"]["block"] |= {"host_class": "h200-8", "hosts": 2}
        fleet["pools"]["block"]["placement"] |= {"capacity": ordered(1000.0), "zones": [zone]}
        del fleet["pools"]["block"]["placement"]["image"]

    found.fleet(block)


def test_a_capacity_block_is_bought_at_the_accepted_price_in_the_pool_s_zone_or_not_at_all(empty: Rehearsal) -> None:
    order_block(empty)
    empty.cloud.account.offerings = [("cb-0001", "1000.01")]
    said = empty.stage.pulumi("preview", check=False)
    assert "costs 1000.01 USD, and the fleet accepts 1000 USD: nothing was bought" in said
    said = empty.up(check=False)
    assert "nothing was bought" in said
    empty.cloud.account.offerings = [("cb-0001", "999")]
    empty.cloud.account.block["block_zone"] = "us-east-1b"
    said = empty.up(check=False)
    assert "cb-0001 is in us-east-1b, and the pool is in us-east-1a: nothing was bought" in " ".join(said.split())
    assert empty.cloud.records_of(BLOCK) == []
    assert not [host for host in empty.hosts() if host.name.startswith("block-")]


def test_a_run_ends_after_a_purchase_and_a_later_one_makes_the_hosts_and_no_run_buys_twice(empty: Rehearsal) -> None:
    order_block(empty)
    empty.cloud.account.offerings = [("cb-0001", "999")]
    empty.cloud.account.block |= {"block_starts": "2099-01-01T11:30:00Z", "block_ends": "2099-01-03T11:30:00Z"}
    said = " ".join(empty.up().split())
    (bought,) = empty.cloud.records_of(BLOCK)
    assert f"the capacity block {bought.id} is bought and starts at 2099-01-01T11:30:00Z" in said
    assert "the first 'pulumi up --stack demo' after that" in said
    assert sorted(empty.ids()) == sorted(empty.stack()) == ["gateway-0"]
    # What is sold is on offer no more.
    empty.cloud.account.offerings = [("cb-0002", "5")]
    said = " ".join(empty.up().split())
    assert "starts at 2099-01-01T11:30:00Z: run 'pulumi up --stack demo' after that" in said
    assert sorted(empty.ids()) == ["gateway-0"]
    code, told = empty.plan()
    assert (code, told["changes"]) == (0, [])
    assert f"block: 2 hosts are left out: their capacity block {bought.id} starts at 2099-01-01" in told["stack"]
    # The block begins: the time of the cloud and that of the state are put back.
    rewritten_state(empty, lambda text: text.replace("2099-01-01", "2026-01-01"))
    bought.outputs["startDate"] = "2026-01-01T11:30:00Z"
    empty.cloud.put(bought)
    # Another checkout has the state alone.
    shutil.rmtree(empty.stage.folder / "ssh")
    (empty.stage.folder / "stack.json").unlink()
    empty.up()
    assert sorted(empty.stack()) == ["block-0", "block-1", "gateway-0"]
    assert [each.id for each in empty.cloud.records_of(BLOCK)] == [bought.id]
    assert "to create" not in (said := empty.stage.pulumi("preview")) and "to update" not in said
    # The block ends: AWS has terminated the instances, and forgets the block.
    rewritten_state(empty, lambda text: text.replace("2099-01-03", "2026-01-03"))
    for record in (*empty.hosts(), bought):
        if record.name != "gateway-0":
            empty.cloud.drop(record)
    said = " ".join(empty.stage.pulumi("up", "--refresh", *QUIET, check=False).split())
    assert f"the capacity block {bought.id} of block ended at 2026-01-03T11:30:00Z: block-0 was not requested" in said
    assert empty.cloud.records_of(BLOCK) == []
    assert sorted(empty.ids()) == ["gateway-0"]


def test_a_purchase_whose_run_was_killed_is_settled_by_its_id_and_bought_no_second_time(empty: Rehearsal) -> None:
    order_block(empty)
    empty.cloud.account.offerings = [("cb-0001", "999")]
    empty.cloud.account.block |= {"block_starts": "2099-01-01T11:30:00Z", "block_ends": "2099-01-03T11:30:00Z"}
    # stack.json is written last, and this run does not come to it.
    empty.cloud.faults = [
        Fault("create", INSTANCE, "gateway-0", says="InternalError: try again", times=1, after=("demo-block-block",))
    ]
    assert "InternalError" in empty.up(check=False)
    (bought,) = empty.cloud.records_of(BLOCK)
    assert not (empty.stage.folder / "stack.json").exists()

    def cut_off(text: str) -> str:
        """The state of a run that ended between the purchase and its answer."""
        state = json.loads(text)
        latest = state["checkpoint"]["latest"]
        rows = latest["resources"]
        (row,) = (row for row in rows if row["type"] == BLOCK)
        rows.remove(row)
        begun = {key: value for key, value in row.items() if key not in ("id", "outputs")}
        latest["pending_operations"] = [{"resource": begun, "type": "creating"}]
        return json.dumps(state)

    rewritten_state(empty, cut_off)
    said = " ".join(empty.up(check=False).split())
    assert "interrupted while it created the capacity block demo-block-block: it may exist and cost money" in said
    empty.repair("--adopt", f"demo-block-block={bought.id}")
    empty.up()
    assert [each.id for each in empty.cloud.records_of(BLOCK)] == [bought.id]
    stack = json.loads((empty.stage.folder / "stack.json").read_text(encoding="utf-8"))
    assert stack["blocks"]["block"]["id"] == bought.id


def rewritten_state(found: Rehearsal, change: Callable[[str], str]) -> None:
    """Changes the file of the state. 'pulumi stack import' would drop what is open in it."""
    (file,) = (found.stage.project / "backend/.pulumi/stacks").glob("*/demo.json")
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")


def test_no_secret_is_in_the_state_in_plain_text(whole: Rehearsal) -> None:
    texts = [path.read_text(errors="replace") for path in (whole.stage.project / "backend").rglob("*.json")]
    assert any(whole.ids()["main-0"] in text for text in texts)
    key = (whole.stage.folder / "ssh" / "id_ed25519").read_text(encoding="utf-8").splitlines()[2]
    for secret in ("OPENSSH PRIVATE KEY", "ed25519_private", key):
        assert not any(secret in text for text in texts), secret
