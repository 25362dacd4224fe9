"""The codec for tensors: sizes, bounds, damage; and that every way to build it reads what any other wrote."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from chaos.planes import raw_bytes_of
from ckptd.codec import entropy, planes
from ckptd.codec import heads as heads_module
from ckptd.codec import pairs as pairs_module
from ckptd.codec import split as split_module
from ckptd.codec.entropy import DIRECT, DirectZstd, PublicZstd, Zstd
from ckptd.codec.frames import decode_into, encode_into
from ckptd.errors import CorruptError
from ckptd.model.dtypes import item_bytes
from ckptd.model.frame import PLANES, RAW

RNG = np.random.default_rng(5)
ZSTDS: list[Callable[[], Zstd]] = [PublicZstd, *([DirectZstd] if DIRECT else [])]
GUARD = b"\x5a" * 32


def encoded(raw: bytes, dtype: str) -> tuple[int, bytes]:
    memory = bytearray(len(raw)) + GUARD
    codec_id, count = encode_into(memoryview(raw), dtype, "planes", memoryview(memory)[: len(raw)])
    assert memory[len(raw) :] == GUARD and count <= len(raw)
    return codec_id, bytes(memory[:count])


def decoded(codec_id: int, stored: bytes, raw_bytes: int) -> bytes:
    memory = bytearray(raw_bytes) + GUARD
    try:
        decode_into(codec_id, stored, memoryview(memory)[:raw_bytes])
    finally:
        assert memory[raw_bytes:] == GUARD
    return bytes(memory[:raw_bytes])


@contextmanager
def built(zstd: Callable[[], Zstd], compiled: bool) -> Iterator[None]:
    """As if that had been at hand when ckptd and zstandard were built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes._contexts, "zstd", zstd())
        for module in (split_module, pairs_module, heads_module):
            patch.setattr(module, "COMPILED", compiled and module.COMPILED)
        yield


