"""Elements to planes and back: the C does what the NumPy does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.codec import split as module
from ckptd.codec.split import COMPILED, WIDTHS, merge_numpy, split_numpy

_planes = module._planes if COMPILED else None
compiled = pytest.mark.skipif(_planes is None, reason="no compiler was at hand when ckptd was built")
GUARD = b"\x5a" * 16


def room(size_bytes: int) -> tuple[bytearray, memoryview]:
    """Memory in front of a guard, at an odd address half of the time."""
    memory = bytearray(GUARD + bytes(size_bytes) + GUARD)
    return memory, memoryview(memory)[len(GUARD) : len(GUARD) + size_bytes]


elements = st.integers(0, 300).flatmap(
    lambda n: st.sampled_from(WIDTHS).flatmap(lambda w: st.tuples(st.just(w), st.binary(min_size=n * w, max_size=n * w)))
)


def test_planes_are_the_bytes_of_rotated_elements() -> None:
    planes = [memoryview(bytearray(2)) for _ in range(4)]
    split_numpy((0x80000001).to_bytes(4, "little") + (0x01020304).to_bytes(4, "little"), 1, planes)
    assert [bytes(plane) for plane in planes] == [b"\x03\x08", b"\x00\x06", b"\x00\x04", b"\x00\x02"]
    split_numpy((0x80000001).to_bytes(4, "little") + (0x01020304).to_bytes(4, "little"), 0, planes)
    assert [bytes(plane) for plane in planes] == [b"\x01\x04", b"\x00\x03", b"\x00\x02", b"\x80\x01"]


@given(elements, st.sampled_from([0, 1]), st.integers(0, 3))
def test_what_was_split_merges(given_elements: tuple[int, bytes], turn: int, shift: int) -> None:
    width, body = given_elements
    raw = memoryview(bytearray(shift) + body)[shift:]  # at any address
    size_bytes = len(body) // width
    one, other = [room(size_bytes) for _ in range(width)], [room(size_bytes) for _ in range(width)]
    split_numpy(raw, turn, [view for _, view in one])
    assert sum(view.nbytes for _, view in one) == len(body)
    memory, back = room(len(body))
    merge_numpy(back, turn, [view for _, view in one])
    assert back == body and memory[:16] == GUARD == memory[-16:]
    if _planes is not None:
        _planes.split(raw, turn, tuple(view for _, view in other))
        assert [memory for memory, _ in other] == [memory for memory, _ in one]  # guards and all
        memory, back = room(len(body))
        _planes.merge(back, turn, tuple(view for _, view in other))
        assert back == body and memory[:16] == GUARD == memory[-16:]


@compiled
@pytest.mark.parametrize(
    ("raw_bytes", "turn", "planes"),
    [
        (8, 0, [2, 2, 2]),
        (8, 0, [8]),
        (8, 0, []),
        (8, 0, [4, 5]),
        (8, 1, [4, 3]),
        (9, 0, [4, 4]),
        (8, 2, [4, 4]),
        (8, -1, [4, 4]),
        (9, 0, [1] * 9),
    ],
)
def test_the_c_refuses_what_does_not_fit(raw_bytes: int, turn: int, planes: list[int]) -> None:
    assert _planes is not None
    for call in (_planes.split, _planes.merge):
        with pytest.raises(ValueError, match=r"bytes|bit"):
            call(memoryview(bytearray(raw_bytes)), turn, tuple(memoryview(bytearray(size)) for size in planes))
    if turn in (0, 1):
        for of_numpy in (split_numpy, merge_numpy):
            with pytest.raises(ValueError, match="make no"):
                of_numpy(memoryview(bytearray(raw_bytes)), turn, [memoryview(bytearray(size)) for size in planes])


@compiled
def test_the_c_refuses_memory_that_it_may_not_write_or_that_has_holes() -> None:
    assert _planes is not None
    fine = (memoryview(bytearray(4)), memoryview(bytearray(4)))
    for call, raw, planes in (
        (_planes.split, bytes(8), (fine[0], memoryview(bytes(4)))),
        (_planes.split, memoryview(bytearray(16))[::2], fine),
        (_planes.split, bytes(8), (fine[0], memoryview(bytearray(8))[::2])),
        (_planes.merge, memoryview(bytes(8)), fine),
        (_planes.merge, memoryview(bytearray(16))[::2], fine),
    ):
        with pytest.raises(BufferError):
            call(raw, 0, planes)
    for bad in ((5, 0, fine), (bytes(8), "0", fine), (bytes(8), 0, list(fine)), (bytes(8), 0, (fine[0], 4))):
        with pytest.raises(TypeError):
            _planes.split(*bad)
