"""bf16 as heads and tails: to code the highest bits of the mantissa together with the exponent.

How frequent a mantissa's first bits are depends on the exponent, and hardly anything else in a mantissa can be known: so less
is to be stored than of exponents and mantissas apart, whatever codes them (docs/decisions/0023-heads-and-tails.md).

    bfloat16: sign ▸ 8 exponent ▸ 7 mantissa ─ rotate by one bit ─► head: exponent, 2 mantissa │ tail: 5 mantissa, sign

A head, of ten bits, within 255 of ``base`` (modulo 1024) becomes a byte, its distance; any other becomes 255 and is kept aside,
as u16, in order. Four tails of six bits make three bytes: of each 256 elements, byte i of 64, of the next 64 and of the third
64 has the tail of element i, 64 + i and 128 + i in its lower six bits; above are two bits, the lowest first, of that of element
192 + i.
In C where the package's build had a compiler, else with NumPy, which also says what the C must do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import numpy as np

from ckptd.codec.entropy import Zstd
from ckptd.codec.hash import Buffer
from ckptd.codec.split import COMPILED
from ckptd.errors import CorruptError

if COMPILED:
    from ckptd.codec import _planes

HEADS: Final = 0
"""In the first byte of a frame, where else is how many bytes an element has."""

BLOCK: Final = 256
ASIDE: Final = 255
VALUES: Final = 1024
_FIRST: Final = struct.Struct("<BBHIII")  # HEADS, 0, base, elements, of those with their heads aside, size of the zstd frame
_SHARE: Final = 2  # one element in so many (decision 0023)
_ASIDE_SHARE: Final = 64  # one head in so many may be aside

Split = Callable[[Buffer, int, memoryview, memoryview, memoryview], int]
Merge = Callable[[memoryview, int, Buffer, Buffer, Buffer], None]
Scratch = Callable[[int, int], list[memoryview]]  # so many pieces of memory of so many bytes


def split_heads_numpy(raw: Buffer, base: int, heads: memoryview, tails: memoryview, aside: memoryview) -> int:
    """Fill ``heads`` (a byte for each element) and ``tails`` (three for four); the number of heads put ``aside``, -1 when it
    hasn't room for them. Raises ValueError for sizes that don't fit, and unless the elements are whole blocks of 256.
    """
    _check(raw, base, heads, tails)
    elements = np.frombuffer(raw, "<u2")
    turned = elements << np.uint8(1) | elements >> np.uint8(15)
    distance = ((turned >> np.uint8(6)) - np.uint16(base)) & np.uint16(VALUES - 1)
    found = turned[distance >= ASIDE] >> np.uint8(6)
    if 2 * len(found) > aside.nbytes:
        return -1
    np.frombuffer(aside, np.uint8)[: 2 * len(found)] = found.view(np.uint8)
    np.frombuffer(heads, np.uint8)[:] = np.minimum(distance, ASIDE)
    low = (turned & np.uint16(63)).astype(np.uint8).reshape(-1, 4, BLOCK // 4)
    for row in range(3):
        upper = low[:, 3] >> np.uint8(2 * row) << np.uint8(6)
        np.frombuffer(tails, np.uint8).reshape(-1, 3, BLOCK // 4)[:, row] = low[:, row] | upper
    return len(found)


def merge_heads_numpy(raw: memoryview, base: int, heads: Buffer, tails: Buffer, aside: Buffer) -> None:
    """Fill ``raw`` with what `split_heads_numpy` took apart. Raises ValueError unless ``aside`` has as many as are missing."""
    _check(raw, base, heads, tails)
    distance = np.frombuffer(heads, np.uint8)
    missing = distance == ASIDE
    if memoryview(aside).nbytes != 2 * missing.sum():
        raise ValueError(f"{memoryview(aside).nbytes} bytes aside, {missing.sum()} heads are missing")
    stored = np.frombuffer(tails, np.uint8).reshape(-1, 3, BLOCK // 4)
    low = np.empty((len(stored), 4, BLOCK // 4), np.uint16)
    low[:, :3] = stored & np.uint8(63)
    low[:, 3] = stored[:, 0] >> 6 | stored[:, 1] >> 6 << 2 | stored[:, 2] >> 6 << 4
    head = distance.astype(np.uint16) + np.uint16(base)
    head[missing] = np.frombuffer(aside, "<u2")
    turned = head << np.uint8(6) | low.reshape(-1)
    np.frombuffer(raw, "<u2")[:] = turned >> np.uint8(1) | turned << np.uint8(15)


def _check(raw: Buffer, base: int, heads: Buffer, tails: Buffer) -> None:
    count, tails_bytes, raw_bytes = (memoryview(given).nbytes for given in (heads, tails, raw))
    if count % BLOCK or raw_bytes != 2 * count or tails_bytes != count // 4 * 3 or not 0 <= base < VALUES:
        raise ValueError(f"{count} heads and {tails_bytes} bytes of tails don't make {raw_bytes} bytes: {base=}")


def split_heads(raw: Buffer, base: int, heads: memoryview, tails: memoryview, aside: memoryview) -> int:
    """`split_heads_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        return _planes.split_heads(raw, base, heads, tails, aside)
    return split_heads_numpy(raw, base, heads, tails, aside)


def merge_heads(raw: memoryview, base: int, heads: Buffer, tails: Buffer, aside: Buffer) -> None:
    """`merge_heads_numpy`, or the same in C, without the GIL."""
    if COMPILED:
        _planes.merge_heads(raw, base, heads, tails, aside)
    else:
        merge_heads_numpy(raw, base, heads, tails, aside)


def in_heads(raw_bytes: int) -> int:
    """How many of a frame's first bytes are to be taken apart into heads and tails: never all."""
    return raw_bytes // 2 // _SHARE // BLOCK * BLOCK * 2


def window_of(exponent: int, exponents: int) -> int:
    """The base of heads that are mostly of these exponents, modulo 256: 64 exponents, of which one is above the highest."""
    return ((exponent + exponents + 1) * 4 - ASIDE) % VALUES


def encode_heads(raw: memoryview, base: int, zstd: Zstd, heads: memoryview, room: memoryview) -> int | None:
    """Bytes written at the start of ``room``, of whole blocks; None when they don't fit or too many heads are aside.

    ``heads`` is memory of half the size for them on their way.
    """
    count = heads.nbytes
    begin = _FIRST.size + count // 4 * 3
    aside = room[begin : begin + 2 * (count // _ASIDE_SHARE)]
    missing = split_heads(raw, base, heads, room[_FIRST.size : begin], aside)
    if missing < 0:
        return None
    begin += 2 * missing
    size_bytes = zstd.compress_into("entropy", heads, room[begin:])
    if size_bytes is None:
        return None
    _FIRST.pack_into(room, 0, HEADS, 0, base, count, missing, size_bytes)
    return begin + size_bytes


def decode_heads(stored: memoryview, destination: memoryview, zstd: Zstd, scratch: Scratch) -> tuple[int, int]:
    """(stored bytes read, raw bytes written), each from the start. Never writes or allocates more. Raises CorruptError."""
    if stored.nbytes < _FIRST.size:
        raise CorruptError(f"a frame of heads has only {stored.nbytes} bytes")
    _, zero, base, count, missing, size_bytes = _FIRST.unpack_from(stored)
    tails = _FIRST.size
    aside = tails + count // 4 * 3
    begin = aside + 2 * missing
    if zero or not count or count % BLOCK or 2 * count > destination.nbytes or begin + size_bytes > stored.nbytes:
        raise CorruptError(f"no {count} heads in {stored.nbytes} bytes, or for {destination.nbytes}: {missing=} {size_bytes=}")
    [heads] = scratch(1, count)
    zstd.decompress_into(stored[begin : begin + size_bytes], heads)
    try:
        merge_heads(destination[: 2 * count], base, heads, stored[tails:aside], stored[aside:begin])
    except ValueError as error:
        raise CorruptError(f"heads are damaged: {error}") from None
    return begin + size_bytes, 2 * count
