"""The messages between a trainer or agent and its daemon (PROTOCOLS 2 and 5), and their msgpack form.

A message is a frozen dataclass. On the wire it is ``[class name, {field: value}]``. Decoding checks every field's type against
the annotation and bounds the total size; whatever doesn't fit is a ProtocolError. A request carries an ``id`` which its reply
repeats; messages without an id are events.

    trainer → daemon                         daemon → trainer
    Hello(role=trainer) + pidfd              Welcome | Refused
    Register(id)                             Registered(id) + arena descriptor | Failed(id)
    Resume(id)                               Resumed(id) | Failed(id)
    Sealed, Missed                           Released, Durable, Aborted
    RestoreAsk(id)                           RestoreInfo(id) | Failed(id)
    RestoreRead(id)                          RestoreRing + ring descriptor, RestoreFrame…, RestoreEnd(id) | Failed(id)
    RestoreCredit
    RestoreReport(id)                        Ok(id) once every rank has reported its part verified | Failed(id)
    Finished(id)                             Ok(id) | Failed(id)
    Enter, Vacate
                                             Notice

    reader → daemon                          daemon → reader
    Hello(role=reader) + pidfd               Welcome | Refused
    ReadOpen(id)                             ReadInfo(id) | Failed(id)
    ReadList(id)                             ReadListed(id) | Failed(id)
    RestoreRead(id), RestoreCredit           as to a trainer

    anybody of this user → daemon            daemon → it
    StatusAsk, instead of Hello              StatusInfo, and the end

    agent → daemon                           daemon → agent
    Hello(role=agent) + pidfd                Welcome | Refused
    Join(id)                                 Formed(id) | Complete | Failed(id)
    World (its place in a generation and the master address that it gave its workers)
    KvSet(id), KvAdd(id), KvGet(id)          KvValue(id) | Failed(id)
    Leave                                    Waiting, Regroup, Complete
"""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from ckptd_client.errors import ProtocolError, VersionMismatchError
from ckptd_client.packing import plain_fields, reader

PROTOCOL_VERSION = 1
MESSAGE_BYTES = 64 << 20
WORLD_MAX = 1 << 20  # ranks
ONE_SAVE = "save-"  # what the key of a world begins with that is there for one snapshot
ROLES = ("trainer", "agent", "reader")

T = typing.TypeVar("T")

# (epoch, n) of a generation; (0, 0) is none
Gen = tuple[int, int]


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
class Want:
    """A region of a stored tensor that a rank wants, row-major, ``rank`` = -1 for global scope."""

    fqn: str
    rank: int
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Copy(typing.NamedTuple):
    """``nbytes`` bytes at ``frame_offset`` of a delivered frame belong at ``want_offset`` of want number ``want``."""

    frame_offset: int
    want: int
    want_offset: int
    nbytes: int


_COPY = struct.Struct("<4q")


# ---- both roles


@dataclass(frozen=True, slots=True)
class Hello:
    """First message. A trainer names its place in its world; ``world_key`` is "ADDR:PORT" of its master, unique when alone.

    A reader only says its rank, to be given what was stored for that one.

    After a reconnect ``generation`` is the one that the trainer was told, else (0, 0), and ``base_seq`` is 1 + the log number
    of the commit that it restored from, 0 when it restored none.
    """

    protocol: int
    role: str
    job: str
    rank: int
    world_size: int
    local_rank: int
    world_key: str
    generation: Gen
    base_seq: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The daemon's answer: its node id and its incarnation."""

    protocol: int
    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The daemon won't talk; ``code`` is "version", "job" or "protocol"."""

    protocol: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Ok:
    """A request succeeded."""

    id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed; ``code`` is the error class's name in `errors`."""

    id: int
    code: str
    message: str


# ---- trainer


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
class RestoreAsk:
    """What should this world restore? ``bare``: only which, not what is in it."""

    id: int
    bare: bool


