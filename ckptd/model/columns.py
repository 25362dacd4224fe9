"""The container of everything that has many rows: a header, a table of sections, then arrays of fixed-width rows.

    byte 0   magic, 8 bytes: what the object is
         8   format version u32, minimum reader version u32
        16   number of sections u32, zero u32
        24   per section 40 bytes: name (24 bytes, zero-padded), offset u64, rows u64
        then the sections in the table's order, each at the next multiple of 8, the gaps zero

All numbers are little-endian. Equal content has equal bytes, and every byte is checked: what isn't magic, version or data has
only one possible value. A reader that wants some rows reads the header and then the rows' range.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ckptd.errors import CorruptError, NewerFormatError

FORMAT_VERSION: Final = 1
READER_VERSION: Final = 1
MAX_NAME_BYTES: Final = 4096
MAX_NDIM: Final = 64
MAX_BYTES: Final = 1 << 60  # of one tensor: far from where 64-bit arithmetic ends

_HEAD = struct.Struct("<8sIIII")
_SECTION = struct.Struct("<24sQQ")
_ALIGN = 8

U1 = np.dtype("u1")
U4 = np.dtype("<u4")
U8 = np.dtype("<u8")
I8 = np.dtype("<i8")

Array = NDArray[Any]
Sections = Sequence[tuple[str, "np.dtype[Any]"]]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of object: its magic (8 bytes), its sections with their row types, and the most bytes that are read."""

    what: str
    magic: bytes
    sections: Sections
    limit_bytes: int

    def encode(self, arrays: Mapping[str, Array]) -> bytes:
        """The object's bytes. ``arrays`` has the rows of every section."""
        bodies = [np.ascontiguousarray(arrays[name], kind).tobytes() for name, kind in self.sections]
        table, end = [], _HEAD.size + len(bodies) * _SECTION.size
        for (name, kind), body in zip(self.sections, bodies, strict=True):
            start = _aligned(end)
            table.append(_SECTION.pack(name.encode(), start, len(body) // kind.itemsize))
            end = start + len(body)
        head = _HEAD.pack(self.magic, FORMAT_VERSION, READER_VERSION, len(bodies), 0)
        parts = [head, *table]
        written = _HEAD.size + len(bodies) * _SECTION.size
        for body in bodies:
            parts += [bytes(_aligned(written) - written), body]
            written = _aligned(written) + len(body)
        if written > self.limit_bytes:
            raise CorruptError(f"a {self.what} of {written} bytes can't be read again limit={self.limit_bytes}")
        return b"".join(parts)

    def decode(self, data: bytes) -> dict[str, Array]:
        """Each section's rows, as read-only views of ``data``. Raises CorruptError for what ``encode`` can't have written."""
        if len(data) > self.limit_bytes:
            raise self.bad(f"more than {self.limit_bytes} bytes")
        self._check_head(data)
        arrays: dict[str, Array] = {}
        end = _HEAD.size + len(self.sections) * _SECTION.size
        for number, (name, kind) in enumerate(self.sections):
            stored_name, start, rows = _SECTION.unpack_from(data, _HEAD.size + number * _SECTION.size)
            if stored_name != name.encode().ljust(24, b"\0") or start != _aligned(end):
                raise self.bad(f"section {name} is not where it must be")
            if start + rows * kind.itemsize > len(data) or any(data[end:start]):
                raise self.bad(f"section {name} is cut off")
            arrays[name] = np.frombuffer(data, kind, rows, start)
            end = start + rows * kind.itemsize
        if end != len(data):
            raise self.bad("bytes after the end")
        return arrays

    def bad(self, why: str) -> CorruptError:
        """The error to raise."""
        return CorruptError(f"{self.what} doesn't parse: {why}")

    def _check_head(self, data: bytes) -> None:
        if len(data) < _HEAD.size:
            raise self.bad("too short")
        magic, version, reader, count, zero = _HEAD.unpack_from(data)
        if magic != self.magic:
            raise self.bad("wrong magic")
        check_versions(self.what, version, reader)
        if count != len(self.sections) or zero or len(data) < _HEAD.size + count * _SECTION.size:
            raise self.bad("wrong number of sections")


def check_versions(what: str, version: object, reader: object) -> None:
    """Raise NewerFormatError for what was written as ``version`` for readers from ``reader`` on, when ours is older.

    CorruptError for versions that no ckptd has written.
    """
    if type(version) is not int or type(reader) is not int or reader < 1 or version < reader:
        raise CorruptError(f"{what} has impossible versions version={version!r:.40} reader={reader!r:.40}")
    if reader > READER_VERSION:
        raise NewerFormatError(
            f"{what} was written by a newer ckptd: format {version}, for readers of {reader} or later;"
            f" this ckptd reads up to {READER_VERSION}: upgrade it"
        )
    if version != FORMAT_VERSION:
        raise CorruptError(f"{what} has a format that this ckptd doesn't know version={version} known={FORMAT_VERSION}")


def pack_texts(texts: Sequence[str]) -> tuple[Array, Array]:
    """(end of each text, all texts' UTF-8 bytes)."""
    bodies = [text.encode() for text in texts]
    ends = np.cumsum([len(body) for body in bodies], dtype=np.int64)
    return ends, np.frombuffer(b"".join(bodies), U1)


def unpack_texts(form: Format, ends: Array, blob: Array) -> list[str]:
    """What `pack_texts` packed. Raises CorruptError."""
    lengths = np.diff(ends, prepend=0)
    if (int(ends[-1]) if len(ends) else 0) != len(blob):
        raise form.bad("texts are cut off")
    if len(ends) and (ends.min() < 0 or lengths.min() < 1 or lengths.max() > MAX_NAME_BYTES):
        raise form.bad(f"a name has 1 to {MAX_NAME_BYTES} bytes")
    body, starts = blob.tobytes(), (ends - lengths).tolist()
    try:
        return [body[start:end].decode() for start, end in zip(starts, ends.tolist(), strict=True)]
    except UnicodeDecodeError:
        raise form.bad("a name is not UTF-8") from None


class Dims:
    """Ragged rows of dimensions: row i has ``counts[i]`` numbers."""

    def __init__(self, form: Format, counts: Array, values: Array) -> None:
        """Raises CorruptError unless all numbers are there, none is negative and no product overflows."""
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._values = values
        self.counts = counts
        if (int(self._ends[-1]) if len(counts) else 0) != len(values):
            raise form.bad("dimensions are cut off")
        if len(counts) and counts.max() > MAX_NDIM:
            raise form.bad(f"more than {MAX_NDIM} dimensions")
        if len(values) and (values.min() < 0 or values.max() > MAX_BYTES):
            raise form.bad("a dimension is out of bounds")
        self.products = self._products()
        if len(counts) and self.products.max() > MAX_BYTES:
            raise form.bad("too many elements")

    def row(self, i: int) -> tuple[int, ...]:
        """One row."""
        end = int(self._ends[i])
        return tuple(self._values[end - int(self.counts[i]) : end].tolist())

    def tuples(self) -> list[tuple[int, ...]]:
        """All rows."""
        values, ends = self._values.tolist(), self._ends.tolist()
        return [tuple(values[end - count : end]) for end, count in zip(ends, self.counts.tolist(), strict=True)]

    def rows(self, count: int) -> tuple[Array, Array]:
        """(numbers of the rows that have ``count`` dimensions, their dimensions as a matrix)."""
        which = np.flatnonzero(self.counts == count)
        return which, self._values[(self._ends[which] - count)[:, None] + np.arange(count)]

    def _products(self) -> Array:
        """Product of each row, as far as it is below 2 × MAX_BYTES."""
        products = np.ones(len(self.counts), np.int64)
        for count in np.unique(self.counts).tolist():
            which, matrix = self.rows(count)
            with np.errstate(all="ignore"):
                guess, exact = np.prod(matrix.astype(np.float64), axis=1), np.prod(matrix, axis=1)
            products[which] = np.where(guess > MAX_BYTES * 1.5, 2 * MAX_BYTES, exact)
        return products


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGN) * _ALIGN
