"""The order in which the ranks of a node get their parts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptd.restore.plan import FrameRead
from ckptd.restore.turns import by_rank, by_turns


def read(number: int, segment: int, wants: list[int]) -> FrameRead:
    copies = np.array([(0, want, 0, 1) for want in sorted(wants)], np.int64)
    return FrameRead(number, segment, number * 10, 10, 10, copies)


def test_row_shards_of_two_ranks_come_in_turn() -> None:
    reads = [read(number, number // 2, [0] if number < 6 else [1]) for number in range(12)]
    assert [one.segment for one in by_turns(reads, np.array([0, 1]))] == [0, 0, 3, 3, 1, 1, 4, 4, 2, 2, 5, 5]
    assert by_turns(reads, np.array([0])) == reads


def test_whose_a_copy_is() -> None:
    """The ranks have wants 0 and 1, none, 2, and 3; each sees them named as its own."""
    firsts, copies = np.array([0, 2, 2, 3]), read(0, 0, [0, 1, 2, 3]).copies
    assert [(rank, mine[:, 1].tolist()) for rank, mine in by_rank(copies, firsts)] == [(0, [0, 1]), (2, [0]), (3, [0])]
    assert [(rank, mine[:, 1].tolist()) for rank, mine in by_rank(copies[1:2], firsts)] == [(0, [1])]
    assert copies[:, 1].tolist() == [0, 1, 2, 3]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 5), min_size=1)), max_size=30),
    st.lists(st.integers(1, 5), max_size=4),
)
def test_every_read_once_and_segments_in_one_piece(found: list[tuple[int, set[int]]], firsts: list[int]) -> None:
    reads = [read(number, segment, list(wants)) for number, (segment, wants) in enumerate(sorted(found, key=lambda f: f[0]))]
    ordered = by_turns(reads, np.array([0, *sorted(firsts)], np.int64))
    assert sorted(one.frame for one in ordered) == [one.frame for one in reads]
    segments = [one.segment for one in ordered]
    assert sum(a != b for a, b in pairwise(segments)) == max(0, len(set(segments)) - 1)
    for segment in set(segments):
        frames = [one.frame for one in ordered if one.segment == segment]
        assert frames == sorted(frames)
