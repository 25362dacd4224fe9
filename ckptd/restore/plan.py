"""The reshard plan: which bytes of which frames belong where. Pure.

Any stored layout serves any wanted one: a want is cut with every stored region of its tensor, and the bytes that they share lie
in runs, whose frames are found by arithmetic (I9). A state may have tens of thousands of tensors, so all are cut at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptd.errors import CorruptError, MissingStateError
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.index import Index
from ckptd.model.layout import Layout, Tensor
from ckptd.model.region import Ints, Region, covered_once
from ckptd.restore.cut import Boxes, boxes, common, disjoint, runs, spread
from ckptd_client.messages import Want

COPY_COLUMNS: Final = 4
_PAIRS: Final = 1 << 18  # of wants and regions cut at once: it bounds the memory


@dataclass(frozen=True, slots=True, eq=False)
class FrameRead:
    """Frame number ``frame`` of the index is needed: ``stored_bytes`` at ``offset`` of segment row ``segment``.

    Decoded it has ``raw_bytes``. What of them goes where is said by ``copies``: little-endian i64, a row per `messages.Copy`,
    in the order of the frame. Wants are named by their place in the call to `plan`.
    """

    frame: int
    segment: int
    offset: int
    stored_bytes: int
    raw_bytes: int
    copies: Ints


@dataclass(frozen=True, slots=True)
class _Pieces:
    """``count`` bytes at ``source`` of the region in row ``row`` of the layout are those at ``target`` of want ``want``."""

    row: Ints
    source: Ints
    want: Ints
    target: Ints
    count: Ints


def plan(layout: Layout, index: Index, wants: Sequence[Want]) -> list[FrameRead]:
    """The frames that ``wants`` need, each once, in the order of (segment, offset).

    Raises MissingStateError when a tensor isn't there, or with another dtype or shape, or a want is outside of it, and
    CorruptError when the checkpoint doesn't have every byte of a want exactly once.
    """
    tensors = [_find(layout, want) for want in wants]
    return _reads(index, [_copies(index, pieces) for pieces in _cut(layout, tensors, wants)])


def plan_objects(layout: Layout, index: Index, ranks: Sequence[int]) -> tuple[list[tuple[int, str, int]], list[FrameRead]]:
    """((rank, FQN, bytes) of each object that belongs to one of ``ranks``, GLOBAL for the world; the frames that hold them).

    In the reads' copies an object is a want, named by its place in the list.
    """
    found = [tensor for tensor in layout.tensors if tensor.dtype == OBJECT and tensor.rank in ranks]
    rows = np.array([tensor.first_region for tensor in found], np.int64)
    nbytes = index.places["nbytes"][rows].astype(np.int64)
    zero = np.zeros(len(rows), np.int64)
    pieces = _Pieces(rows, zero, np.arange(len(rows), dtype=np.int64), zero, nbytes)
    objects = [(tensor.rank, tensor.fqn, size) for tensor, size in zip(found, nbytes.tolist(), strict=True)]
    return objects, _reads(index, [_copies(index, pieces)])


def frame_reads(index: Index, frames: Iterable[int]) -> list[FrameRead]:
    """The reads of these frames, for no want, by (segment, offset): where some are a base's, that isn't their order."""
    none = np.zeros((0, COPY_COLUMNS), np.int64)
    return _in_order([_read(index, frame, none) for frame in frames])


def _find(layout: Layout, want: Want) -> Tensor:
    tensor = layout.by_name.get((want.fqn, want.rank))
    whose = f"fqn={want.fqn!r}" + (f" rank={want.rank}" if want.rank >= 0 else "")
    if tensor is None or tensor.dtype == OBJECT:
        raise MissingStateError(f"the checkpoint has no such tensor; was the model changed? {whose}")
    if tensor.dtype != want.dtype or tensor.shape != tuple(want.shape):
        stored, wanted = f"{tensor.dtype}{list(tensor.shape)}", f"{want.dtype}{list(want.shape)}"
        raise MissingStateError(
            f"the checkpoint has it otherwise; was the model changed? {whose} stored={stored} wanted={wanted}"
        )
    if not len(want.offsets) == len(want.sizes) == len(tensor.shape) or any(
        offset < 0 or size < 0 or offset + size > whole
        for offset, size, whole in zip(want.offsets, want.sizes, tensor.shape, strict=True)
    ):
        raise MissingStateError(f"the tensor has no such region {whose} offsets={want.offsets} sizes={want.sizes}")
    return tensor


def _cut(layout: Layout, tensors: Sequence[Tensor], wants: Sequence[Want]) -> Iterator[_Pieces]:
    """Cut wants with the regions of their tensors, some at a time. Raises CorruptError for one that isn't covered once."""
    ndim = max((1, *(len(tensor.shape) for tensor in tensors)))
    begin = 0
    while begin < len(wants):
        end, pairs = begin, 0
        while end < len(wants) and (end == begin or pairs + len(tensors[end].regions) <= _PAIRS):
            pairs += len(tensors[end].regions)
            end += 1
        yield _cut_some(tensors[begin:end], wants[begin:end], begin, ndim)
        begin = end


