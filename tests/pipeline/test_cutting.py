"""Cutting states into frames and segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ckptd.model.dtypes import item_bytes
from ckptd.pipeline.frames import ALONE_BYTES, Extent, cut, group

COUNTS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["float32", "uint8", "complex128"])), max_size=30)


@given(COUNTS, st.integers(16, 100), st.integers(1, 300))
def test_every_byte_is_in_exactly_one_place(counts: list[tuple[int, str]], frame_bytes: int, segment_bytes: int) -> None:
    extents = [Extent(i, 1000 * i, n * item_bytes(dtype), dtype) for i, (n, dtype) in enumerate(counts)]
    frames, places = cut(extents, frame_bytes)
    content = [[(p.source, p.start + b) for p in frame.pieces for b in range(p.count)] for frame in frames]
    assert [len(bytes_) for bytes_ in content] == [frame.raw_bytes for frame in frames]
    for extent, place in zip(extents, places, strict=True):
        row = [byte for frame in content[place.first_frame : place.first_frame + place.frame_count] for byte in frame]
        expected = [(extent.source, extent.start + b) for b in range(extent.count)]
        assert row[place.frame_offset : place.frame_offset + place.nbytes] == expected
        assert place.nbytes == extent.count
    for frame in frames:
        (dtype,) = {piece.dtype for piece in frame.pieces}
        assert 0 < frame.raw_bytes <= frame_bytes
        assert all(p.count % item_bytes(dtype) == 0 for p in frame.pieces)
    assert sum(frame.raw_bytes for frame in frames) == sum(extent.count for extent in extents)
    spans = group(frames, segment_bytes)
    assert [i for span in spans for i in span] == list(range(len(frames)))
    sizes = [sum(frames[i].raw_bytes for i in span) for span in spans]
    assert all(size <= segment_bytes or len(span) == 1 for size, span in zip(sizes, spans, strict=True))
    assert all(a + frames[span[0]].raw_bytes > segment_bytes for a, span in zip(sizes, spans[1:], strict=False))


def test_a_region_of_a_sixteenth_of_the_usual_frame_does_not_share_it() -> None:
    sizes = [100, ALONE_BYTES - 4, 100, ALONE_BYTES, 100, (4 << 20) + 4]
    frames, places = cut([Extent(i, 0, size, "float32") for i, size in enumerate(sizes)], 4 << 20)
    assert [frame.raw_bytes for frame in frames] == [300 + ALONE_BYTES - 4, ALONE_BYTES, 4 << 20, 4]
    assert [place.first_frame for place in places] == [0, 0, 0, 1, 0, 2]


def test_small_regions_share_frames_and_big_ones_have_their_own() -> None:
    small = [Extent(0, 64 * i, 40, "float32") for i in range(5)]
    frames, places = cut([*small[:2], Extent(0, 9000, 250, "uint8"), *small[2:]], 100)
    assert [len(frame.pieces) for frame in frames] == [2, 1, 1, 1, 2, 1]
    assert [(place.first_frame, place.frame_count, place.frame_offset) for place in places] == [
        *[(0, 1, 0), (0, 1, 40), (1, 3, 0)],
        *[(4, 1, 0), (4, 1, 40), (5, 1, 0)],
    ]
