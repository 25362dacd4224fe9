"""Regions against brute force with numpy's indices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.model.region import Region, covered_once, intersect


@st.composite
def two_regions(draw: st.DrawFn) -> tuple[tuple[int, ...], Region, Region]:
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))

    def region() -> Region:
        offsets = tuple(draw(st.integers(0, size)) for size in shape)
        return Region(offsets, tuple(draw(st.integers(0, size - offset)) for size, offset in zip(shape, offsets, strict=True)))

    return shape, region(), region()


def indices(shape: tuple[int, ...], region: Region) -> np.ndarray:
    """The global element numbers that a region has, in its own order."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers[tuple(slice(o, o + s) for o, s in zip(region.offsets, region.sizes, strict=True))].ravel()


@given(two_regions())
def test_intersection_is_that_of_the_index_sets(case: tuple[tuple[int, ...], Region, Region]) -> None:
    shape, a, b = case
    both = set(indices(shape, a).tolist()) & set(indices(shape, b).tolist())
    common = intersect(a, b)
    assert both == (set() if common is None else set(indices(shape, common).tolist()))


@given(st.data())
def test_coverage_is_counted_like_by_hand(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    whole = Region((0,) * len(shape), shape)
    axis = [[(o, s) for o in range(size + 1) for s in range(size - o + 1)] for size in shape]
    every = [Region(tuple(o for o, _ in each), tuple(s for _, s in each)) for each in itertools.product(*axis)]
    grid = list(itertools.product(*(_cut(data, size) for size in shape)))
    parts = [Region(tuple(o for o, _ in each), tuple(s for _, s in each)) for each in grid]
    match data.draw(st.integers(0, 3)):
        case 1 if parts:
            parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        case 2:
            parts.append(data.draw(st.sampled_from(every)))
        case 3 if parts:
            parts[-1] = data.draw(st.sampled_from(every))
    counted = np.zeros(shape, int)
    for part in parts:
        counted[tuple(slice(o, o + s) for o, s in zip(part.offsets, part.sizes, strict=True))] += 1
    assert covered_once(whole, data.draw(st.permutations(parts))) == bool((counted == 1).all())


def _cut(data: st.DataObject, size: int) -> list[tuple[int, int]]:
    ends = sorted({size, *data.draw(st.lists(st.integers(0, size), max_size=3))})
    return [(start, end - start) for start, end in itertools.pairwise([0, *ends])]


def test_what_is_no_region_is_refused() -> None:
    with pytest.raises(ValueError, match="not a region"):
        Region((0,), (1, 2))
    with pytest.raises(ValueError, match="not a region"):
        Region((-1,), (1,))
