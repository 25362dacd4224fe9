"""The arena: shared memory between one rank and its daemon (PROTOCOLS 2). FORMAT.md has the bytes.

    header page    what the file is, its random id and its shape, under a checksum; the schedule words; the rank's step; marks
    description    the daemon's own words on whose arena this is and how a slot is laid out, so that a later daemon can read it
    lengths        per slot: the length of each object in it
    slots          slot 0, slot 1, …, each a multiple of 4096 bytes

Slot states: FREE → WRITING → SEALED → HELD → FREE. Who may move a slot is decided by socket messages; the marks here are for
whoever finds the file after a crash. A state is one byte, so it is never half written. The records that it stands for are
written before it, under checksums; what doesn't match its checksum is not sealed. Both sides map the file; neither ever closes
the mapping under a living view.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field

from ckptd_client.errors import ProtocolError, VersionMismatchError

PAGE = 4096
MAGIC = b"CKPTDARN"
VERSION = 2
READER_VERSION = 2  # least version of ckptd's arenas that a reader must know to read this one
ID_BYTES = 16
SLOTS_MAX = 16
OBJECTS_MAX = 1 << 20
DESCRIPTION_MAX_BYTES = 64 << 20
FREE, WRITING, SEALED, HELD = range(4)

_HEAD = struct.Struct("<8sII16sIIQQI")  # magic, version, reader, id, slots, objects, slot_bytes, description's bytes and crc32
_VERSIONS = struct.Struct("<8sII")
_CRC = struct.Struct("<I")
_SCHEDULE = struct.Struct("<QQQQQ")
_SCHEDULE_AT = 128
_STEP = struct.Struct("<Q")
_STEP_AT = 192
_WORLD = struct.Struct("<QQI")  # generation, ranks of it on this node
_WORLD_AT = 256
_SLOT_AT, _SLOT_BYTES = 1024, 128
_SEAL = struct.Struct("<QQQII")  # at 8: generation, step, number of lengths, their crc32
_SEAL_AT = 8
_NUMBER = struct.Struct("<I")  # at 64
_NUMBER_AT = 64
_SEQ = struct.Struct("<Q")  # at 80
_SEQ_AT = 80
_LENGTH = 8

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


@dataclass(frozen=True, slots=True)
class Shape:
    """How an arena is divided. Sizes in bytes; ``objects`` is the number of lengths that a sealed slot has."""

    slots: int
    slot_bytes: int
    objects: int
    description_bytes: int

    @property
    def possible(self) -> bool:
        """Within bounds, and aligned."""
        return (
            0 < self.slots <= SLOTS_MAX
            and 0 < self.slot_bytes < 1 << 50
            and self.slot_bytes % PAGE == 0
            and 0 <= self.objects <= OBJECTS_MAX
            and 0 <= self.description_bytes <= DESCRIPTION_MAX_BYTES
        )

    @property
    def lengths_start(self) -> int:
        """Offset of the lengths of slot 0."""
        return PAGE + -(-self.description_bytes // _LENGTH) * _LENGTH

    @property
    def slots_start(self) -> int:
        """Offset of slot 0, a multiple of PAGE."""
        return -(-(self.lengths_start + self.slots * self.objects * _LENGTH) // PAGE) * PAGE

    @property
    def total_bytes(self) -> int:
        """Size of the file."""
        return self.slots_start + self.slots * self.slot_bytes


@dataclass(frozen=True, slots=True)
class Slot:
    """What is known of one slot. All but the state is empty unless it is SEALED or HELD.

    ``number`` is the attempt's, once a daemon has taken the slot in; ``seq`` the log number of its commit, once that is known.
    """

    state: int
    generation: tuple[int, int] = (0, 0)
    step: int = 0
    lengths: list[int] = field(default_factory=list)
    number: int | None = None
    seq: int | None = None


class Arena:
    """A mapped arena. The descriptor stays the caller's."""

    def __init__(self, fd: int) -> None:
        """Map a made arena. Raises ProtocolError for anything else, VersionMismatchError for one of a newer ckptd."""
        size = os.fstat(fd).st_size
        if size < PAGE:
            raise ProtocolError(f"a file of {size} bytes is no arena")
        self.id, self.shape, crc = _read_head(os.pread(fd, PAGE, 0))
        if size != self.shape.total_bytes:
            raise ProtocolError(f"an arena of {self.shape} has {self.shape.total_bytes} bytes, not {size}")
        self.map = mmap.mmap(fd, size)
        self.pinned: object | None = None  # what keeps its pages locked, in a trainer with a GPU; goes with the arena
        if zlib.crc32(self.description) != crc:
            raise ProtocolError("an arena's description does not match its checksum")

    @property
    def description(self) -> bytes:
        """What the daemon that made it wrote down."""
        return self.map[PAGE : PAGE + self.shape.description_bytes]

    @property
    def slots(self) -> int:
        """How many there are."""
        return self.shape.slots

    @property
    def slot_bytes(self) -> int:
        """Size of each."""
        return self.shape.slot_bytes

    def prefault(self) -> None:
        """Map every page now, so that no later copy pays for it. Kernels before 5.14 refuse; then copies pay once."""
        try:
            self.map.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            pass  # slower first copy, nothing else

    def keep_from_children(self) -> None:
        """Leave the mapping out of forked children (PROTOCOLS 2)."""
        self.map.madvise(_MADV_DONTFORK)

    def slot(self, index: int) -> memoryview:
        """The bytes of one slot."""
        start = self.slot_start(index)
        return memoryview(self.map)[start : start + self.slot_bytes]

    def slot_start(self, index: int) -> int:
        """Offset of a slot in the mapping, in bytes."""
        return self.shape.slots_start + index * self.slot_bytes

    # ---- the rank's progress and its schedule

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

    def write_world(self, generation: tuple[int, int], local_ranks: int) -> None:
        """By the daemon: the generation that the rank is part of, and how many of its ranks this node has."""
        self._put(_WORLD_AT, _WORLD.pack(*generation, local_ranks))

    def read_world(self) -> tuple[tuple[int, int], int]:
        """As written, ((0, 0), 0) when it was not."""
        body = self._get(_WORLD_AT, _WORLD.size)
        epoch, n, local_ranks = _WORLD.unpack(body) if body is not None else (0, 0, 0)
        return (epoch, n), local_ranks

    # ---- the slots' marks

    def begin(self, index: int) -> None:
        """By the client: what lies in the slot is no more."""
        at = self._slot_at(index)
        self.map[at] = WRITING
        self.map[at + _SEAL_AT : at + _SLOT_BYTES] = bytes(_SLOT_BYTES - _SEAL_AT)

    def seal(self, index: int, generation: tuple[int, int], step: int, lengths: list[int]) -> None:
        """By the client: the slot holds the whole state after ``step`` steps; ``lengths``: of each object, in bytes."""
        at = self._slot_at(index)
        body = struct.pack(f"<{len(lengths)}Q", *lengths)
        start = self.shape.lengths_start + index * self.shape.objects * _LENGTH
        if len(lengths) != self.shape.objects:
            raise ProtocolError(f"a slot of this arena has {self.shape.objects} lengths, not {len(lengths)}")
        self.map[start : start + len(body)] = body
        self._put(at + _SEAL_AT, _SEAL.pack(*generation, step, len(lengths), zlib.crc32(body)))
        self.map[at] = SEALED

    def hold(self, index: int, number: int) -> None:
        """By the daemon: it has taken the sealed slot in, for the attempt of this number."""
        at = self._slot_at(index)
        self._put(at + _NUMBER_AT, _NUMBER.pack(number))
        self.map[at] = HELD

    def note_commit(self, index: int, seq: int) -> None:
        """By the daemon: what lies in the slot is durable."""
        self._put(self._slot_at(index) + _SEQ_AT, _SEQ.pack(seq))

    def free(self, index: int) -> None:
        """By the daemon: the slot may be written again. What is noted of its snapshot stays until then."""
        self.map[self._slot_at(index)] = FREE

    def durable_step(self, index: int) -> int | None:
        """The step that was sealed in the slot last, if its commit is noted; also when the slot is free again."""
        at = self._slot_at(index)
        seal, seq = self._get(at + _SEAL_AT, _SEAL.size), self._get(at + _SEQ_AT, _SEQ.size)
        if seal is None or seq is None:
            return None
        step: int = _SEAL.unpack(seal)[2]
        return step

    def look(self, index: int) -> Slot:
        """What the marks say. A slot that isn't sealed beyond doubt is WRITING."""
        at = self._slot_at(index)
        state = self.map[at]
        if state not in (SEALED, HELD):
            return Slot(FREE if state == FREE else WRITING)
        seal = self._get(at + _SEAL_AT, _SEAL.size)
        epoch, n, step, count, crc = _SEAL.unpack(seal) if seal is not None else (0, 0, 0, -1, 0)
        start = self.shape.lengths_start + index * self.shape.objects * _LENGTH
        body = self.map[start : start + self.shape.objects * _LENGTH]
        if count != self.shape.objects or zlib.crc32(body) != crc:
            return Slot(WRITING)
        lengths = list(struct.unpack(f"<{count}Q", body))
        number, seq = self._get(at + _NUMBER_AT, _NUMBER.size), self._get(at + _SEQ_AT, _SEQ.size)
        return Slot(
            state,
            (epoch, n),
            step,
            lengths,
            None if number is None else _NUMBER.unpack(number)[0],
            None if seq is None else _SEQ.unpack(seq)[0],
        )

    def _slot_at(self, index: int) -> int:
        if not 0 <= index < self.slots:
            raise ProtocolError(f"this arena has no slot {index}")
        return _SLOT_AT + index * _SLOT_BYTES

    def _put(self, at: int, body: bytes) -> None:
        """Write a record and its checksum."""
        self.map[at : at + len(body) + _CRC.size] = body + _CRC.pack(zlib.crc32(body))

    def _get(self, at: int, size: int) -> bytes | None:
        """A record; None when it was never written (the checksum of zeros isn't zero), or not to its end."""
        body = self.map[at : at + size]
        (crc,) = _CRC.unpack_from(self.map, at + size)
        return body if zlib.crc32(body) == crc else None


