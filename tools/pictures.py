"""Draws the pictures of docs/: a text of boxes and arrows (``docs/pictures/*.yml``) -> an SVG with the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import dist
from pathlib import Path
from typing import Any

import yaml

from vllm_fleet.base import paths

#: All lengths are in pixels of the SVG.
BOX_WIDTH, BOX_HEIGHT = 240, 100
COLUMN, ROW, MARGIN = 284, 148, 10
TITLE_SIZE, LINE_SIZE, LINE_STEP = 16, 14, 17
#: The widest letters of the fonts below take so much of their size on average; labels are refused beyond it.
LETTER_WIDTH = 0.56
#: kind of box -> fill, border, radius of its corners
KINDS = {
    "file": ("#eef4ff", "#3b6fc4", 2),
    "program": ("#fff6e5", "#b7791f", 12),
    "host": ("#eaf7ee", "#2f855a", 12),
    "end": ("#f3f4f6", "#6b7280", 24),
}
STYLE = (
    "text{font-family:Helvetica,Arial,'Liberation Sans','DejaVu Sans',sans-serif;fill:#1a202c}"
    f".title{{font-size:{TITLE_SIZE}px;font-weight:bold}}"
    f".line,.label{{font-size:{LINE_SIZE}px}}"
    ".label{font-style:italic;paint-order:stroke;stroke:#ffffff;stroke-width:5px}"
    ".arrow{fill:none;stroke:#4a5568;stroke-width:1.5}"
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box of a picture: a file, a program, hosts, or an end of the run.

    Attributes:
        kind: a key of :data:`KINDS`.
        column: its place from the left, counted from 0; halves are allowed.
        row: its place from the top.
        title: its first line, in bold.
        lines: the lines below, at most four.
    """

    kind: str
    column: float
    row: float
    title: str
    lines: tuple[str, ...]

    @property
    def left(self) -> float:
        """The x of its left side."""
        return MARGIN + self.column * COLUMN

    @property
    def top(self) -> float:
        """The y of its upper side."""
        return MARGIN + self.row * ROW

    def side(self, name: str) -> Point:
        """The middle of a side: ``left``, ``right``, ``top`` or ``bottom``."""
        return {
            "left": (self.left, self.top + BOX_HEIGHT / 2),
            "right": (self.left + BOX_WIDTH, self.top + BOX_HEIGHT / 2),
            "top": (self.left + BOX_WIDTH / 2, self.top),
            "bottom": (self.left + BOX_WIDTH / 2, self.top + BOX_HEIGHT),
        }[name]


def read_boxes(data: Mapping[str, Any]) -> dict[str, Box]:
    """The boxes of a description by name.

    Raises:
        ValueError: an unknown kind, or a line that does not fit its box.
    """
    boxes = {}
    for name, entry in data["boxes"].items():
        column, row = entry["at"]
        box = Box(entry["kind"], column, row, entry["title"], tuple(entry.get("lines", ())))
        if box.kind not in KINDS:
            raise ValueError(f"box {name}: unknown kind {box.kind!r}, use one of {', '.join(KINDS)}")
        if len(box.lines) > 4:
            raise ValueError(f"box {name}: {len(box.lines)} lines, at most 4 fit")
        for text, size in [(box.title, TITLE_SIZE), *((line, LINE_SIZE) for line in box.lines)]:
            if len(text) * size * LETTER_WIDTH > BOX_WIDTH - 12:
                raise ValueError(f"box {name}: the line {text!r} is wider than the box, shorten it")
        boxes[name] = box
    return boxes


def route(start: Point, end: Point, sides: Sequence[str]) -> list[Point]:
    """The corners of an arrow between two sides of boxes, with horizontal and vertical parts only."""
    (x1, y1), (x2, y2) = start, end
    across = [side in ("left", "right") for side in sides]
    if across == [True, True]:
        middle = (x1 + x2) / 2
        corners = [start, (middle, y1), (middle, y2), end]
    elif across == [False, False]:
        middle = (y1 + y2) / 2
        corners = [start, (x1, middle), (x2, middle), end]
    else:
        corners = [start, (x2, y1) if across[0] else (x1, y2), end]
    return list(dict.fromkeys(corners))


def draw_box(box: Box) -> Iterator[str]:
    """The elements of one box."""
    fill, border, radius = KINDS[box.kind]
    yield (
        f'<rect x="{box.left:g}" y="{box.top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{radius}" '
        f'fill="{fill}" stroke="{border}" stroke-width="1.5"/>'
    )
    x = box.left + BOX_WIDTH / 2
    y = box.top + (BOX_HEIGHT - len(box.lines) * LINE_STEP) / 2 + TITLE_SIZE / 3
    yield f'<text class="title" x="{x:g}" y="{y:g}" text-anchor="middle">{escape(box.title)}</text>'
    for number, line in enumerate(box.lines, start=1):
        at = y + 2 + number * LINE_STEP
        yield f'<text class="line" x="{x:g}" y="{at:g}" text-anchor="middle">{escape(line)}</text>'


def draw_arrow(boxes: Mapping[str, Box], arrow: Mapping[str, Any]) -> Iterator[str]:
    """The elements of one arrow: ``{from: box.side, to: box.side, label: text}``."""
    ends = [str(arrow[end]).split(".") for end in ("from", "to")]
    start, end = (boxes[name].side(side) for name, side in ends)
    corners = route(start, end, [side for _, side in ends])
    path = " ".join(f"{'M' if number == 0 else 'L'}{x:g} {y:g}" for number, (x, y) in enumerate(corners))
    yield f'<path class="arrow" d="{path}" marker-end="url(#head)"/>'
    if text := arrow.get("label"):
        # On the longest part, where there is most room.
        (x1, y1), (x2, y2) = max(pairwise(corners), key=lambda part: dist(*part))
        x, y = (x1 + x2) / 2, (y1 + y2) / 2 + (-6 if y1 == y2 else 4)
        yield f'<text class="label" x="{x:g}" y="{y:g}" text-anchor="middle">{escape(text)}</text>'


def draw(data: Mapping[str, Any]) -> str:
    """The SVG of a description: ``title``, ``boxes`` and ``arrows``.

    Raises:
        ValueError: a box cannot be drawn.
        KeyError: an arrow names a box or a side that does not exist.
    """
    boxes = read_boxes(data)
    width = max(box.left for box in boxes.values()) + BOX_WIDTH + MARGIN
    height = max(box.top for box in boxes.values()) + BOX_HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>{escape(data['title'])}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
        '<path d="M0 0L9 4L0 8z" fill="#4a5568"/></marker></defs>',
        f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
    ]
    for arrow in data["arrows"]:
        parts += draw_arrow(boxes, arrow)
    for box in boxes.values():
        parts += draw_box(box)
    return "\n".join([*parts, "</svg>", ""])


def sources() -> list[Path]:
    """The descriptions of all pictures."""
    return sorted((paths.root() / "docs" / "pictures").glob("*.yml"))


def svg(source: Path) -> str:
    """The SVG of the description in a file."""
    return draw(yaml.safe_load(source.read_text(encoding="utf-8")))
