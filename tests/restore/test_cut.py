"""Cutting boxes, against brute force with numpy's indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.restore.cut import Boxes, boxes, common, disjoint, grid_cells, near, overlaps, runs

Shape = tuple[int, ...]
Box = tuple[Shape, Shape]  # (offsets, sizes)


@st.composite
def pairs(draw: st.DrawFn) -> list[tuple[Shape, Box, Box, int]]:
    """(shape of a tensor, two boxes in it, bytes of an element), several."""

    def box(shape: Shape) -> Box:
        offsets = tuple(draw(st.integers(0, size)) for size in shape)
        return offsets, tuple(draw(st.integers(0, size - offset)) for size, offset in zip(shape, offsets, strict=True))

    shapes = draw(st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4))
    return [(shape, box(shape), box(shape), draw(st.sampled_from([1, 2, 4, 16]))) for shape in shapes]


def together(found: list[Box]) -> Boxes:
    return boxes([offsets for offsets, _ in found], [sizes for _, sizes in found], 4)


def byte_numbers(shape: Shape, box: Box, itemsize: int) -> np.ndarray:
    """The numbers in the whole tensor of the bytes that a box has, in its own order."""
    numbers = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    return numbers[tuple(slice(o, o + s) for o, s in zip(*box, strict=True))].ravel()


@given(pairs())
def test_runs_pair_the_same_bytes_and_no_others(cases: list[tuple[Shape, Box, Box, int]]) -> None:
    stored, wanted = together([case[1] for case in cases]), together([case[2] for case in cases])
    shared = common(stored, wanted)
    some = np.flatnonzero((shared.size > 0).all(axis=1))
    itemsize = np.array([case[3] for case in cases], np.int64)
    found = runs(stored.take(some), wanted.take(some), shared.take(some), itemsize[some])
    got = [np.full(len(byte_numbers(shape, b, size)), -1) for shape, _, b, size in cases]
    for pair, source, target, count in zip(
        some[found.pair].tolist(), found.source.tolist(), found.target.tolist(), found.count.tolist(), strict=True
    ):
        shape, a, _, size = cases[pair]
        sources = byte_numbers(shape, a, size)
        assert count > 0 and source + count <= len(sources) and target + count <= len(got[pair])
        assert (got[pair][target : target + count] == -1).all()
        got[pair][target : target + count] = sources[source : source + count]
    for (shape, a, b, size), numbers in zip(cases, got, strict=True):
        wants = byte_numbers(shape, b, size)
        assert (numbers == np.where(np.isin(wants, byte_numbers(shape, a, size)), wants, -1)).all()


@pytest.mark.parametrize(
    ("stored", "wanted", "count"),
    [
        (((0, 0, 0), (8, 3, 5)), ((2, 0, 0), (4, 3, 5)), 1),  # rows of rows
        (((0, 0), (8, 6)), ((0, 3), (8, 3)), 8),  # columns of a whole
        (((0, 3), (8, 3)), ((0, 3), (8, 3)), 1),  # the same columns
        (((0, 0, 0), (2, 4, 6)), ((0, 1, 0), (2, 2, 6)), 2),
        (((), ()), ((), ()), 1),
    ],
)
def test_runs_are_as_few_as_possible(stored: Box, wanted: Box, count: int) -> None:
    a, b = together([stored]), together([wanted])
    assert len(runs(a, b, common(a, b), np.array([4])).pair) == count


@given(st.data())
def test_what_is_called_disjoint_is(data: st.DataObject) -> None:
    shape = (4, 3)
    owners = data.draw(st.integers(1, 3))

    def part() -> tuple[int, Box]:
        offsets = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        sizes = tuple(data.draw(st.integers(1, size - o)) for size, o in zip(shape, offsets, strict=True))
        return data.draw(st.integers(0, owners - 1)), (offsets, sizes)

    found = [part() for _ in range(data.draw(st.integers(0, 6)))]
    said = disjoint(np.array([owner for owner, _ in found], np.int64), together([box for _, box in found]), owners)
    for owner in range(owners):
        counted = np.zeros(shape, int)
        for _, (offsets, sizes) in (each for each in found if each[0] == owner):
            counted[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
        assert not said[owner] or counted.max() <= 1


def test_shards_along_any_dimension_are_seen_to_be_disjoint() -> None:
    for dim in range(3):
        cuts = [tuple(2 * i if d == dim else 0 for d in range(3)) for i in range(4)]
        sizes = [tuple(2 if d == dim else 8 for d in range(3))] * 4
        order = [2, 0, 3, 1]
        parts = together([(cuts[i], sizes[i]) for i in order])
        assert disjoint(np.zeros(4, np.int64), parts, 1).tolist() == [True]
        assert disjoint(np.zeros(5, np.int64), together([(cuts[i], sizes[i]) for i in [*order, 1]]), 1).tolist() == [False]


@given(pairs(), st.integers(1, 3))
def test_near_leaves_out_none_that_meets(found: list[tuple[Shape, Box, Box, int]], repeat: int) -> None:
    """As of one tensor of 4 dimensions; how many it leaves is no promise, so only a row of them is asked for below."""
    stored, wanted = together([a for _, a, _, _ in found] * repeat), together([b for _, _, b, _ in found])
    nearby = near(stored, wanted)
    for number in range(len(found)):
        begin, count = int(nearby.begin[number]), int(nearby.count[number])
        rows = nearby.rows[begin : begin + count].tolist()
        assert len(set(rows)) == count
        one = wanted.take(np.array([number] * len(stored.low)))
        assert set(np.flatnonzero((common(stored, one).size > 0).all(axis=1)).tolist()) <= set(rows)


def test_near_leaves_few_of_rows_and_of_columns() -> None:
    for dim in (0, 1):
        low = np.zeros((1000, 2), np.int64)
        low[:, dim] = np.arange(1000) * 2
        size = np.full((1000, 2), 2000)
        size[:, dim] = 2
        wanted = low[[3, 500]]
        assert near(Boxes(low, size), Boxes(wanted, size[:2])).count.tolist() == [1, 1]


@given(st.lists(st.tuples(*[st.integers(0, 4), st.integers(1, 3)] * 2), max_size=6))
def test_overlaps(found: list[tuple[int, int, int, int]]) -> None:
    counted = np.zeros((8, 8), int)
    for y, height, x, width in found:
        counted[y : y + height, x : x + width] += 1
    parts = Boxes(
        np.array([(y, x) for y, _, x, _ in found], np.int64).reshape(-1, 2),
        np.array([(height, width) for _, height, _, width in found], np.int64).reshape(-1, 2),
    )
    assert overlaps(parts) == bool((counted > 1).any())
    assert grid_cells(parts) <= 81
