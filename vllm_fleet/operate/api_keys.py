"""Adds, replaces and removes the keys of the gateways in ``api-keys.yml``, one process at a time."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vllm_fleet.base import paths, yaml_document
from vllm_fleet.base.atomic_files import write_atomically
from vllm_fleet.base.errors import ErrorCode, FleetError
from vllm_fleet.base.field_types import OwnerName
from vllm_fleet.edge import keys
from vllm_fleet.fleet import api_keys_edit, api_keys_file
from vllm_fleet.fleet.plan import Plan
from vllm_fleet.schema.api_keys import DatedDigest, KeyRecord, Moment, earlier_end, end_seconds

#: A key that ends within so many days is listed as one that ends soon.
SOON_DAYS = 14
#: Digits of a digest that are shown, and by which a key is chosen.
SHOWN_DIGITS = 12
_DAY_SECONDS = 86_400
_MOST_DAYS = 36_500
#: The stack writes its file with these permissions; it contains digests only.
_MODE_OF_STACK = 0o644


@dataclass(frozen=True)
class NewKey:
    """A key that was just made.

    Attributes:
        owner: who has it.
        key: the key itself, which is stored nowhere.
        digest: what the file has of it.
        file: the file, as a user types it.
        kept: how many other keys the owner still has.
    """

    owner: str
    key: str
    digest: str
    file: str
    kept: int = 0


@dataclass(frozen=True)
class ListedKey:
    """One key of an owner, as ``vllm-fleet key list`` shows it.

    Attributes:
        owner: who has it.
        digest: its first digits.
        ends: the earlier of its own end and the owner's, as in the file; None: never.
        state: ``valid``, ``ends soon`` or ``expired``.
        record: the limits of the owner.
    """

    owner: str
    digest: str
    ends: str | None
    state: str
    record: KeyRecord

    def data(self) -> dict[str, Any]:
        """The key in the output of ``--json``."""
        limits = self.record.model_dump(
            include={"requests_per_second", "in_flight", "tokens_per_minute", "priority", "scope"}
        )
        return {"owner": self.owner, "digest": self.digest, "ends": self.ends, "state": self.state, **limits}


def day_after(days: int) -> str:
    """The day in UTC so many days after today, as the file has it."""
    return (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=days)).isoformat()


def parse_end(ends: str | None, days: int | None) -> str | None:
    """The end of a key that is in the future.

    Args:
        ends: a date or a time with zone.
        days: how many days from now, in place of it.

    Returns:
        The end as the file has it; None: no end.

    Raises:
        FleetError: both are given, it is no date, or it is over.
    """
    if ends is not None and days is not None:
        raise FleetError("--ends and --days exclude each other", "give one of them")
    if days is not None:
        if not 0 < days <= _MOST_DAYS:
            raise FleetError(f"must be 1 to {_MOST_DAYS}", "correct the number of days", key="--days")
        return day_after(days)
    if ends is None:
        return None
    try:
        seconds = end_seconds(TypeAdapter(Moment).validate_python(ends))
    except ValidationError as fault:
        raise FleetError(str(fault.errors()[0]["ctx"]["error"]), key="--ends") from None
    if seconds <= time.time():
        raise FleetError("is in the past", "give a later date", key="--ends")
    return ends


def list_keys(plan: Plan) -> list[ListedKey]:
    """The keys of a fleet, by owner.

    Args:
        plan: of the fleet.

    Raises:
        FleetError: the file is missing or wrong.
    """
    document = api_keys_file.read_if_there(api_keys_file.file_of(plan))
    if document is None:
        return []
    found = []
    for owner, record in sorted(api_keys_file.parse(document).records.items()):
        for each in record.dated_digests:
            found.append(ListedKey(owner, _short(each.digest), each.ends, _state(each), record))
    return found


def add_key(plan: Plan, owner: str, limits: Mapping[str, Any]) -> NewKey:
    """Makes a key for a new owner.

    Args:
        plan: of the fleet.
        owner: who will have it.
        limits: the keys of the record beside the digest; None: not set.

    Raises:
        FleetError: the name or a limit is wrong, the file is, or it has the owner already.
    """
    _check_owner(owner)
    given = {name: value for name, value in limits.items() if value is not None}
    with _locked(plan):
        document = api_keys_file.read_if_there(api_keys_file.file_of(plan))
        known = api_keys_file.parse(document) if document else None
        if known and document and owner in known.keys:
            raise document.error(
                ("keys", owner),
                f"has keys of {owner} already",
                f"replace them: 'vllm-fleet key rotate {owner} --fleet {plan.fleet}', or choose another name",
            )
        if api_keys_file.has_key_of_stack(plan) and owner == plan.fleet:
            raise _key_of_stack(plan)
        key = keys.api_key()
        digest = keys.digest(key)
        _write(plan, api_keys_edit.with_owner(document, owner, {"digest": digest, **given} if given else digest))
    return NewKey(owner, key, digest, paths.display(api_keys_file.file_of(plan)))


def rotate_key(plan: Plan, owner: str, keep_days: int) -> NewKey:
    """Makes another key for an owner; the ones before it end.

    Args:
        plan: of the fleet.
        owner: who has the keys.
        keep_days: how many days the others stay valid, unless they end before; 0: they are removed.

    Raises:
        FleetError: the file is missing or wrong, does not have the owner, whose time is over, or the stack makes the
            owner's key.
    """
    with _locked(plan):
        document, record = _entry(plan, owner)
        if record.ends and _is_over(record.ends):
            hint = f"give a later date, or 'vllm-fleet key revoke {owner} --fleet {plan.fleet}' and add the owner anew"
            raise document.error(("keys", owner, "ends"), "is over, so a new key would not be valid", hint)
        last = day_after(keep_days)
        others = [each for each in record.own_digests if keep_days and not (each.ends and _is_over(each.ends))]
        kept = [DatedDigest(digest=each.digest, ends=earlier_end(each.ends, last)) for each in others]
        key = keys.api_key()
        digest = keys.digest(key)
        entry = _with_digests(document.data["keys"][owner], [DatedDigest(digest=digest), *kept])
        _write(plan, api_keys_edit.with_owner(document, owner, entry))
    file = paths.display(api_keys_file.file_of(plan))
    return NewKey(owner, key, digest, file, len(kept))


def revoke_key(plan: Plan, owner: str, prefix: str | None) -> int:
    """Removes the keys of an owner, or one of them.

    Args:
        plan: of the fleet.
        owner: who has the keys.
        prefix: the first digits of the digest of the one that is removed; None: all.

    Returns:
        How many keys the owner still has.

    Raises:
        FleetError: the file is missing or wrong, does not have the key, would have none at all, or the stack makes it.
    """
    with _locked(plan):
        document, record = _entry(plan, owner)
        gone = _chosen(record, prefix, owner)
        left = [each for each in record.own_digests if each not in gone]
        if not left and len(document.data["keys"]) == 1:
            raise document.error(
                ("keys", owner),
                "is the last key of the gateways, and their file needs one",
                f"replace it at once: 'vllm-fleet key rotate {owner} --keep 0 --fleet {plan.fleet}'",
                ErrorCode.REFUSED,
            )
        if left:
            entry = _with_digests(document.data["keys"][owner], left)
            text = api_keys_edit.with_owner(document, owner, entry)
        else:
            text = api_keys_edit.without_owner(document, owner)
        _write(plan, text)
    return len(left)


def _chosen(record: KeyRecord, prefix: str | None, owner: str) -> list[DatedDigest]:
    if prefix is None:
        return list(record.own_digests)
    digits = prefix.removeprefix("sha256:").lower()
    found = [each for each in record.own_digests if digits and each.digest.removeprefix("sha256:").startswith(digits)]
    if len(found) != 1:
        what = "several keys have" if found else "no key has"
        shown = ", ".join(_short(each.digest) for each in record.own_digests)
        # What was typed is not repeated: it may be the key itself.
        raise FleetError(f"{what} a digest of {owner} that begins so", f"digests: {shown}", key="--digest")
    return found


def _with_digests(entry: Any, digests: list[DatedDigest]) -> api_keys_edit.Entry:
    """An owner's entry with other digests; limits stay."""
    limits = (
        {name: value for name, value in entry.items() if name not in ("digest", "digests")}
        if isinstance(entry, dict)
        else {}
    )
    if len(digests) > 1 or digests[0].ends:
        return {"digests": api_keys_edit.digest_entries(digests), **limits}
    return {"digest": digests[0].digest, **limits} if limits else digests[0].digest


