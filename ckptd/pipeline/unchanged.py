"""Frames that need not be written again, because they lie in the store already: arithmetic on tables (decision 0013)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptd.model.columns import Array
from ckptd.model.part import Part
from ckptd.model.segment import Segment
from ckptd.pipeline.frames import FrameCut
from ckptd_client.messages import Item

ANEW: Final = -1
"""In place of a row of a base: the frame must be written."""

Layout = Sequence[tuple[int, Sequence[Item]]]
"""What was cut: of each source the rank, and its items."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a segment lies: commit ``seq``, whose attempt ``writer`` wrote it for, as its ``n``-th."""

    seq: int
    writer: str
    n: int
    size_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The frames of a part that is committed: some 60 bytes for each.

    ``frames`` are rows of `frame.FRAME`; their segments are rows of ``segments``. ``starts`` tells from where each was cut.
    """

    layout: Layout
    starts: Array
    frames: Array
    segments: tuple[Located, ...]

    def candidates(self, layout: Layout, frames: Sequence[FrameCut], allowed: Set[int]) -> Array:
        """For each of the newly cut frames the row here of what may have the same bytes: same place, same length. Else ANEW.

        ``allowed``: the commits that may be referred to.
        """
        found = np.full(len(frames), ANEW, np.int64)
        open_rows = np.array([segment.seq in allowed for segment in self.segments], bool)[self.frames["segment"]]
        if self.layout != layout or not open_rows.any():
            return found
        order = np.argsort(self.starts)
        starts = cut_starts(frames)
        rows = order[np.minimum(np.searchsorted(self.starts, starts, sorter=order), len(order) - 1)]
        lengths = np.array([frame.raw_bytes for frame in frames], np.int64)
        same = (self.starts[rows] == starts) & (self.frames["raw_bytes"][rows] == lengths) & open_rows[rows]
        found[same] = rows[same]
        return found


def cut_starts(frames: Sequence[FrameCut]) -> Array:
    """Where each frame begins: (number of the source, offset in its slot) in one number, which no two frames share."""
    return np.array([(frame.pieces[0].source << 48) + frame.pieces[0].start for frame in frames], np.int64)


def remember(seq: int, layout: Layout, starts: Array, part: Part) -> Base:
    """The part, now that it is committed as ``seq``."""
    segments = tuple(
        Located(part.bases[s.base - 1] if s.base else seq, part.writers[s.writer], s.n, s.size_bytes) for s in part.segments
    )
    return Base(layout, starts, part.frames, segments)


def refer(
    writer: str, own: Sequence[Segment], frames: Array, base: Base | None, rows: Array
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[Segment, ...], Array]:
    """A part's (writers, bases, segments, frames) of what ``writer`` has written and what it refers to.

    ``own`` segments have the ``frames`` whose ``rows`` are ANEW; the others are to be those rows of ``base``.
    """
    referred = rows != ANEW
    if base is None or not referred.any():
        return (writer,), (), tuple(own), frames
    used: list[int] = np.unique(base.frames["segment"][rows[referred]]).tolist()
    bases = tuple(sorted({base.segments[row].seq for row in used}))
    writers = (writer, *sorted({base.segments[row].writer for row in used} - {writer}))
    number_of, row_of = {seq: k for k, seq in enumerate(bases, 1)}, {name: row for row, name in enumerate(writers)}
    used.sort(key=lambda row: (base.segments[row].seq, row_of[base.segments[row].writer], base.segments[row].n))
    located = [base.segments[row] for row in used]
    others = [Segment(row_of[s.writer], s.n, s.size_bytes, number_of[s.seq]) for s in located]
    moved = np.zeros(len(base.segments), np.uint32)
    moved[used] = range(len(own), len(own) + len(used))
    table = frames.copy()
    table[referred] = base.frames[rows[referred]]
    table["segment"][referred] = moved[table["segment"][referred]]
    return writers, bases, (*own, *others), table
