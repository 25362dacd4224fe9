"""Encoding and decoding of one frame.

What gains less than 3 % is stored as it is: the CPU's time, here and at every restore, is worth more.
"""

from __future__ import annotations

from typing import Final, Literal

from ckptd.codec.entropy import DIRECT
from ckptd.codec.hash import Buffer
from ckptd.codec.planes import decode_planes, encode_planes
from ckptd.codec.split import COMPILED
from ckptd.errors import CorruptError
from ckptd.model.frame import PLANES, RAW

Codec = Literal["raw", "planes"]

BUILD: Final = f"planes {'in C' if COMPILED else 'with NumPy'}, zstd {'directly' if DIRECT else 'through its public interface'}"
"""What encodes and decodes here: how fast it is depends on what was at hand when ckptd and zstandard were built."""


def encode_into(raw: memoryview, dtype: str, codec: Codec, room: memoryview) -> tuple[int, int]:
    """(codec id, number of stored bytes) of a frame's raw bytes, which are whole elements of ``dtype``.

    The stored bytes, never more than the raw ones, are at the start of ``room``, which has at least ``raw.nbytes`` and doesn't
    overlap ``raw``; what follows them there is undefined. Both are contiguous bytes.
    """
    stored_bytes = encode_planes(raw, dtype, room) if codec == "planes" else None
    if stored_bytes is not None:
        return PLANES, stored_bytes
    room[: raw.nbytes] = raw
    return RAW, raw.nbytes


def decode_into(codec_id: int, stored: Buffer, destination: memoryview) -> None:
    """Fill ``destination``, which is as long as the raw bytes. Never writes or allocates more. Raises CorruptError."""
    if codec_id == RAW:
        if len(stored) != destination.nbytes:
            raise CorruptError(f"a raw frame has {len(stored)} bytes instead of {destination.nbytes}")
        destination[:] = stored
    elif codec_id == PLANES:
        decode_planes(stored, destination)
    else:
        raise CorruptError(f"unknown codec; damaged, or written by a newer ckptd: codec={codec_id}")
