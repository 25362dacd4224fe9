"""Writing a foreign state into a job's store as one attempt, in bounded memory: a batch of it at a time is a slot.

What is written is what `Checkpointer.save` would have written in a world of one rank, so `Checkpointer.load` loads it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from ckptd.errors import InterchangeError
from ckptd.interchange.cut import tiles
from ckptd.interchange.exporting import STATE
from ckptd.interchange.foreign import Files, Foreign, Piece, read_region
from ckptd.interchange.tree import TensorRef, encode_tree, join, replaced
from ckptd.model.columns import MAX_NAME_BYTES, Array
from ckptd.model.dtypes import item_bytes
from ckptd.model.ids import Attempt
from ckptd.model.part import Entry, Part
from ckptd.model.region import Region
from ckptd.model.segment import Segment
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.store.base import Store
from ckptd_client.messages.saving import Item

PROGRESS: Final = "ckptd.progress"
BATCH_BYTES: Final = 64 << 20
_ALIGN: Final = 64
_READS: Final = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """A state that can be stored: objects by name, and tensors by FQN, each memory once."""

    objects: dict[str, bytes]
    tensors: dict[str, Foreign]

    @property
    def nbytes(self) -> int:
        """Of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class _Bit:
    """What fills one item of a slot: an object's body, or the rectangle ``within`` of a piece."""

    item: Item
    body: bytes
    piece: Piece | None
    within: Region


def prepare(tree: dict[Any, Any], step: int) -> Prepared:
    """Take the tensors out of a tree. Two names of the same bytes are one tensor, as tied weights are when they are saved.

    Raises InterchangeError naming what can't be stored.
    """
    tensors: dict[str, Foreign] = {}
    known: dict[Foreign, str] = {}

    def stored(path: str, leaf: Any) -> Any:
        if not isinstance(leaf, Foreign):
            return leaf
        fqn = join(STATE, path)
        if fqn in tensors:
            raise InterchangeError(f"two tensors have one dotted name; rename a key name={path!r:.200}")
        if len(fqn.encode(errors="replace")) > MAX_NAME_BYTES:
            raise InterchangeError(f"a tensor's dotted name has over {MAX_NAME_BYTES} bytes name={path!r:.200}")
        first = known.setdefault(leaf, fqn) if leaf.nbytes else fqn
        if first == fqn:
            tensors[fqn] = leaf
        return TensorRef(first)

    state = encode_tree(replaced(tree, stored))
    # What a client knows of a job that has not trained here: no sample was taken, no seed is known.
    progress = encode_tree({"step": step, "seed": 0, "position": 0, "stream": None})
    return Prepared({PROGRESS: progress, STATE: state}, tensors)


async def write_state(
    store: Store,
    job: str,
    attempt: Attempt,
    writer: str,
    files: Files,
    prepared: Prepared,
    options: WriteOptions,
    pool: ThreadPoolExecutor,
    written: Callable[[int], None],
) -> Part:
    """Write all of it; the part is what is durable then. ``written`` gets raw bytes as they are stored.

    Raises InterchangeError when files are not what they were, and what the store raises.
    """
    numbers = itertools.count()
    parts = []
    memory = bytearray(0)
    for batch in _batches(_bits(prepared)):
        size_bytes = batch[-1].item.slot_offset + batch[-1].item.capacity
        if len(memory) < size_bytes:
            memory = bytearray(max(size_bytes, BATCH_BYTES if prepared.nbytes > size_bytes else 0))
        slot = memoryview(memory)
        await _fill(files, batch, slot)
        lengths = [len(bit.body) for bit in batch if bit.item.kind == "object"]
        source = RankSource(0, [bit.item for bit in batch], lengths, slot)
        parts.append(
            await write_part(
                store, job, attempt, writer, [source], options, pool, numbers, lambda raw_bytes, _stored: written(raw_bytes)
            )
        )
    return joined(parts)


def _bits(prepared: Prepared) -> Iterator[_Bit]:
    nowhere = Region((), ())
    for name, body in prepared.objects.items():
        yield _Bit(Item(name, "object", "global", "object", (), (), (), 0, len(body)), body, None, nowhere)
    for fqn, tensor in prepared.tensors.items():
        size_bytes = item_bytes(tensor.dtype)
        if not tensor.nbytes:
            sizes, none = tensor.shape, (0,) * len(tensor.shape)
            yield _Bit(Item(fqn, "tensor", "global", tensor.dtype, tensor.shape, none, sizes, 0, 0), b"", None, nowhere)
            continue
        for piece in tensor.pieces:
            for within in tiles(piece.region.sizes, piece.strides, BATCH_BYTES // size_bytes):
                offsets = tuple(a + b for a, b in zip(piece.region.offsets, within.offsets, strict=True))
                nbytes = within.elements * size_bytes
                item = Item(fqn, "tensor", "global", tensor.dtype, tensor.shape, offsets, within.sizes, 0, nbytes)
                yield _Bit(item, b"", piece, within)


def _batches(bits: Iterator[_Bit]) -> Iterator[list[_Bit]]:
    """Together as many as fit in BATCH_BYTES, at least one, each with its place in the slot."""
    batch: list[_Bit] = []
    filled = 0
    for bit in bits:
        if batch and filled + bit.item.capacity > BATCH_BYTES:
            yield batch
            batch, filled = [], 0
        item = bit.item
        batch.append(replace(bit, item=replace(item, slot_offset=filled)))
        filled += -(-item.capacity // _ALIGN) * _ALIGN
    yield batch


async def _fill(files: Files, batch: Sequence[_Bit], slot: memoryview) -> None:
    gate = asyncio.Semaphore(_READS)

    async def fill(bit: _Bit) -> None:
        into = slot[bit.item.slot_offset : bit.item.slot_offset + bit.item.capacity]
        if bit.piece is None:
            into[:] = bit.body
            return
        async with gate:
            await read_region(files, bit.piece, bit.item.dtype, bit.within, into)

    for result in await asyncio.gather(*(fill(bit) for bit in batch), return_exceptions=True):
        if result is not None:  # all are over, then the first error in order counts
            raise result


def joined(parts: Sequence[Part]) -> Part:
    """The parts of one writer, without bases, as one: its segments and frames in a row."""
    segments: list[Segment] = []
    frames: list[Array] = []
    entries: list[Entry] = []
    for part in parts:
        moved = part.frames.copy()
        moved["segment"] += len(segments)
        first = sum(len(rows) for rows in frames)
        for entry in part.entries:
            place = entry.place
            entries.append(
                replace(entry, place=replace(place, first_frame=place.first_frame + first)) if place.frame_count else entry
            )
        segments += part.segments
        frames.append(moved)
    return Part(parts[0].writers, parts[0].ranks, (), tuple(segments), np.concatenate(frames), tuple(entries))