def make_arena(fd: int, id: bytes, shape: Shape, description: bytes) -> Arena:
    """Make an arena of an empty file of the right size, all slots FREE; the head comes last, so that half of one is none."""
    if len(id) != ID_BYTES or not shape.possible or len(description) != shape.description_bytes:
        raise ProtocolError(f"an arena can't have this shape {shape}")
    os.pwrite(fd, description, PAGE)
    head = (shape.slots, shape.objects, shape.slot_bytes, shape.description_bytes, zlib.crc32(description))
    packed = _HEAD.pack(MAGIC, VERSION, READER_VERSION, id, *head)
    os.pwrite(fd, packed + _CRC.pack(zlib.crc32(packed)), 0)
    return Arena(fd)


def _read_head(page: bytes) -> tuple[str, Shape, int]:
    """(id, shape, the description's crc32)"""
    magic, version, reader = _VERSIONS.unpack_from(page)
    if magic == MAGIC and reader > VERSION:
        raise VersionMismatchError(
            f"this arena was made by a newer ckptd: format {version}, to be read by {reader} or later; this ckptd reads up to"
            f" {VERSION}: upgrade it, or remove the file to give up what lies in it"
        )
    packed = page[: _HEAD.size]
    _, _, _, id, slots, objects, slot_bytes, description_bytes, crc = _HEAD.unpack(packed)
    shape = Shape(slots, slot_bytes, objects, description_bytes)
    if (
        magic != MAGIC
        or zlib.crc32(packed) != _CRC.unpack_from(page, _HEAD.size)[0]
        or version != VERSION
        or not shape.possible
    ):
        raise ProtocolError("no arena, or one of another ckptd version")
    return id.hex(), shape, crc
