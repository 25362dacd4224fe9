"""Shared memory that the daemon owns: arenas and restore rings (PROTOCOLS 2).

An arena outlives its daemon twice: as a named file, and as a descriptor with the service manager where there is one. `recover`
takes back what a predecessor left (docs/decisions/0007).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import structlog

from ckptd.errors import ConfigError, ProtocolError, ResourceError, VersionMismatchError
from ckptd_client.arena import ID_BYTES, Arena, Shape, make_arena

_SUFFIX = ".arena"
_log = structlog.get_logger(__name__)


class Keeper(Protocol):
    """Who keeps descriptors for the next daemon: the service manager, or nobody (notify.py)."""

    def keep(self, name: str, fd: int) -> None: ...

    def let_go(self, name: str) -> None: ...


class HostedArena:
    """An arena with its file. Freed when it is neither in use by a trainer nor held by a snapshot."""

    def __init__(self, host: ArenaHost, path: Path | None, fd: int, arena: Arena) -> None:
        """``path`` is None when only the descriptor is left of it."""
        self._host = host
        self._path = path
        self.fd = fd
        self.arena = arena
        self.size_bytes = arena.shape.total_bytes
        self._users = 1

    def hold(self) -> None:
        """One more user."""
        self._users += 1

    def drop(self) -> None:
        """One user less; the last one frees the memory (views still alive keep their pages until they go)."""
        self._users -= 1
        if self._users == 0:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
            self._host.keeper.let_go(self.arena.id)
            os.close(self.fd)
            self._host.give_back(self.size_bytes)


class RingMemory:
    """Memory of a restore's ring. Buffers are allocated one by one, as they are needed: all at once would hold up the first."""

    def __init__(self, fd: int, size_bytes: int, buffer_bytes: int, allocate: Callable[[int, int, int], None]) -> None:
        self.fd = fd
        self._memory = memoryview(mmap.mmap(fd, size_bytes))
        self._buffer_bytes = buffer_bytes
        self._allocate = allocate

    def buffer(self, index: int) -> memoryview:
        """A buffer's memory, to be written only once it has been allocated."""
        return self._memory[index * self._buffer_bytes : (index + 1) * self._buffer_bytes]

    def allocate(self, index: int) -> None:
        """Blocks for a millisecond. Raises ResourceError."""
        self._allocate(self.fd, index * self._buffer_bytes, self._buffer_bytes)


