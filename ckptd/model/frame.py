"""Frames: the units of encoding, hashing and fetching (PROTOCOLS 3), as rows of a column file."""

from __future__ import annotations

from typing import Final

import numpy as np

from ckptd.model.columns import Array, Format

MAX_FRAME_BYTES: Final = 4 << 20
MAX_SEGMENT_BYTES: Final = 64 << 20
HASH_BYTES: Final = 16

RAW: Final = 0
PLANES: Final = 1
CODECS: Final = {RAW: "raw", PLANES: "planes"}

# ``segment`` is a row of the segments' table; ``offset`` is in bytes from the segment's start; hashes are xxh3-128, big-endian.
FRAME: Final = np.dtype(
    [
        ("segment", "<u4"),
        ("codec", "<u4"),
        ("offset", "<u8"),
        ("stored_bytes", "<u4"),
        ("raw_bytes", "<u4"),
        ("raw_hash", "V16"),
        ("stored_hash", "V16"),
    ]
)

# Where a region's bytes are: from ``frame_offset`` raw bytes into ``first_frame`` on, through ``frame_count`` frames.
PLACE: Final = np.dtype(
    [("nbytes", "<u8"), ("first_frame", "<u4"), ("frame_count", "<u4"), ("frame_offset", "<u4"), ("zero", "<u4")]
)


def check_frames(form: Format, frames: Array, segments: Array) -> None:
    """Raise CorruptError unless all is within bounds, own frames fill the own segments in order, and others don't overlap.

    ``segments`` are rows of `segment.SEGMENT`: own ones first. Every one has a frame here.
    """
    if not len(frames):
        if len(segments):
            raise form.bad("a segment without frames")
        return
    raw, stored = frames["raw_bytes"].astype(np.int64), frames["stored_bytes"].astype(np.int64)
    if raw.min() < 1 or raw.max() > MAX_FRAME_BYTES or stored.min() < 1 or (stored > raw).any():
        raise form.bad(f"a frame has 1 to {MAX_FRAME_BYTES} bytes, and no more stored than raw")
    unknown = set(np.unique(frames["codec"]).tolist()) - CODECS.keys()
    if unknown:
        raise form.bad(f"unknown codec; damaged, or written by a newer ckptd: {sorted(unknown)}")
    if (stored != raw)[frames["codec"] == RAW].any():
        raise form.bad("a raw frame is stored as it is")
    if np.unique(frames["segment"]).tolist() != list(range(len(segments))):
        raise form.bad("a segment without frames, or a frame without a segment")
    count = int((segments["base"] == 0).sum())
    own = frames["segment"] < count
    if count:
        _check_own(form, frames[own], segments["size_bytes"][:count])
    if count < len(segments):
        _check_others(form, frames[~own], segments["size_bytes"])


def _check_own(form: Format, frames: Array, segment_bytes: Array) -> None:
    """Frames go on in the same segment, or begin the next one."""
    number, stored = frames["segment"].astype(np.int64), frames["stored_bytes"].astype(np.int64)
    steps = np.diff(number, prepend=-1)
    ends = np.cumsum(stored)
    if not np.isin(steps, (0, 1)).all():
        raise form.bad("frames are not in the order of their segments")
    starts = (ends - stored)[steps == 1]
    if (frames["offset"] != (ends - stored - starts[number]).astype(np.uint64)).any():
        raise form.bad("frames don't follow each other")
    if (np.diff(np.append(starts, ends[-1])).astype(np.uint64) != segment_bytes).any():
        raise form.bad("a segment's size is not that of its frames")


def _check_others(form: Format, frames: Array, segment_bytes: Array) -> None:
    """They lie within their segments, each in a place of its own."""
    frames = frames[np.lexsort((frames["offset"], frames["segment"]))]
    stored, sizes = frames["stored_bytes"].astype(np.uint64), segment_bytes[frames["segment"]]
    if ((frames["offset"] > sizes) | (stored > sizes - np.minimum(frames["offset"], sizes))).any():
        raise form.bad("a frame lies outside of its segment")
    same = frames["segment"][1:] == frames["segment"][:-1]
    if (frames["offset"][1:] < (frames["offset"] + stored)[:-1])[same].any():
        raise form.bad("frames of a base overlap")


def check_places(form: Format, places: Array, frames: Array) -> None:
    """Raise CorruptError unless every place lies within its frames, and needs all of them."""
    if not len(places):
        return
    total = len(frames)
    first, count = places["first_frame"].astype(np.int64), places["frame_count"].astype(np.int64)
    nbytes, offset = places["nbytes"], places["frame_offset"].astype(np.int64)
    if places["zero"].any() or (first + count > total).any() or (nbytes > 1 << 60).any():
        raise form.bad("a region is outside of the frames")
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(frames["raw_bytes"], dtype=np.int64)])
    begin = starts[first] + offset
    end = begin + nbytes.astype(np.int64)
    empty = nbytes == 0
    if ((first != 0) | (count != 0) | (offset != 0))[empty].any() or (count < 1)[~empty].any():
        raise form.bad("a region has frames exactly when it has bytes")
    last = np.maximum(first + count, 1) - 1
    fits = (begin < starts[np.minimum(first + 1, total)]) & (end > starts[last]) & (end <= starts[first + count])
    if not fits[~empty].all():
        raise form.bad("a region is outside of its frames")
