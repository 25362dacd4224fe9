"""The zip of a torch.save file, read by range: its table, and where each entry's bytes are. Nothing is decompressed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ckptd.errors import InterchangeError
from ckptd.interchange.foreign import Files

_TAIL_BYTES: Final = 4096
_TABLE_MAX: Final = 256 << 20
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Place:
    """``length`` bytes at ``start`` of a file: a file of its own, or one within another."""

    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Entry:
    header: int
    size_bytes: int


class Archive:
    """An opened archive."""

    def __init__(self, files: Files, place: Place, root: str, entries: dict[str, _Entry], table: int) -> None:
        self._files, self._place, self._root, self._entries, self._table = files, place, root, entries, table

    def size(self, name: str) -> int | None:
        """Bytes of an entry; None if there is none."""
        entry = self._entries.get(f"{self._root}/{name}")
        return None if entry is None else entry.size_bytes

    async def find(self, name: str) -> int:
        """Where in the file the bytes of an entry begin. Raises InterchangeError."""
        entry = self._entries[f"{self._root}/{name}"]
        start = self._place.start + entry.header
        row = _LOCAL.unpack(await self._files.read(self._place.file, start, start + _LOCAL.size))
        begin: int = entry.header + _LOCAL.size + row[9] + row[10]
        if row[0] != b"PK\3\4" or begin + entry.size_bytes > self._table:
            raise _bad(self._place, f"its entry {name[:100]!r} is not where it should be")
        return self._place.start + begin

    async def read(self, name: str, limit_bytes: int) -> bytes:
        """All of a small entry. Raises InterchangeError when it isn't there, or longer."""
        size_bytes = self.size(name)
        if size_bytes is None or size_bytes > limit_bytes:
            raise _bad(self._place, f"its {name} is missing, or over {limit_bytes} bytes")
        start = await self.find(name)
        return await self._files.read(self._place.file, start, start + size_bytes)


async def open_archive(files: Files, place: Place) -> Archive:
    """Read the table of a zip. Raises InterchangeError for what torch.save doesn't write."""
    tail_bytes = min(place.length, _TAIL_BYTES)
    end = place.start + place.length
    tail = await files.read(place.file, end - tail_bytes, end)
    count, size, offset = _table_of(place, tail)
    if size > _TABLE_MAX or count * _CENTRAL.size > size or offset + size > place.length:
        raise _bad(place, "its table is outside of it")
    table = await files.read(place.file, place.start + offset, place.start + offset + size)
    entries = _entries(place, table, count, offset)
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise _bad(place, "it has no data.pkl")
    if f"{roots[0]}/constants.pkl" in entries:
        raise _bad(place, "it is a TorchScript program, not a state dict")
    archive = Archive(files, place, roots[0], entries, offset)
    if archive.size("byteorder") is not None and await archive.read("byteorder", 16) != b"little":
        raise _bad(place, "it was written on a big-endian machine")
    return archive


def _table_of(place: Place, tail: bytes) -> tuple[int, int, int]:
    """(entries, bytes, offset) of the table, by the record that ends every zip without a comment."""
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
        old = "; torch.save before 1.6, or with the old format, wrote files that are no zips: load and save it again"
        raise _bad(place, "it doesn't end like a zip: it is cut off, or no torch.save file" + old)
    _, disk, table_disk, here, count, size, offset, comment = _END.unpack(tail[-_END.size :])
    if disk or table_disk or here != count or comment:
        raise _bad(place, "it is a zip of another kind")
    if _FULL16 not in (count, here) and _FULL32 not in (size, offset):
        return count, size, offset
    before = tail[-_END.size - _LOCATOR.size : -_END.size]
    if len(before) < _LOCATOR.size or before[:4] != b"PK\6\7":
        return count, size, offset
    at = len(tail) - (place.length - _LOCATOR.unpack(before)[2])
    if not 0 <= at <= len(tail) - _END64.size or tail[at : at + 4] != b"PK\6\6":
        raise _bad(place, "its end is not where it should be")
    *_, count, size, offset = _END64.unpack(tail[at : at + _END64.size])
    return count, size, offset


def _entries(place: Place, table: bytes, count: int, limit: int) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(table):
            raise _bad(place, "its table is cut off")
        row = _CENTRAL.unpack_from(table, at)
        flags, method, stored, size, header = row[3], row[4], row[8], row[9], row[16]
        name_end = at + _CENTRAL.size + row[10]
        extra_end = name_end + row[11]
        name = table[at + _CENTRAL.size : name_end].decode("utf-8", "replace")
        size, stored, header = _wide(table[name_end:extra_end], size, stored, header)
        at = extra_end + row[12]
        if row[0] != b"PK\1\2" or at > len(table) or method or flags & 1 or stored != size or header + size > limit:
            raise _bad(place, f"its entry {name[:100]!r} is compressed, encrypted or outside of it")
        if name in found:
            raise _bad(place, f"it has two entries {name[:100]!r}")
        found[name] = _Entry(header, size)
    return found


def _wide(extra: bytes, *values: int) -> list[int]:
    """The values, of which those that are full stand in the extra field of zip64 instead."""
    wide: list[int] = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + length]
            wide = list(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
        at += 4 + length
    return [wide.pop(0) if value == _FULL32 and wide else value for value in values]


def _bad(place: Place, why: str) -> InterchangeError:
    return InterchangeError(f"not a torch.save file that can be imported: {why} file={place.file!r:.200} offset={place.start}")
