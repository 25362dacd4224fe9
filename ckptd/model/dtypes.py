"""Element types: their names are torch's without "torch.", their codes are part of the stored format and never change.

"object" is the type of typed msgpack blobs: one byte per element.
"""

from __future__ import annotations

from typing import Final

from ckptd.errors import ConfigError, CorruptError

OBJECT: Final = "object"

# (code, name, bytes of one element); add at the end, never reuse a code.
_TABLE: Final = (
    (0, OBJECT, 1),
    (1, "bool", 1),
    (2, "uint8", 1),
    (3, "int8", 1),
    (4, "uint16", 2),
    (5, "int16", 2),
    (6, "uint32", 4),
    (7, "int32", 4),
    (8, "uint64", 8),
    (9, "int64", 8),
    (10, "float16", 2),
    (11, "bfloat16", 2),
    (12, "float32", 4),
    (13, "float64", 8),
    (14, "complex32", 4),
    (15, "complex64", 8),
    (16, "complex128", 16),
    (17, "float8_e4m3fn", 1),
    (18, "float8_e4m3fnuz", 1),
    (19, "float8_e5m2", 1),
    (20, "float8_e5m2fnuz", 1),
    (21, "float8_e8m0fnu", 1),
    (22, "float4_e2m1fn_x2", 1),
)
_BY_NAME: Final = {name: (code, size_bytes) for code, name, size_bytes in _TABLE}
_BY_CODE: Final = {code: name for code, name, _ in _TABLE}
NAMES: Final = tuple(_BY_NAME)


def item_bytes(name: str) -> int:
    """Bytes of one element. Raises ConfigError for a type that ckptd can't store."""
    return _known(name)[1]


def dtype_code(name: str) -> int:
    """The stored code of a type. Raises ConfigError for a type that ckptd can't store."""
    return _known(name)[0]


def dtype_name(code: int) -> str:
    """The type behind a stored code. Raises CorruptError for a code that this ckptd doesn't know."""
    if code not in _BY_CODE:
        raise CorruptError(f"unknown element type; damaged, or written by a newer ckptd: code={code}")
    return _BY_CODE[code]


def _known(name: str) -> tuple[int, int]:
    if name not in _BY_NAME:
        raise ConfigError(f"ckptd can't store elements of type {name[:80]!r}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
