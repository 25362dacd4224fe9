"""Writing pickles opcode by opcode: what torch.load and Distributed Checkpoint expect to read, without running any of it here.

Protocol 2, of which torch's weights-only reader knows a part: nothing else is used.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.interchange.tree import DType, Opaque, join

_CHUNK: Final = 1000


class Writer:
    """Appends to ``out``; each method leaves one value on the reader's stack unless it says otherwise."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self._memo: dict[tuple[str, str], int] = {}

    def finished(self) -> bytes:
        """The pickle of the one value that was written."""
        return bytes(self.out + b".")

    def name(self, module: str, name: str) -> None:
        """A class or function, by its name; kept, as a checkpoint names few of them many times."""
        slot = self._memo.get((module, name))
        if slot is not None:
            self.out += b"h" + bytes([slot])
            return
        self.out += f"c{module}\n{name}\n".encode("ascii")
        if len(self._memo) < 256:
            self._memo[module, name] = len(self._memo)
            self.out += b"q" + bytes([len(self._memo) - 1])

    def text(self, text: str) -> None:
        body = text.encode("utf-8", "surrogatepass")
        self.out += b"X" + struct.pack("<I", len(body)) + body

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.out += b"K" + bytes([value])
        elif -(1 << 31) <= value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            body = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(body) > 255:
                raise InterchangeError("an int of over 2040 bits has no form that torch.load reads")
            self.out += b"\x8a" + bytes([len(body)]) + body

    def flag(self, value: bool) -> None:
        self.out += b"\x88" if value else b"\x89"

    def none(self) -> None:
        self.out += b"N"

    def row(self, values: Iterable[int]) -> None:
        """A tuple of ints."""
        self.out += b"("
        for value in values:
            self.integer(value)
        self.out += b"t"

    def size(self, sizes: Iterable[int]) -> None:
        """A torch.Size."""
        self.name("torch", "Size")
        self.out += b"("
        self.row(sizes)
        self.out += b"tR"

    def mark(self) -> None:
        """Leaves nothing; begins what `close` ends."""
        self.out += b"("

    def close(self, opcode: bytes) -> None:
        """Leaves nothing more: ``opcode`` takes what came since the mark."""
        self.out += opcode

    def dtype(self, name: str) -> None:
        self.name("torch", name)

    def empty_ordered(self) -> None:
        self.name("collections", "OrderedDict")
        self.out += b")R"

    def value(self, value: Any, path: str, other: Callable[[Any, str], None]) -> None:
        """A tree; ``other`` writes the leaves that are no plain values. Raises InterchangeError for what has no such form."""
        kind = type(value)
        if value is None:
            self.none()
        elif kind is bool:
            self.flag(value)
        elif kind is int:
            self.integer(value)
        elif kind is float:
            self.out += b"G" + struct.pack(">d", value)
        elif kind is str:
            self.text(value)
        elif kind is bytes:
            self._bytes(value)
        elif kind in (dict, OrderedDict, Counter):
            self._map(value, path, other)
        elif kind in (list, tuple):
            self._rows(value, path, other)
        elif kind is DType:
            self.dtype(value.name)
        elif kind is Opaque:
            raise InterchangeError(
                f"torch.load(weights_only=True) doesn't read a {value.what}; export another part path={path!r:.200}"
            )
        else:
            other(value, path)

    def _bytes(self, value: bytes) -> None:
        self.name("_codecs", "encode")
        self.out += b"("
        self.text(value.decode("latin-1"))
        self.text("latin1")
        self.out += b"tR"

    def _map(self, value: Mapping[Any, Any], path: str, other: Callable[[Any, str], None]) -> None:
        kind = type(value)
        if kind is OrderedDict:
            self.empty_ordered()
        elif kind is Counter:
            self.name("collections", "Counter")
            self.out += b")R"
        else:
            self.out += b"}"
        items = list(value.items())
        for start in range(0, len(items), _CHUNK):
            self.out += b"("
            for key, part in items[start : start + _CHUNK]:
                self.value(key, join(path, key), other)
                self.value(part, join(path, key), other)
            self.out += b"u"

    def _rows(self, value: list[Any] | tuple[Any, ...], path: str, other: Callable[[Any, str], None]) -> None:
        if not value:
            self.out += b"]" if type(value) is list else b")"
            return
        self.out += b"](" if type(value) is list else b"("
        for at, part in enumerate(value):
            self.value(part, join(path, at), other)
        self.out += b"e" if type(value) is list else b"t"
