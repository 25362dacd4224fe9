"""The reshard plan: which bytes of which frames belong where. Pure.

Any stored layout serves any wanted one: a want is cut with every stored region of its tensor, and the bytes that they share lie
in runs, whose frames are found by arithmetic (I9).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ckptd.errors import CorruptError, MissingStateError
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.index import Index
from ckptd.model.layout import Layout, StoredRegion, Tensor
from ckptd.model.region import Region, covered_once, runs
from ckptd_client.messages import Copy, Want


@dataclass(frozen=True, slots=True)
class FrameRead:
    """Frame number ``frame`` of the index is needed: ``stored_bytes`` at ``offset`` of segment row ``segment``.

    Decoded it has ``raw_bytes``, of which ``copies`` say what goes where. Wants are named by their place in the call to `plan`.
    """

    frame: int
    segment: int
    offset: int
    stored_bytes: int
    raw_bytes: int
    copies: Sequence[Copy]


def plan(layout: Layout, index: Index, wants: Sequence[Want]) -> list[FrameRead]:
    """The frames that ``wants`` need, each once, in the order of (segment, offset).

    Raises MissingStateError when a tensor isn't there, or with another dtype or shape, or a want is outside of it, and
    CorruptError when the checkpoint doesn't have every byte of a want exactly once.
    """
    copies: dict[int, list[Copy]] = {}
    for number, want in enumerate(wants):
        tensor = _find(layout, want)
        wanted = Region(want.offsets, want.sizes)
        itemsize = item_bytes(tensor.dtype)
        touched = _touched(tensor, wanted)
        if not covered_once(wanted, [stored.region for _, stored in touched]):
            where = f"fqn={want.fqn!r} offsets={want.offsets} sizes={want.sizes}"
            raise CorruptError(f"the checkpoint doesn't have each element once {where}")
        for row, stored in touched:
            for source, target, count in runs(stored.region, wanted, itemsize):
                for frame, frame_offset, done, length in _in_frames(index, row, source, count):
                    copies.setdefault(frame, []).append(Copy(frame_offset, number, target + done, length))
    return frame_reads(index, copies)


def plan_objects(layout: Layout, index: Index, rank: int) -> tuple[list[tuple[str, int]], list[FrameRead]]:
    """((FQN, bytes) of each object that belongs to ``rank``, or to the world when GLOBAL; the frames that hold them).

    In the reads' copies an object is a want, named by its place in the list.
    """
    found: list[tuple[str, int]] = []
    copies: dict[int, list[Copy]] = {}
    for tensor in layout.tensors:
        if tensor.dtype == OBJECT and tensor.rank == rank:
            nbytes = int(index.places[tensor.first_region]["nbytes"])
            for frame, frame_offset, done, length in _in_frames(index, tensor.first_region, 0, nbytes):
                copies.setdefault(frame, []).append(Copy(frame_offset, len(found), done, length))
            found.append((tensor.fqn, nbytes))
    return found, frame_reads(index, copies)


def frame_reads(index: Index, copies: dict[int, list[Copy]]) -> list[FrameRead]:
    """The reads of these frames, in the order of (segment, offset). Where some are a base's, that isn't their own order."""
    reads = []
    for frame in copies:
        row = index.frames[frame]
        place = (int(row["segment"]), int(row["offset"]), int(row["stored_bytes"]), int(row["raw_bytes"]))
        reads.append(FrameRead(frame, *place, copies[frame]))
    return sorted(reads, key=lambda read: (read.segment, read.offset))


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
    sound = len(want.offsets) == len(want.sizes) and min((0, *want.offsets, *want.sizes)) == 0
    if not sound or not Region(want.offsets, want.sizes).within(tensor.shape):
        raise MissingStateError(f"the tensor has no such region {whose} offsets={want.offsets} sizes={want.sizes}")
    return tensor


def _touched(tensor: Tensor, wanted: Region) -> list[tuple[int, StoredRegion]]:
    """The tensor's regions that share elements with ``wanted``, each with its row in the index."""
    offsets, sizes = tensor.matrix
    low, size = np.array(wanted.offsets, np.int64), np.array(wanted.sizes, np.int64)
    meets = ((offsets < low + size) & (offsets + sizes > low)).all(axis=1)
    return [(tensor.first_region + i, tensor.regions[i]) for i in np.flatnonzero(meets).tolist()]


def _in_frames(index: Index, row: int, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """Bytes [start, start + count) of a region, frame by frame: (frame, offset in it, bytes of the run before it, bytes)."""
    starts = index.frame_starts
    place = index.places[row]
    position = int(starts[place["first_frame"]]) + int(place["frame_offset"]) + start
    frame = int(np.searchsorted(starts, position, side="right")) - 1
    done = 0
    while done < count:
        offset = position + done - int(starts[frame])
        length = min(count - done, int(starts[frame + 1] - starts[frame]) - offset)
        yield frame, offset, done, length
        done += length
        frame += 1