@dataclass(frozen=True, slots=True)
class RestoreInfo:
    """The one checkpoint for all ranks; ``seq`` is -1 and ``step`` 0 when there is none.

    ``objects`` maps FQN to typed msgpack: those of global scope, and those of this rank's number when it had one.
    ``tensors`` lists (fqn, rank or -1, dtype, shape). ``loss`` says what is lost by restoring nothing newer, empty for nothing.
    """

    id: int
    generation: Gen
    seq: int
    step: int
    world_size: int
    objects: dict[str, bytes]
    rank_objects: dict[str, bytes]
    tensors: list[tuple[str, int, str, tuple[int, ...]]]
    loss: str


@dataclass(frozen=True, slots=True)
class RestoreRead:
    """Deliver these regions through a ring of frame buffers."""

    id: int
    wants: list[Want]


@dataclass(frozen=True, slots=True)
class RestoreRing:
    """The ring: ``buffers`` buffers of ``buffer_bytes`` each; its descriptor comes along."""

    buffers: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class RestoreFrame:
    """Buffer ``buffer`` holds a verified frame; carry out ``copies``, then give the buffer back.

    ``copies`` are `Copy` rows, packed: a frame of many small tensors has thousands.
    """

    buffer: int
    copies: bytes

    def unpacked(self) -> list[Copy]:
        """Its copies. Raises ProtocolError."""
        if len(self.copies) % _COPY.size:
            raise ProtocolError(f"copies have {_COPY.size} bytes each; a restore frame has {len(self.copies)} of them")
        return [Copy._make(row) for row in _COPY.iter_unpack(self.copies)]


def pack_copies(copies: Iterable[Copy]) -> bytes:
    """As `RestoreFrame` has them."""
    return b"".join(_COPY.pack(*copy) for copy in copies)


@dataclass(frozen=True, slots=True)
class RestoreCredit:
    """Buffer ``buffer`` may be filled again."""

    buffer: int


@dataclass(frozen=True, slots=True)
class RestoreEnd:
    """Every byte of every want was delivered."""

    id: int


@dataclass(frozen=True, slots=True)
class ReadOpen:
    """Keep a committed checkpoint readable until the connection ends or opens another: that of record ``seq``, else the last
    one of ``step``, else (both -1) the newest.
    """

    id: int
    step: int
    seq: int


@dataclass(frozen=True, slots=True)
class ReadInfo:
    """It is open. ``objects`` and ``rank_objects`` are those of `RestoreInfo`, by the reader's rank; ``tensors``: how many."""

    id: int
    seq: int
    step: int
    world_size: int
    objects: dict[str, bytes]
    rank_objects: dict[str, bytes]
    tensors: int


@dataclass(frozen=True, slots=True)
class ReadList:
    """Which tensors, from number ``first`` on?"""

    id: int
    first: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor, ``rank`` = -1 for global scope, and its regions with bytes as (offsets, sizes)."""

    fqn: str
    rank: int
    dtype: str
    shape: tuple[int, ...]
    regions: list[tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class ReadListed:
    """Some of them, at least one while there are any left."""

    id: int
    tensors: list[Stored]


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """This rank has its part (or not: ``error``, empty when it has)."""

    id: int
    error: str


@dataclass(frozen=True, slots=True)
class Finished:
    """This rank has done all its work, and wants no successor world."""

    id: int


@dataclass(frozen=True, slots=True)
class Notice:
    """For people: what is wrong on the way to the store, or is so no more. To one trainer of each node, else to its agent."""

    text: str


# ---- people


@dataclass(frozen=True, slots=True)
class StatusAsk:
    """How is the daemon? ``protocol`` is the asker's."""

    protocol: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """A ckptd.v1.DaemonStatus."""

    body: bytes


# ---- agent


