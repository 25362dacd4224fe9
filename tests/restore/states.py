"""States to save and load in tests: tensors cut over ranks, in slots as a client lays them out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckptd.commit.assemble import assemble
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.model.part import Part
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import Checkpoint, open_checkpoint
from ckptd.restore.fetch import fetch
from ckptd.restore.plan import plan
from ckptd.store.base import Bytes, Store
from ckptd.store.directory import DirectoryStore
from ckptd_client.messages.restoring import Copy, Want
from ckptd_client.messages.saving import Item

JOB = "job"
ATTEMPT = Attempt(Snapshot(Generation(1, 2), 30), 0)
ALIGN = 64


@dataclass
class Slot:
    """A rank's slot, filled item by item."""

    rank: int
    items: list[Item] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    used_bytes: int = 0

    def tensor(
        self, fqn: str, dtype: str, whole: np.ndarray, offsets: Sequence[int], sizes: Sequence[int], scope: str = "global"
    ) -> None:
        cut = whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))]
        body = np.ascontiguousarray(cut).tobytes()
        self.items.append(
            Item(fqn, "tensor", scope, dtype, whole.shape, tuple(offsets), tuple(sizes), self.used_bytes, len(body))
        )
        self._place(body, len(body))

    def object(self, fqn: str, body: bytes, scope: str) -> None:
        capacity = len(body) + 17
        self.items.append(Item(fqn, "object", scope, "object", (), (), (), self.used_bytes, capacity))
        self.lengths.append(len(body))
        self._place(body, capacity)

    def _place(self, body: bytes, capacity: int) -> None:
        self.bodies.append((self.used_bytes, body))
        self.used_bytes += -(-capacity // ALIGN) * ALIGN

    def memory(self) -> bytearray:
        slot = bytearray(b"\xaa" * max(self.used_bytes, 1))  # what isn't state must not be stored
        for start, body in self.bodies:
            slot[start : start + len(body)] = body
        return slot

    def source(self) -> RankSource:
        return RankSource(self.rank, self.items, self.lengths, memoryview(self.memory()))


def cuts(length: int, parts: int) -> list[tuple[int, int]]:
    """(offset, size) of each part as FSDP cuts a dimension: ceil-sized chunks, the last ones shorter or empty."""
    step = -(-length // parts) if length else 0
    return [(min(i * step, length), min(step, max(length - i * step, 0))) for i in range(parts)]


def region(shape: Sequence[int], dim: int, rank: int, world: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rank's (offsets, sizes) of a tensor cut along ``dim``."""
    offsets, sizes = [0] * len(shape), list(shape)
    offsets[dim], sizes[dim] = cuts(shape[dim], world)[rank]
    return tuple(offsets), tuple(sizes)


async def save(
    store: Store,
    nodes: Sequence[Sequence[RankSource]],
    options: WriteOptions,
    pool: ThreadPoolExecutor,
    attempt: Attempt = ATTEMPT,
    parent: int | None = None,
) -> tuple[list[Part], str]:
    """Write each node's ranks as a writer of its own and make a checkpoint; (parts, hash of the manifest)."""
    parts = []
    for number, ranks in enumerate(nodes):
        part = await write_part(store, JOB, attempt, f"n{number}.aa", ranks, options, pool, itertools.count(number))
        parts.append(Part.decode(part.encode()))
    world_size = sum(len(ranks) for ranks in nodes)
    return parts, (await assemble(store, JOB, attempt, world_size, parent, parts))[1]


async def write_one(store: Store, slot: Slot, options: WriteOptions, pool: ThreadPoolExecutor) -> Part:
    """One rank as a writer of its own."""
    return await write_part(store, JOB, ATTEMPT, f"n{slot.rank}.aa", [slot.source()], options, pool, itertools.count())


async def load(
    store: Store,
    checkpoint: Checkpoint,
    wants: Sequence[Want],
    pool: ThreadPoolExecutor,
    itemsizes: Sequence[int],
    buffers: int = 2,
) -> list[bytes]:
    """The bytes of each want, as a trainer copies them out of a ring of buffers. Every byte is written exactly once."""
    reads = plan(checkpoint.layout, checkpoint.index, wants)
    assert [(read.segment, read.offset) for read in reads] == sorted({(read.segment, read.offset) for read in reads})
    ring = HeapBuffers(max((read.raw_bytes for read in reads), default=1), buffers)
    results = [bytearray(int(np.prod(want.sizes)) * n) for want, n in zip(wants, itemsizes, strict=True)]
    written = [bytearray(len(result)) for result in results]

    def deliver(number: int, copies: Ints) -> None:
        for copy in map(Copy._make, copies.tolist()):
            target = slice(copy.want_offset, copy.want_offset + copy.nbytes)
            results[copy.want][target] = ring.memory[number][copy.frame_offset : copy.frame_offset + copy.nbytes]
            assert not any(written[copy.want][target])
            written[copy.want][target] = b"\1" * copy.nbytes
        ring.give_back(number)

    await fetch(store, checkpoint, reads, ring, deliver, pool, ByteBudget(3000), read_bytes=1000)
    assert all(all(marks) for marks in written)
    return [bytes(result) for result in results]


class CountingStore(DirectoryStore):
    """Remembers what was read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gets: list[tuple[str, int, int]] = []  # (key, start, end)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        body = await super().get(key, start, end)
        self.gets.append((key, start, start + len(body)))
        return body

    def read_bytes(self, suffix: str = "") -> int:
        """Of objects with such a name."""
        return sum(end - start for key, start, end in self.gets if key.endswith(suffix))


async def opened(root: Path, manifest: str) -> tuple[DirectoryStore, Checkpoint]:
    store = DirectoryStore(root)
    return store, await open_checkpoint(store, JOB, manifest)
