"""Reading single frames of a checkpoint, verified: for tools that look at it. What was read is counted."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry

from ckptd.errors import CorruptError, NotFoundError
from ckptd.pipeline.threads import in_threads, tasks
from ckptd.restore.checkpoint import Checkpoint
from ckptd.restore.fetch import coalesce, decode_frame
from ckptd.restore.plan import FrameRead, frame_reads
from ckptd.store.base import Bytes, Store
from ckptd.store.metered import MeteredStore, StoreMetrics

AT_ONCE: Final = 12
"""Frames in memory at once, of at most 4 MiB each."""
_RANGE_BYTES: Final = 16 << 20


class CountedStore(MeteredStore):
    """``inner``, with a count of the bytes that were read and of the requests that brought them."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, StoreMetrics(CollectorRegistry()))
        self.read_bytes = 0
        self.reads = 0

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        body = await super().get(key, start, end)
        self.read_bytes += len(body)
        self.reads += 1
        return body


class Source:
    """The frames of one checkpoint. Keeps the last ones that were asked for: small tensors share frames."""

    def __init__(self, store: Store, checkpoint: Checkpoint, pool: ThreadPoolExecutor) -> None:
        self.checkpoint = checkpoint
        self._store = store
        self._pool = pool
        self._kept: dict[int, memoryview] = {}

    async def frames(self, numbers: Sequence[int]) -> dict[int, memoryview]:
        """The raw bytes of these frames, AT_ONCE at most. Raises CorruptError, and what the store raises."""
        found = {number: self._kept[number] for number in numbers if number in self._kept}
        missing = frame_reads(self.checkpoint.index, sorted(set(numbers) - found.keys()))
        self._kept = {}  # what is not asked for again goes before more comes
        async with tasks() as running:
            parts = [running.create_task(self._range(reads)) for reads in coalesce(missing, _RANGE_BYTES, AT_ONCE)]
        for part in parts:
            found |= part.result()
        self._kept = found
        return found

    async def _range(self, reads: Sequence[FrameRead]) -> dict[int, memoryview]:
        key = self.checkpoint.segment_key(reads[0].segment)
        start, end = reads[0].offset, reads[-1].offset + reads[-1].stored_bytes
        try:
            body = memoryview(await self._store.get(key, start, end))
        except NotFoundError:
            raise CorruptError(f"a segment of the checkpoint is missing segment={key}") from None
        found = {read.frame: memoryview(bytearray(read.raw_bytes)) for read in reads}
        calls = [
            partial(
                decode_frame,
                self.checkpoint,
                read,
                body[read.offset - start : read.offset - start + read.stored_bytes],
                found[read.frame],
                key,
            )
            for read in reads
        ]
        await in_threads(self._pool, calls)
        return found
