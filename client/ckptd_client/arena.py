"""The arena: shared memory between one rank and its daemon (PROTOCOLS 2).

    byte 0      header page of 4096 bytes
                  0  magic "CKPTDARN"            8  version u32, slots u32
                 16  slot_bytes u64             24  xxh-free checksum: crc32 of bytes 0..24, u32
                 64  schedule: sequence u64, epoch u64, n u64, first u64, every u64    (written by the daemon)
                128  furthest completed step of this rank, u64                        (written by the client)
                192  per slot 32 bytes: state u32, pad u32, epoch u64, n u64, step u64 (state as below)
    byte 4096   slot 0, slot 1, … each slot_bytes long (a multiple of 4096)

Slot states: FREE → WRITING → SEALED → HELD → FREE. Who may move a slot is decided by socket messages; the words here are for
whoever finds the file after a crash. Both sides map the file; neither ever closes the mapping under a living view.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass

from ckptd_client.errors import ProtocolError

PAGE = 4096
MAGIC = b"CKPTDARN"
VERSION = 1
SLOTS_MAX = 16
FREE, WRITING, SEALED, HELD = range(4)

_HEAD = struct.Struct("<8sIIQ")
_SCHEDULE = struct.Struct("<QQQQQ")
_SCHEDULE_AT = 64
_STEP = struct.Struct("<Q")
_STEP_AT = 128
_SLOT = struct.Struct("<IIQQQ")
_SLOT_AT = 192

# Not in Python 3.11's mmap module; values are the kernel's ABI.
_MADV_POPULATE_WRITE = 23
_MADV_DONTFORK = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which steps of one generation become snapshots: first, first + every, …; every = 0 means none."""

    generation: tuple[int, int]
    first: int
    every: int

    def includes(self, step: int) -> bool:
        """Whether ``step`` is on the schedule."""
        return self.every > 0 and step >= self.first and (step - self.first) % self.every == 0


def arena_bytes(slots: int, slot_bytes: int) -> int:
    """Size of the file."""
    return PAGE + slots * slot_bytes


class Arena:
    """A mapped arena. The descriptor stays the caller's."""

    def __init__(self, fd: int, slots: int, slot_bytes: int) -> None:
        self.slots = slots
        self.slot_bytes = slot_bytes
        size = arena_bytes(slots, slot_bytes)
        if not 0 < slots <= SLOTS_MAX or slot_bytes <= 0 or slot_bytes % PAGE or os.fstat(fd).st_size < size:
            raise ProtocolError(f"an arena can't have this shape slots={slots} slot_bytes={slot_bytes}")
        self.map = mmap.mmap(fd, size)

    def prefault(self) -> None:
        """Map every page now, so that no later copy pays for it. Kernels before 5.14 refuse; then copies pay once."""
        try:
            self.map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            pass  # slower first copy, nothing else

    def keep_from_children(self) -> None:
        """Leave the mapping out of forked children (PROTOCOLS 2)."""
        self.map.madvise(_MADV_DONTFORK)

    def write_header(self) -> None:
        """Make a new arena's header; all slots FREE."""
        head = _HEAD.pack(MAGIC, VERSION, self.slots, self.slot_bytes)
        self.map[: len(head)] = head
        struct.pack_into("<I", self.map, len(head), zlib.crc32(head))

    def check_header(self) -> None:
        """Raise ProtocolError unless the file says what we were told."""
        head = self.map[: _HEAD.size]
        (crc,) = struct.unpack_from("<I", self.map, _HEAD.size)
        if zlib.crc32(head) != crc or _HEAD.unpack(head) != (MAGIC, VERSION, self.slots, self.slot_bytes):
            raise ProtocolError("the arena's header does not match; client and daemon disagree on its layout")

    def slot(self, index: int) -> memoryview:
        """The bytes of one slot."""
        start = PAGE + index * self.slot_bytes
        return memoryview(self.map)[start : start + self.slot_bytes]

    def slot_start(self, index: int) -> int:
        """Offset of a slot in the mapping, in bytes."""
        return PAGE + index * self.slot_bytes

    @property
    def step(self) -> int:
        """Furthest completed step of the rank."""
        value: int = _STEP.unpack_from(self.map, _STEP_AT)[0]
        return value

    @step.setter
    def step(self, value: int) -> None:
        _STEP.pack_into(self.map, _STEP_AT, value)

    def write_schedule(self, schedule: Schedule) -> None:
        """Publish a schedule: an odd sequence number while writing, an even one after (a seqlock with one writer)."""
        sequence = _SCHEDULE.unpack_from(self.map, _SCHEDULE_AT)[0] | 1
        struct.pack_into("<Q", self.map, _SCHEDULE_AT, sequence)
        _SCHEDULE.pack_into(self.map, _SCHEDULE_AT, sequence, *schedule.generation, schedule.first, schedule.every)
        struct.pack_into("<Q", self.map, _SCHEDULE_AT, sequence + 1)

    def read_schedule(self) -> Schedule | None:
        """The schedule, or None when there is none yet or it is being written just now."""
        before, epoch, n, first, every = _SCHEDULE.unpack_from(self.map, _SCHEDULE_AT)
        (after,) = struct.unpack_from("<Q", self.map, _SCHEDULE_AT)
        if before == 0 or before % 2 or before != after:
            return None
        return Schedule((epoch, n), first, every)

    def mark(self, index: int, state: int, generation: tuple[int, int], step: int) -> None:
        """Note a slot's state for whoever finds the file after a crash."""
        _SLOT.pack_into(self.map, _SLOT_AT + index * _SLOT.size, state, 0, *generation, step)

    def marked(self, index: int) -> tuple[int, tuple[int, int], int]:
        """(state, generation, step) as last noted."""
        state, _, epoch, n, step = _SLOT.unpack_from(self.map, _SLOT_AT + index * _SLOT.size)
        return state, (epoch, n), step
