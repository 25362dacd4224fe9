"""Cutting many boxes with many others at once: which bytes of stored regions are which bytes of wanted ones. Pure.

Boxes are rows of low corners and sizes, one column per dimension; those of fewer dimensions begin with dimensions of size 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from ckptd.model.region import Ints


@dataclass(frozen=True, slots=True)
class Boxes:
    """n boxes: ``low`` and ``size`` are n × dimensions."""

    low: Ints
    size: Ints

    def take(self, rows: Ints) -> Boxes:
        """Those rows of it."""
        return Boxes(self.low[rows], self.size[rows])


def boxes(offsets: Sequence[Sequence[int]], sizes: Sequence[Sequence[int]], ndim: int) -> Boxes:
    """Boxes of at most ``ndim`` dimensions each."""
    counts = np.fromiter(map(len, sizes), np.int64, len(sizes))
    low, size = np.zeros((len(sizes), ndim), np.int64), np.ones((len(sizes), ndim), np.int64)
    for rows, matrix in ((offsets, low), (sizes, size)):
        values = np.fromiter(chain.from_iterable(rows), np.int64, int(counts.sum()))
        which, number = spread(counts)
        matrix[which, ndim - counts[which] + number] = values
    return Boxes(low, size)


def common(a: Boxes, b: Boxes) -> Boxes:
    """What each pair of boxes shares; a size below 1 says: nothing."""
    low = np.maximum(a.low, b.low)
    return Boxes(low, np.minimum(a.low + a.size, b.low + b.size) - low)


def disjoint(owner: Ints, parts: Boxes, owners: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """For each of ``owners``: are its parts one behind the other along some dimension?

    Then none overlaps another. Parts that form a grid are disjoint, too, and get False.
    """
    found = np.zeros(owners, np.bool_)
    for dim in range(parts.low.shape[1]):
        low, end = parts.low[:, dim], parts.low[:, dim] + parts.size[:, dim]
        order = np.lexsort((low, owner))
        whose = owner[order]
        overlaps = (whose[1:] == whose[:-1]) & (end[order][:-1] > low[order][1:])
        found |= np.bincount(whose[1:][overlaps], minlength=owners) == 0
    return found


def overlaps(parts: Boxes) -> bool:
    """Do two of them share an element? Counted on the grid of all their edges, whose cells ``grid_cells`` are.

    Each part adds one to all cells that it covers: as 2^dimensions corners, summed up along every dimension afterwards.
    """
    edges = [np.unique(np.concatenate([low, low + size])) for low, size in zip(parts.low.T, parts.size.T, strict=True)]
    ends = [np.searchsorted(of, low + size) for of, low, size in zip(edges, parts.low.T, parts.size.T, strict=True)]
    begins = [np.searchsorted(of, low) for of, low in zip(edges, parts.low.T, strict=True)]
    counts = np.zeros([len(of) for of in edges], np.int64)
    for corner in product((0, 1), repeat=len(edges)):
        at = tuple(end if last else begin for begin, end, last in zip(begins, ends, corner, strict=True))
        np.add.at(counts, at, -1 if sum(corner) % 2 else 1)
    for dim in range(counts.ndim):
        counts = np.cumsum(counts, axis=dim)
    return bool((counts > 1).any())


def grid_cells(parts: Boxes) -> int:
    """How many cells `overlaps` would count."""
    pairs = zip(parts.low.T, parts.size.T, strict=True)
    return math.prod(len(np.unique(np.concatenate([low, low + size]))) for low, size in pairs)


@dataclass(frozen=True, slots=True)
class Near:
    """For each wanted box the stored ones that it may meet: ``rows[begin : begin + count]``. None that it meets is left out."""

    rows: Ints
    begin: Ints
    count: Ints


def near(stored: Boxes, wanted: Boxes) -> Near:
    """Found dimension by dimension: those that begin before its end and don't end before it begins lie in a row, when sorted by
    where they begin. Each wanted box takes the dimension that leaves it the fewest.
    """
    total, ndim = stored.low.shape
    orders, begins, counts = [], [], []
    for dim in range(ndim):
        order = np.argsort(stored.low[:, dim], kind="stable")
        low = stored.low[order, dim]
        reach = np.maximum.accumulate(low + stored.size[order, dim])
        begin = np.searchsorted(reach, wanted.low[:, dim], side="right")
        end = np.searchsorted(low, wanted.low[:, dim] + wanted.size[:, dim], side="left")
        orders.append(order.astype(np.int64))
        begins.append(begin + dim * total)
        counts.append(np.maximum(end - begin, 0))
    count = np.stack(counts)
    best = count.argmin(axis=0)
    each = np.arange(len(best))
    return Near(np.concatenate(orders), np.stack(begins)[best, each].astype(np.int64), count[best, each].astype(np.int64))


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of bytes that pair number ``pair`` shares: ``count`` bytes at ``source`` in the one, at ``target`` in the other."""

    pair: Ints
    source: Ints
    target: Ints
    count: Ints


def runs(stored: Boxes, wanted: Boxes, shared: Boxes, itemsize: Ints) -> Runs:
    """The contiguous runs of bytes of each pair's ``shared`` box (of at least one element), row-major within each box.

    As few as possible: trailing dimensions which both boxes cover alike are part of the run, so row shards share one run.
    """
    ndim = shared.size.shape[1]
    columns = np.arange(ndim)
    partial = (shared.size != stored.size) | (shared.size != wanted.size)
    inner = np.where(partial, columns, 0).max(axis=1, initial=0)  # the run covers this dimension and those after it
    outer = columns < inner[:, None]
    count = np.where(outer, 1, shared.size).prod(axis=1) * itemsize
    steps = np.where(outer, shared.size, 1)
    source_stride, target_stride = _strides(stored.size, itemsize), _strides(wanted.size, itemsize)
    source = ((shared.low - stored.low) * source_stride).sum(axis=1)
    target = ((shared.low - wanted.low) * target_stride).sum(axis=1)
    pair, number = spread(steps.prod(axis=1))
    source, target = source[pair], target[pair]
    for dim in reversed(range(ndim)):
        number, digit = np.divmod(number, steps[pair, dim])
        source += digit * source_stride[pair, dim]
        target += digit * target_stride[pair, dim]
    return Runs(pair, source, target, count[pair])


def spread(counts: Ints) -> tuple[Ints, Ints]:
    """(i, k) for every k below ``counts[i]``, in order."""
    which = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    ends = np.cumsum(counts)
    return which, np.arange(len(which), dtype=np.int64) - (ends - counts)[which]


def _strides(size: Ints, itemsize: Ints) -> Ints:
    """Bytes from one index of each dimension to the next, row-major."""
    behind = np.cumprod(size[:, :0:-1], axis=1)[:, ::-1]
    return np.concatenate([behind, np.ones((len(size), 1), np.int64)], axis=1)[:, -size.shape[1] :] * itemsize[:, None]
