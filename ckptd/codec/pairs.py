"""Two bytes of a plane as one: for planes of exponents, which are nearly all among few neighbouring values.

A byte within 15 of ``base`` becomes half a byte, its distance; any other becomes 15 and is kept aside, in order. Byte i of the
pairs has, in its lower half, byte i of the plane, and in its upper one byte i of the plane's second half. So zstd has half as
many symbols to code, and its codes of whole bits lose half as much. In C where the package's build had a compiler, else with
NumPy, which also says what the C must do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from ckptd.codec.hash import Buffer
from ckptd.codec.split import COMPILED

if COMPILED:
    from ckptd.codec import _planes

ASIDE: Final = 15

Pair = Callable[[Buffer, int, int, memoryview, memoryview], int]
Unpair = Callable[[Buffer, int, Buffer, memoryview], None]


def pair_numpy(plane: Buffer, base: int, span: int, pairs: memoryview, aside: memoryview) -> int:
    """Fill ``pairs``, half as long (rounded up); the number of bytes put ``aside``, -1 when it hasn't room for them.

    Bytes from ``base`` to ``base + span - 1`` (modulo 256; ``span`` is at most 15) are paired. Raises ValueError for a size or
    a span that doesn't fit.
    """
    data, half = np.frombuffer(plane, np.uint8), _half(plane, pairs)
    if not 0 < span <= ASIDE:
        raise ValueError(f"no span of half a byte: {span}")
    distance = data - np.uint8(base)
    distance[distance >= span] = ASIDE
    found = data[distance == ASIDE]
    if len(found) > aside.nbytes:
        return -1
    np.frombuffer(aside, np.uint8)[: len(found)] = found
    into = np.frombuffer(pairs, np.uint8)
    into[:] = distance[:half]
    into[: len(data) - half] |= distance[half:] << 4
    return len(found)


def unpair_numpy(pairs: Buffer, base: int, aside: Buffer, plane: memoryview) -> None:
    """Fill ``plane`` with what `pair_numpy` paired. Raises ValueError unless ``aside`` has as many bytes as are missing."""
    data, half = np.frombuffer(plane, np.uint8), _half(plane, pairs)
    both = np.frombuffer(pairs, np.uint8)
    data[:half] = both & ASIDE
    data[half:] = both[: len(data) - half] >> 4
    missing = data == ASIDE
    if missing.sum() != memoryview(aside).nbytes:
        raise ValueError(f"{memoryview(aside).nbytes} bytes aside, {missing.sum()} are missing")
    data += np.uint8(base)
    data[missing] = np.frombuffer(aside, np.uint8)


def _half(plane: Buffer, pairs: Buffer) -> int:
    size_bytes, half = memoryview(plane).nbytes, memoryview(pairs).nbytes
    if half != (size_bytes + 1) // 2:
        raise ValueError(f"{half} pairs aren't of {size_bytes} bytes")
    return half


def pair(plane: Buffer, base: int, span: int, pairs: memoryview, aside: memoryview) -> int:
    """`pair_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        return _planes.pair(plane, base, span, pairs, aside)
    return pair_numpy(plane, base, span, pairs, aside)


def unpair(pairs: Buffer, base: int, aside: Buffer, plane: memoryview) -> None:
    """`unpair_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        _planes.unpair(pairs, base, aside, plane)
    else:
        unpair_numpy(pairs, base, aside, plane)


def window(sample: Buffer) -> tuple[int, int, int]:
    """(base, span, how many of the sample's bytes are outside): the 15 values in a row, modulo 256, that are most frequent.

    Values at the window's ends that are rarer than 1 in 2048 are left out: their pairs would take the longest codes.
    """
    counts = np.bincount(np.frombuffer(sample, np.uint8), minlength=256)
    sums = np.convolve(np.concatenate([counts, counts[: ASIDE - 1]]), np.ones(ASIDE, np.int64), "valid")
    first = int(sums.argmax())
    inside = counts[(first + np.arange(ASIDE)) % 256]
    [frequent] = np.nonzero(inside * 2048 >= counts.sum())
    begin, end = int(frequent[0]), int(frequent[-1]) + 1
    return (first + begin) % 256, end - begin, int(counts.sum() - inside[begin:end].sum())
