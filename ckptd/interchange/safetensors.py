"""The safetensors format: u64 length, that many bytes of JSON, then the tensors' bytes, row-major, one after the other.

    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, …, "__metadata__": {text: text}}

A model over several files has `model.safetensors.index.json` beside them: {"weight_map": {name: file}}.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ckptd.errors import InterchangeError
from ckptd.model.dtypes import item_bytes

HEADER_MAX: Final = 100_000_000
"""The format's own bound."""
INDEX_MAX: Final = 100_000_000
SUFFIX: Final = ".safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
_ALIGN: Final = 8
_DIMS_MAX: Final = 64
_METADATA: Final = "__metadata__"
_NAMES: Final = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
_DTYPES: Final = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: its bytes are ``nbytes`` from ``offset`` of the file on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Of all elements."""
        return math.prod(self.shape) * item_bytes(self.dtype)


def encode_header(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """What a file with these (name, dtype, shape) begins with; their bytes follow in this order.

    Raises InterchangeError for a type that the format doesn't have, and for too many names.
    """
    table: dict[str, object] = {_METADATA: {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        if dtype not in _NAMES:
            raise InterchangeError(f"safetensors has no {dtype}; export this as torch or dcp tensor={name!r:.200}")
        if name == _METADATA:
            raise InterchangeError(f"a tensor can't have this name in safetensors tensor={name!r}")
        end = at + math.prod(shape) * item_bytes(dtype)
        table[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGN)
    if len(text) > HEADER_MAX:
        raise InterchangeError(f"the header of a safetensors file would have {len(text)} bytes, over {HEADER_MAX}")
    return struct.pack("<Q", len(text)) + text


def header_bytes(start: bytes, file_bytes: int) -> int:
    """How long the JSON is, by the file's first 8 bytes. Raises InterchangeError."""
    (length,) = struct.unpack("<Q", start) if len(start) == 8 else (HEADER_MAX + 1,)
    if length > min(HEADER_MAX, file_bytes - 8):
        raise InterchangeError(f"not a safetensors file, or one that is cut off: its header would have {length} bytes")
    return int(length)


def decode_header(text: bytes, file_bytes: int) -> list[Entry]:
    """The tensors of a file of that size, in the order of their bytes.

    Raises InterchangeError unless they fill the rest of the file without gap and overlap.
    """
    table = _object(text, "the header of a safetensors file")
    table.pop(_METADATA, None)
    entries, at = [], 0
    rows = sorted(((_row(name, row), name) for name, row in table.items()), key=lambda found: (found[0][2:], found[1]))
    for (dtype, shape, begin, end), name in rows:
        if begin != at or end - begin != math.prod(shape) * item_bytes(dtype):
            raise InterchangeError(f"a tensor's bytes are not where they should be tensor={name!r:.200} bytes={begin}-{end}")
        entries.append(Entry(name, dtype, shape, 8 + len(text) + begin))
        at = end
    if 8 + len(text) + at != file_bytes:
        raise InterchangeError(
            f"the file has {file_bytes} bytes and its tensors need {8 + len(text) + at}: it is cut off, or not one"
        )
    return entries


def _row(name: str, row: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        dtype, shape, (begin, end) = _DTYPES[row["dtype"]], tuple(row["shape"]), row["data_offsets"]
        sound = len(row) == 3 and len(shape) <= _DIMS_MAX and all(map(_is_size, (*shape, begin, end)))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InterchangeError(f"a tensor is described in an unknown way tensor={name!r:.200} as={row!r:.200}")
    return dtype, shape, begin, end


def decode_index(text: bytes) -> dict[str, str]:
    """Tensor → file. Raises InterchangeError. The files' names are as they stand there: check them."""
    found = _object(text, "an index of safetensors files").get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise InterchangeError("an index of safetensors files has no weight_map of names")
    return found


def encode_index(files: Mapping[str, str], total_bytes: int) -> bytes:
    """What stands in the index of these tensor → file."""
    table = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(files.items()))}
    return json.dumps(table, indent=2, ensure_ascii=False).encode() + b"\n"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 60


def _object(text: bytes, what: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InterchangeError(f"{what} has a name twice")
        return found

    try:
        table = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InterchangeError(f"{what} is no JSON: {type(error).__name__}") from None
    if not isinstance(table, dict):
        raise InterchangeError(f"{what} is no JSON object")
    return table
