"""A part: what one writer stored for one attempt, and what it refers to (PROTOCOLS 3).

The coordinator makes a checkpoint of all parts. It is a column file (see `columns`) with the magic "CKPTPART".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptd.errors import CorruptError
from ckptd.model.canonical import is_number
from ckptd.model.columns import I8, U1, U4, U8, Array, Dims, Format, pack_texts, unpack_texts
from ckptd.model.dtypes import OBJECT, dtype_code, dtype_name, item_bytes
from ckptd.model.frame import FRAME, PLACE, check_frames, check_places
from ckptd.model.keys import check_writer
from ckptd.model.records import MAX_BASES
from ckptd.model.region import Region
from ckptd.model.segment import SEGMENT, Segment, read_segments, segment_rows

_ENTRY: Final = np.dtype([("rank", "<u4"), ("own", "u1"), ("dtype", "u1"), ("ndim", "u1"), ("zero", "u1")])

_FORMAT: Final = Format(
    "a part",
    b"CKPTPART",
    (
        ("writer_ends", I8),
        ("writer_text", U1),
        ("ranks", U4),
        ("bases", U8),
        ("segments", SEGMENT),
        ("frames", FRAME),
        ("entries", _ENTRY),
        ("places", PLACE),
        ("shapes", I8),
        ("offsets", I8),
        ("sizes", I8),
        ("fqn_ends", I8),
        ("fqn_text", U1),
    ),
    limit_bytes=256 << 20,
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a region's bytes are: from ``frame_offset`` raw bytes into ``first_frame`` on, through ``frame_count`` frames.

    All zero when there are none.
    """

    nbytes: int
    first_frame: int
    frame_count: int
    frame_offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored piece. ``scope`` is "global" or "rank"; an object has dtype "object" and no dimensions."""

    rank: int
    fqn: str
    scope: str
    dtype: str
    shape: tuple[int, ...]
    region: Region
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """``writers``: its own name, then those of others whose segments it refers to. ``ranks``: whose state it is, all of it.

    ``bases``: ascending log numbers of the commits whose segments it refers to. ``frames``: rows of `frame.FRAME`, in the order
    in which the state was cut.
    """

    writers: tuple[str, ...]
    ranks: tuple[int, ...]
    bases: tuple[int, ...]
    segments: tuple[Segment, ...]
    frames: Array
    entries: tuple[Entry, ...]

    @property
    def writer(self) -> str:
        """Who wrote it."""
        return self.writers[0]

    def encode(self) -> bytes:
        """Its bytes; equal parts have equal bytes."""
        entries = self.entries
        ends, text = pack_texts([entry.fqn for entry in entries])
        writer_ends, writer_text = pack_texts(self.writers)
        rows = [(e.rank, e.scope == "rank", dtype_code(e.dtype), len(e.shape), 0) for e in entries]
        places = [(p.nbytes, p.first_frame, p.frame_count, p.frame_offset, 0) for p in (entry.place for entry in entries)]
        return _FORMAT.encode(
            {
                "writer_ends": writer_ends,
                "writer_text": writer_text,
                "ranks": np.array(self.ranks, U4),
                "bases": np.array(self.bases, U8),
                "segments": segment_rows(self.segments),
                "frames": self.frames,
                "entries": np.array(rows, _ENTRY),
                "places": np.array(places, PLACE),
                "shapes": np.array([size for entry in entries for size in entry.shape], I8),
                "offsets": np.array([offset for entry in entries for offset in entry.region.offsets], I8),
                "sizes": np.array([size for entry in entries for size in entry.region.sizes], I8),
                "fqn_ends": ends,
                "fqn_text": text,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Part:
        """Read a part. Raises CorruptError for whatever `encode` can't have written; allocates in proportion to ``data``."""
        columns = _FORMAT.decode(data)
        writers = tuple(map(check_writer, unpack_texts(_FORMAT, columns["writer_ends"], columns["writer_text"])))
        bases = tuple(columns["bases"].tolist())
        if not all(map(is_number, bases)) or list(bases) != sorted(set(bases)) or len(bases) > MAX_BASES:
            raise _FORMAT.bad(f"bases are at most {MAX_BASES} ascending numbers")
        segments = read_segments(_FORMAT, columns["segments"], len(writers), len(bases))
        needed = {0} | {segment.writer for segment in segments if segment.base}
        if needed != set(range(len(writers))) or len(set(writers)) < len(writers):
            raise _FORMAT.bad("a writer stands there twice, or for nothing")
        if any(segment.writer for segment in segments if not segment.base):
            raise _FORMAT.bad("an own segment is of another writer")
        ranks = tuple(columns["ranks"].tolist())
        if list(ranks) != sorted(set(ranks)):
            raise _FORMAT.bad("ranks ascend")
        check_frames(_FORMAT, columns["frames"], columns["segments"])
        check_places(_FORMAT, columns["places"], columns["frames"])
        return cls(writers, ranks, bases, segments, columns["frames"], _entries(columns, set(ranks)))


def _entries(columns: dict[str, Array], ranks: set[int]) -> tuple[Entry, ...]:
    rows, ndims = columns["entries"], columns["entries"]["ndim"]
    fqns = unpack_texts(_FORMAT, columns["fqn_ends"], columns["fqn_text"])
    shapes, offsets, sizes = (Dims(_FORMAT, ndims, columns[name]) for name in ("shapes", "offsets", "sizes"))
    if not len(fqns) == len(columns["places"]) == len(rows):
        raise _FORMAT.bad("columns of entries have different lengths")
    entries = []
    for i, ((rank, own, code, _, zero), place, fqn) in enumerate(
        zip(rows.tolist(), columns["places"].tolist(), fqns, strict=True)
    ):
        if own > 1 or zero or rank not in ranks:
            raise _FORMAT.bad(f"an entry is out of bounds fqn={fqn!r:.200}")
        region = Region(offsets.row(i), sizes.row(i))
        entry = Entry(rank, fqn, "rank" if own else "global", dtype_name(code), shapes.row(i), region, Place(*place[:4]))
        check_entry(entry)
        entries.append(entry)
    return tuple(entries)


def check_entry(entry: Entry) -> None:
    """Raise CorruptError unless the entry's parts agree with each other."""
    if entry.dtype == OBJECT:
        if entry.shape or entry.region.sizes:
            raise CorruptError(f"an object has no dimensions fqn={entry.fqn!r:.200}")
    elif not entry.region.within(entry.shape):
        raise CorruptError(f"a region is outside of its tensor fqn={entry.fqn!r:.200}")
    elif entry.region.elements * item_bytes(entry.dtype) != entry.place.nbytes:
        raise CorruptError(f"a region's bytes don't fit its size fqn={entry.fqn!r:.200}")
