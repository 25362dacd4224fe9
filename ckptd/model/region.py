"""Regions: rectangles of a tensor.

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


def covered_once(whole: Region, parts: Sequence[Region]) -> bool:
    """Do ``parts``, cut to ``whole``, have every element of it exactly once (I9)?"""
    cut = [part for part in (intersect(part, whole) for part in parts) if part is not None]
    if sum(part.elements for part in cut) != whole.elements:
        return False
    return disjoint_regions(cut)


def disjoint_regions(parts: Sequence[Region]) -> bool:
    """Has no element more than one of ``parts``, which have elements each?"""
    if len(parts) < 2:
        return True
    if not parts[0].sizes:
        return False
    # A sweep along the dimension that is cut most: only neighbours in it can overlap.
    dim = max(range(len(parts[0].sizes)), key=lambda d: len({part.offsets[d] for part in parts}))
    active: list[Region] = []
    for part in sorted(parts, key=lambda part: part.offsets[dim]):
        active = [other for other in active if other.offsets[dim] + other.sizes[dim] > part.offsets[dim]]
        if any(intersect(part, other) for other in active):
            return False
        active.append(part)
    return True
