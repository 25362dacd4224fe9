"""The store protocol: seven verbs, and what each one promises.

Keys are relative, '/'-separated, computed by us and never taken from a stored text. Every verb may raise UnavailableError (try
again: any verb here may be repeated) or StoreConfigError (don't). Drivers do not retry; wrappers in this package do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Bytes = bytes | bytearray | memoryview
Body = Bytes | Sequence[Bytes]
"""An object's bytes, or pieces which make it up in a row: what lies scattered needn't be joined to be sent."""


def pieces_of(body: Body) -> Sequence[Bytes]:
    """One or more pieces, whose bytes in a row are the body."""
    return [body] if isinstance(body, Bytes) else body


def size_of(body: Body) -> int:
    """In bytes."""
    return sum(memoryview(piece).nbytes for piece in pieces_of(body))


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Key, size in bytes and the store's own last-modified time (seconds since 1970; never our clock)."""

    key: str
    size_bytes: int
    modified_seconds: float


class Store(Protocol):
    """A flat namespace of immutable-by-convention objects."""

    @property
    def url(self) -> str:
        """The place in words, without credentials: for messages and logs."""
        ...

    async def put(self, key: str, data: Body) -> None:
        """Write the whole object, atomically; replaces what was there. Durable when it returns.

        A driver reads ``data`` through the buffer protocol only, and lets go of it when nothing of the call reads it any more,
        be it after a cancellation or a timeout: that tells its owner when the memory may be written again.
        """
        ...

    async def create(self, key: str, data: Bytes) -> None:
        """Write the whole object only if the key is free, atomically. Durable when it returns.

        Raises AlreadyExistsError when the key is taken. After UnavailableError the object may or may not be there, and a
        repeated call may find its own earlier success as AlreadyExistsError: the caller must read back (PROTOCOLS 4.3).
        """
        ...

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        """Return bytes [start, end) of the object, fewer if it ends before. Raises NotFoundError.

        What comes is the caller's alone, and may be a view of the memory into which the body was received: it is not copied.
        """
        ...

    async def info(self, key: str) -> ObjectInfo:
        """Size and age of one object. Raises NotFoundError."""
        ...

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """All objects whose key starts with ``prefix``, in no order. Never used where safety depends on it."""
        ...

    async def children(self, prefix: str) -> Sequence[str]:
        """The different first parts of what follows ``prefix`` ('' or ending in '/') in keys that have a '/' there: as many as
        directories, not objects. In no order. Never used where safety depends on it. An empty directory may be among them.
        """
        ...

    async def delete(self, key: str) -> None:
        """Remove the object; a missing one is no error."""
        ...

    async def close(self) -> None:
        """Give back connections and threads."""
        ...


async def get_small(store: Store, key: str, limit_bytes: int) -> bytes:
    """Return the object as bytes, cut off one byte after ``limit_bytes`` so that its parser refuses a longer one.

    Raises NotFoundError and what the store raises.
    """
    return bytes(await store.get(key, 0, limit_bytes + 1))
