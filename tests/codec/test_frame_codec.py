"""Encoding and decoding of frames."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xxhash

from ckptd.codec.frames import Codec, decode_into, encode_into
from ckptd.codec.hash import frame_hash
from ckptd.errors import CorruptError
from ckptd.model.frame import PLANES, RAW


def decoded(codec_id: int, stored: bytes, raw_bytes: int) -> bytes:
    guard = b"\x5a" * 16
    memory = bytearray(b"\0" * raw_bytes + guard)
    decode_into(codec_id, stored, memoryview(memory)[:raw_bytes])
    assert memory[raw_bytes:] == guard
    return bytes(memory[:raw_bytes])


def encoded(raw: bytes | bytearray, codec: Codec, dtype: str = "uint8") -> tuple[int, bytes]:
    guard = b"\x5a" * 16
    room = bytearray(b"\0" * len(raw) + guard)
    codec_id, stored_bytes = encode_into(memoryview(raw), dtype, codec, memoryview(room)[: len(raw)])
    assert room[len(raw) :] == guard
    return codec_id, bytes(room[:stored_bytes])


def test_a_frame_fills_its_destination_and_names_its_codec() -> None:
    with pytest.raises(CorruptError, match="instead of 5"):
        decoded(RAW, b"1234", 5)
    with pytest.raises(CorruptError, match="codec=9"):
        decoded(9, b"1234", 4)
    assert encoded(b"1234", "raw") == (RAW, b"1234") and decoded(RAW, b"1234", 4) == b"1234"


def test_threads_do_not_share_contexts() -> None:
    bodies = [np.random.default_rng(seed).integers(0, 9, 300_000, np.uint8).tobytes() for seed in range(16)]

    def there_and_back(raw: bytes) -> bytes:
        codec_id, stored = encoded(raw, "planes")
        assert codec_id == PLANES
        return decoded(codec_id, stored, len(raw))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, bodies)) == bodies


def test_the_hash_is_xxh3_128_of_all_pieces() -> None:
    assert frame_hash([b"ab", memoryview(b"c")]) == xxhash.xxh3_128(b"abc").digest() and len(frame_hash([])) == 16
