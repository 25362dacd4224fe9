"""The bytes of stored tensors, span by span in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from ckptd.interchange.cut import cut, strides_of
from ckptd.model.dtypes import item_bytes
from ckptd.model.frame import MAX_FRAME_BYTES
from ckptd.model.layout import Tensor
from ckptd.model.region import Ints
from ckptd.pipeline.budget import ByteBudget
from ckptd.restore.buffers import HeapBuffers
from ckptd.restore.checkpoint import Checkpoint
from ckptd.restore.fetch import READ_BYTES, fetch
from ckptd.restore.plan import plan
from ckptd.store.base import Store
from ckptd_client.messages.restoring import Want

SPAN_BYTES: Final = 32 << 20
_FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Span:
    """A rectangle of a stored tensor whose bytes lie in a row; ``nbytes`` of them."""

    tensor: Tensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    nbytes: int


def spans(tensor: Tensor) -> Iterator[Span]:
    """Its bytes in order."""
    size_bytes = item_bytes(tensor.dtype)
    for region in cut(tensor.shape, strides_of(tensor.shape), SPAN_BYTES // size_bytes):
        yield Span(tensor, region.offsets, region.sizes, region.elements * size_bytes)


async def read_spans(
    store: Store, checkpoint: Checkpoint, wanted: Sequence[Span]
) -> AsyncGenerator[tuple[Span, memoryview], None]:
    """The verified bytes of each span, in the order of ``wanted``; valid until the next one is asked for.

    Raises CorruptError when stored bytes don't match their hashes, and what the store raises.
    """
    memory = memoryview(bytearray(max((span.nbytes for span in wanted), default=0)))
    memory = memoryview(bytearray(SPAN_BYTES)) if len(wanted) > 1 and memory.nbytes < SPAN_BYTES else memory
    buffers = HeapBuffers(MAX_FRAME_BYTES, _FRAMES)
    with ThreadPoolExecutor(2, thread_name_prefix="ckptd-export") as pool:
        for batch in _batches(wanted, memory.nbytes):
            starts = _starts(batch)
            wants = [Want(s.tensor.fqn, s.tensor.rank, s.tensor.dtype, s.tensor.shape, s.offsets, s.sizes) for s in batch]
            reads = plan(checkpoint.layout, checkpoint.index, wants)
            deliver = _copier(buffers, memory, starts)
            await fetch(store, checkpoint, reads, buffers, deliver, pool, ByteBudget(READ_BYTES))
            for span, start in zip(batch, starts, strict=True):
                yield span, memory[start : start + span.nbytes]


def _batches(wanted: Sequence[Span], limit_bytes: int) -> Iterator[list[Span]]:
    batch: list[Span] = []
    filled = 0
    for span in wanted:
        if batch and filled + span.nbytes > limit_bytes:
            yield batch
            batch, filled = [], 0
        batch.append(span)
        filled += span.nbytes
    if batch:
        yield batch


def _starts(batch: Sequence[Span]) -> list[int]:
    starts, at = [], 0
    for span in batch:
        starts.append(at)
        at += span.nbytes
    return starts


def _copier(buffers: HeapBuffers, memory: memoryview, starts: Sequence[int]) -> Callable[[int, Ints], None]:
    def deliver(number: int, copies: Ints) -> None:
        frame = buffers.memory[number]
        for offset, want, want_offset, count in copies.tolist():
            at = starts[want] + want_offset
            memory[at : at + count] = frame[offset : offset + count]
        buffers.give_back(number)

    return deliver
