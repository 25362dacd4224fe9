"""What of a checkpoint is exported, and its bytes, span by span in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from ckptd.errors import ConfigError, CorruptError, InterchangeError
from ckptd.interchange.cut import cut, strides_of
from ckptd.interchange.registered import by_name, by_number, pieces_by_part, united
from ckptd.interchange.tree import TensorRef, decode_tree, leaves
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.frame import MAX_FRAME_BYTES
from ckptd.model.layout import GLOBAL, Tensor
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
_OWN: Final = "ckptd."
STATE: Final = "ckptd.state"
MODEL: Final = "model"


@dataclass(frozen=True, slots=True)
class Span:
    """A rectangle of a stored tensor whose bytes lie in a row; ``nbytes`` of them."""

    tensor: Tensor
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class State:
    """What of a checkpoint is exported, as its user knows it, and the tensors by the names that stand in it."""

    tree: Any
    tensors: dict[str, Tensor]

    def tensor(self, ref: TensorRef) -> Tensor:
        """Raises CorruptError when the checkpoint lacks what its tree names."""
        if ref.fqn not in self.tensors:
            raise CorruptError(f"the checkpoint's tree names a tensor that isn't there fqn={ref.fqn!r:.200}")
        return self.tensors[ref.fqn]


async def read_state(store: Store, checkpoint: Checkpoint, part: str | None, weights: bool, names: bool) -> State:
    """The state dict that was saved, or else the registered parts by name. What is a rank's own (its generators) isn't in it.

    ``part`` is the one entry that is wanted; None is all of it, or for ``weights`` its "model" if it has one. With ``names``
    registered optimizers go by the names of their parameters, as in torch's `get_state_dict()`, else by number.
    Raises ConfigError when there is no such part, InterchangeError for pieces that are no one state, CorruptError, and what the
    store raises.
    """
    (objects,) = await checkpoint.read_objects(store, [GLOBAL])
    tree = _saved(objects[STATE], part, weights) if STATE in objects else _registered(objects, part, weights, names)
    tensors = {t.fqn: t for t in checkpoint.layout.tensors if t.dtype != OBJECT and t.rank == GLOBAL}
    return State(tree, tensors)


def _saved(body: bytes, part: str | None, weights: bool) -> Any:
    tree = decode_tree(body)
    if not isinstance(tree, dict):
        raise CorruptError(f"the checkpoint's state is no dict but a {type(tree).__name__}")
    key = _chosen(tree, part, weights and isinstance(tree.get(MODEL), dict))
    return tree if key is None else tree[key]


def _registered(objects: Mapping[str, bytes], part: str | None, weights: bool, names: bool) -> Any:
    """Only what is exported is united: pieces that are no one state may be all that is wrong with a checkpoint."""
    parts = pieces_by_part({fqn: body for fqn, body in objects.items() if not fqn.startswith(_OWN)})

    def made(name: str) -> Any:
        tree = united(name, [decode_tree(body) for body in parts[name]])
        return by_name(tree, parts) if names else by_number(tree)

    key = _chosen(parts, part, weights)
    return {name: made(name) for name in parts} if key is None else made(key)


def _chosen(entries: Mapping[Any, Any], part: str | None, weights: bool) -> str | None:
    """The name of the one entry to export, None for all."""
    if part is None:
        return MODEL if weights and MODEL in entries else None
    if part not in entries:
        has = ", ".join(str(key) for key in list(entries)[:20])
        raise ConfigError(f"the checkpoint has no part {part!r}; it has: {has}")
    return part


def refs(tree: Any) -> dict[str, TensorRef]:
    """The tensors of a tree by dotted path. Raises InterchangeError where two have one."""
    found: dict[str, TensorRef] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, TensorRef):
            if path in found:
                raise InterchangeError(
                    f"two tensors have one dotted name, so this format can't tell them apart name={path!r:.200}"
                )
            found[path] = leaf
    return found


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
