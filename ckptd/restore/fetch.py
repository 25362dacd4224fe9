"""Fetching frames: range reads → stored hash → decode into a buffer → raw hash in that buffer → hand over (PROTOCOLS 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ckptd.codec.frames import decode_into
from ckptd.codec.hash import Buffer, frame_hash
from ckptd.errors import CorruptError, NotFoundError
from ckptd.pipeline.threads import in_threads, tasks
from ckptd.restore.plan import FrameRead
from ckptd.store.base import Store
from ckptd_client.messages import Copy

if TYPE_CHECKING:
    from ckptd.restore.checkpoint import Checkpoint

Acquire = Callable[[], Awaitable[tuple[int, memoryview]]]
Deliver = Callable[[int, Sequence[Copy]], None]


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """``concurrency`` range reads at once, each of at most ``read_bytes`` (or one frame): their product bounds the memory."""

    concurrency: int = 8
    read_bytes: int = 16 << 20


DEFAULTS = FetchOptions()


async def fetch(
    store: Store,
    job: str,
    checkpoint: Checkpoint,
    reads: Sequence[FrameRead],
    acquire: Acquire,
    deliver: Deliver,
    pool: ThreadPoolExecutor,
    options: FetchOptions = DEFAULTS,
) -> None:
    """Fetch and verify ``reads``; each frame ends in a buffer from ``acquire``, at its start, and is then given to ``deliver``.

    Buffers are as long as the longest frame, or longer; one is enough. Frames come in any order. Raises CorruptError naming the
    segment and the frame when something is missing or fails a hash, and what the store raises. Cancelling is safe: when this
    returns or raises, nothing touches the buffers any more.
    """
    slots = asyncio.Semaphore(options.concurrency)
    async with tasks() as running:
        for frames in coalesce(reads, options.read_bytes):
            await slots.acquire()
            task = running.create_task(_fetch_range(store, job, checkpoint, frames, acquire, deliver, pool))
            task.add_done_callback(lambda _: slots.release())


def coalesce(reads: Sequence[FrameRead], read_bytes: int) -> list[list[FrameRead]]:
    """Frames that follow each other in one segment, as far as they fit in ``read_bytes``, are one range."""
    ranges: list[list[FrameRead]] = []
    for read in reads:
        last = ranges[-1][-1] if ranges else None
        follows = last is not None and last.segment == read.segment and last.offset + last.stored_bytes == read.offset
        if follows and read.offset + read.stored_bytes - ranges[-1][0].offset <= read_bytes:
            ranges[-1].append(read)
        else:
            ranges.append([read])
    return ranges


async def _fetch_range(
    store: Store,
    job: str,
    checkpoint: Checkpoint,
    reads: Sequence[FrameRead],
    acquire: Acquire,
    deliver: Deliver,
    pool: ThreadPoolExecutor,
) -> None:
    key = checkpoint.segment_key(reads[0].segment)
    start, end = reads[0].offset, reads[-1].offset + reads[-1].stored_bytes
    try:
        body = memoryview(await store.get(key, start, end))
    except NotFoundError:
        raise CorruptError(f"a segment of the checkpoint is missing segment={key}") from None
    if body.nbytes != end - start:
        raise CorruptError(f"a segment is shorter than its index says segment={key} end={start + body.nbytes} expected={end}")
    for read in reads:
        stored = body[read.offset - start : read.offset - start + read.stored_bytes]
        buffer, memory = await acquire()
        await in_threads(pool, [partial(decode_frame, checkpoint, read, stored, memory[: read.raw_bytes], key)])
        deliver(buffer, read.copies)


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
    where = check_stored(checkpoint, read, stored, key)
    try:
        decode_into(int(row["codec"]), stored, destination)
    except CorruptError as error:
        raise CorruptError(f"{error} {where}") from error
    if frame_hash([destination]) != row["raw_hash"].tobytes():
        expected = row["raw_hash"].tobytes().hex()
        raise CorruptError(f"a frame's raw bytes don't match their hash {where} hash=raw expected={expected}")
