"""The directory driver: a local or network file system that can make hard links (PROTOCOLS 4.9)."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ckptd.errors import (
    AlreadyExistsError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)
from ckptd.store.base import Body, Bytes, ObjectInfo, pieces_of
from ckptd.store.keys import check_create_body, check_directory, check_key, check_prefix, check_range
from ckptd.store.threads import StoreThreads

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_CONFIG = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_SHAPE = {errno.EEXIST, errno.EISDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}


class DirectoryStore:
    """Objects are files below ``root``, which is made at the first write.

    Safe for many processes and hosts at once, as far as the file system's link() and rename() are atomic there.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_absolute():
            raise StoreConfigError(f"a directory store needs an absolute path; got {str(root)!r}")
        self._root = root
        self._threads = StoreThreads()
        # Directories whose own entries, up to the file system's root, this process has seen reach the disk.
        self._durable: set[Path] = set()
        self._identity: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        return f"file://{self._root}"

    async def put(self, key: str, data: Body) -> None:
        path = self._path(key)
        await self._threads.run(lambda: self._write(path, key, data, os.replace))

    async def create(self, key: str, data: Bytes) -> None:
        path = self._path(key)
        check_create_body(memoryview(data).nbytes)
        await self._threads.run(lambda: self._write(path, key, data, _link))

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        check_range(start, end)
        path = self._path(key)
        return await self._threads.run(lambda: self._read(path, key, start, end))

    async def info(self, key: str) -> ObjectInfo:
        path = self._path(key)
        return await self._threads.run(lambda: self._stat(path, key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        for info in await self._threads.run(lambda: list(self._walk(prefix))):
            yield info

    async def children(self, prefix: str) -> Sequence[str]:
        check_directory(prefix)
        return await self._threads.run(lambda: self._subdirectories(prefix))

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._threads.run(lambda: self._remove(path, key))

    async def close(self) -> None:
        self._threads.close()

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _write(self, path: Path, key: str, data: Body, publish: Callable[[Path, Path], None]) -> None:
        for tries_left in (2, 1, 0):
            try:
                self._write_once(path, data, publish)
                return
            except FileNotFoundError as error:  # somebody's delete has just taken the directory away, which was empty
                if not tries_left:
                    raise self._translated(error, "write", key) from error
            except OSError as error:
                raise self._translated(error, "write", key) from error

    def _write_once(self, path: Path, data: Body, publish: Callable[[Path, Path], None]) -> None:
        temporary = path.parent / f".tmp-{secrets.token_hex(16)}"
        self._check_root()
        try:
            self._make_directory(path.parent)
            _write_new(temporary, data)
            publish(temporary, path)
        finally:
            with suppress(OSError):  # after os.replace it is gone; otherwise it is litter, and list() skips it
                temporary.unlink()
        _sync_directory(path.parent)
        self._check_root()  # or it went where nobody will look for it

    def _check_root(self) -> None:
        """Raise _GoneError when the root isn't the directory that it was: what lies under a lost mount is no store.

        Without this a write would go there and be lost with the next mount, and every read would find nothing.
        """
        known = self._identity  # as of before we look: another thread may make the root, and know it, right after
        try:
            found = self._root.stat()
        except FileNotFoundError:
            if known is None:
                return
            raise _GoneError(errno.ENOENT, "gone") from None
        self._identity = self._identity or (found.st_dev, found.st_ino)
        if self._identity != (found.st_dev, found.st_ino):
            raise _GoneError(errno.ESTALE, "another directory")

    def _make_directory(self, directory: Path) -> None:
        """Make ``directory`` and have its name, and those of all its parents, on the disk.

        A parent that another process has just made counts as ours: its maker may not have synced it yet.
        """
        if directory in self._durable and directory.is_dir():
            return
        _make(directory)
        named = []
        for name, parent in zip((directory, *directory.parents), directory.parents, strict=False):
            if not os.access(parent, os.R_OK):
                break  # above the part of the tree that this user can have made
            _sync_directory(parent)
            named.append(name)
            if parent in self._durable:
                break
        self._durable.update(named)

    def _read(self, path: Path, key: str, start: int, end: int | None) -> bytes:
        try:
            self._check_root()
            with path.open("rb", buffering=0) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                end = size_bytes if end is None else min(end, size_bytes)
                file.seek(start)
                parts = []
                while start < end:  # one read() returns at most 2 GiB
                    part = file.read(end - start)
                    if not part:
                        break
                    parts.append(part)
                    start += len(part)
                return parts[0] if len(parts) == 1 else b"".join(parts)
        except OSError as error:
            raise self._translated(error, "read", key) from error

    def _stat(self, path: Path, key: str) -> ObjectInfo:
        try:
            self._check_root()
            found = path.stat()
        except OSError as error:
            raise self._translated(error, "read", key) from error
        if path.is_dir():
            raise NotFoundError(f"no such object key={key} store={self.url}")
        return ObjectInfo(key, found.st_size, found.st_mtime)

    def _look_again(self, verb: str, key: str) -> None:
        try:
            self._check_root()
        except OSError as error:
            raise self._translated(error, verb, key) from error

    def _walk(self, prefix: str) -> Iterator[ObjectInfo]:
        def give_up(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise self._translated(error, "list", prefix) from error

        self._look_again("list", prefix)
        top = self._root / prefix.rpartition("/")[0]
        for directory, names, files in os.walk(top, onerror=give_up):
            names[:] = [name for name in names if not name.startswith(".")]
            for name in files:
                path = Path(directory, name)
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and not name.startswith("."):
                    with suppress(NotFoundError):  # deleted while we walked
                        yield self._stat(path, key)

    def _subdirectories(self, prefix: str) -> Sequence[str]:
        self._look_again("list", prefix)
        try:
            with os.scandir(self._root / prefix) as entries:
                return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._translated(error, "list", prefix) from error

    def _remove(self, path: Path, key: str) -> None:
        try:
            self._check_root()
            path.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                _sync_directory(path.parent)
            if path.parent != self._root:
                # A directory that has become empty is litter. Never one above it, so those stay known to be durable; a writer
                # that comes too late finds it missing and makes it anew.
                with suppress(OSError):
                    path.parent.rmdir()
        except OSError as error:
            raise self._translated(error, "delete", key) from error

    def _translated(self, error: OSError, verb: str, key: str) -> Exception:
        where = f"key={key} store={self.url} errno={errno.errorcode.get(error.errno or 0, error.errno)}"
        if isinstance(error, _SyncError):
            return StoreError(f"fsync failed, so nothing is known of what was written; check the disk: {where}")
        try:
            self._check_root()
        except OSError as gone:
            error = gone
        if isinstance(error, _GoneError):
            return UnavailableError(
                "the store's directory is gone, or another one than before (unmounted?); bring it back, or restart if it was"
                f" moved on purpose: {where}"
            )
        if isinstance(error, _LinkError):
            return UnsafeStoreError(f"this file system can't make hard links, so a second create can't be refused: {where}")
        if isinstance(error, _TakenError):
            return AlreadyExistsError(f"the key is taken: {where}")
        if verb == "read" and isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
            return NotFoundError(f"no such object: {where}")
        if error.errno in _CONFIG:
            return StoreConfigError(f"can't {verb} here; check the path, its permissions and its mount: {where}")
        if error.errno in _SHAPE:
            return StoreError(f"a file stands where a directory must be, or the other way round: {where}")
        if error.errno in _FULL:
            return UnavailableError(f"the store is full; free space there, and all goes on by itself: {where}")
        return UnavailableError(f"can't {verb}: {where}")


class _SyncError(OSError):
    """An fsync failed. Linux may have dropped the pages and marked them clean: a second fsync would lie."""


class _GoneError(OSError):
    """The root is missing, or another directory than at first."""


class _TakenError(OSError):
    """link() found the name in use."""


class _LinkError(OSError):
    """link() is not to be had on this file system."""


def _make(directory: Path) -> None:
    """mkdir -p. Raises FileNotFoundError when somebody's delete takes a directory away that was there a moment before."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # something had the name, and pathlib's second look found no directory
        if stat.S_ISDIR(os.lstat(error.filename).st_mode):
            raise FileNotFoundError(errno.ENOENT, "taken away and made again", error.filename) from error
        raise


def _write_new(path: Path, data: Body) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in pieces_of(data):
            with memoryview(piece) as whole, whole.cast("B") as flat:  # let go of, even if an error's frames live on
                done = 0
                while done < flat.nbytes:
                    done += os.write(descriptor, flat[done:])
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _TakenError(*error.args) from error
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise _LinkError(*error.args) from error
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise _SyncError(*error.args) from error
