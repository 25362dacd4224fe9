"""An index: where the regions of one checkpoint are, in layout order (PROTOCOLS 3).

A column file (see `columns`) with the magic "CKPTINDX".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from ckptd.errors import CorruptError
from ckptd.model.columns import I8, U1, Array, Format, pack_texts, unpack_texts
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.frame import FRAME, PLACE, check_frames, check_places
from ckptd.model.keys import check_writer
from ckptd.model.layout import Layout
from ckptd.model.segment import SEGMENT, Segment, read_segments, segment_rows

_FORMAT: Final = Format(
    "an index",
    b"CKPTINDX",
    (("writer_ends", I8), ("writer_text", U1), ("segments", SEGMENT), ("places", PLACE), ("frames", FRAME)),
    limit_bytes=1 << 30,
)


@dataclass(frozen=True, eq=False)
class Index:
    """``places`` has one row of `frame.PLACE` per region of the layout; ``frames`` are rows of `frame.FRAME`.

    A segment's ``base`` counts in the bases of the checkpoint's manifest.
    """

    writers: tuple[str, ...]
    segments: tuple[Segment, ...]
    places: Array
    frames: Array

    @cached_property
    def frame_starts(self) -> Array:
        """Where each frame begins in all raw bytes of the checkpoint, and where the last one ends."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.frames["raw_bytes"], dtype=np.int64)])

    def stored_by_base(self) -> list[int]:
        """Stored bytes of the frames that are this checkpoint's own, then of those of each of its bases."""
        bases = np.array([segment.base for segment in self.segments], np.int64)
        sums = np.zeros(bases.max(initial=0) + 1, np.int64)
        np.add.at(sums, bases[self.frames["segment"]], self.frames["stored_bytes"])
        found: list[int] = sums.tolist()
        return found

    def encode(self) -> bytes:
        """Its bytes; equal indexes have equal bytes."""
        ends, text = pack_texts(self.writers)
        return _FORMAT.encode(
            {
                "writer_ends": ends,
                "writer_text": text,
                "segments": segment_rows(self.segments),
                "places": self.places,
                "frames": self.frames,
            }
        )


def decode_index(data: bytes, layout: Layout, bases: int) -> Index:
    """Read the index of a checkpoint with this layout and so many bases. Raises CorruptError for whatever can't be one."""
    columns = _FORMAT.decode(data)
    writers = tuple(map(check_writer, unpack_texts(_FORMAT, columns["writer_ends"], columns["writer_text"])))
    segments = read_segments(_FORMAT, columns["segments"], len(writers), bases)
    if len(set(writers)) < len(writers):
        raise _FORMAT.bad("a writer stands there twice")
    check_frames(_FORMAT, columns["frames"], columns["segments"])
    check_places(_FORMAT, columns["places"], columns["frames"])
    index = Index(writers, segments, columns["places"], columns["frames"])
    check_fits(index, layout)
    return index


def check_fits(index: Index, layout: Layout) -> None:
    """Raise CorruptError unless the index has the right number of bytes for every region of the layout."""
    wanted = expected_bytes(layout)
    if len(wanted) != len(index.places) or (index.places["nbytes"] != wanted)[wanted >= 0].any():
        raise CorruptError("the index is not one of this layout")
    if any(stored.writer >= len(index.writers) for tensor in layout.tensors for stored in tensor.regions):
        raise CorruptError("the layout names a writer that the index doesn't have")


def expected_bytes(layout: Layout) -> Array:
    """Bytes of every region in layout order; -1 for objects, whose length is the index's to say."""
    sizes: Sequence[int] = [
        -1 if tensor.dtype == OBJECT else stored.region.elements * item_bytes(tensor.dtype)
        for tensor in layout.tensors
        for stored in tensor.regions
    ]
    return np.array(sizes, np.int64)
