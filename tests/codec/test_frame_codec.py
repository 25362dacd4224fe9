"""Encoding and decoding of frames."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ckptd.codec.frames import Codec, decode_into, encode_into
from ckptd.codec.hash import frame_hash
from ckptd.errors import CorruptError
from ckptd.model.frame import RAW, ZSTD


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


@given(st.binary(max_size=3000), st.integers(1, 50), st.sampled_from(["raw", "zstd"]))
def test_what_was_encoded_decodes(body: bytes, times: int, codec: Codec) -> None:
    raw = body * times
    codec_id, stored = encoded(raw, codec)
    assert len(stored) <= len(raw)
    assert decoded(codec_id, stored, len(raw)) == raw


def test_what_gains_little_is_stored_as_it_is() -> None:
    noise = random.Random(1).randbytes(1 << 20)
    assert encoded(noise, "zstd")[0] == RAW
    assert encoded(bytes(1 << 20), "zstd")[0] == ZSTD
    assert encoded(bytes(1 << 20), "raw")[0] == RAW
    # The sample sees zeros, the whole is noise but for them: the result is looked at, too.
    step = len(noise) // 16
    trap = bytearray(noise)
    for start in range(0, len(noise), step):
        trap[start : start + 1024] = bytes(1024)
    assert encoded(trap, "zstd")[0] == RAW


def test_a_frame_never_fills_more_than_its_destination() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(100 << 20))
    with pytest.raises(CorruptError, match="more than 1000 bytes"):
        decoded(ZSTD, bomb, 1000)
    with pytest.raises(CorruptError, match="ends after 1000 bytes"):
        decoded(ZSTD, zstandard.ZstdCompressor().compress(bytes(1000)), 1001)
    with pytest.raises(CorruptError, match="instead of 5"):
        decoded(RAW, b"1234", 5)
    with pytest.raises(CorruptError, match="codec=9"):
        decoded(9, b"1234", 4)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_random_bytes_raise_only_corrupt_error(stored: bytes, raw_bytes: int) -> None:
    for body in (stored, b"\x28\xb5\x2f\xfd" + stored):
        try:
            decoded(ZSTD, body, raw_bytes)
        except CorruptError:
            pass


def test_threads_do_not_share_contexts() -> None:
    bodies = [np.random.default_rng(seed).integers(0, 9, 300_000, np.uint8).tobytes() for seed in range(16)]

    def there_and_back(raw: bytes) -> bytes:
        codec_id, stored = encoded(raw, "zstd")
        assert codec_id == ZSTD
        return decoded(codec_id, stored, len(raw))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(there_and_back, bodies)) == bodies


def test_the_hash_is_xxh3_128_of_all_pieces() -> None:
    assert frame_hash([b"ab", memoryview(b"c")]) == xxhash.xxh3_128(b"abc").digest() and len(frame_hash([])) == 16
