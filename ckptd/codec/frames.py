"""Encoding and decoding of one frame.

Weights compress little, and some states not at all; so a sample is tried first, and what gains less than 3 % is stored as it
is: the CPU's time, here and at every restore, is worth more.
"""

from __future__ import annotations

import threading
from typing import Final, Literal

import zstandard

from ckptd.codec.hash import Buffer
from ckptd.errors import CorruptError
from ckptd.model.frame import RAW, ZSTD

Codec = Literal["raw", "zstd"]

_LEVEL: Final = 1
_GAIN: Final = 0.03
_SAMPLE_PIECES: Final = 16
_SAMPLE_PIECE_BYTES: Final = 4096


class _Contexts(threading.local):
    """zstd contexts are costly to make and must not be shared between threads: one of each per thread."""

    def __init__(self) -> None:
        # Without checksum: frames have their own hashes.
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20)


_contexts = _Contexts()


def encode_into(raw: memoryview, dtype: str, codec: Codec, room: memoryview) -> tuple[int, int]:
    """(codec id, number of stored bytes) of a frame's raw bytes, which are whole elements of ``dtype``.

    The stored bytes, never more than the raw ones, are at the start of ``room``, which has at least ``raw.nbytes`` and doesn't
    overlap ``raw``; what follows them there is undefined. Both are contiguous bytes.
    """
    if codec == "zstd" and _may_gain(raw):
        stored = _contexts.compressor.compress(raw)
        if len(stored) <= raw.nbytes * (1 - _GAIN):
            room[: len(stored)] = stored
            return ZSTD, len(stored)
    room[: raw.nbytes] = raw
    return RAW, raw.nbytes


def _may_gain(raw: memoryview) -> bool:
    step = raw.nbytes // _SAMPLE_PIECES
    if step < 2 * _SAMPLE_PIECE_BYTES:
        return True  # so small that a sample would cost as much as the whole
    sample = b"".join(raw[i * step : i * step + _SAMPLE_PIECE_BYTES] for i in range(_SAMPLE_PIECES))
    return len(_contexts.compressor.compress(sample)) <= len(sample) * (1 - _GAIN)


def decode_into(codec_id: int, stored: Buffer, destination: memoryview) -> None:
    """Fill ``destination``, which is as long as the raw bytes. Never writes or allocates more. Raises CorruptError."""
    if codec_id == RAW:
        if len(stored) != destination.nbytes:
            raise CorruptError(f"a raw frame has {len(stored)} bytes instead of {destination.nbytes}")
        destination[:] = stored
    elif codec_id == ZSTD:
        _decompress_into(stored, destination)
    else:
        raise CorruptError(f"unknown codec; damaged, or written by a newer ckptd: codec={codec_id}")


def _decompress_into(stored: Buffer, destination: memoryview) -> None:
    try:
        with _contexts.decompressor.stream_reader(stored) as reader:
            filled = 0
            while filled < destination.nbytes:
                count = reader.readinto(destination[filled:])
                if not count:
                    raise CorruptError(f"a zstd frame ends after {filled} bytes instead of {destination.nbytes}")
                filled += count
            if reader.read(1):
                raise CorruptError(f"a zstd frame has more than {destination.nbytes} bytes")
    except zstandard.ZstdError as error:
        raise CorruptError(f"a zstd frame doesn't decode: {error}") from None
