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
from ckptd_client.messages.saving import Item

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
    """The frames of a part that is committed as ``seq``: some 60 bytes for each.

    ``frames`` are rows of `frame.FRAME`; their segments are rows of ``segments``. ``starts`` tells from where each was cut.
    """

    seq: int
    layout: Layout
    starts: Array
    frames: Array
    segments: tuple[Located, ...]


class Unchanged:
    """Which of the newly cut ``frames`` may be as ``base`` has them, and which turn out to be.

    ``allowed``: the commits that may be referred to.
    """

    def __init__(self, base: Base | None, layout: Layout, frames: Sequence[FrameCut], allowed: Set[int]) -> None:
        self._base = base
        self._candidates = _candidates(base, layout, frames, allowed)
        self._rows = np.full(len(frames), ANEW, np.int64)

    def hash_of(self, number: int) -> bytes:
        """The raw hash that frame ``number`` must have to be unchanged; empty when it is to be written anyway."""
        row = self._candidates[number]
        if self._base is None or row == ANEW:
            return b""
        raw_hash: bytes = self._base.frames["raw_hash"][row].tobytes()
        return raw_hash

    def confirm(self, number: int) -> None:
        """Frame ``number`` has that hash."""
        self._rows[number] = self._candidates[number]

    def refer(
        self, writer: str, own: Sequence[Segment], frames: Array
    ) -> tuple[tuple[str, ...], tuple[int, ...], tuple[Segment, ...], Array]:
        """A part's (writers, bases, segments, frames) of what ``writer`` has written and what it refers to.

        ``own`` segments without bytes are left out. ``frames`` has the rows of those that were written.
        """
        kept = [row for row, segment in enumerate(own) if segment.size_bytes]
        moved = np.zeros(len(own), np.uint32)
        moved[kept] = range(len(kept))
        table, written = frames.copy(), self._rows == ANEW
        table["segment"][written] = moved[table["segment"][written]]
        return refer(writer, [own[row] for row in kept], table, self._base, self._rows)


def _candidates(base: Base | None, layout: Layout, frames: Sequence[FrameCut], allowed: Set[int]) -> Array:
    """For each frame the base's row of the same place and length, in a segment that may be referred to; else ANEW."""
    found = np.full(len(frames), ANEW, np.int64)
    if base is None or not frames or not len(base.frames) or base.layout != layout:
        return found
    open_rows = np.array([segment.seq in allowed for segment in base.segments], bool)[base.frames["segment"]]
    order, starts = np.argsort(base.starts), cut_starts(frames)
    rows = order[np.minimum(np.searchsorted(base.starts, starts, sorter=order), len(order) - 1)]
    lengths = np.array([frame.raw_bytes for frame in frames], np.int64)
    same = (base.starts[rows] == starts) & (base.frames["raw_bytes"][rows] == lengths) & open_rows[rows]
    found[same] = rows[same]
    return found


def cut_starts(frames: Sequence[FrameCut]) -> Array:
    """Where each frame begins: (number of the source, offset in its slot) in one number, which no two frames share."""
    return np.array([_start(frame.pieces[0].source, frame.pieces[0].start) for frame in frames], np.int64)


def remember(seq: int, layout: Layout, part: Part) -> Base:
    """The part that was made of ``layout``, now that it is committed as ``seq``."""
    segments = tuple(
        Located(part.bases[s.base - 1] if s.base else seq, part.writers[s.writer], s.n, s.size_bytes) for s in part.segments
    )
    begins = np.concatenate([np.zeros(1, np.int64), np.cumsum(part.frames["raw_bytes"], dtype=np.int64)])
    starts = np.zeros(len(part.frames), np.int64)
    items = [_start(number, item.slot_offset) for number, (_, items) in enumerate(layout) for item in items]
    for entry, start in zip(part.entries, items, strict=True):
        place = entry.place
        if place.frame_count and not place.frame_offset:  # the first in its frame, or in frames of its own
            rows = slice(place.first_frame, place.first_frame + place.frame_count)
            starts[rows] = start + begins[rows] - begins[place.first_frame]
    return Base(seq, layout, starts, part.frames, segments)


def _start(source: int, offset: int) -> int:
    return (source << 48) + offset


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
