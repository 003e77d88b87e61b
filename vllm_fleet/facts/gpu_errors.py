"""Errors in the kernel's log of a host -> what NVIDIA's catalogue says to do about each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

from vllm_fleet.catalogue import catalogue
from vllm_fleet.schema.gpu_error import Action, CataloguedError

_KINDS = {"xid": "Xid", "sxid": "SXid"}
#: From the mildest to the gravest.
_ORDER: Sequence[Action] = get_args(Action)
#: Actions after which the host serves again; the others stop a run.
HARMLESS = frozenset({"ignore", "restart_app"})


@dataclass(frozen=True)
class JudgedError:
    """One error of a log with its name and what to do.

    Attributes:
        kind: ``xid`` or ``sxid``.
        code: its number.
        name: what it is, from the catalogue; what the driver asks for where it is Xid 154. Empty for an unknown code.
        action: what NVIDIA says to do; ``ignore`` for an unknown code.
    """

    kind: str
    code: int
    name: str
    action: Action

    @property
    def harmless(self) -> bool:
        """Whether a host with it may serve."""
        return self.action in HARMLESS

    def __str__(self) -> str:
        label = f"{_KINDS[self.kind]} {self.code}"
        return f"{label} ({self.name})" if self.name else label


@cache
def _catalogue(kind: str) -> Mapping[int, CataloguedError]:
    known = catalogue.load().gpu_errors
    return {entry.code: entry for entry in (known.xids if kind == "xid" else known.sxids)}


@cache
def _recovery_actions() -> Mapping[str, Action]:
    return {entry.text.lower(): entry.action for entry in catalogue.load().gpu_errors.recovery_actions}


def judge_action(text: str) -> Action:
    """What an action that the driver asks for means. One that is not in the catalogue is a reboot."""
    return _recovery_actions().get(text.strip().lower(), "reboot")


def judge_error(kind: str, code: int, detail: str = "") -> JudgedError:
    """One error of a log.

    Args:
        kind: ``xid`` or ``sxid``.
        code: its number.
        detail: ``fatal``, ``nonfatal``, the action of Xid 154, or nothing.
    """
    entry = _catalogue(kind).get(code)
    name = entry.name if entry else ""
    action: Action = "ignore"
    match entry.action if entry else "ignore":
        case "by_text":
            action, name = judge_action(detail), f"the driver asks for: {detail or 'an unknown action'}"
        case "by_severity":
            action = "ignore" if detail == "nonfatal" else "reset_gpu"
        case listed:
            action = listed
    # The switch itself says how grave an error is, also one that the catalogue does not have.
    if kind == "sxid" and detail == "fatal" and action in HARMLESS:
        action = "reset_gpu"
    if kind == "sxid" and detail == "nonfatal" and action == "reset_gpu":
        action = "ignore"
    return JudgedError(kind, code, name, action)


def judge_errors(errors: Iterable[Mapping[str, Any]], kind: str) -> tuple[JudgedError, ...]:
    """The errors of one kind that stop a run, each code once, the gravest first.

    Args:
        errors: as :func:`vllm_fleet.on_host.kernel_log.find_errors` returns them.
        kind: ``xid`` or ``sxid``.
    """
    judged = {
        judge_error(kind, error["code"], error.get("detail") or "") for error in errors if error.get("kind") == kind
    }
    grave = [error for error in judged if not error.harmless]
    return tuple(sorted(grave, key=lambda error: (-_ORDER.index(error.action), error.code, error.name)))
