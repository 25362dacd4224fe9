from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from ckptd_client.placement import chunk_bounds, split_replicated

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
items = st.lists(st.tuples(shapes, st.sampled_from([1, 2, 4, 8])), max_size=12)


@given(st.integers(0, 50), st.integers(1, 9))
def test_chunks_are_those_of_torch(length: int, pieces: int) -> None:
    cut = [chunk_bounds(length, pieces, i) for i in range(pieces)]
    chunks = [len(c) for c in torch.arange(length).chunk(pieces)] if length else [0]
    assert [size for _, size in cut] == chunks + [0] * (pieces - len(chunks))
    assert [start for start, size in cut if size] == [sum(chunks[:i]) for i in range(len(chunks)) if chunks[i]]


@given(items, st.integers(1, 7))
def test_i9_replicated_rows_are_stored_exactly_once(stored: list[tuple[tuple[int, ...], int]], replicas: int) -> None:
    shares = split_replicated(stored, replicas)
    assert len(shares) == len(stored)
    for (shape, _), share in zip(stored, shares, strict=True):
        rows = shape[0] if shape else 1
        assert len(share) == replicas
        assert [row for start, count in share for row in range(start, start + count)] == list(range(rows))


@given(items, st.integers(1, 7))
def test_replicas_carry_equal_bytes_up_to_one_row_at_each_end(stored: list[tuple[tuple[int, ...], int]], replicas: int) -> None:
    shares = split_replicated(stored, replicas)
    widths = [math.prod(shape[1:]) * size for shape, size in stored]
    total = sum((shape[0] if shape else 1) * width for (shape, _), width in zip(stored, widths, strict=True))
    for replica in range(replicas):
        mine = sum(share[replica][1] * width for share, width in zip(shares, widths, strict=True))
        assert abs(mine - total / replicas) <= max(widths, default=0) + 1


def test_one_big_tensor_is_shared_by_all() -> None:
    assert split_replicated([((10, 3), 4)], 4) == [[(0, 3), (3, 2), (5, 3), (8, 2)]]