class ArenaHost:
    """One directory on tmpfs, this daemon's alone, and the sum of what lies in it."""

    def __init__(self, directory: Path, limit_bytes: int, keeper: Keeper) -> None:
        """Take the directory. Raises ConfigError when it isn't ours, is shared with a living daemon or can't be made."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock_used = threading.Lock()
        self._directory = directory
        self.keeper = keeper
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.lstat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077 or not directory.is_dir():
                raise ConfigError(f"arena.directory must be a directory of this user with mode 0700 directory={directory}")
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another ckptd daemon uses this arena.directory; give each its own directory={directory}"
            ) from error
        except OSError as error:
            raise ConfigError(f"can't use arena.directory directory={directory} error={error}") from error

    def recover(self, kept: Mapping[str, int]) -> list[HostedArena]:
        """What a predecessor left in the directory, and with the service manager: ``kept`` are descriptors by name, ours now.

        Each is held once. What is no arena (half made, or of an older ckptd) is removed; one of a newer ckptd is left alone.
        """
        found: dict[str, HostedArena] = {}
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            try:
                fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                _log.warning("arena_unreadable", path=str(path), error=str(error))
                continue
            if not self._take_back(found, path, fd):
                path.unlink(missing_ok=True)
        for hosted in found.values():
            if hosted.arena.id not in kept:
                self.keeper.keep(hosted.arena.id, hosted.fd)
        for name, fd in kept.items():
            if name in found:
                os.close(fd)  # its file is there
            elif not self._take_back(found, None, fd):
                self.keeper.let_go(name)
        return list(found.values())

    def _take_back(self, found: dict[str, HostedArena], path: Path | None, fd: int) -> bool:
        """False when it may be removed."""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ProtocolError("not a file")
            arena = Arena(fd)
            if arena.id in found:
                raise ProtocolError("another file is this arena")
        except VersionMismatchError as error:
            _log.error("arena_of_a_newer_version", path=str(path), error=str(error))
            os.close(fd)
            return True
        except (ProtocolError, OSError) as error:
            _log.warning("arena_removed", path=str(path), error=str(error))
            os.close(fd)
            return False
        found[arena.id] = HostedArena(self, path, fd, arena)
        with self._lock_used:
            self._used_bytes += arena.shape.total_bytes
        return True

    def create(self, slots: int, slot_bytes: int, objects: int, description: bytes) -> HostedArena:
        """Reserve, map and fault in a new arena, held once; blocks for 0.2–3 s per GiB. Raises ResourceError.

        ``objects``: how many lengths a slot has. ``description``: what the next daemon must know of it.
        """
        shape = Shape(slots, slot_bytes, objects, len(description))
        if not shape.possible:
            raise ResourceError(f"an arena can't have this shape {shape}")
        path, fd = self._reserve(shape.total_bytes)
        arena = make_arena(fd, secrets.token_bytes(ID_BYTES), shape, description)
        arena.prefault()
        self.keeper.keep(arena.id, fd)
        return HostedArena(self, path, fd, arena)

    @asynccontextmanager
    async def ring(self, buffers: int, buffer_bytes: int) -> AsyncIterator[RingMemory]:
        """Memory of a restore's ring, allocated buffer by buffer. Raises ResourceError when it doesn't fit: as a rule now,
        before anything is restored; where others take what is free meanwhile, a buffer's allocation does.
        """
        size = buffers * buffer_bytes
        self._take(size)
        try:
            room = os.statvfs(self._directory)
            if room.f_blocks and room.f_bavail * room.f_frsize < size:  # a tmpfs without a limit says that it has no blocks
                raise self._no_room(size, "not enough is free")
            fd, name = tempfile.mkstemp(suffix=_SUFFIX, dir=self._directory)
            try:
                os.unlink(name)
                os.ftruncate(fd, size)
                yield RingMemory(fd, size, buffer_bytes, self._allocate)
            finally:
                os.close(fd)
        finally:
            self.give_back(size)

    def _reserve(self, size: int) -> tuple[Path, int]:
        self._take(size)
        fd, name = tempfile.mkstemp(suffix=_SUFFIX, dir=self._directory)
        try:
            self._allocate(fd, 0, size)
        except ResourceError:
            os.close(fd)
            os.unlink(name)
            self.give_back(size)
            raise
        return Path(name), fd

    def _take(self, size: int) -> None:
        with self._lock_used:
            if self._used_bytes + size > self._limit_bytes:
                raise ResourceError(
                    f"shared memory for {size} bytes would exceed arena.limit_bytes; raise it, or use fewer slots"
                    f" limit_bytes={self._limit_bytes} used_bytes={self._used_bytes}"
                )
            self._used_bytes += size

    def _allocate(self, fd: int, start: int, size: int) -> None:
        """A full tmpfs is an error here, never a SIGBUS later."""
        try:
            os.posix_fallocate(fd, start, size)
        except OSError as error:
            raise self._no_room(size, error) from error

    def _no_room(self, size: int, error: object) -> ResourceError:
        return ResourceError(
            f"{self._directory} has no room for {size} bytes; make the tmpfs larger, or point arena.directory elsewhere"
            f" error={error}"
        )

    @property
    def used_bytes(self) -> int:
        """Shared memory that is reserved now."""
        return self._used_bytes

    def give_back(self, size: int) -> None:
        """Account for freed memory."""
        with self._lock_used:
            self._used_bytes -= size

    def close(self, remove: bool) -> None:
        """Let go of the directory. What is left in it is removed, or stays for the next daemon."""
        for left in self._directory.glob(f"*{_SUFFIX}"):
            if remove:
                left.unlink(missing_ok=True)
        os.close(self._lock)
