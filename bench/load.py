"""The load of other programs, in words: a report says that there was none only where it was measured."""

from __future__ import annotations

from collections.abc import Iterable

#: More than this share of one processor is named.
QUIET = 0.1


def worst(loads: Iterable[float | None]) -> float | None:
    """The largest load; None if one of them, or all, were not measured.

    Args:
        loads: processors that other programs kept busy, for each run.
    """
    known = list(loads)
    measured = [load for load in known if load is not None]
    return max(measured) if measured and len(measured) == len(known) else None


def describe_load(load: float | None, when: str = "before and in each run") -> str:
    """The sentence of a report about other programs.

    Args:
        load: processors that they kept busy, in the worst run; None if it was not measured.
        when: when it was measured.
    """
    if load is None:
        return "The load of other programs was not measured, so the times may be too long."
    if load < QUIET:
        return f"Nothing else ran on the machine: other programs took at most {load:.2f} processors {when}."
    return f"Other programs took up to {load:.1f} processors {when}, so the times are too long."
