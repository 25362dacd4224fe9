"""Two checkpoints beside each other: which tensors differ, and by how much. Their layouts may be different ones.

Bytes that lie at the same place of frames with equal hashes are equal, and are not read; of the rest only its frames are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ckptd.codec.values import has_fractions, values
from ckptd.errors import CorruptError
from ckptd.model.columns import Array
from ckptd.model.dtypes import OBJECT, item_bytes
from ckptd.model.layout import Tensor
from ckptd.model.region import Ints
from ckptd.restore.checkpoint import Checkpoint
from ckptd.restore.cut import spread
from ckptd.restore.plan import Pieces, cut_wants, in_frames
from ckptd.restore.source import AT_ONCE, Source
from ckptd_client.messages.restoring import Want

Name = tuple[str, int]  # FQN, and rank or GLOBAL
_TENSOR, _FRAME, _OFFSET, _OTHER_FRAME, _OTHER_OFFSET, _COUNT = range(6)


@dataclass(slots=True)
class Difference:
    """How a tensor of one checkpoint differs from that of the other.

    ``unlike`` says why they can't be compared ("" if they can). Of the ``compared`` elements (the others lie in equal frames)
    ``changed`` have other bytes. For floats: the ``largest`` absolute difference and the sum of their ``squares``, without
    those that are ``not_finite``, and the ``norm_squares`` of A's compared elements.
    """

    name: Name
    dtype: str
    elements: int
    unlike: str = ""
    compared: int = 0
    changed: int = 0
    not_finite: int = 0
    largest: float = 0.0
    squares: float = 0.0
    norm_squares: float = 0.0

    @property
    def relative(self) -> float | None:
        """‖B - A‖₂ ÷ ‖A‖₂ over the compared elements; None where A has only zeros."""
        return math.sqrt(self.squares / self.norm_squares) if self.norm_squares else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Names that only one has, how many are byte for byte equal, and the differences of the others, by name."""

    only_a: list[Name]
    only_b: list[Name]
    equal: int
    different: list[Difference]


async def compare(a: Source, b: Source, seen: Callable[[int], object] = lambda _: None) -> Comparison:
    """Everything of both. ``seen`` gets numbers of frames that were looked at. Raises CorruptError, and what a store raises."""
    names_a, names_b = a.checkpoint.layout.by_name, b.checkpoint.layout.by_name
    both = [name for name in names_a if name in names_b]
    found = [_begin(name, a.checkpoint, b.checkpoint) for name in both]
    alike = [one for one in found if not one.unlike]
    rows = unequal(a.checkpoint, b.checkpoint, [one.name for one in alike])
    for frames_a, frames_b, some in _batches(rows):
        bodies_a, bodies_b = await a.frames(frames_a), await b.frames(frames_b)
        triples, firsts = np.unique(some[:, [_FRAME, _OTHER_FRAME, _TENSOR]], axis=0, return_index=True)
        for (frame, other, number), mine in zip(triples.tolist(), np.split(some, firsts[1:]), strict=True):
            _add(alike[number], bodies_a[frame], bodies_b[other], mine)
        seen(len(frames_a) + len(frames_b))
    different = [one for one in found if one.unlike or one.changed]
    only_a, only_b = ([n for n in these if n not in others] for these, others in ((names_a, names_b), (names_b, names_a)))
    return Comparison(only_a, only_b, len(both) - len(different), different)


def unequal(a: Checkpoint, b: Checkpoint, names: Sequence[Name]) -> Ints:
    """Rows of (number of the name, frame and offset in A, frame and offset in B, bytes) of what may differ; in A's order.

    Pure. The tensors must have the same dtype and shape in both; objects, the same length.
    """
    tensors_a, tensors_b = [a.layout.by_name[name] for name in names], [b.layout.by_name[name] for name in names]
    tensors = [number for number, tensor in enumerate(tensors_a) for _ in tensor.regions]
    regions = [(tensor, stored.region) for tensor in tensors_a for stored in tensor.regions]
    wants = [Want(t.fqn, t.rank, t.dtype, t.shape, region.offsets, region.sizes) for t, region in regions]
    row_of = np.array([t.first_region + k for t in tensors_a for k in range(len(t.regions))], np.int64)
    tensor_of = np.array(tensors, np.int64)
    kinds = [tensors_a[number].dtype == OBJECT for number in tensors]
    groups = [_objects(a, [row for row, is_object in enumerate(kinds) if is_object], row_of, tensors, tensors_b)]
    plain = [row for row, is_object in enumerate(kinds) if not is_object]
    for pieces in cut_wants([tensors_b[tensors[row]] for row in plain], [wants[row] for row in plain]):
        numbers = np.array(plain, np.int64)[pieces.want]
        groups.append((pieces, numbers))
    return _in_both(a, b, groups, row_of, tensor_of)


