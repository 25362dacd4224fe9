"""A plane to pairs and back: the C does what the NumPy does, and neither leaves its memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.codec import pairs as module
from ckptd.codec.pairs import pair_numpy, unpair_numpy, window
from ckptd.codec.split import COMPILED

GUARD = b"\x5a" * 16
BUILDS = [(pair_numpy, unpair_numpy), *([(module._planes.pair, module._planes.unpair)] if COMPILED else [])]


def room(size_bytes: int) -> tuple[bytearray, memoryview]:
    memory = bytearray(GUARD + bytes(size_bytes) + GUARD)
    return memory, memoryview(memory)[len(GUARD) : len(GUARD) + size_bytes]


# Longer than the piece of 512 that the C looks at as one, with few or many bytes aside.
planes = st.tuples(st.binary(max_size=60), st.integers(1, 40), st.sampled_from([1, 3, 7, 15, 31, 255])).map(
    lambda given_: bytes(byte & given_[2] for byte in given_[0]) * given_[1]
)


@given(planes, st.integers(0, 255), st.integers(1, 15), st.integers(-2, 2))
def test_what_was_paired_comes_back_and_every_build_pairs_alike(plane: bytes, base: int, span: int, spare: int) -> None:
    outside = bytes(byte for byte in plane if (byte - base) % 256 >= span)
    written = set()
    for pair, _ in BUILDS:
        memory, pairs = room((len(plane) + 1) // 2)
        aside_memory, aside = room(max(0, len(outside) + spare))
        count = pair(plane, base, span, pairs, aside)
        assert count == (len(outside) if len(outside) <= aside.nbytes else -1)
        assert memory[:16] == memory[-16:] == aside_memory[:16] == aside_memory[-16:] == GUARD
        if count >= 0:
            assert aside[:count] == outside
            written.add(bytes(pairs))
    assert len(written) <= 1
    for pairs_bytes in written:
        for _, unpair in BUILDS:
            memory, back = room(len(plane))
            unpair(pairs_bytes, base, outside, back)
            assert back == plane and memory[:16] == memory[-16:] == GUARD


@given(st.binary(max_size=1200), st.integers(0, 255), st.binary(max_size=40), st.integers(0, 1))
def test_any_pairs_are_bytes_or_refused_and_every_build_agrees(pairs: bytes, base: int, aside: bytes, odd: int) -> None:
    results: list[bytes | None] = []
    for _, unpair in BUILDS:
        memory, back = room(max(0, 2 * len(pairs) - odd))
        try:
            unpair(pairs, base, aside, back)
            results.append(bytes(back))
        except ValueError:
            results.append(None)
        assert memory[:16] == memory[-16:] == GUARD
    assert len(set(results)) == 1


@pytest.mark.parametrize(("pair", "unpair"), BUILDS)
def test_sizes_that_do_not_fit_are_refused(pair: module.Pair, unpair: module.Unpair) -> None:
    for plane_bytes, pairs_bytes, span in ((8, 3, 4), (8, 5, 4), (7, 3, 4), (8, 4, 0), (8, 4, 16)):
        with pytest.raises(ValueError, match=r"pairs|span"):
            pair(bytes(plane_bytes), 0, span, memoryview(bytearray(pairs_bytes)), memoryview(bytearray(8)))
    for plane_bytes, pairs_bytes, aside_bytes in ((8, 3, 0), (7, 3, 0), (8, 4, 1)):
        with pytest.raises(ValueError, match=r"pairs|aside"):
            unpair(bytes(pairs_bytes), 0, bytes(aside_bytes), memoryview(bytearray(plane_bytes)))


def test_the_window_is_where_most_are_even_across_zero() -> None:
    plane = np.concatenate([np.repeat([250, 0, 4], 1000), np.repeat([100, 9], [5, 1])]).astype(np.uint8).tobytes()
    assert window(plane) == (250, 11, 6)