def weights(dtype: str, count: int = 1 << 18) -> bytes:
    """As a layer has them: normal, with a scale that differs from row to row."""
    values = RNG.normal(size=(64, count // 64)) * np.exp(RNG.normal(size=(64, 1)))
    if dtype == "bfloat16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype.startswith("float8"):  # its sign and exponent are float16's top bits but one
        return (values.astype("<f2").view("<u2") >> 8).astype(np.uint8).tobytes()
    return values.astype({"float32": "<f4", "float16": "<f2", "float64": "<f8", "complex64": "<c8"}[dtype]).tobytes()


def entropy_bits(plane: np.ndarray) -> float:
    share = np.bincount(plane, minlength=256) / len(plane)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum())


DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "complex64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_take_little_more_than_the_entropy_of_their_planes(dtype: str) -> None:
    raw = weights(dtype)
    codec_id, stored = encoded(raw, dtype)
    assert codec_id == PLANES and decoded(codec_id, stored, len(raw)) == raw
    width = stored[0] or 2
    elements = np.frombuffer(raw, f"<u{width}")
    if width > 1:
        elements = elements << 1 | elements >> (8 * width - 1)
    bound = sum(entropy_bits(elements.view(np.uint8)[i::width]) for i in range(width)) / (8 * width)
    assert len(stored) / len(raw) < bound * 1.015  # Huffman codes are of whole bits


def test_a_second_moment_has_no_signs_to_store() -> None:
    raw = np.square(np.frombuffer(weights("float32"), "<f4")).tobytes()
    _, stored = encoded(raw, "float32")
    assert stored[:4] == bytes([4, 1, 0b1001, 0])  # the lowest bit of the lowest plane is all zeros
    assert decoded(PLANES, stored, len(raw)) == raw


@pytest.mark.parametrize("zstd", ZSTDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_any_build_reads_what_any_other_wrote(zstd: Callable[[], Zstd], compiled: bool) -> None:
    states = [(weights(dtype), dtype) for dtype in DTYPES] + [(np.arange(1 << 18, dtype="<i8").tobytes(), "int64")]
    with built(zstd, compiled):
        written = [encoded(raw, dtype) for raw, dtype in states]
    for reader in ZSTDS:
        for reading_compiled in (True, False):
            with built(reader, reading_compiled):
                for (raw, _), (codec_id, stored) in zip(states, written, strict=True):
                    assert codec_id == PLANES and decoded(codec_id, stored, len(raw)) == raw


@given(
    st.sampled_from([*DTYPES, "int64", "int32", "uint8", "bool", "object", "complex128", "float8_e5m2"]),
    st.binary(min_size=16, max_size=2000),
    st.integers(1, 60),
    st.integers(1, 255),
    st.sampled_from(ZSTDS),
    st.booleans(),
)
def test_what_was_encoded_decodes(
    dtype: str, body: bytes, times: int, mask: int, zstd: Callable[[], Zstd], compiled: bool
) -> None:
    raw = bytes(byte & mask for byte in body) * times
    raw = raw[: len(raw) // item_bytes(dtype) * item_bytes(dtype)]
    with built(zstd, compiled):
        codec_id, stored = encoded(raw, dtype)
        assert decoded(codec_id, stored, len(raw)) == raw
    assert codec_id in (RAW, PLANES) and (codec_id == RAW or len(stored) <= len(raw) * 0.97)
    assert raw_bytes_of(codec_id, stored, len(raw)) == raw  # and FORMAT.md says it right


def test_what_repeats_without_being_skewed_is_found_in_integers() -> None:
    for raw, dtype in ((np.arange(1 << 18, dtype="<i8").tobytes(), "int64"), (RNG.bytes(5000) * 300, "object")):
        codec_id, stored = encoded(raw, dtype)
        assert codec_id == PLANES and len(stored) < len(raw) / 20


def test_what_gains_little_is_stored_as_it_is() -> None:
    noise = RNG.bytes(1 << 20)
    assert [encoded(noise, dtype)[0] for dtype in ("float32", "bfloat16", "int64", "uint8")] == [RAW] * 4
    assert encode_into(memoryview(bytes(1 << 20)), "float32", "raw", memoryview(bytearray(1 << 20)))[0] == RAW
    # The sample sees zeros, the whole is noise but for them: the result is looked at, too.
    trap = bytearray(noise)
    for start in range(0, len(noise), len(noise) // 16):
        trap[start : start + 1024] = bytes(1024)
    assert encoded(bytes(trap), "float32")[0] == RAW and encoded(bytes(trap), "uint8")[0] == RAW
    # Elements that are torn, which our own frames never are.
    assert encoded(bytes(1 << 20)[:-1], "float32")[0] == RAW and encoded(b"", "float32") == (RAW, b"")


STORED = encoded(weights("float32", 1 << 14), "float32")[1]
RAW_BYTES = 4 << 14


@pytest.mark.parametrize("zstd", ZSTDS)
@pytest.mark.parametrize(
    ("stored", "raw_bytes"),
    [
        (b"", RAW_BYTES),
        (STORED[:3], RAW_BYTES),
        (STORED[:6], RAW_BYTES),
        (STORED[:-1], RAW_BYTES),
        (STORED + b"\0", RAW_BYTES),
        (STORED, RAW_BYTES - 1),
        (STORED, RAW_BYTES + 4),
        (b"\3" + STORED[1:], RAW_BYTES),
        (b"\4\2" + STORED[2:], RAW_BYTES),
        (b"\4\1\0" + STORED[3:], RAW_BYTES),
        (b"\4\1\x18" + STORED[3:], RAW_BYTES),
        (b"\4\1\7" + STORED[3:], RAW_BYTES),
        (STORED[:3] + b"\1" + STORED[4:], RAW_BYTES),
        (STORED[:4] + b"\xff\xff\xff\xff" + STORED[8:], RAW_BYTES),
    ],
)
def test_a_head_that_does_not_fit_is_refused(zstd: Callable[[], Zstd], stored: bytes, raw_bytes: int) -> None:
    with built(zstd, True), pytest.raises(CorruptError):
        decoded(PLANES, stored, raw_bytes)


def _resized(at: int, size: int, missing: int, aside: bytes) -> bytes:
    """PAIRED with other bytes aside, its sizes in order."""
    change = len(aside) - missing
    head = PAIRED[:4] + struct.pack("<I", size + change) + PAIRED[8 : at + 1] + struct.pack("<I", missing + change)
    return head + aside + PAIRED[at + 5 + missing :]


PAIRED = encoded(RNG.normal(size=1 << 14).astype("<f4").tobytes(), "float32")[1]


@pytest.mark.parametrize("zstd", ZSTDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_plane_of_pairs_that_does_not_fit_is_refused(zstd: Callable[[], Zstd], compiled: bool) -> None:
    [size] = struct.unpack_from("<I", PAIRED, 4)
    at = len(PAIRED) - size
    [missing] = struct.unpack_from("<I", PAIRED, at + 1)
    short = PAIRED[:4] + struct.pack("<I", 4) + PAIRED[8 : at + 4]
    assert PAIRED[:4] == bytes([4, 1, 8, 8]) and missing > 0
    with built(zstd, compiled):
        for damaged in (
            PAIRED[:3] + b"\0" + PAIRED[4:],
            PAIRED[:3] + b"\x0c" + PAIRED[4:],
            PAIRED[: at + 1] + struct.pack("<I", 1 << 31) + PAIRED[at + 5 :],
            PAIRED[: at + 1] + struct.pack("<I", missing - 1) + PAIRED[at + 5 :],
            short,
            # A byte fewer aside than the halves ask for, and one more, with sizes that agree.
            _resized(at, size, missing, PAIRED[at + 5 : at + 4 + missing]),
            _resized(at, size, missing, PAIRED[at + 5 : at + 5 + missing] + b"\0"),
        ):
            with pytest.raises(CorruptError):
                decoded(PLANES, damaged, RAW_BYTES)
        assert len(decoded(PLANES, PAIRED, RAW_BYTES)) == RAW_BYTES


@given(st.sampled_from([STORED, PAIRED]), st.floats(0, 1), st.integers(1, 255), st.sampled_from(ZSTDS), st.booleans())
def test_a_damaged_byte_is_other_bytes_or_corrupt_never_more(
    stored: bytes, place: float, flip: int, zstd: Callable[[], Zstd], compiled: bool
) -> None:
    damaged = bytearray(stored)
    damaged[-1 - int(place * (len(stored) - 1))] ^= flip  # the shorter the more, and the coded plane is last
    with built(zstd, compiled):
        try:
            assert len(decoded(PLANES, bytes(damaged), RAW_BYTES)) == RAW_BYTES
        except CorruptError:
            pass


@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1), st.integers(1, 255), st.integers(0, 300))
def test_random_bytes_raise_only_corrupt_error(body: bytes, width: int, turn: int, mask: int, raw_bytes: int) -> None:
    for zstd in ZSTDS:
        for stored in (
            body,
            bytes(2) + body,
            bytes([width, turn, mask, 0]) + struct.pack("<I", len(body)) + body,
            b"\x28\xb5\x2f\xfd" + body,
        ):
            with built(zstd, True):
                try:
                    decoded(PLANES, stored, raw_bytes)
                except CorruptError:
                    pass


def framed(*bodies: bytes, width: int = 1) -> bytes:
    return bytes([width, 0, 2 ** len(bodies) - 1, 0]) + struct.pack(f"<{len(bodies)}I", *map(len, bodies)) + b"".join(bodies)


@pytest.mark.parametrize("zstd", ZSTDS)
def test_nothing_is_allocated_for_what_a_frame_only_claims(zstd: Callable[[], Zstd]) -> None:
    compress = zstandard.ZstdCompressor().compress
    silent = zstandard.ZstdCompressor(write_content_size=False).compress
    bombs = [
        framed(compress(bytes(100 << 20))),
        framed(silent(bytes(1000))),  # without its size it can't be known beforehand
        framed(compress(bytes(1000)) + compress(b"")),
        framed(compress(bytes(999))),
        framed(compress(bytes(500)), compress(bytes(100 << 20)), width=2),
    ]
    with built(zstd, True):
        tracemalloc.start()
        try:
            for bomb in bombs:
                with pytest.raises(CorruptError):
                    decoded(PLANES, bomb, 1000)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert decoded(PLANES, framed(compress(bytes(1000))), 1000) == bytes(1000)


def test_an_error_holds_no_memory() -> None:
    memory = bytearray(1000)
    view = memoryview(memory)
    with pytest.raises(CorruptError) as caught:
        entropy.Contexts().zstd.decompress_into(b"nonsense", view)
    assert caught.value.__traceback__ is not None
    view.release()  # BufferError if a frame of the traceback still had it