def _objects(
    a: Checkpoint, rows: list[int], row_of: Ints, tensors: Sequence[int], tensors_b: Sequence[Tensor]
) -> tuple[Pieces, Ints]:
    """An object is one piece."""
    numbers, zero = np.array(rows, np.int64), np.zeros(len(rows), np.int64)
    theirs = np.array([tensors_b[tensors[row]].first_region for row in rows], np.int64)
    count = a.index.places["nbytes"][row_of[numbers]].astype(np.int64)
    return Pieces(theirs, zero, numbers, zero, count), numbers


def _in_both(a: Checkpoint, b: Checkpoint, groups: Sequence[tuple[Pieces, Ints]], row_of: Ints, tensor_of: Ints) -> Ints:
    """Pieces, cut where the frames of either end, without those that lie alike in equal frames."""
    found = [np.zeros((0, 6), np.int64)]
    for pieces, numbers in groups:
        theirs = in_frames(b.index, Pieces(pieces.row, pieces.source, numbers, pieces.target, pieces.count))
        frame_b, offset_b, want, target, count = theirs.T
        each = np.arange(len(theirs), dtype=np.int64)
        ours = in_frames(a.index, Pieces(row_of[want], target, each, np.zeros_like(each), count))
        frame_a, offset_a, piece, within, length = ours.T
        rows = np.stack([tensor_of[want[piece]], frame_a, offset_a, frame_b[piece], offset_b[piece] + within, length], axis=1)
        same = a.index.frames["raw_hash"][rows[:, _FRAME]] == b.index.frames["raw_hash"][rows[:, _OTHER_FRAME]]
        found.append(rows[~(same & (rows[:, _OFFSET] == rows[:, _OTHER_OFFSET]))])
    rows = np.concatenate(found)
    return rows[np.lexsort((rows[:, _TENSOR], rows[:, _OTHER_FRAME], rows[:, _FRAME]))]


def _begin(name: Name, a: Checkpoint, b: Checkpoint) -> Difference:
    ours, theirs = a.layout.by_name[name], b.layout.by_name[name]
    if ours.dtype == OBJECT and theirs.dtype == OBJECT:
        length, other = (int(one.index.places["nbytes"][t.first_region]) for one, t in ((a, ours), (b, theirs)))
        return Difference(name, OBJECT, length, "" if length == other else f"{length} and {other} bytes")
    one, other_one = (f"{t.dtype}{list(t.shape)}" for t in (ours, theirs))
    return Difference(name, ours.dtype, math.prod(ours.shape), "" if one == other_one else f"{one} and {other_one}")


def _batches(rows: Ints) -> Iterator[tuple[list[int], list[int], Ints]]:
    """(A's frames, B's frames, rows) of as many rows as need no more than AT_ONCE of either."""
    pairs, firsts = np.unique(rows[:, [_FRAME, _OTHER_FRAME]], axis=0, return_index=True)
    ends = [*firsts[1:].tolist(), len(rows)]
    begin, frames, others = 0, dict[int, None](), dict[int, None]()
    for (frame, other), start in zip(pairs.tolist(), firsts.tolist(), strict=True):
        if len(frames.keys() | {frame}) > AT_ONCE or len(others.keys() | {other}) > AT_ONCE:
            yield list(frames), list(others), rows[begin:start]
            begin, frames, others = start, {}, {}
        frames[frame] = others[other] = None
    if frames:
        yield list(frames), list(others), rows[begin : ends[-1]]


def _add(found: Difference, body_a: memoryview, body_b: memoryview, rows: Ints) -> None:
    """What one frame of A and one of B say."""
    a, b = (_gather(body, rows[:, at], rows[:, _COUNT]) for body, at in ((body_a, _OFFSET), (body_b, _OTHER_OFFSET)))
    size = item_bytes(found.dtype)
    if len(a) % size:
        raise CorruptError(f"a frame ends in the middle of an element fqn={found.name[0]!r}")
    other = (a.reshape(-1, size) != b.reshape(-1, size)).any(axis=1)
    found.compared += len(other)
    found.changed += int(other.sum())
    if not has_fractions(found.dtype):
        return
    with np.errstate(all="ignore"):
        before = values(a.tobytes(), found.dtype)
        wide = np.complex128 if np.iscomplexobj(before) else np.float64
        norm = np.abs(before.astype(wide))
        found.norm_squares += float((norm[np.isfinite(norm)] ** 2).sum())
        apart = np.abs(values(b.tobytes(), found.dtype).astype(wide) - before.astype(wide))
        apart[np.repeat(~other, len(apart) // max(len(other), 1))] = 0  # inf - inf of equal bytes is no difference
        finite = np.isfinite(apart)
        found.not_finite += len(apart) - int(finite.sum())
        found.largest = max(found.largest, float(apart[finite].max(initial=0)))
        found.squares += float((apart[finite] ** 2).sum())


def _gather(body: memoryview, offsets: Ints, counts: Ints) -> Array:
    """The bytes of these runs, one behind the other."""
    whole: Array = np.frombuffer(body, np.uint8)
    if len(offsets) == 1:
        return whole[int(offsets[0]) : int(offsets[0] + counts[0])]
    which, number = spread(counts)
    gathered: Array = whole[offsets[which] + number]
    return gathered
