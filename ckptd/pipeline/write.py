"""Writing a state to the store (PROTOCOLS 3).

    slots ─ cut ─► frames ─ hash, encode (threads) ─► segments ─ PUT (several at once) ─► store

All is planned before the first byte is read, so segments can be made in any order and their frames' places are known. A budget
of bytes bounds what lies between the slots and the store. Raw segments are PUT from the slots' own memory, encoded ones from
that into which they were encoded: nothing is joined (docs/decisions/0012).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import numpy as np

from ckptd.codec.frames import Codec
from ckptd.errors import ConfigError, ProtocolError
from ckptd.model.columns import MAX_NAME_BYTES, Array
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.frame import FRAME, MAX_FRAME_BYTES, MAX_SEGMENT_BYTES
from ckptd.model.ids import Attempt
from ckptd.model.keys import segment_key
from ckptd.model.part import Entry, Part
from ckptd.model.region import Region
from ckptd.model.segment import Segment
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.frames import Extent, FrameCut, cut, group
from ckptd.pipeline.loans import Bodies, Loan, all_returned
from ckptd.pipeline.meter import Meter
from ckptd.pipeline.segments import Made, make_encoded, make_raw
from ckptd.pipeline.threads import in_threads, tasks
from ckptd.pipeline.unchanged import Base, Layout, Unchanged
from ckptd.store.base import Store
from ckptd_client.messages.saving import Item

ENCODED: Final[Codec] = "planes"
"""What "auto" encodes with."""

_AHEAD: Final = 2
"""Segments that are being made while all PUTs are taken."""


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """``memory_bytes``: most bytes between slots and store; a bigger segment goes alone. ``concurrency``: PUTs at once.
    ``codec``: of each frame; "auto" chooses segment by segment, by what the meter has measured.

    Sizes are of raw bytes. Smaller segments cost requests, bigger ones memory, and a longer end with fewer PUTs at once.
    """

    frame_bytes: int = MAX_FRAME_BYTES
    segment_bytes: int = 16 << 20
    codec: Codec | Literal["auto"] = "raw"
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
    meter: Meter | None = None,
    base: Base | None = None,
    allowed: Set[int] = frozenset(),
) -> Part:
    """Write all of ``sources``; returns what is durable then, for `commit.assemble`.

    ``numbers`` gives numbers that no other segment of this writer's life has. ``stored`` is called with the raw bytes of each
    segment's frames when they are in the store, and with the stored bytes that were written for them. ``meter`` is that of all
    uploads on this machine. Frames of ``base`` that haven't changed are referred to, where they lie in the data of commits that
    are ``allowed``.

    Raises ProtocolError or ConfigError for items that don't fit their slot or can't be stored, and what the store raises.
    Cancelling is safe: when this returns or raises, nothing touches the slots any more; segments already written are left for
    the collection.
    """
    entries, extents = _survey(sources)
    frames, places = cut(extents, options.frame_bytes)
    spans = group(frames, options.segment_bytes)
    loans = [Loan(source.slot) for source in sources]
    meter = meter or Meter(options.concurrency, 1)
    found = Unchanged(base, layout_of(sources), frames, allowed)
    upload = _Upload(store, options, pool, [loan.view for loan in loans], frames, spans, meter, found)
    keys = [next(numbers) for _ in spans]

    async def write(number: int, key: str, cost: int) -> None:
        try:
            await upload.segment(number, key)
            stored(upload.raw_bytes(number), upload.sizes_bytes[number])
        finally:
            upload.budget.give_back(cost)

    try:
        with meter.upload():
            async with tasks() as running:
                for number, n in enumerate(keys):
                    cost = upload.raw_bytes(number)
                    await upload.budget.take(cost)
                    running.create_task(write(number, segment_key(job, attempt, writer, n), cost))
    except BaseException as error:
        await all_returned(loans, error)
        raise
    await all_returned(loans, None)
    placed = tuple(
        Entry(rank, item.fqn, item.scope, item.dtype, item.shape, Region(item.offsets, item.sizes), place)
        for (rank, item), place in zip(entries, places, strict=True)
    )
    own = [Segment(0, n, size_bytes) for n, size_bytes in zip(keys, upload.sizes_bytes, strict=True)]
    writers, bases, segments, rows = found.refer(writer, own, upload.rows)
    return Part(writers, tuple(sorted(source.rank for source in sources)), bases, segments, rows, placed)


class _Upload:
    """Makes and writes segments, of which number ``i`` has the frames ``spans[i]``."""

    def __init__(
        self,
        store: Store,
        options: WriteOptions,
        pool: ThreadPoolExecutor,
        slots: Sequence[memoryview],
        frames: Sequence[FrameCut],
        spans: Sequence[range],
        meter: Meter,
        unchanged: Unchanged,
    ) -> None:
        self._store = store
        self._codec = options.codec
        self._pool = pool
        self._slots = slots
        self._frames = frames
        self._spans = spans
        self._meter = meter
        self._unchanged = unchanged
        self._puts = asyncio.Semaphore(options.concurrency)
        # Segments made long before their PUT can begin would only fill memory.
        limit_bytes = min(options.memory_bytes, (options.concurrency + _AHEAD) * options.segment_bytes)
        self.budget = ByteBudget(limit_bytes)
        body_bytes = max((self.raw_bytes(number) for number in range(len(spans))), default=1)
        self._bodies = Bodies(body_bytes, max(1, limit_bytes // body_bytes))
        self.rows: Array = np.zeros(len(frames), FRAME)
        self.sizes_bytes = [0] * len(spans)

    def raw_bytes(self, number: int) -> int:
        """Of a segment's frames; no less than what it holds on its way."""
        return sum(self._frames[i].raw_bytes for i in self._spans[number])

    async def segment(self, number: int, key: str) -> None:
        """Write segment ``number`` under ``key``, unless none of its frames has changed."""
        made = await self._made(self._spans[number])
        try:
            if made.pieces:
                async with self._puts:
                    with self._meter.put(made.stored_bytes):
                        await self._store.put(key, tuple(made.pieces))
        finally:
            made.release()
        self.sizes_bytes[number] = made.stored_bytes
        for i, frame in zip(self._spans[number], made.frames, strict=True):
            if frame is None:
                self._unchanged.confirm(i)
                continue
            sizes = (frame.offset, frame.stored_bytes, self._frames[i].raw_bytes)
            self.rows[i] = (number, frame.codec_id, *sizes, np.void(frame.raw_hash), np.void(frame.stored_hash))

    async def _made(self, span: range) -> Made:
        frames, known = [self._frames[i] for i in span], [self._unchanged.hash_of(i) for i in span]
        codec = self._codec
        if codec == "auto":
            codec = ENCODED if self._meter.encode_next() else "raw"
        if codec == "raw":
            (made,) = await in_threads(self._pool, [partial(make_raw, frames, self._slots, known)])
            return made
        make = partial(make_encoded, frames, self._slots, known, codec, await self._bodies.take())
        (made,) = await in_threads(self._pool, [make])
        raw_bytes = sum(frame.raw_bytes for frame, kept in zip(frames, made.frames, strict=True) if kept is not None)
        if raw_bytes:
            self._meter.encoded(raw_bytes, made.stored_bytes, made.cpu_seconds)
        return made


def layout_of(sources: Sequence[RankSource]) -> Layout:
    """What a base must have been made of."""
    return [(source.rank, source.items) for source in sources]


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
