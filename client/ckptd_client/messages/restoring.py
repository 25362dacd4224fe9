"""What a trainer restores, what a reader opens, and how the bytes of both are delivered."""

from __future__ import annotations

import struct
import typing
from collections.abc import Iterable
from dataclasses import dataclass

from ckptd_client.errors import ProtocolError
from ckptd_client.messages.hello import Gen

_COPY = struct.Struct("<4q")


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
class Filled:
    """Buffer ``buffer`` holds a verified frame; ``copies`` are `Copy` rows, packed: one of many small tensors has thousands."""

    buffer: int
    copies: bytes

    def unpacked(self) -> list[Copy]:
        """Its copies. Raises ProtocolError."""
        if len(self.copies) % _COPY.size:
            raise ProtocolError(f"copies have {_COPY.size} bytes each; a restore frame has {len(self.copies)} of them")
        return [Copy._make(row) for row in _COPY.iter_unpack(self.copies)]


@dataclass(frozen=True, slots=True)
class RestoreFrames:
    """Carry out the copies of all of these, then give their buffers back."""

    filled: list[Filled]


def pack_copies(copies: Iterable[Copy]) -> bytes:
    """As `Filled` has them."""
    return b"".join(_COPY.pack(*copy) for copy in copies)


@dataclass(frozen=True, slots=True)
class RestoreCredit:
    """These buffers may be filled again."""

    buffers: list[int]


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
