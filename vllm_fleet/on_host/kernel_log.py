"""The kernel's log since the host has started -> the errors of NVIDIA's GPUs and switches in it.

Standard library only, for the Python that the host has (3.8 or later). The log is text of a stranger: only lines that
begin as the driver's do are read.
"""

from __future__ import annotations

import re
from typing import Any

from vllm_fleet.on_host.host_tools import clean_text, start_tool, wait_for_tool

#: The limit of the log.
LOG_BYTES = 16 << 20
#: The limit of the errors that are reported. A broken link logs thousands of one kind.
MOST_ERRORS = 64
_STAMP = r"^(?:<\d{1,3}>)?(?:\[[^\]\n]{1,40}\] ?)?"
_XID = re.compile(_STAMP + r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]{1,16})[^)\n]{0,80}\): (\d{1,5})\b([^\n]{0,400})", re.M)
_SXID = re.compile(
    _STAMP + r"nvidia-nvswitch\d{1,3}: SXid \((?:PCI:)?([0-9a-fA-F:.]{1,16})\): (\d{1,5})\b([^\n]{0,400})", re.M
)
_DEVICE = re.compile(_STAMP + r"NVRM: (?:The NVIDIA )?GPU (?:at )?(?:PCI:)?([0-9a-fA-F:.]{4,16})", re.M)
#: What follows the address of a GPU in the same line, or in the next three -> the kind of the error.
_FAULTS = (("RmInitAdapter failed", "rm_init"), ("fallen off the bus", "off_bus"))
_SEVERITY = re.compile(r"\b(non-?fatal|fatal)\b", re.I)
_ACTION = re.compile(r"recovery action changed from [^\n]{0,60} to 0x[0-9a-fA-F]{1,4} \(([^)\n]{1,60})\)")


def find_errors(log: str) -> list[dict[str, Any]]:
    """The errors in the text of a log, each once.

    Returns:
        For each ``kind`` (``xid``, ``sxid``, ``rm_init``, ``off_bus``), ``code`` (0 where the kind has none),
        ``device`` (the PCI address) and ``detail``: ``fatal`` or ``nonfatal`` as the line says, for Xid 154 the action
        that the driver asks for. A device of which the driver says at last that it needs no action has no error.
    """
    found: dict[tuple[str, int, str, str], int] = {}
    actions: dict[str, tuple[str, int]] = {}

    def add(kind: str, code: int, device: str, detail: str, place: int) -> None:
        if len(found) < 16 * MOST_ERRORS:
            found[kind, code, device, detail] = place

    for match in _XID.finditer(log):
        device, code, rest = _address(match.group(1)), int(match.group(2)), match.group(3)
        if code == 154:
            asked = _ACTION.search(rest)
            actions[device] = (clean_text(asked.group(1) if asked else "", 60), match.start())
        else:
            add("xid", code, device, _severity(rest), match.start())
    for match in _SXID.finditer(log):
        add("sxid", int(match.group(2)), _address(match.group(1)), _severity(match.group(3)), match.start())
    for match in _DEVICE.finditer(log):
        lines = "\n".join(log[match.end() : match.end() + 400].split("\n", 4)[:4])
        for words, kind in _FAULTS:
            if words in lines:
                add(kind, 0, _address(match.group(1)), "", match.start())
    healthy = {device: place for device, (action, place) in actions.items() if action.lower() == "none"}
    for device, (action, place) in actions.items():
        if device not in healthy:
            add("xid", 154, device, action, place)
    errors = [
        {"kind": kind, "code": code, "device": device, "detail": detail}
        for (kind, code, device, detail), place in sorted(found.items())
        if place > healthy.get(device, -1)
    ]
    return errors[:MOST_ERRORS]


def _address(device: str) -> str:
    """A PCI address without its function, which not every line has."""
    return device.lower().split(".")[0].rstrip(":")


def _severity(text: str) -> str:
    match = _SEVERITY.search(text)
    return match.group(1).lower().replace("-", "") if match else ""


def read_errors() -> list[dict[str, Any]] | None:
    """The errors since the host has started, as :func:`find_errors` returns them; None if the log cannot be read."""
    for words in (("dmesg",), ("journalctl", "--dmesg", "--boot", "--quiet", "--output=cat", "--no-pager")):
        log = wait_for_tool(start_tool(*words), LOG_BYTES)
        # What is too long is read as far as it came.
        if log.ok or len(log.out) >= LOG_BYTES >> 1:
            return find_errors(log.out)
    return None
