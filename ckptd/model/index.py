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
from ckptd.model.records import is_number

_SEGMENT: Final = np.dtype([("writer", "<u4"), ("zero", "<u4"), ("n", "<u8"), ("size_bytes", "<u8")])

_FORMAT: Final = Format(
    "an index",
    b"CKPTINDX",
    (("writer_ends", I8), ("writer_text", U1), ("segments", _SEGMENT), ("places", PLACE), ("frames", FRAME)),
    limit_bytes=1 << 30,
)


@dataclass(frozen=True, slots=True)
class IndexSegment:
    """Segment ``n`` of a writer (its place in the table of writers), and its size in bytes."""

    writer: int
    n: int
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Index:
    """``places`` has one row of `frame.PLACE` per region of the layout; ``frames`` are rows of `frame.FRAME`."""

    writers: tuple[str, ...]
    segments: tuple[IndexSegment, ...]
    places: Array
    frames: Array

    @cached_property
    def frame_starts(self) -> Array:
        """Where each frame begins in all raw bytes of the checkpoint, and where the last one ends."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.frames["raw_bytes"], dtype=np.int64)])

    def encode(self) -> bytes:
        """Its bytes; equal indexes have equal bytes."""
        ends, text = pack_texts(self.writers)
        rows = [(segment.writer, 0, segment.n, segment.size_bytes) for segment in self.segments]
        return _FORMAT.encode(
            {
                "writer_ends": ends,
                "writer_text": text,
                "segments": np.array(rows, _SEGMENT),
                "places": self.places,
                "frames": self.frames,
            }
        )


def decode_index(data: bytes, layout: Layout) -> Index:
    """Read the index of a checkpoint with this layout. Raises CorruptError for whatever can't be one."""
    columns = _FORMAT.decode(data)
    writers = tuple(check_writer(writer) for writer in unpack_texts(_FORMAT, columns["writer_ends"], columns["writer_text"]))
    rows = columns["segments"]
    segments = tuple(IndexSegment(writer, n, size_bytes) for writer, _, n, size_bytes in rows.tolist())
    if rows["zero"].any() or not all(s.writer < len(writers) and is_number(s.n) for s in segments):
        raise _FORMAT.bad("a segment is out of bounds")
    if len(set(writers)) < len(writers) or len({(s.writer, s.n) for s in segments}) < len(segments):
        raise _FORMAT.bad("a writer or a segment stands there twice")
    check_frames(_FORMAT, columns["frames"], rows["size_bytes"])
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
