"""Writing a state to the store (PROTOCOLS 3).

    slots ─ cut ─► frames ─ hash, encode (threads) ─► segments ─ PUT (several at once) ─► store

All is planned before the first byte is read, so segments can be made in any order and their frames' places are known. A budget
of bytes bounds what lies between the slots and the store.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from ckptd.codec.frames import Codec, encode_into
from ckptd.codec.hash import Buffer, frame_hash
from ckptd.errors import ConfigError, ProtocolError
from ckptd.model.columns import MAX_NAME_BYTES, Array
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.frame import FRAME, MAX_FRAME_BYTES, MAX_SEGMENT_BYTES, RAW
from ckptd.model.ids import Attempt
from ckptd.model.keys import segment_key
from ckptd.model.part import Entry, Part, Segment
from ckptd.model.region import Region
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.frames import Extent, FrameCut, cut, group
from ckptd.pipeline.threads import in_threads, tasks
from ckptd.store.base import Store
from ckptd_client.messages import Item

_AHEAD: Final = 2
"""Segments that are being made while all PUTs are taken."""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """``memory_bytes``: most bytes between slots and store; a bigger segment goes alone. ``concurrency``: PUTs at once.

    Sizes are of raw bytes. Smaller segments cost requests. Those above some 24 MiB cost much more than memory: glibc then maps
    and faults in each body anew (0.75 GB/s of copying instead of 2.4, measured), below that it reuses what was freed.
    """

    frame_bytes: int = MAX_FRAME_BYTES
    segment_bytes: int = 16 << 20
    codec: Codec = "raw"
    memory_bytes: int = 512 << 20
    concurrency: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.frame_bytes <= MAX_FRAME_BYTES or not 0 < self.segment_bytes <= MAX_SEGMENT_BYTES:
            raise ConfigError(f"frames have at most {MAX_FRAME_BYTES} and segments {MAX_SEGMENT_BYTES} bytes; got {self}")
        if self.memory_bytes < 1 or self.concurrency < 1:
            raise ConfigError(f"nothing can be written with no memory or no requests; got {self}")


@dataclass(frozen=True, slots=True)
class RankSource:
    """A rank's staged state. Item bytes lie at their slot_offset; ``lengths`` are those of the objects, in item order."""

    rank: int
    items: Sequence[Item]
    lengths: Sequence[int]
    slot: memoryview


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A frame's stored bytes, in pieces."""

    pieces: list[Buffer]
    codec_id: int
    stored_bytes: int
    raw_hash: bytes
    stored_hash: bytes


async def write_part(
    store: Store,
    job: str,
    attempt: Attempt,
    writer: str,
    sources: Sequence[RankSource],
    options: WriteOptions,
    pool: ThreadPoolExecutor,
    numbers: Iterator[int],
    stored: Callable[[int, int], None] = lambda _raw, _stored: None,
) -> Part:
    """Write all of ``sources``; returns what is durable then, for `commit.assemble`.

    ``numbers`` gives numbers that no other segment of this writer's life has. ``stored`` is called with the raw and the stored
    bytes of each segment that is in the store. Raises ProtocolError or ConfigError for items that don't fit their slot or can't
    be stored, and what the store raises. Cancelling is safe: when this returns or raises, nothing touches the slots any more;
    segments already written are left for the collection.
    """
    entries, extents = _survey(sources)
    frames, places = cut(extents, options.frame_bytes)
    upload = _Upload(store, options, pool, [source.slot for source in sources], frames)
    segments: list[Segment] = []
    spans = group(frames, options.segment_bytes)
    sizes_bytes = [0] * len(spans)

    async def write(number: int, key: str, span: range, cost: int) -> None:
        try:
            sizes_bytes[number] = await upload.segment(number, key, span)
            stored(sum(frames[i].raw_bytes for i in span), sizes_bytes[number])
        finally:
            upload.budget.give_back(cost)

    keys = [next(numbers) for _ in spans]
    async with tasks() as running:
        for number, (n, span) in enumerate(zip(keys, spans, strict=True)):
            cost = upload.cost(span)
            await upload.budget.take(cost)
            running.create_task(write(number, segment_key(job, attempt, writer, n), span, cost))
    segments = [Segment(n, size_bytes) for n, size_bytes in zip(keys, sizes_bytes, strict=True)]
    placed = tuple(
        Entry(rank, item.fqn, item.scope, item.dtype, item.shape, Region(item.offsets, item.sizes), place)
        for (rank, item), place in zip(entries, places, strict=True)
    )
    return Part(writer, tuple(sorted(source.rank for source in sources)), tuple(segments), upload.rows, placed)


