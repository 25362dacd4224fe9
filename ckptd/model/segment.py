"""Segments: stored objects made of frames, as rows of a column file (PROTOCOLS 3).

Own segments come first, in the order of their frames; then those of bases, by (base, writer, n): equal content has equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptd.model.canonical import is_number
from ckptd.model.columns import Array, Format
from ckptd.model.frame import MAX_SEGMENT_BYTES

SEGMENT: Final = np.dtype([("writer", "<u4"), ("base", "<u4"), ("n", "<u8"), ("size_bytes", "<u8")])


@dataclass(frozen=True, slots=True)
class Segment:
    """Segment ``n`` of a writer (its row in the table of writers), and its size in bytes.

    ``base`` 0: written for the attempt itself; k: for the k-th commit among the bases, from 1 on.
    """

    writer: int
    n: int
    size_bytes: int
    base: int = 0


def segment_rows(segments: Sequence[Segment]) -> Array:
    """Rows of `SEGMENT`."""
    return np.array([(s.writer, s.base, s.n, s.size_bytes) for s in segments], SEGMENT)


def read_segments(form: Format, rows: Array, writers: int, bases: int) -> tuple[Segment, ...]:
    """What `segment_rows` wrote; raises CorruptError for a table that names a writer or base that isn't there, or one twice."""
    segments = tuple(Segment(writer, n, size_bytes, base) for writer, base, n, size_bytes in rows.tolist())
    if not all(s.writer < writers and s.base <= bases and is_number(s.n) for s in segments):
        raise form.bad("a segment is out of bounds")
    own = [(s.writer, s.n) for s in segments if not s.base]
    others = [(s.base, s.writer, s.n) for s in segments if s.base]
    if len(set(own)) < len(own) or others != sorted(set(others)) or any(s.base for s in segments[: len(own)]):
        raise form.bad("segments are out of order, or stand there twice")
    if {base for base, _, _ in others} != set(range(1, bases + 1)):
        raise form.bad("a base is named and not needed")
    if any(not 0 < s.size_bytes <= MAX_SEGMENT_BYTES for s in segments):
        raise form.bad(f"a segment has 1 to {MAX_SEGMENT_BYTES} bytes")
    return segments
