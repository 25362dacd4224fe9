"""Tensors that lie in files of another format, and reading their bytes."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from ckptd.errors import InterchangeError, NotFoundError
from ckptd.interchange.cut import cut, span_of, strides_of
from ckptd.model.dtypes import item_bytes
from ckptd.model.region import Region
from ckptd.store.base import Store
from ckptd.store.keys import check_file

_STRETCH_BYTES: Final = 256 << 10


class Files(Protocol):
    """Files that are read by range. Names are checked: none leads out of the directory."""

    async def size(self, name: str) -> int | None:
        """In bytes; None if there is no such file. Raises InterchangeError for a name that leads elsewhere."""
        ...

    async def read(self, name: str, start: int, end: int) -> bytes:
        """Exactly these bytes. Raises InterchangeError when the file ends before, or isn't there."""
        ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a tensor: its first element is at byte ``start`` of a file, the others by ``strides`` (in elements)."""

    region: Region
    file: str
    start: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Foreign:
    """A tensor; ``pieces`` have each of its elements once."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Of all elements."""
        return Region((0,) * len(self.shape), self.shape).elements * item_bytes(self.dtype)


def whole(dtype: str, shape: tuple[int, ...], file: str, start: int) -> Foreign:
    """A row-major tensor in one piece."""
    return Foreign(dtype, shape, (Piece(Region((0,) * len(shape), shape), file, start, strides_of(shape)),))


async def read_region(files: Files, piece: Piece, dtype: str, within: Region, into: memoryview) -> None:
    """Read the rectangle ``within`` of a piece, row-major, ``into`` memory of just its size.

    Its bytes are read in one go if most of those between them are its own, too, else by stretches of _STRETCH_BYTES.
    """
    size_bytes = item_bytes(dtype)
    dense = span_of(within.sizes, piece.strides) <= 2 * within.elements
    if dense and _is_row_major(within.sizes, piece.strides):
        into[:] = await _read_span(files, piece, size_bytes, within)
        return
    element = np.dtype((np.void, size_bytes))
    target = np.frombuffer(into, element).reshape(within.sizes)
    limit = span_of(within.sizes, piece.strides) if dense else _STRETCH_BYTES // size_bytes
    for part in cut(within.sizes, piece.strides, limit):
        offsets = tuple(a + b for a, b in zip(within.offsets, part.offsets, strict=True))
        body = await _read_span(files, piece, size_bytes, Region(offsets, part.sizes))
        strides = [stride * size_bytes for stride in piece.strides]
        view = np.lib.stride_tricks.as_strided(np.frombuffer(body, element), part.sizes, strides, writeable=False)
        box = tuple(slice(offset, offset + size) for offset, size in zip(part.offsets, part.sizes, strict=True))
        np.copyto(target[box], view)


async def _read_span(files: Files, piece: Piece, size_bytes: int, within: Region) -> bytes:
    first = sum(offset * stride for offset, stride in zip(within.offsets, piece.strides, strict=True))
    start = piece.start + first * size_bytes
    return await files.read(piece.file, start, start + span_of(within.sizes, piece.strides) * size_bytes)


def _is_row_major(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    wanted = strides_of(sizes)
    return all(size < 2 or stride == step for size, stride, step in zip(sizes, strides, wanted, strict=True))


class LocalFiles:
    """Files below a directory. Symbolic links are followed as long as they stay in it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()

    async def size(self, name: str) -> int | None:
        return await asyncio.to_thread(self._size, name)

    async def read(self, name: str, start: int, end: int) -> bytes:
        return await asyncio.to_thread(self._read, name, start, end)

    def _path(self, name: str) -> Path:
        path = (self._directory / check_name(name)).resolve()
        if not path.is_relative_to(self._directory):
            raise InterchangeError(f"a file's name leads out of the directory name={name!r:.200} directory={self._directory}")
        return path

    def _size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(error, name) from None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def _read(self, name: str, start: int, end: int) -> bytes:
        parts, at = [], start
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                while at < end and (part := os.pread(descriptor, end - at, at)):
                    parts.append(part)
                    at += len(part)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise self._failed(error, name) from None
        if at < end:
            raise InterchangeError(f"a file is cut off name={name!r:.200} bytes={at} expected={end}")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _failed(self, error: OSError, name: str) -> InterchangeError:
        return InterchangeError(f"can't read a file: {error.strerror} name={name!r:.200} directory={self._directory}")


class StoreFiles:
    """Files below a URL; ``store`` takes their names as keys."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def size(self, name: str) -> int | None:
        try:
            return (await self._store.info(check_name(name))).size_bytes
        except NotFoundError:
            return None

    async def read(self, name: str, start: int, end: int) -> bytes:
        try:
            body = await self._store.get(check_name(name), start, end)
        except NotFoundError:
            raise InterchangeError(f"a file is missing name={name!r:.200} in={self._store.url}") from None
        if len(body) < end - start:
            raise InterchangeError(f"a file is cut off name={name!r:.200} bytes={start + len(body)} expected={end}")
        return bytes(body)


def check_name(name: str) -> str:
    """A file's name as it stands in an index or a metadata file, if it is one below the same directory."""
    try:
        return check_file(name)
    except ValueError:
        raise InterchangeError(f"a file's name leads out of the directory, or is none name={name!r:.200}") from None
