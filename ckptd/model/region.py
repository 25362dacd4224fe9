"""Regions: rectangles of a tensor, and which bytes of one are which bytes of another.

A region's bytes lie row-major in a buffer of its own. A 0-dim tensor has one region, with offsets () and sizes ().
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """``sizes`` elements from ``offsets`` on, per dimension of the whole tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.sizes) or min((*self.offsets, *self.sizes, 0)) < 0:
            raise ValueError(f"not a region: {self.offsets} {self.sizes}")

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.sizes)

    def within(self, shape: Sequence[int]) -> bool:
        """Does it lie inside a tensor of this shape?"""
        return len(shape) == len(self.sizes) and all(
            offset + size <= whole for offset, size, whole in zip(self.offsets, self.sizes, shape, strict=True)
        )


def intersect(a: Region, b: Region) -> Region | None:
    """The elements that both have; None when there are none. Both are regions of one tensor."""
    offsets = tuple(map(max, a.offsets, b.offsets))
    ends = (min(o + s, p + t) for o, s, p, t in zip(a.offsets, a.sizes, b.offsets, b.sizes, strict=True))
    sizes = tuple(end - offset for offset, end in zip(offsets, ends, strict=True))
    return None if any(size <= 0 for size in sizes) else Region(offsets, sizes)


def runs(stored: Region, wanted: Region, itemsize: int) -> list[tuple[int, int, int]]:
    """The contiguous byte runs that both regions share: (offset in stored, offset in wanted, count), in bytes, row-major.

    As few as possible: trailing dimensions which both regions cover alike are part of the run, so row shards share one run.
    """
    common = intersect(stored, wanted)
    if common is None:
        return []
    inner = _inner_dimensions(common, stored, wanted)
    count = math.prod(common.sizes[inner:]) * itemsize
    sources = _starts(common, stored, inner, itemsize)
    targets = _starts(common, wanted, inner, itemsize)
    return [(source, target, count) for source, target in zip(sources.tolist(), targets.tolist(), strict=True)]


def _inner_dimensions(common: Region, stored: Region, wanted: Region) -> int:
    """First dimension of those that one run covers: all after it are whole in both regions."""
    inner = len(common.sizes)
    while inner > 0:
        inner -= 1
        if not common.sizes[inner] == stored.sizes[inner] == wanted.sizes[inner]:
            break
    return inner


def _starts(common: Region, region: Region, inner: int, itemsize: int) -> Ints:
    """Byte offset within ``region`` of each run of ``common``; the runs differ in the dimensions before ``inner``."""
    stride = itemsize
    starts = np.zeros(1, np.int64)
    for dim in reversed(range(len(region.sizes))):
        first = common.offsets[dim] - region.offsets[dim]
        steps = common.sizes[dim] if dim < inner else 1
        along = (np.arange(steps, dtype=np.int64) + first) * stride
        starts = (along[:, None] + starts[None, :]).ravel()
        stride *= region.sizes[dim]
    return starts


def covered_once(whole: Region, parts: Sequence[Region]) -> bool:
    """Do ``parts``, cut to ``whole``, have every element of it exactly once (I9)?"""
    cut = [part for part in (intersect(part, whole) for part in parts) if part is not None]
    if sum(part.elements for part in cut) != whole.elements:
        return False
    if not whole.sizes:
        return True
    # A sweep along the dimension that is cut most: only neighbours in it can overlap.
    dim = max(range(len(whole.sizes)), key=lambda d: len({part.offsets[d] for part in cut}))
    active: list[Region] = []
    for part in sorted(cut, key=lambda part: part.offsets[dim]):
        active = [other for other in active if other.offsets[dim] + other.sizes[dim] > part.offsets[dim]]
        if any(intersect(part, other) for other in active):
            return False
        active.append(part)
    return True
