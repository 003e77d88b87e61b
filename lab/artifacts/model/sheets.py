"""Packs dialogues that begin alike into one sequence, so that their common beginning is worked through once.

Each dialogue sees the common beginning and itself, at the positions that it would have alone: what the model
computes for it is the same as without packing, at less than half the cost, since most of a dialogue is its setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Sample = tuple[list[int], int]  # the tokens of a dialogue, and how many of them are the prompt

COMMON = -1  # the segment of the common beginning


@dataclass(frozen=True)
class Sheet:
    """A packed sequence; all lists are of one length.

    Attributes:
        tokens: the common beginning, then the rest of each dialogue.
        positions: the position of each token in its own dialogue.
        segments: the dialogue of each token, counted from 0; ``COMMON`` for the beginning.
        replies: whether the token belongs to a right reply.
    """

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    replies: list[bool]


def pack(samples: Sequence[Sample]) -> Sheet:
    """One sheet of dialogues; the more of their beginning is common, the shorter it is."""
    # The last token of a prompt is not shared: the reply's first token is predicted from it.
    most = min(prompt for _, prompt in samples) - 1
    first = samples[0][0]
    common = next((place for place in range(most) if any(tokens[place] != first[place] for tokens, _ in samples)), most)
    common = max(common, 0)
    sheet = Sheet(first[:common], list(range(common)), [COMMON] * common, [False] * common)
    for segment, (tokens, prompt) in enumerate(samples):
        sheet.tokens.extend(tokens[common:])
        sheet.positions.extend(range(common, len(tokens)))
        sheet.segments.extend([segment] * (len(tokens) - common))
        sheet.replies.extend(place >= prompt for place in range(common, len(tokens)))
    return sheet
