"""Shared memory that the daemon owns: arenas and restore rings (PROTOCOLS 2)."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from ckptd.errors import ConfigError, ResourceError
from ckptd_client.arena import PAGE, SLOTS_MAX, Arena, arena_bytes

_SUFFIX = ".arena"
_log = structlog.get_logger(__name__)


class HostedArena:
    """An arena with its file. Freed when it is neither in use by a trainer nor held by a snapshot."""

    def __init__(self, host: ArenaHost, path: Path, fd: int, slots: int, slot_bytes: int) -> None:
        self._host = host
        self._path = path
        self.fd = fd
        self.arena = Arena(fd, slots, slot_bytes)
        self.arena.write_header()
        self.size_bytes = arena_bytes(slots, slot_bytes)
        self._users = 0

    def hold(self) -> None:
        """One more user."""
        self._users += 1

    def drop(self) -> None:
        """One user less; the last one frees the memory (views still alive keep their pages until they go)."""
        self._users -= 1
        if self._users == 0:
            self._path.unlink(missing_ok=True)
            os.close(self.fd)
            self._host.give_back(self.size_bytes)


class ArenaHost:
    """One directory on tmpfs, this daemon's alone, and the sum of what lies in it."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Take the directory. Raises ConfigError when it isn't ours, is shared with a living daemon or can't be made."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock_used = threading.Lock()
        self._directory = directory
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
        for stale in directory.glob(f"*{_SUFFIX}"):
            stale.unlink(missing_ok=True)  # of a daemon that is dead; its trainers come with a new hello and get new ones

    def create(self, slots: int, slot_bytes: int) -> HostedArena:
        """Reserve, map and fault in a new arena, held once; blocks for 0.2–3 s per GiB. Raises ResourceError."""
        if not 0 < slots <= SLOTS_MAX or slot_bytes <= 0 or slot_bytes % PAGE:
            raise ResourceError(f"an arena can't have this shape slots={slots} slot_bytes={slot_bytes}")
        size = arena_bytes(slots, slot_bytes)
        path, fd = self._reserve(size)
        hosted = HostedArena(self, path, fd, slots, slot_bytes)
        hosted.arena.prefault()
        hosted.hold()
        return hosted

    @asynccontextmanager
    async def ring(self, buffers: int, buffer_bytes: int) -> AsyncIterator[tuple[int, memoryview]]:
        """A restore ring: (descriptor, memory). Raises ResourceError when it doesn't fit."""
        size = buffers * buffer_bytes
        path, fd = await asyncio.to_thread(self._reserve, size)
        path.unlink()
        try:
            yield fd, memoryview(mmap.mmap(fd, size))
        finally:
            os.close(fd)
            self.give_back(size)

    def _reserve(self, size: int) -> tuple[Path, int]:
        with self._lock_used:
            if self._used_bytes + size > self._limit_bytes:
                raise ResourceError(
                    f"shared memory for {size} bytes would exceed arena.limit_bytes; raise it, or use fewer slots"
                    f" limit_bytes={self._limit_bytes} used_bytes={self._used_bytes}"
                )
            self._used_bytes += size
        fd, name = tempfile.mkstemp(suffix=_SUFFIX, dir=self._directory)
        try:
            os.posix_fallocate(fd, 0, size)  # a full tmpfs is an error here, never a SIGBUS later
        except OSError as error:
            os.close(fd)
            os.unlink(name)
            self.give_back(size)
            raise ResourceError(
                f"{self._directory} has no room for {size} bytes; make the tmpfs larger, or point arena.directory elsewhere"
                f" error={error}"
            ) from error
        return Path(name), fd

    @property
    def used_bytes(self) -> int:
        """Shared memory that is reserved now."""
        return self._used_bytes

    def give_back(self, size: int) -> None:
        """Account for freed memory."""
        with self._lock_used:
            self._used_bytes -= size

    def close(self) -> None:
        """Remove what is left and let go of the directory."""
        for left in self._directory.glob(f"*{_SUFFIX}"):
            left.unlink(missing_ok=True)
        os.close(self._lock)