class _Upload:
    """Makes and writes segments."""

    def __init__(
        self,
        store: Store,
        options: WriteOptions,
        pool: ThreadPoolExecutor,
        slots: Sequence[memoryview],
        frames: Sequence[FrameCut],
    ) -> None:
        self._store = store
        self._codec = options.codec
        self._factor = 1 if options.codec == "raw" else 2
        self._pool = pool
        self._slots = slots
        self._frames = frames
        self._puts = asyncio.Semaphore(options.concurrency)
        # Segments made long before their PUT can begin would only fill memory.
        ahead = (options.concurrency + _AHEAD) * self._factor * options.segment_bytes
        self.budget = ByteBudget(min(options.memory_bytes, ahead))
        self.rows: Array = np.zeros(len(frames), FRAME)

    def cost(self, span: range) -> int:
        """Most bytes that this segment holds on its way: its own, and its encoded frames before they are joined."""
        return self._factor * sum(self._frames[i].raw_bytes for i in span)

    async def segment(self, number: int, key: str, span: range) -> int:
        """Write the segment of these frames; its size in bytes."""
        encoded = await in_threads(self._pool, [partial(self._encode, self._frames[i]) for i in span])
        offset = 0
        for i, frame in zip(span, encoded, strict=True):
            sizes = (offset, frame.stored_bytes, self._frames[i].raw_bytes)
            self.rows[i] = (number, frame.codec_id, *sizes, np.void(frame.raw_hash), np.void(frame.stored_hash))
            offset += frame.stored_bytes
        # One copy, always, and into memory that nobody will write again: a PUT that timed out may still be running when its
        # repetition has succeeded, and would put whatever its memory holds by then under the same key.
        pieces = [piece for frame in encoded for piece in frame.pieces]
        del encoded
        (body,) = await in_threads(self._pool, [partial(b"".join, pieces)])
        del pieces
        async with self._puts:
            await self._store.put(key, body)
        return offset

    def _encode(self, frame: FrameCut) -> _Encoded:
        views: list[Buffer] = [self._slots[piece.source][piece.start : piece.start + piece.count] for piece in frame.pieces]
        raw_hash = frame_hash(views)
        if self._codec != "raw":
            raw = memoryview(views[0] if len(views) == 1 else b"".join(views))
            room = memoryview(bytearray(frame.raw_bytes))
            codec_id, stored_bytes = encode_into(raw, frame.pieces[0].dtype, self._codec, room)
            if codec_id != RAW:
                stored = room[:stored_bytes]
                return _Encoded([stored], codec_id, stored_bytes, raw_hash, frame_hash([stored]))
        return _Encoded(views, RAW, frame.raw_bytes, raw_hash, raw_hash)


def _survey(sources: Sequence[RankSource]) -> tuple[list[tuple[int, Item]], list[Extent]]:
    """Every item with its rank, and where its bytes are. Raises ProtocolError and ConfigError."""
    if len({source.rank for source in sources}) < len(sources):
        raise ProtocolError("a rank's state can be written only once")
    entries: list[tuple[int, Item]] = []
    extents: list[Extent] = []
    for number, source in enumerate(sources):
        lengths = iter(source.lengths)
        for item in source.items:
            nbytes = next(lengths, -1) if item.kind == "object" else math.prod(item.sizes) * item_bytes(item.dtype)
            if problem := _problem(item, nbytes, source.slot.nbytes):
                raise ProtocolError(f"an item can't be stored: {problem} rank={source.rank} fqn={item.fqn!r:.200}")
            entries.append((source.rank, item))
            extents.append(Extent(number, item.slot_offset, nbytes, item.dtype))
        if next(lengths, None) is not None:
            raise ProtocolError(f"there are more lengths than objects rank={source.rank}")
    return entries, extents


def _problem(item: Item, nbytes: int, slot_bytes: int) -> str | None:
    if item.scope not in ("global", "rank") or (item.kind, item.dtype == OBJECT) not in (("tensor", False), ("object", True)):
        return f"unknown kind or scope kind={item.kind!r} scope={item.scope!r} dtype={item.dtype!r}"
    if not 0 < len(item.fqn.encode(errors="replace")) <= MAX_NAME_BYTES:
        return f"a name has 1 to {MAX_NAME_BYTES} bytes"
    if not 0 <= nbytes <= item.capacity or item.slot_offset < 0 or item.slot_offset + nbytes > slot_bytes:
        return f"it has no room in the slot bytes={nbytes} capacity={item.capacity}"
    if len(item.offsets) != len(item.sizes) or min((0, *item.offsets, *item.sizes)) < 0:
        return "no region"
    if (item.kind == "object" and (item.shape or item.sizes)) or not Region(item.offsets, item.sizes).within(item.shape):
        return "the region is outside of the tensor"
    return None