def _entry(plan: Plan, owner: str) -> tuple[yaml_document.Document, KeyRecord]:
    """The file, and what it says of an owner whose keys are not the stack's."""
    _check_owner(owner)
    document = api_keys_file.read_if_there(api_keys_file.file_of(plan))
    if document is None:
        file = api_keys_file.file_of(plan)
        raise FleetError("does not exist", f"'vllm-fleet key add OWNER --fleet {plan.fleet}'", paths.display(file))
    records = api_keys_file.parse(document).records
    if owner not in records:
        raise document.error(("keys",), f"has no key of {owner}", f"owners: {', '.join(sorted(records))}")
    if api_keys_file.has_key_of_stack(plan) and owner == plan.fleet:
        raise _key_of_stack(plan)
    return document, records[owner]


def _key_of_stack(plan: Plan) -> FleetError:
    return FleetError(
        f"the stack makes the key of {plan.fleet}, and 'pulumi up' would bring it back",
        f"replace it: pulumi up --stack {plan.fleet} --replace '**ApiKey::{plan.fleet}-api-key'",
        paths.display(api_keys_file.file_of(plan)),
        code=ErrorCode.REFUSED,
    )


def _check_owner(owner: str) -> None:
    try:
        TypeAdapter(OwnerName).validate_python(owner)
    except ValidationError as fault:
        raise FleetError(str(fault.errors()[0]["ctx"]["error"]), "choose another name", key="OWNER") from None


@contextlib.contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """Waits until no other process of this checkout changes the file."""
    lock = paths.run_dir(plan.fleet) / "api-keys.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def _write(plan: Plan, text: str) -> None:
    """Replaces the file, where it is a link the one that it leads to."""
    file = paths.absolute(api_keys_file.file_of(plan))
    write_atomically(file, text, _MODE_OF_STACK if api_keys_file.has_key_of_stack(plan) else 0o600)


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:SHOWN_DIGITS]


def _is_over(ends: str) -> bool:
    return end_seconds(ends) <= time.time()


def _state(digest: DatedDigest) -> str:
    if digest.ends is None:
        return "valid"
    if _is_over(digest.ends):
        return "expired"
    return "ends soon" if end_seconds(digest.ends) <= time.time() + SOON_DAYS * _DAY_SECONDS else "valid"
