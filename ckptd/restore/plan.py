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
from ckptd.model.region import Ints, Region, disjoint_regions
from ckptd.restore.cut import Boxes, boxes, common, disjoint, grid_cells, near, overlaps, runs, spread
from ckptd_client.messages.restoring import Want

COPY_COLUMNS: Final = 4
_PAIRS: Final = 1 << 18  # of wants and regions cut at once: it bounds the memory
_MANY_REGIONS: Final = 64  # of one tensor: from there on it pays to look for those near a want
_CELLS: Final = 1 << 22  # of a grid on which overlaps are counted: 32 MiB


@dataclass(frozen=True, slots=True, eq=False)
class FrameRead:
    """Frame number ``frame`` of the index is needed: ``stored_bytes`` at ``offset`` of segment row ``segment``.

    Decoded it has ``raw_bytes``. What of them goes where is said by ``copies``: little-endian i64, a row per `Copy`,
    in the order of the frame. Wants are named by their place in the call to `plan`.
    """

    frame: int
    segment: int
    offset: int
    stored_bytes: int
    raw_bytes: int
    copies: Ints


@dataclass(frozen=True, slots=True)
class Pieces:
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
    return _reads(index, [in_frames(index, pieces) for pieces in cut_wants(tensors, wants)])


def plan_objects(layout: Layout, index: Index, ranks: Sequence[int]) -> tuple[list[tuple[int, str, int]], list[FrameRead]]:
    """((rank, FQN, bytes) of each object that belongs to one of ``ranks``, GLOBAL for the world; the frames that hold them).

    In the reads' copies an object is a want, named by its place in the list.
    """
    found = [tensor for tensor in layout.tensors if tensor.dtype == OBJECT and tensor.rank in ranks]
    rows = np.array([tensor.first_region for tensor in found], np.int64)
    nbytes = index.places["nbytes"][rows].astype(np.int64)
    zero = np.zeros(len(rows), np.int64)
    pieces = Pieces(rows, zero, np.arange(len(rows), dtype=np.int64), zero, nbytes)
    objects = [(tensor.rank, tensor.fqn, size) for tensor, size in zip(found, nbytes.tolist(), strict=True)]
    return objects, _reads(index, [in_frames(index, pieces)])


def frame_reads(index: Index, frames: Iterable[int]) -> list[FrameRead]:
    """The reads of these frames, for no want, by (segment, offset): where some are a base's, that isn't their order."""
    numbers = np.fromiter(frames, np.int64)
    return _in_order(index, numbers, [np.zeros((0, COPY_COLUMNS), np.int64)] * len(numbers))


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


@dataclass(frozen=True, slots=True)
class _Meetings:
    """What each want may meet: its rows in ``order[begin : begin + count]`` are rows of ``stored`` and of ``rows``, which says
    where the region is in the layout."""

    stored: Boxes
    rows: Ints
    order: Ints
    begin: Ints
    count: Ints


def cut_wants(tensors: Sequence[Tensor], wants: Sequence[Want]) -> Iterator[Pieces]:
    """Cut wants with the regions of their tensors, some at a time. Raises CorruptError for one that isn't covered once."""
    ndim = max((1, *(len(tensor.shape) for tensor in tensors)))
    wanted = boxes([want.offsets for want in wants], [want.sizes for want in wants], ndim)
    meetings = _meetings(tensors, wanted, ndim)
    itemsize = np.array([item_bytes(tensor.dtype) for tensor in tensors], np.int64)
    ends = np.cumsum(meetings.count)
    begin = 0
    while begin < len(wants):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        some = np.arange(begin, end, dtype=np.int64)
        which, number = spread(meetings.count[some])
        yield _cut_some(wants, wanted, meetings, itemsize, some, some[which], number)
        begin = end


