"""Cutting a state into frames, and frames into segments: arithmetic on offsets, no bytes are touched (PROTOCOLS 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from ckptd.model.dtypes import item_bytes
from ckptd.model.part import Place

ALONE_BYTES: Final = 256 << 10
"""In a common frame a frozen matrix would be written again with every adapter beside it."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A region's bytes: ``count`` of them from byte ``start`` of source number ``source`` on, all of one dtype."""

    source: int
    start: int
    count: int
    dtype: str


@dataclass(slots=True)
class FrameCut:
    """A frame to be made of these extents' bytes, in this order."""

    raw_bytes: int = 0
    pieces: list[Extent] = field(default_factory=list)

    def add(self, piece: Extent) -> None:
        """Append a piece; one that goes on in memory where the last one ends becomes part of it."""
        last = self.pieces[-1] if self.pieces else None
        if last is not None and (last.source, last.start + last.count) == (piece.source, piece.start):
            self.pieces[-1] = Extent(last.source, last.start, last.count + piece.count, last.dtype)
        else:
            self.pieces.append(piece)
        self.raw_bytes += piece.count


def cut(extents: Sequence[Extent], frame_bytes: int) -> tuple[list[FrameCut], list[Place]]:
    """(frames of at most ``frame_bytes``, the place of each extent in them).

    An extent of ALONE_BYTES or of a frame is cut into frames of its own, all but the last one full, so that byte → frame is
    arithmetic. Smaller ones are packed, in order, with others of their dtype: at 10,000 ranks regions are kilobytes.
    """
    frames: list[FrameCut] = []
    places: list[Place] = []
    open_frames: dict[str, int] = {}
    for extent in extents:
        if extent.count == 0:
            places.append(Place(0, 0, 0, 0))
            continue
        step = _whole_elements(extent.dtype, frame_bytes)
        if extent.count >= min(step, ALONE_BYTES):
            places.append(Place(extent.count, len(frames), -(-extent.count // step), 0))
            for start in range(0, extent.count, step):
                count = min(step, extent.count - start)
                frames.append(FrameCut(count, [Extent(extent.source, extent.start + start, count, extent.dtype)]))
        else:
            number = open_frames.get(extent.dtype)
            if number is None or frames[number].raw_bytes + extent.count > step:
                number = open_frames[extent.dtype] = len(frames)
                frames.append(FrameCut())
            places.append(Place(extent.count, number, 1, frames[number].raw_bytes))
            frames[number].add(extent)
    return frames, places


def _whole_elements(dtype: str, frame_bytes: int) -> int:
    """Bytes of a full frame of this type: elements are not torn, as codecs work on elements."""
    size_bytes = item_bytes(dtype)
    return max(frame_bytes // size_bytes, 1) * size_bytes


def group(frames: Sequence[FrameCut], segment_bytes: int) -> list[range]:
    """Which frames make up each segment: as many in a row as fit in ``segment_bytes`` of raw bytes, at least one.

    Encoded frames are never longer than raw ones, so it holds for stored bytes too.
    """
    segments: list[range] = []
    first, filled = 0, 0
    for number, frame in enumerate(frames):
        if number > first and filled + frame.raw_bytes > segment_bytes:
            segments.append(range(first, number))
            first, filled = number, 0
        filled += frame.raw_bytes
    if frames:
        segments.append(range(first, len(frames)))
    return segments
