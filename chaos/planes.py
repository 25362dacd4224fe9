"""A frame's raw bytes from its stored ones, as FORMAT.md says it, without ckptd's code."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

_PLANES = 1


def raw_bytes_of(codec: int, stored: bytes, raw_bytes: int) -> bytes:
    """The raw bytes. Damage that the stored bytes' hash has let through may raise anything."""
    if codec != _PLANES:
        return stored
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
