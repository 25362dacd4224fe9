"""A layout: what stays the same from checkpoint to checkpoint of one generation (PROTOCOLS 3).

A column file (see `columns`) with the magic "CKPTLAYO": tensors and objects, sorted by (FQN, rank), and their regions. Named by
its content; neither lengths of objects nor names of writers are in it, so all checkpoints of a generation share one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from ckptd.model.columns import I8, U1, Array, Dims, Format, pack_texts, unpack_texts
from ckptd.model.dtypes import OBJECT, dtype_code, dtype_name
from ckptd.model.region import Region

GLOBAL: Final = -1
"""As a tensor's rank: it belongs to the world, not to one rank."""

_TENSOR: Final = np.dtype([("rank", "<i4"), ("dtype", "u1"), ("ndim", "u1"), ("zero", "<u2"), ("regions", "<u4")])
_REGION: Final = np.dtype([("rank", "<u4"), ("writer", "<u4")])

_FORMAT: Final = Format(
    "a layout",
    b"CKPTLAYO",
    (
        ("tensors", _TENSOR),
        ("shapes", I8),
        ("regions", _REGION),
        ("offsets", I8),
        ("sizes", I8),
        ("fqn_ends", I8),
        ("fqn_text", U1),
    ),
    limit_bytes=1 << 30,
)


@dataclass(frozen=True, slots=True)
class StoredRegion:
    """A region, the rank whose state it was, and its writer's place in the index's table of writers."""

    region: Region
    rank: int
    writer: int


@dataclass(frozen=True)
class Tensor:
    """A tensor or object ("object" as dtype, no dimensions, one region). ``rank`` is GLOBAL or the rank that owns it.

    ``regions`` are those with bytes; an object's is always there. ``first_region`` is the number of the first in layout order.
    """

    fqn: str
    rank: int
    dtype: str
    shape: tuple[int, ...]
    first_region: int
    regions: tuple[StoredRegion, ...]


class Layout:
    """All tensors of a checkpoint, in layout order."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tuple(tensors)

    @cached_property
    def by_name(self) -> dict[tuple[str, int], Tensor]:
        """Tensors by (FQN, rank or GLOBAL)."""
        return {(tensor.fqn, tensor.rank): tensor for tensor in self.tensors}

    @property
    def region_count(self) -> int:
        """How many regions all tensors have."""
        return sum(len(tensor.regions) for tensor in self.tensors)

    def encode(self) -> bytes:
        """Its bytes; equal layouts have equal bytes."""
        regions = [stored for tensor in self.tensors for stored in tensor.regions]
        ends, text = pack_texts([tensor.fqn for tensor in self.tensors])
        rows = [(t.rank, dtype_code(t.dtype), len(t.shape), 0, len(t.regions)) for t in self.tensors]
        return _FORMAT.encode(
            {
                "tensors": np.array(rows, _TENSOR),
                "shapes": np.array([size for tensor in self.tensors for size in tensor.shape], I8),
                "regions": np.array([(stored.rank, stored.writer) for stored in regions], _REGION),
                "offsets": np.array([offset for stored in regions for offset in stored.region.offsets], I8),
                "sizes": np.array([size for stored in regions for size in stored.region.sizes], I8),
                "fqn_ends": ends,
                "fqn_text": text,
            }
        )


def decode_layout(data: bytes) -> Layout:
    """Read a layout. Raises CorruptError for whatever `Layout.encode` can't have written."""
    columns = _FORMAT.decode(data)
    rows, regions = columns["tensors"], columns["regions"]
    fqns = unpack_texts(_FORMAT, columns["fqn_ends"], columns["fqn_text"])
    if len(fqns) != len(rows) or int(rows["regions"].sum(dtype=np.int64)) != len(regions):
        raise _FORMAT.bad("columns have different lengths")
    shapes = Dims(_FORMAT, rows["ndim"], columns["shapes"])
    ndims = np.repeat(rows["ndim"], rows["regions"])
    offsets, sizes = Dims(_FORMAT, ndims, columns["offsets"]), Dims(_FORMAT, ndims, columns["sizes"])
    _check_regions(rows, shapes, offsets, sizes)
    places = map(Region, offsets.tuples(), sizes.tuples())
    every = tuple(map(StoredRegion, places, regions["rank"].tolist(), regions["writer"].tolist()))
    tensors: list[Tensor] = []
    first = 0
    for (rank, code, _, zero, count), fqn, shape in zip(rows.tolist(), fqns, shapes.tuples(), strict=True):
        tensor = Tensor(fqn, rank, dtype_name(code), shape, first, every[first : first + count])
        if zero or rank < GLOBAL or (tensor.dtype == OBJECT and (shape or count != 1)):
            raise _FORMAT.bad(f"a tensor is out of bounds fqn={fqn!r:.200}")
        if tensors and (tensors[-1].fqn, tensors[-1].rank) >= (fqn, rank):
            raise _FORMAT.bad("tensors are not sorted")
        tensors.append(tensor)
        first += count
    return Layout(tensors)


def _check_regions(rows: Array, shapes: Dims, offsets: Dims, sizes: Dims) -> None:
    """Raise CorruptError unless each region has elements and lies within its tensor."""
    tensor = np.repeat(np.arange(len(rows)), rows["regions"])
    for ndim in np.unique(rows["ndim"]).tolist():
        which, shape = shapes.rows(ndim)
        place = np.zeros(len(rows), np.int64)
        place[which] = np.arange(len(which))
        of, low = offsets.rows(ndim)
        _, size = sizes.rows(ndim)
        if (size < 1).any() or (low > shape[place[tensor[of]]] - size).any():
            raise _FORMAT.bad("a region is empty, or outside of its tensor")
