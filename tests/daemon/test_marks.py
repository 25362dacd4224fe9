"""The marks in an arena's header: whoever dies between any two bytes, nothing half sealed is ever taken for sealed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.errors import ProtocolError
from ckptd_client.arena import FREE, HELD, ID_BYTES, PAGE, SEALED, WRITING, Arena, Schedule, Shape, Slot, make_arena

SMALL = st.integers(0, (1 << 63) - 1)
GENERATIONS = st.tuples(SMALL, SMALL)
OBJECTS = 3
LENGTHS = st.lists(SMALL, min_size=OBJECTS, max_size=OBJECTS)


class Memory(bytearray):
    """Dies after so many bytes have been written."""

    left = 1 << 30

    def __setitem__(self, at: Any, value: Any) -> None:
        start, body = (at.start, bytes(value)) if isinstance(at, slice) else (at, bytes([value]))
        for offset, byte in enumerate(body):
            if self.left == 0:
                raise KilledError
            self.left -= 1
            super().__setitem__(start + offset, byte)


class KilledError(Exception):
    """By the test."""


def an_arena() -> Arena:
    """Of two slots."""
    shape = Shape(2, PAGE, OBJECTS, 5)
    fd = os.memfd_create("arena")
    os.posix_fallocate(fd, 0, shape.total_bytes)
    arena = make_arena(fd, os.urandom(ID_BYTES), shape, b"whose")
    os.close(fd)
    return arena


def in_memory() -> tuple[Arena, Memory]:
    """The same, where a writer can be killed."""
    arena = an_arena()
    memory = Memory()
    memory.extend(arena.map[:])
    arena.map = memory  # type: ignore[assignment]
    return arena, memory


def kill_after(memory: Memory, count: int, work: Callable[[], None]) -> bool:
    """Whether ``work`` came to its end."""
    memory.left = count
    try:
        work()
    except KilledError:
        return False
    finally:
        memory.left = 1 << 30
    return True


@given(GENERATIONS, SMALL, LENGTHS, GENERATIONS, SMALL, LENGTHS, st.integers(0, 400), st.integers(0, 5), SMALL)
def test_a_torn_mark_is_not_sealed(
    old: tuple[int, int], old_step: int, old_lengths: list[int],
    new: tuple[int, int], step: int, lengths: list[int], count: int, number: int, seq: int,
) -> None:  # fmt: skip
    arena, memory = in_memory()
    arena.begin(0)
    arena.seal(0, old, old_step, old_lengths)
    arena.hold(0, 3)
    arena.note_commit(0, 7)
    assert arena.look(0) == Slot(HELD, old, old_step, old_lengths, 3, 7)
    assert arena.durable_step(0) == old_step
    arena.free(0)
    assert arena.look(0) == Slot(FREE)
    assert arena.durable_step(0) == old_step, "who was told nothing can still read it"

    def write() -> None:
        arena.begin(0)
        arena.seal(0, new, step, lengths)

    whole = Slot(SEALED, new, step, lengths)
    if not kill_after(memory, count, write):
        assert arena.look(0) in (Slot(FREE), Slot(WRITING), whole)
        assert arena.look(0) != whole or memory[1024] == SEALED
        write()  # the slot is written anew
    assert arena.look(0) == whole and arena.durable_step(0) is None
    # the daemon's marks: what it seals stays sealed, and what it adds is there or not
    if not kill_after(memory, count, lambda: arena.hold(0, number)):
        found = arena.look(0)
        assert found in (whole, Slot(SEALED, new, step, lengths, number))
        arena.hold(0, number)
    if not kill_after(memory, count, lambda: arena.note_commit(0, seq)):
        assert arena.look(0).seq in (None, seq)
        assert arena.durable_step(0) == (None if arena.look(0).seq is None else step)
        arena.note_commit(0, seq)
    assert arena.look(0) == Slot(HELD, new, step, lengths, number, seq)
    assert arena.look(1) == Slot(FREE)


@given(st.binary(max_size=3 * PAGE))
def test_any_file_is_an_arena_or_a_typed_error(body: bytes) -> None:
    fd = os.memfd_create("nonsense")
    os.write(fd, body)
    with pytest.raises(ProtocolError):
        Arena(fd)
    os.close(fd)


@given(st.integers(0, PAGE + 8), st.integers(1, 255))
def test_any_damaged_arena_is_read_or_a_typed_error(at: int, flip: int) -> None:
    shape = Shape(2, PAGE, OBJECTS, 5)
    fd = os.memfd_create("arena")
    os.posix_fallocate(fd, 0, shape.total_bytes)
    arena = make_arena(fd, bytes(ID_BYTES), shape, b"whose")
    arena.begin(1)
    arena.seal(1, (1, 2), 3, [4, 5, 6])
    arena.hold(1, 0)
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ flip]), at)
    try:
        found = Arena(fd)
    except ProtocolError:
        return
    finally:
        os.close(fd)
    slot = found.look(1)
    assert slot.state in (FREE, WRITING) or (slot.generation, slot.step, slot.lengths) == ((1, 2), 3, [4, 5, 6])
    assert found.description == b"whose"


@given(GENERATIONS, st.integers(0, (1 << 32) - 1), st.integers(0, 60))
def test_a_torn_world_is_none(generation: tuple[int, int], ranks: int, count: int) -> None:
    arena, memory = in_memory()
    assert arena.read_world() == ((0, 0), 0)
    kill_after(memory, count, lambda: arena.write_world(generation, ranks))
    assert arena.read_world() in (((0, 0), 0), (generation, ranks))


def test_the_words_beside_the_marks() -> None:
    arena = an_arena()
    assert arena.read_schedule() is None and arena.step == 0
    arena.step = 7
    arena.write_schedule(Schedule((1, 2), 10, 5))
    arena.write_world((1, 2), 4)
    assert (arena.step, arena.read_schedule(), arena.read_world()) == (7, Schedule((1, 2), 10, 5), ((1, 2), 4))
    assert [arena.look(index) for index in range(2)] == [Slot(FREE), Slot(FREE)]
    with pytest.raises(ProtocolError):
        arena.seal(0, (1, 2), 3, [1])
    with pytest.raises(ProtocolError):
        arena.look(2)
