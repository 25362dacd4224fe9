"""Between a trainer and its daemon: its world, its arena, and the snapshots in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One stored piece of a rank's state, in the order of the slot.

    ``kind`` is "tensor" or "object" (typed msgpack; its length may change from save to save, up to ``capacity`` bytes).
    ``scope`` is "global" or "rank". ``dtype`` is torch's name without "torch." ("object" for objects). ``shape`` is the whole
    tensor's; ``offsets`` and ``sizes`` are the region that this rank stores. ``slot_offset`` is in bytes from the slot's start.
    """

    fqn: str
    kind: str
    scope: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    slot_offset: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Register:
    """Ask for an arena of ``slots`` slots of ``slot_bytes`` bytes for this layout; replaces this rank's earlier one."""

    id: int
    slots: int
    slot_bytes: int
    items: list[Item]


@dataclass(frozen=True, slots=True)
class Registered:
    """The arena is there, reserved and faulted in; one descriptor comes along. ``layout`` numbers the registration."""

    id: int
    layout: int
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Resume:
    """After a reconnect: this process still has the arena with this id (hex, from its header), and writes into no slot now."""

    id: int
    arena: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """It is this process's arena as before, under a new ``layout``; ``free`` slots may be written.

    What became meanwhile of snapshots in it has been said before this, as Durable and Aborted.
    """

    id: int
    layout: int
    free: list[int]


@dataclass(frozen=True, slots=True)
class Vacate:
    """This process writes into no arena any more. (Its exit says the same; a reader of the state may live on for long.)"""


@dataclass(frozen=True, slots=True)
class Enter:
    """This process has finished in its world, or waits for it no more, and is part of another one now, or of none (no key).

    Its arena stays if its place is the same.
    """

    world_key: str
    rank: int
    world_size: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """Slot ``slot`` holds the whole state after ``step`` steps, as its marks say.

    ``stall_seconds``: how long training has stood still for it.
    """

    layout: int
    slot: int
    step: int
    stall_seconds: float


@dataclass(frozen=True, slots=True)
class Missed:
    """This rank can't take part in the snapshot of ``step``."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Released:
    """Slot ``slot`` is free again."""

    layout: int
    slot: int


@dataclass(frozen=True, slots=True)
class Durable:
    """The snapshot of ``step`` is committed, as record ``seq``."""

    step: int
    seq: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """The snapshot of ``step`` was given up."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Finished:
    """This rank has done all its work, and wants no successor world."""

    id: int


@dataclass(frozen=True, slots=True)
class Notice:
    """For people: what is wrong on the way to the store, or is so no more. To one trainer of each node, else to its agent."""

    text: str
