"""A frame's raw bytes from its stored ones, as FORMAT.md says it, without ckptd's code."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

_PLANES = 1
_HEADS = 0


def raw_bytes_of(codec: int, stored: bytes, raw_bytes: int) -> bytes:
    """The raw bytes. Damage that the stored bytes' hash has let through may raise anything."""
    if codec != _PLANES:
        return stored
    if stored[0] == _HEADS:
        first, rest = _bytes_of_heads(stored)
        return first + raw_bytes_of(codec, rest, raw_bytes - len(first))
    width, turn, coded, paired = stored[:4]
    count, sizes = raw_bytes // width, struct.unpack_from(f"<{coded.bit_count()}I", stored, 4)
    at = 4 + 4 * len(sizes)
    planes = np.empty((count, width), np.uint8)
    for number in range(width):
        if not coded >> number & 1:
            planes[:, number] = np.frombuffer(stored, np.uint8, count, at)
            at += count
    for number, size in zip([number for number in range(width) if coded >> number & 1], sizes, strict=True):
        body = stored[at : at + size]
        if paired >> number & 1:
            planes[:, number] = _bytes_of_pairs(body, count)
        else:
            planes[:, number] = np.frombuffer(zstandard.ZstdDecompressor().decompress(body), np.uint8, count)
        at += size
    elements = planes.view(f"<u{width}")
    if turn:
        elements = elements >> elements.dtype.type(turn) | elements << elements.dtype.type(8 * width - turn)
    return elements.tobytes()


def _bytes_of_pairs(stored: bytes, count: int) -> np.ndarray:
    base, missing = struct.unpack_from("<BI", stored)
    pairs = zstandard.ZstdDecompressor().decompress(stored[5 + missing :])
    halves = [byte & 15 for byte in pairs] + [byte >> 4 for byte in pairs]
    aside = iter(stored[5 : 5 + missing])
    return np.array([(base + half) % 256 if half < 15 else next(aside) for half in halves[:count]], np.uint8)


def _bytes_of_heads(stored: bytes) -> tuple[bytes, bytes]:
    """Raw bytes, and the stored bytes that follow."""
    base, count, missing, size = struct.unpack_from("<HIII", stored, 2)
    at = 16 + count // 4 * 3
    tails, aside = stored[16:at], iter(struct.unpack_from(f"<{missing}H", stored, at))
    at += 2 * missing
    heads = zstandard.ZstdDecompressor().decompress(stored[at : at + size])
    elements = []
    for number, head in enumerate(heads):
        block, place = number // 256 * 192, number % 256
        row, i = divmod(place, 64)
        three = [tails[block + 64 * j + i] for j in range(3)]
        tail = three[row] & 63 if row < 3 else three[0] >> 6 | three[1] >> 6 << 2 | three[2] >> 6 << 4
        turned = ((base + head) % 1024 if head < 255 else next(aside)) << 6 | tail
        elements.append(turned >> 1 | (turned & 1) << 15)
    return struct.pack(f"<{count}H", *elements), stored[at + size :]
