"""In which order the ranks of a node get their parts: all at once, so that none stands idle while others copy. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptd.model.region import Ints
from ckptd.restore.plan import FrameRead


def owners(copies: Ints, firsts: Ints) -> Ints:
    """Whose want each copy is for, when ``firsts`` are the numbers of each rank's first want."""
    return firsts.searchsorted(copies[:, 1], side="right").astype(np.int64, copy=False) - 1


def by_rank(copies: Ints, firsts: Ints) -> list[tuple[int, Ints]]:
    """The copies of each rank that has some, its wants named by their place among its own."""
    whose = owners(copies, firsts)
    found = []
    for number in (np.unique(whose) if len(whose) > 1 else whose).tolist():  # one copy: the usual case of big tensors
        mine = copies[whose == number]
        mine[:, 1] -= firsts[number]
        found.append((number, mine))
    return found


def by_turns(reads: Sequence[FrameRead], firsts: Ints) -> list[FrameRead]:
    """The same reads, segment by segment, in such an order that all ranks come forward alike. Each segment stays in one piece.

    A segment's turn comes when the first of those who need it have everything before it, as a share of all that they need.
    """
    if len(firsts) < 2 or not reads:
        return list(reads)
    segments, number = np.unique(np.array([read.segment for read in reads], np.int64), return_inverse=True)
    needed = np.zeros((len(firsts), len(segments)))
    for read, segment in zip(reads, number.tolist(), strict=True):
        whose = owners(read.copies, firsts)
        needed[np.unique(whose), segment] += read.raw_bytes
    before = np.cumsum(needed, axis=1) - needed
    total = np.maximum(needed.sum(axis=1), 1)[:, None]
    turn = np.where(needed > 0, before / total, np.inf).min(axis=0)
    place = np.argsort(np.argsort(turn, kind="stable"), kind="stable")
    order = np.argsort(place[number], kind="stable")
    return [reads[i] for i in order.tolist()]