def _meetings(tensors: Sequence[Tensor], wanted: Boxes, ndim: int) -> _Meetings:
    """All regions of a tensor for each want of it; where that would be many pairs, those near it."""
    places: dict[int, int] = {}  # of a tensor's first region here, by its place in the layout
    once: list[Tensor] = []
    total = 0
    for tensor in tensors:
        if tensor.regions and tensor.first_region not in places:
            places[tensor.first_region] = total
            once.append(tensor)
            total += len(tensor.regions)
    regions = [stored.region for tensor in once for stored in tensor.regions]
    stored = boxes([region.offsets for region in regions], [region.sizes for region in regions], ndim)
    which, number = spread(np.array([len(tensor.regions) for tensor in once], np.int64))
    rows = np.array([tensor.first_region for tensor in once], np.int64)[which] + number
    begin = np.array([places[tensor.first_region] if tensor.regions else 0 for tensor in tensors], np.int64)
    count = np.array([len(tensor.regions) for tensor in tensors], np.int64)
    orders, have = [np.arange(total, dtype=np.int64)], total
    many: dict[int, list[int]] = {}
    for want in np.flatnonzero(count > _MANY_REGIONS).tolist():
        many.setdefault(int(begin[want]), []).append(want)
    for place, numbers in many.items():
        of = np.arange(place, place + int(count[numbers[0]]), dtype=np.int64)
        found = near(stored.take(of), wanted.take(np.array(numbers, np.int64)))
        orders.append(found.rows + place)
        begin[numbers], count[numbers] = found.begin + have, found.count
        have += len(found.rows)
    return _Meetings(stored, rows, np.concatenate(orders), begin, count)


def _cut_some(
    wants: Sequence[Want], wanted: Boxes, meetings: _Meetings, itemsize: Ints, some: Ints, want: Ints, number: Ints
) -> Pieces:
    """Pairs of ``want`` and the ``number``-th region that it may meet; ``some`` are the wants that these are of."""
    row = meetings.order[meetings.begin[want] + number]
    shared = common(meetings.stored.take(row), wanted.take(want))
    meet = np.flatnonzero((shared.size > 0).all(axis=1))
    want, row, shared = want[meet], row[meet], shared.take(meet)
    _check_covered(wants, wanted, some, want, shared)
    found = runs(meetings.stored.take(row), wanted.take(want), shared, itemsize[want])
    return Pieces(meetings.rows[row[found.pair]], found.source, want[found.pair], found.target, found.count)


def _check_covered(wants: Sequence[Want], wanted: Boxes, some: Ints, owner: Ints, parts: Boxes) -> None:
    """Raise CorruptError unless the parts of each want among ``some`` (in a row) have each of its elements exactly once."""
    first = int(some[0])
    owner = owner - first
    elements = np.zeros(len(some), np.int64)
    np.add.at(elements, owner, parts.size.prod(axis=1))
    as_many = elements == wanted.size[some].prod(axis=1)
    once = as_many & disjoint(owner, parts, len(some))
    unsure = np.flatnonzero(~once)
    ends = np.searchsorted(owner, unsure, side="right")
    begins = np.searchsorted(owner, unsure, side="left")
    for number, begin, end in zip(unsure.tolist(), begins.tolist(), ends.tolist(), strict=True):
        if not as_many[number] or _overlap(Boxes(parts.low[begin:end], parts.size[begin:end])):
            want = wants[first + number]
            where = f"fqn={want.fqn!r} offsets={want.offsets} sizes={want.sizes}"
            raise CorruptError(f"the checkpoint doesn't have each element once {where}")


def _overlap(parts: Boxes) -> bool:
    """Fast for parts that form something like a grid, and possible in any case."""
    if grid_cells(parts) <= _CELLS:
        return overlaps(parts)
    found = [Region(tuple(low), tuple(size)) for low, size in zip(parts.low.tolist(), parts.size.tolist(), strict=True)]
    return not disjoint_regions(found)


def in_frames(index: Index, pieces: Pieces) -> Ints:
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
    return _in_order(index, frames, np.split(rows[:, 1:].astype("<i8"), firsts[1:]))


def _in_order(index: Index, frames: Ints, copies: Sequence[Ints]) -> list[FrameRead]:
    """The reads of these frames, by (segment, offset)."""
    found = index.frames[frames]
    order = np.lexsort((found["offset"], found["segment"])).tolist()
    segments, offsets, stored, raw = (found[name].tolist() for name in ("segment", "offset", "stored_bytes", "raw_bytes"))
    numbers = frames.tolist()
    return [FrameRead(numbers[i], segments[i], offsets[i], stored[i], raw[i], copies[i]) for i in order]