def _cut_some(tensors: Sequence[Tensor], wants: Sequence[Want], first: int, ndim: int) -> _Pieces:
    wanted = boxes([want.offsets for want in wants], [want.sizes for want in wants], ndim)
    regions = [stored.region for tensor in tensors for stored in tensor.regions]
    stored = boxes([region.offsets for region in regions], [region.sizes for region in regions], ndim)
    want, number = spread(np.array([len(tensor.regions) for tensor in tensors], np.int64))
    shared = common(stored, wanted.take(want))
    some = np.flatnonzero((shared.size > 0).all(axis=1))
    want, shared = want[some], shared.take(some)
    _check_covered(tensors, wants, wanted, want, shared)
    itemsize = np.array([item_bytes(tensor.dtype) for tensor in tensors], np.int64)
    found = runs(stored.take(some), wanted.take(want), shared, itemsize[want])
    rows = np.array([tensor.first_region for tensor in tensors], np.int64)[want] + number[some]
    return _Pieces(rows[found.pair], found.source, want[found.pair] + first, found.target, found.count)


def _check_covered(tensors: Sequence[Tensor], wants: Sequence[Want], wanted: Boxes, owner: Ints, parts: Boxes) -> None:
    """Raise CorruptError unless the parts of each want have each of its elements exactly once."""
    elements = np.zeros(len(wants), np.int64)
    np.add.at(elements, owner, parts.size.prod(axis=1))
    as_many = elements == wanted.size.prod(axis=1)
    once = as_many & disjoint(owner, parts, len(wants))
    for number in np.flatnonzero(~once).tolist():
        want, regions = wants[number], [stored.region for stored in tensors[number].regions]
        if not as_many[number] or not covered_once(Region(want.offsets, want.sizes), regions):
            where = f"fqn={want.fqn!r} offsets={want.offsets} sizes={want.sizes}"
            raise CorruptError(f"the checkpoint doesn't have each element once {where}")


def _copies(index: Index, pieces: _Pieces) -> Ints:
    """Pieces, cut where frames end: rows of (frame, and the columns of a copy)."""
    starts = index.frame_starts
    place = index.places[pieces.row]
    begin = starts[place["first_frame"]] + place["frame_offset"].astype(np.int64) + pieces.source
    end = begin + pieces.count
    frame = np.searchsorted(starts, begin, side="right") - 1
    last = np.searchsorted(starts, end, side="left") - 1
    piece, step = spread(np.where(pieces.count > 0, last - frame + 1, 0))
    frame = frame[piece] + step
    low, high = np.maximum(begin[piece], starts[frame]), np.minimum(end[piece], starts[frame + 1])
    target = pieces.target[piece] + low - begin[piece]
    return np.stack([frame, low - starts[frame], pieces.want[piece], target, high - low], axis=1)


def _reads(index: Index, found: Sequence[Ints]) -> list[FrameRead]:
    """The frames that copies come from, each once."""
    rows = np.concatenate([np.zeros((0, 1 + COPY_COLUMNS), np.int64), *found])
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    frames, firsts = np.unique(rows[:, 0], return_index=True)
    groups = np.split(rows[:, 1:].astype("<i8"), firsts[1:])
    return _in_order([_read(index, frame, copies) for frame, copies in zip(frames.tolist(), groups, strict=False)])


def _read(index: Index, frame: int, copies: Ints) -> FrameRead:
    row = index.frames[frame]
    return FrameRead(frame, int(row["segment"]), int(row["offset"]), int(row["stored_bytes"]), int(row["raw_bytes"]), copies)


def _in_order(reads: list[FrameRead]) -> list[FrameRead]:
    return sorted(reads, key=lambda read: (read.segment, read.offset))
