"""The strict record of ``api-keys.yml``: owner -> the digests of the keys that the gateways take, and their limits.

No error of a validator may repeat a value or a key of the file: a secret may be in its place.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from vllm_fleet.base.field_types import WHOLE, OwnerName, SecretDigest
from vllm_fleet.schema.recipe import Strict

#: What a key opens: the paths of the API, or the metrics of the gateway.
Scope = Literal["api", "metrics"]
DEFAULT_PRIORITY = 5
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2})?(Z|[+-][0-9]{2}:[0-9]{2})")
_DAY_SECONDS = 86_400


def end_seconds(text: str) -> int:
    """When a key ends, in seconds since 1970.

    Args:
        text: ``YYYY-MM-DD``, the last day of the key in UTC, or ``YYYY-MM-DDTHH:MM:SS`` with a zone.

    Raises:
        ValueError: it is another text; the message does not repeat it.
    """
    # A text of this form may still be no day of a calendar.
    with contextlib.suppress(ValueError, OverflowError):
        if _DAY.fullmatch(text):
            day = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
            return max(1, int(day.timestamp()) + _DAY_SECONDS)
        if _TIME.fullmatch(text):
            return max(1, int(datetime.datetime.fromisoformat(text).timestamp()))
    raise ValueError(
        "is not a date: write YYYY-MM-DD, the last day in UTC, or a time with its zone as 2027-01-31T18:00:00+01:00"
    )


def _moment(value: Any) -> Any:
    end_seconds(value if isinstance(value, str) else "")
    return value


def _form(value: Any) -> str:
    return "record" if isinstance(value, dict | Strict) else "text"


#: When something ends: a date, its last day in UTC, or a time with its zone.
Moment = Annotated[str, BeforeValidator(_moment)]


class DatedDigest(Strict):
    """The digest of one of an owner's keys that ends before the others."""

    digest: SecretDigest
    ends: Moment | None = None


_Digest = Annotated[Annotated[SecretDigest, Tag("text")] | Annotated[DatedDigest, Tag("record")], Discriminator(_form)]


class KeyRecord(Strict):
    """The keys of one owner, and their limits, which the keys share. A limit that is left out is none."""

    digest: SecretDigest | None = None
    #: Several keys are valid at once while one replaces another.
    digests: list[_Digest] | None = Field(default=None, min_length=1)
    ends: Moment | None = None
    requests_per_second: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = None
    #: Requests at the same time; one with ``n`` choices counts ``n`` times.
    in_flight: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=1_000_000_000), WHOLE] | None = None
    #: Requests of a higher one leave the queue first.
    priority: Annotated[int, Field(ge=0, le=9), WHOLE] = DEFAULT_PRIORITY
    scope: Scope = "api"

    @model_validator(mode="after")
    def _has_one_form(self) -> KeyRecord:
        if (self.digest is None) == (self.digests is None):
            raise ValueError("needs 'digest', or 'digests' with several of them, and not both")
        return self

    @property
    def own_digests(self) -> tuple[DatedDigest, ...]:
        """Each digest with its own end."""
        found = self.digests if self.digest is None else [self.digest]
        return tuple(each if isinstance(each, DatedDigest) else DatedDigest(digest=each) for each in found or ())

    @property
    def dated_digests(self) -> tuple[DatedDigest, ...]:
        """Each digest with the earlier of its own end and the owner's."""
        return tuple(
            DatedDigest(digest=each.digest, ends=earlier_end(each.ends, self.ends)) for each in self.own_digests
        )


def earlier_end(first: str | None, second: str | None) -> str | None:
    """The earlier of two ends; None is never."""
    return min(filter(None, (first, second)), key=end_seconds, default=None)


class ApiKeys(Strict):
    """``api-keys.yml``: for each owner the digest of the one key, or a record."""

    keys: dict[
        OwnerName,
        Annotated[Annotated[SecretDigest, Tag("text")] | Annotated[KeyRecord, Tag("record")], Discriminator(_form)],
    ] = Field(min_length=1)

    @property
    def records(self) -> dict[str, KeyRecord]:
        """Owner -> record; that of a digest alone has no limits."""
        return {
            owner: KeyRecord(digest=value) if isinstance(value, str) else value for owner, value in self.keys.items()
        }