@dataclass(frozen=True, slots=True)
class Join:
    """This node's agent offers ``local_world_size`` workers to the next generation; ``after`` is the last one it was in.

    ``failure`` says which of its workers failed there, the first first, and how; empty when none did.
    """

    id: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    after: Gen
    failure: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why no generation is formed yet with an agent that has joined."""

    reason: str


@dataclass(frozen=True, slots=True)
class Formed:
    """The generation that this agent is part of."""

    id: int
    generation: Gen
    node_rank: int
    num_nodes: int


@dataclass(frozen=True, slots=True)
class World:
    """The agent is part of ``generation``, and tells its workers this master address. Sent again after a reconnect."""

    generation: Gen
    node_rank: int
    num_nodes: int
    local_world_size: int
    min_nodes: int
    max_nodes: int
    world_key: str


@dataclass(frozen=True, slots=True)
class Regroup:
    """Stop the workers of ``generation`` and join again."""

    generation: Gen
    reason: str


@dataclass(frozen=True, slots=True)
class Complete:
    """The job is done: exit 0, form no world again. ``failed``: it is stopped for this reason: stop the workers, exit 1."""

    reason: str
    failed: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """The agent ends; ``failed`` says whether its workers failed for good."""

    failed: bool
    reason: str


@dataclass(frozen=True, slots=True)
class KvSet:
    """Write into the key-value space of a generation."""

    id: int
    generation: Gen
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class KvAdd:
    """Add to a counter of a generation; the reply has the sum in decimal."""

    id: int
    generation: Gen
    key: str
    amount: int


@dataclass(frozen=True, slots=True)
class KvGet:
    """Wait for a key of a generation. The client gives up by itself; a late reply is dropped."""

    id: int
    generation: Gen
    key: str


@dataclass(frozen=True, slots=True)
class KvValue:
    """The value, or the sum."""

    id: int
    value: bytes


Message = (
    Hello | Welcome | Refused | Ok | Failed | Register | Registered | Resume | Resumed | Vacate | Sealed | Missed | Released
    | Durable | Aborted | RestoreAsk | RestoreInfo | RestoreRead | RestoreRing | RestoreFrame | RestoreCredit | RestoreEnd
    | RestoreReport | Enter | ReadOpen | ReadInfo | ReadList | ReadListed | Finished | Notice | StatusAsk | StatusInfo
    | Join | Waiting | Formed | World | Regroup | Complete | Leave | KvSet | KvAdd | KvGet | KvValue
)  # fmt: skip

_TYPES: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message) -> bytes:
    """The wire form, without its length. Raises ProtocolError when it is over MESSAGE_BYTES."""
    body: bytes = msgpack.packb([type(message).__name__, message], default=plain_fields, use_bin_type=True)
    if len(body) > MESSAGE_BYTES:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is over the limit of {MESSAGE_BYTES}")
    return body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """Read one message; raises ProtocolError, or VersionMismatchError when it doesn't fit and is of another version."""
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=False)
        name, content = value
        kind = _TYPES[name]
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a ckptd message: {type(error).__name__}") from error
    try:
        built: Message = reader(kind)(content)
    except ProtocolError:
        theirs = content.get("protocol", PROTOCOL_VERSION) if isinstance(content, dict) else PROTOCOL_VERSION
        if kind in (Hello, Welcome) and isinstance(theirs, int) and theirs != PROTOCOL_VERSION:
            raise VersionMismatchError(different_versions(theirs)) from None
        raise
    return built


def different_versions(theirs: int) -> str:
    """What to tell a user whose client and daemon don't speak the same protocol."""
    return (
        f"one side of this ckptd socket speaks protocol {theirs}, the other {PROTOCOL_VERSION};"
        " install the same version of ckptd and ckptd-client and restart the older one"
    )


def pack(value: object) -> bytes:
    """A dataclass of this module's kinds of fields, as msgpack."""
    packed: bytes = msgpack.packb(value, default=plain_fields, use_bin_type=True)
    return packed


def unpack(kind: type[T], body: bytes) -> T:
    """Read what `pack` wrote, every field's type checked. Raises ProtocolError."""
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a packed {kind.__name__}: {type(error).__name__}") from error
    built: T = reader(typing.cast(typing.Hashable, kind))(value)
    return built
