"""bf16 to heads and tails and back: the C does what the NumPy does, and neither leaves its memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.codec import heads as module
from ckptd.codec.heads import BLOCK, merge_heads_numpy, split_heads_numpy
from ckptd.codec.split import COMPILED

GUARD = b"\x5a" * 16
BUILDS = [
    (split_heads_numpy, merge_heads_numpy),
    *([(module._planes.split_heads, module._planes.merge_heads)] if COMPILED else []),
]


def room(size_bytes: int) -> tuple[bytearray, memoryview]:
    memory = bytearray(GUARD + bytes(size_bytes) + GUARD)
    return memory, memoryview(memory)[len(GUARD) : len(GUARD) + size_bytes]


def kept(*memories: bytearray) -> bool:
    return all(memory[:16] == memory[-16:] == GUARD for memory in memories)


@given(
    st.integers(0, 3),
    st.integers(0, 2**32),
    st.sampled_from([0, 0x01FF, 0xC3FF, 0xFFFF]),
    st.integers(0, 1023),
    st.integers(-2, 2),
)
def test_what_was_split_comes_back_and_every_build_splits_alike(
    blocks: int, seed: int, mask: int, base: int, spare: int
) -> None:
    elements = np.random.default_rng(seed).integers(0, 1 << 16, blocks * BLOCK, np.uint16) & np.uint16(mask)
    raw = elements.tobytes()
    turned = elements << np.uint8(1) | elements >> np.uint8(15)
    heads_wanted = [int(head) for head in turned >> np.uint8(6)]
    outside = np.array([head for head in heads_wanted if (head - base) % 1024 >= 255], "<u2").tobytes()
    written = set()
    for split, _ in BUILDS:
        (m1, heads), (m2, tails), (m3, aside) = room(len(raw) // 2), room(len(raw) // 8 * 3), room(max(0, len(outside) + spare))
        count = split(raw, base, heads, tails, aside)
        assert count == (len(outside) // 2 if len(outside) <= aside.nbytes else -1) and kept(m1, m2, m3)
        if count >= 0:
            assert aside[: 2 * count] == outside
            assert list(heads) == [min((head - base) % 1024, 255) for head in heads_wanted]
            written.add((bytes(heads), bytes(tails)))
    assert len(written) <= 1
    for heads_bytes, tails_bytes in written:
        for _, merge in BUILDS:
            memory, back = room(len(raw))
            merge(back, base, heads_bytes, tails_bytes, outside)
            assert back == raw and kept(memory)


@given(st.binary(min_size=1, max_size=60), st.integers(0, 2), st.integers(0, 1023), st.binary(max_size=40))
def test_any_heads_are_elements_or_refused_and_every_build_agrees(some: bytes, blocks: int, base: int, aside: bytes) -> None:
    heads = (some * BLOCK)[: blocks * BLOCK]
    tails = (some[::-1] * BLOCK)[: blocks * BLOCK // 4 * 3]
    results: list[bytes | None] = []
    for _, merge in BUILDS:
        memory, back = room(2 * len(heads))
        try:
            merge(back, base, heads, tails, aside)
            results.append(bytes(back))
        except ValueError:
            results.append(None)
        assert kept(memory)
    assert len(set(results)) == 1


@pytest.mark.parametrize(("split", "merge"), BUILDS)
def test_sizes_that_do_not_fit_are_refused(split: module.Split, merge: module.Merge) -> None:
    sizes = [(512, 0, 255, 192), (512, 0, 256, 191), (511, 0, 256, 192), (514, 0, 257, 192), (512, 1024, 256, 192)]
    for raw_bytes, base, heads_bytes, tails_bytes in sizes:
        heads, tails = memoryview(bytearray(heads_bytes)), memoryview(bytearray(tails_bytes))
        with pytest.raises(ValueError, match=r"heads|base"):
            split(bytes(raw_bytes), base, heads, tails, memoryview(bytearray(8)))
        with pytest.raises(ValueError, match=r"heads|base"):
            merge(memoryview(bytearray(raw_bytes)), base, heads, tails, b"")
