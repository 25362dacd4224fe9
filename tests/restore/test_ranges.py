"""Which frames are read at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckptd.restore.fetch import GAP_BYTES, coalesce
from ckptd.restore.plan import COPY_COLUMNS, FrameRead


def read_at(number: int, segment: int, offset: int, nbytes: int) -> FrameRead:
    return FrameRead(number, segment, offset, nbytes, nbytes, np.zeros((0, COPY_COLUMNS), np.int64))


def numbers(ranges: list[list[FrameRead]]) -> list[list[int]]:
    return [[read.frame for read in frames] for frames in ranges]


def test_neighbours_of_one_segment_are_read_at_once_within_bounds() -> None:
    places = [(0, 0), (0, 10), (0, 20), (0, 40), (1, 50)]
    reads = [read_at(i, segment, offset, 10) for i, (segment, offset) in enumerate(places)]
    assert numbers(coalesce(reads, 20, 9)) == [[0, 1], [2], [3], [4]]
    assert numbers(coalesce(reads, 5, 9)) == [[0], [1], [2], [3], [4]]
    assert numbers(coalesce(reads, 50, 9)) == [[0, 1, 2, 3], [4]]  # 10 bytes for nothing, of 50
    assert numbers(coalesce(reads, 50, 2)) == [[0, 1], [2], [3], [4]]


def test_a_gap_is_read_when_that_is_cheaper_than_another_request() -> None:
    frame = 4 << 20
    for gap, together in ((GAP_BYTES, True), (GAP_BYTES + 1, False)):
        reads = [read_at(0, 0, 0, frame), read_at(1, 0, frame + gap, frame)]
        assert len(coalesce(reads, 64 << 20, 9)) == (1 if together else 2)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2 * GAP_BYTES), st.integers(1, 4 << 20)), max_size=30),
    st.integers(1, 16 << 20),
    st.integers(1, 5),
)
def test_every_frame_once_and_never_much_for_nothing(
    given_frames: list[tuple[int, int, int]], read_bytes: int, most_frames: int
) -> None:
    ends: dict[int, int] = {}
    reads = []
    for number, (segment, gap, nbytes) in enumerate(sorted(given_frames, key=lambda frame: frame[0])):
        start = ends.get(segment, 0) + (gap if gap % 3 == 0 else 0)
        reads.append(read_at(number, segment, start, nbytes))
        ends[segment] = start + nbytes
    ranges = coalesce(reads, read_bytes, most_frames)
    assert [read for frames in ranges for read in frames] == reads
    for frames in ranges:
        size = frames[-1].offset + frames[-1].stored_bytes - frames[0].offset
        wanted = sum(read.stored_bytes for read in frames)
        assert len({read.segment for read in frames}) == 1 and len(frames) <= most_frames
        assert size <= read_bytes or len(frames) == 1
        assert size - wanted <= wanted / 4
