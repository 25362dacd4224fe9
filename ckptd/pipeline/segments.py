"""Making one segment out of its frames: hash, encode. It runs in one thread, from which it touches the slots and its own body.

A frame with the hash of the one that the store has in its place is left out: the part will refer to that one. Another frame's
bytes are hashed just before they are encoded, and their stored form just after: the second reading of each finds them in the
cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ckptd.codec.frames import Codec, encode_into
from ckptd.codec.hash import frame_hash
from ckptd.model.frame import RAW
from ckptd.pipeline.frames import FrameCut


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """What the index will say of a frame. Sizes in bytes; ``offset`` is from the segment's start."""

    codec_id: int
    offset: int
    stored_bytes: int
    raw_hash: bytes
    stored_hash: bytes


@dataclass(slots=True)
class Made:
    """A segment: its bytes are those of ``pieces`` in a row, views of slots or of its body; none when no frame has changed.

    ``frames`` has None for one that has not. ``cpu_seconds``: what it cost.
    """

    frames: list[StoredFrame | None] = field(default_factory=list)
    pieces: list[memoryview] = field(default_factory=list)
    stored_bytes: int = 0
    cpu_seconds: float = 0.0

    def add(self, codec_id: int, stored: memoryview, raw_hash: bytes) -> None:
        """Append a frame."""
        stored_hash = raw_hash if codec_id == RAW else frame_hash([stored])
        self.frames.append(StoredFrame(codec_id, self.stored_bytes, stored.nbytes, raw_hash, stored_hash))
        self.pieces.append(stored)
        self.stored_bytes += stored.nbytes

    def release(self) -> None:
        """Let go of all memory that no request of a driver reads still; what one does read, it lets go of by itself."""
        for piece in self.pieces:
            try:
                piece.release()
            except BufferError:  # in use
                continue


def make_raw(frames: Sequence[FrameCut], slots: Sequence[memoryview], known: Sequence[bytes]) -> Made:
    """A segment that is the slots' own memory, but for packed frames, whose scattered bytes are joined.

    ``known``: each frame's hash when it had not changed; empty when there is none.
    """
    started, made = time.thread_time(), Made()
    for frame, unchanged in zip(frames, known, strict=True):
        raw = _bytes_of(frame, slots)
        raw_hash = frame_hash([raw])
        if raw_hash == unchanged:
            made.frames.append(None)
        else:
            made.add(RAW, raw, raw_hash)
    made.cpu_seconds = time.thread_time() - started
    return made


def make_encoded(
    frames: Sequence[FrameCut], slots: Sequence[memoryview], known: Sequence[bytes], codec: Codec, body: memoryview
) -> Made:
    """A segment that lies in ``body``, which has room for all raw bytes. ``known``: as for `make_raw`."""
    started, made = time.thread_time(), Made()
    for frame, unchanged in zip(frames, known, strict=True):
        raw = _bytes_of(frame, slots)
        raw_hash = frame_hash([raw])
        if raw_hash == unchanged:
            made.frames.append(None)
            continue
        codec_id, stored_bytes = encode_into(raw, frame.pieces[0].dtype, codec, body[made.stored_bytes :])
        made.add(codec_id, body[made.stored_bytes : made.stored_bytes + stored_bytes], raw_hash)
    made.cpu_seconds = time.thread_time() - started
    return made


def _bytes_of(frame: FrameCut, slots: Sequence[memoryview]) -> memoryview:
    views = [slots[piece.source][piece.start : piece.start + piece.count] for piece in frame.pieces]
    return views[0] if len(views) == 1 else memoryview(b"".join(views))
