"""Elements to planes and back: plane i holds byte i of every element, little-endian, after a rotation to the left.

In C where the package's build had a compiler, else with NumPy, which also says what the C must do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckptd.codec.hash import Buffer

try:
    from ckptd.codec import _planes
except ImportError:  # built without a compiler: slower, not different
    COMPILED = False
else:
    COMPILED = True

WIDTHS = (2, 4, 8)


def split_numpy(raw: Buffer, turn: int, planes: Sequence[memoryview]) -> None:
    """Fill ``planes``, as many as an element has bytes, with the bytes of elements rotated by ``turn`` (0 or 1) bits.

    Raises ValueError unless each plane has one byte for each element.
    """
    elements = np.frombuffer(raw, f"<u{_width(raw, planes)}")
    bits = elements.itemsize * 8
    if turn:
        elements = elements << np.uint8(1) | elements >> np.uint8(bits - 1)
    for number, plane in enumerate(planes):
        np.frombuffer(plane, np.uint8)[:] = elements.view(np.uint8)[number :: elements.itemsize]


def merge_numpy(raw: memoryview, turn: int, planes: Sequence[Buffer]) -> None:
    """Fill ``raw`` with the elements that `split_numpy` took apart. Raises ValueError as it does."""
    elements = np.frombuffer(raw, f"<u{_width(raw, planes)}")
    for number, plane in enumerate(planes):
        elements.view(np.uint8)[number :: elements.itemsize] = np.frombuffer(plane, np.uint8)
    if turn:
        elements[:] = elements >> np.uint8(1) | elements << np.uint8(elements.itemsize * 8 - 1)


def _width(raw: Buffer, planes: Sequence[Buffer]) -> int:
    width, size_bytes = len(planes), memoryview(raw).nbytes
    if width not in WIDTHS or any(memoryview(plane).nbytes * width != size_bytes for plane in planes):
        raise ValueError(f"{size_bytes} bytes make no {width} planes")
    return width


def split(raw: Buffer, turn: int, planes: Sequence[memoryview]) -> None:
    """`split_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        _planes.split(raw, turn, tuple(planes))
    else:
        split_numpy(raw, turn, planes)


def merge(raw: memoryview, turn: int, planes: Sequence[Buffer]) -> None:
    """`merge_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        _planes.merge(raw, turn, tuple(planes))
    else:
        merge_numpy(raw, turn, planes)
