"""Fetching frames: range reads → stored hash → decode into a buffer → raw hash in that buffer → hand over (PROTOCOLS 3).

Ranges are on their way while others are decoded and others again are copied by the trainer. A range is asked for only when it
has buffers for all its frames: so what has come never waits, and a trainer that stands still holds nothing but its own ring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from xxhash import xxh3_128

from ckptd.codec.frames import decode_into
from ckptd.codec.hash import Buffer, frame_hash
from ckptd.errors import CorruptError, NotFoundError
from ckptd.model.frame import RAW
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.threads import in_threads, tasks
from ckptd.restore.plan import FrameRead
from ckptd.store.base import Bytes

if TYPE_CHECKING:
    from ckptd.restore.checkpoint import Checkpoint

READ_BYTES: Final = 16 << 20
"""Of a range, or one frame. Smaller ranges cost more turns of the interpreter (docs/decisions/0014)."""
GAP_BYTES: Final = 1 << 20
"""Unwanted bytes that are read rather than that a range ends: about what a connection brings while another request is made."""
_BLOCK_BYTES: Final = 512 << 10

Deliver = Callable[[int, Ints], None]


class FrameSource(Protocol):
    """Who has segments: a `Store`, or whoever has the same bytes nearer. All of it is verified, so it need not be trusted."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        """As `Store.get`."""
        ...


class Buffers(Protocol):
    """Memory for decoded frames: ``count`` buffers, each as long as the longest frame or longer."""

    count: int

    async def reserve(self) -> None:
        """Wait until one of them will be free when it is needed."""
        ...

    async def turn(self, frames: int) -> None:
        """Wait until so many frames should be decoded, for a while at most."""
        ...

    def acquire(self) -> tuple[int, memoryview]:
        """A reserved buffer: its number and its memory. Called in threads."""
        ...


async def fetch(
    source: FrameSource,
    checkpoint: Checkpoint,
    reads: Sequence[FrameRead],
    buffers: Buffers,
    deliver: Deliver,
    pool: ThreadPoolExecutor,
    budget: ByteBudget,
    read_bytes: int = READ_BYTES,
) -> None:
    """Fetch and verify ``reads``; each frame ends in one of ``buffers``, at its start, and is then given to ``deliver``.

    ``budget`` bounds the bytes that are on their way or not yet decoded. Frames come in any order. Raises CorruptError naming
    the segment and the frame when something is missing or fails a hash, and what the source raises. Cancelling is safe: when
    this returns or raises, nothing touches the buffers any more.
    """
    async with tasks() as running:
        for frames in coalesce(reads, read_bytes, max(1, buffers.count // 2)):
            for _ in frames:
                await buffers.reserve()
            size_bytes = frames[-1].offset + frames[-1].stored_bytes - frames[0].offset
            await budget.take(size_bytes)
            task = running.create_task(_fetch_range(source, checkpoint, frames, buffers, deliver, pool))
            task.add_done_callback(partial(_give_back, budget, size_bytes))


def _give_back(budget: ByteBudget, size_bytes: int, _: object) -> None:
    budget.give_back(size_bytes)


def coalesce(reads: Sequence[FrameRead], read_bytes: int, most_frames: int) -> list[list[FrameRead]]:
    """Frames of one segment that lie near each other are one range, within ``read_bytes`` and ``most_frames``.

    Between two of them lie at most GAP_BYTES that nobody wants, and in a range at most a quarter of what is wanted in it.
    """
    ranges: list[list[FrameRead]] = []
    waste = wanted = 0
    for read in reads:
        if ranges and len(ranges[-1]) < most_frames and ranges[-1][-1].segment == read.segment:
            first, last = ranges[-1][0], ranges[-1][-1]
            gap = read.offset - (last.offset + last.stored_bytes)
            fits = read.offset + read.stored_bytes - first.offset <= read_bytes
            if fits and gap <= GAP_BYTES and 4 * (waste + gap) <= wanted + read.stored_bytes:
                ranges[-1].append(read)
                waste, wanted = waste + gap, wanted + read.stored_bytes
                continue
        ranges.append([read])
        waste, wanted = 0, read.stored_bytes
    return ranges


async def _fetch_range(
    source: FrameSource,
    checkpoint: Checkpoint,
    reads: Sequence[FrameRead],
    buffers: Buffers,
    deliver: Deliver,
    pool: ThreadPoolExecutor,
) -> None:
    key = checkpoint.segment_key(reads[0].segment)
    start, end = reads[0].offset, reads[-1].offset + reads[-1].stored_bytes
    try:
        body = memoryview(await source.get(key, start, end))
    except NotFoundError:
        raise CorruptError(f"a segment of the checkpoint is missing segment={key}") from None
    if body.nbytes != end - start:
        raise CorruptError(f"a segment is shorter than its index says segment={key} end={start + body.nbytes} expected={end}")

    def decode() -> list[int]:
        filled = []
        for read in reads:
            number, memory = buffers.acquire()  # not before: what is written now was used last, and is still in the cache
            stored = body[read.offset - start : read.offset - start + read.stored_bytes]
            decode_frame(checkpoint, read, stored, memory[: read.raw_bytes], key)
            filled.append(number)
        return filled

    await buffers.turn(len(reads))
    [filled] = await in_threads(pool, [decode])
    for read, number in zip(reads, filled, strict=True):
        deliver(number, read.copies)


def check_stored(checkpoint: Checkpoint, read: FrameRead, stored: Buffer, key: str) -> str:
    """Raise CorruptError unless these are the stored bytes of a frame of segment ``key``; returns where that is, in words."""
    expected = checkpoint.index.frames[read.frame]["stored_hash"].tobytes()
    where = f"segment={key} frame={read.frame} offset={read.offset}"
    if frame_hash([stored]) != expected:
        raise CorruptError(f"a frame's stored bytes don't match their hash {where} hash=stored expected={expected.hex()}")
    return where


def decode_frame(checkpoint: Checkpoint, read: FrameRead, stored: Buffer, destination: memoryview, key: str) -> None:
    """Decode a frame's stored bytes into ``destination``, verified before and after. Raises CorruptError."""
    row = checkpoint.index.frames[read.frame]
    raw_hash = row["raw_hash"].tobytes()
    if row["codec"] == RAW and raw_hash == row["stored_hash"].tobytes() == _copy_hashed(stored, destination):
        return
    where = check_stored(checkpoint, read, stored, key)
    try:
        decode_into(int(row["codec"]), stored, destination)
    except CorruptError as error:
        raise CorruptError(f"{error} {where}") from error
    if frame_hash([destination]) != raw_hash:
        raise CorruptError(f"a frame's raw bytes don't match their hash {where} hash=raw expected={raw_hash.hex()}")


def _copy_hashed(source: Buffer, destination: memoryview) -> bytes:
    """Copy, and hash what was written: of raw bytes both hashes are one. Block by block: the hash then reads from the cache."""
    state = xxh3_128()
    there, here = np.frombuffer(source, np.uint8), np.frombuffer(destination, np.uint8)
    for at in range(0, len(here), _BLOCK_BYTES):
        block = here[at : at + _BLOCK_BYTES]
        np.copyto(block, there[at : at + _BLOCK_BYTES])  # unlike a memoryview's assignment it lets other threads run
        state.update(block.data)
    digest: bytes = state.digest()
    return digest
