"""Frames of bf16, of which a part is in heads and tails."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.planes import raw_bytes_of
from ckptd.codec.entropy import Zstd
from ckptd.codec.heads import HEADS
from ckptd.errors import CorruptError
from ckptd.model.frame import PLANES, RAW
from tests.codec.test_planes import RNG, ZSTDS, built, decoded, encoded, entropy_bits


def _bfloat16(count: int) -> bytes:
    """Normal, with a zero here and there."""
    values = RNG.normal(size=count).astype("<f4")
    values[::4000] = 0
    return (values.view("<u4") >> 16).astype("<u2").tobytes()


IN_HEADS = encoded(_bfloat16(1 << 14), "bfloat16")[1]
HEADS_BYTES = 2 << 14


@pytest.mark.parametrize("zstd", ZSTDS)
@pytest.mark.parametrize("compiled", [True, False])
def test_heads_that_do_not_fit_are_refused(zstd: Callable[[], Zstd], compiled: bool) -> None:
    head = struct.Struct("<BBHIII")
    first, zero, base, count, missing, size = head.unpack_from(IN_HEADS)
    assert (first, zero, count) == (HEADS, 0, 1 << 13) and missing > 0
    body, aside = IN_HEADS[head.size :], count // 4 * 3
    rest = body[aside + 2 * missing + size :]
    fewer = body[: aside + 2 * missing - 2] + body[aside + 2 * missing :]
    with built(zstd, compiled):
        for damaged in (
            IN_HEADS[:15],
            IN_HEADS[: -len(rest)],
            IN_HEADS + b"\0",
            head.pack(HEADS, 1, base, count, missing, size) + body,
            head.pack(HEADS, 0, 1024, count, missing, size) + body,
            head.pack(HEADS, 0, base, 0, missing, size) + body,
            head.pack(HEADS, 0, base, count - 1, missing, size) + body,
            head.pack(HEADS, 0, base, 1 << 31, missing, size) + body,
            head.pack(HEADS, 0, base, count, 1 << 31, size) + body,
            head.pack(HEADS, 0, base, count, missing, 1 << 31) + body,
            head.pack(HEADS, 0, base, count, missing - 1, size) + fewer,
            head.pack(HEADS, 0, base, count, missing + 1, size) + body[:aside] + b"\0\0" + body[aside:],
            IN_HEADS[: -len(rest)] + IN_HEADS,  # heads where the rest should be
        ):
            with pytest.raises(CorruptError):
                decoded(PLANES, damaged, HEADS_BYTES)
        with pytest.raises(CorruptError):
            decoded(PLANES, IN_HEADS, HEADS_BYTES - 2)
        with pytest.raises(CorruptError):
            decoded(PLANES, IN_HEADS, 2 * count - 512)  # shorter than the heads
        assert len(decoded(PLANES, IN_HEADS, HEADS_BYTES)) == HEADS_BYTES


def test_bf16_takes_hardly_more_than_the_entropy_of_its_planes() -> None:
    raw = _bfloat16(1 << 18)
    _, stored = encoded(raw, "bfloat16")
    turned = np.frombuffer(raw, "<u2") << np.uint8(1) | np.frombuffer(raw, "<u2") >> np.uint8(15)
    assert stored[0] == HEADS
    # In pairs alone it would be 1.007 times as much.
    assert len(stored) / len(raw) < 1.005 * sum(entropy_bits(turned.view(np.uint8)[i::2]) for i in range(2)) / 16


def test_heads_are_as_the_format_says_and_scattered_ones_are_left() -> None:
    raw = _bfloat16(1 << 14)
    assert raw_bytes_of(*encoded(raw, "bfloat16"), len(raw)) == raw
    # A sample sees neighbouring exponents, but of what it doesn't see too many are far away.
    trap = np.frombuffer(_bfloat16(1 << 18), "<u2").copy()
    for start in range(0, len(trap), len(trap) // 16):
        trap[start + 256 : start + 256 + (len(trap) // 16) // 50] ^= 0x4000
    codec_id, stored = encoded(trap.tobytes(), "bfloat16")
    assert codec_id == RAW or stored[0] != HEADS
    assert decoded(codec_id, stored, trap.nbytes) == trap.tobytes()


@given(st.floats(0, 1), st.integers(1, 255), st.sampled_from(ZSTDS), st.booleans())
def test_a_damaged_byte_is_other_bytes_or_corrupt_never_more(
    place: float, flip: int, zstd: Callable[[], Zstd], compiled: bool
) -> None:
    damaged = bytearray(IN_HEADS)
    damaged[int(place * (len(IN_HEADS) - 1))] ^= flip
    with built(zstd, compiled):
        try:
            assert len(decoded(PLANES, bytes(damaged), HEADS_BYTES)) == HEADS_BYTES
        except CorruptError:
            pass
