"""Typed msgpack for state that is not a tensor (PROTOCOLS 2). Nothing in it can run code.

A node is None, bool, str, bytes or float as msgpack has them, an int of up to 64 bits likewise, or a list ``[tag, …]``:

    ["i", text]  a bigger int, in hex           ["l", node…]  list          ["t", node…]  tuple
    ["d", k, v…] dict    ["o", k, v…] OrderedDict    ["c", k, v…] Counter   (keys are nodes, too)
    ["a", dtype, [sizes], bytes]  numpy array   ["n", dtype, bytes]  numpy scalar
    ["y", name]  torch dtype                    ["r", fqn]    a tensor that is stored on its own
    ["s", class, [sizes, strides, what the class says of itself], map of tensors]   a tensor made of others (`compound`)
"""

from __future__ import annotations

import math
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgpack

from ckptd_client.errors import ProtocolError, UnsupportedStateError
from ckptd_client.regions import dtype_name, dtype_of

DEPTH_MAX = 100
NODES_MAX = 10_000_000
BYTES_MAX = 1 << 30
_INT_TEXT_MAX = 1 << 16
_KEYS = (str, int, float, bool, type(None), tuple)
_MAPS: dict[str, Callable[[], Any]] = {"d": dict, "o": OrderedDict, "c": Counter}
_MAP_TAGS: dict[type, str] = {dict: "d", OrderedDict: "o", Counter: "c"}
_ROW_TAGS: dict[type, str] = {list: "l", tuple: "t"}
# byte order, kind, item size: plain numbers, bools, complex, fixed text and bytes, times
_NUMPY_KINDS = "biufcSUmM"


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stands in the tree where a tensor was taken out."""

    fqn: str


@dataclass(frozen=True, slots=True)
class Compound:
    """Stands in the tree for a tensor that is made of others. ``kind`` is "module:class"; see `compound.take_apart`."""

    kind: str
    context: Any
    tensors: dict[str, Any]


def encode(tree: object, path: str = "", depth: int = 0) -> bytes:
    """The stored form; ``depth`` is that of the tree in a bigger one.

    Raises UnsupportedStateError naming the path (below ``path``) and type of what has none.
    """
    body: bytes = msgpack.packb(_node(tree, path, depth), use_bin_type=True)
    if len(body) > BYTES_MAX:
        raise UnsupportedStateError(path, type(tree).__name__, f"{len(body)} bytes of non-tensor state are over {BYTES_MAX}")
    return body


def opening(kind: type, count: int) -> bytes:
    """What the stored form of a container of ``count`` entries begins with; then come its entries, in maps after their keys."""
    maps = _MAP_TAGS.get(kind)
    tag, nodes = (maps, 2 * count) if maps is not None else (_ROW_TAGS[kind], count)
    head: bytes = msgpack.Packer().pack_array_header(1 + nodes)
    return head + encode(tag)


def opening_compound(kind: str, context: object, path: str) -> bytes:
    """What the stored form of a `Compound` begins with; then comes the map of its tensors. Raises UnsupportedStateError."""
    head: bytes = msgpack.Packer().pack_array_header(4)
    return head + encode("s") + encode(kind) + encode(context, path)


def encode_key(key: object, path: str) -> bytes:
    """The stored form of a dict's key; ``path`` is the key's own. Raises UnsupportedStateError."""
    body: bytes = msgpack.packb(_key(key, path, 0), use_bin_type=True)
    return body


def decode(body: bytes | memoryview) -> Any:
    """Read a tree back; raises ProtocolError for anything that `encode` doesn't write."""
    if len(body) > BYTES_MAX:
        raise ProtocolError(f"typed state of {len(body)} bytes is over {BYTES_MAX}")
    try:
        raw = msgpack.unpackb(body, raw=False, use_list=True, strict_map_key=False)
        return _Reader().value(raw, 0)
    except ProtocolError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        RecursionError,
        MemoryError,
        msgpack.UnpackException,
    ) as error:
        raise ProtocolError(f"not typed state: {type(error).__name__}: {error}") from error


def join(path: str, key: object) -> str:
    """A child's path: segments joined with dots."""
    return f"{path}.{key}" if path else str(key)


def _node(value: Any, path: str, depth: int) -> object:
    kind = type(value)
    if value is None or kind in (bool, str, float, bytes):
        return value
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else ["i", _big(value, path)]
    if depth >= DEPTH_MAX:
        raise UnsupportedStateError(path, kind.__name__, f"nested deeper than {DEPTH_MAX}")
    if kind in _ROW_TAGS:
        return [_ROW_TAGS[kind], *(_node(part, join(path, i), depth + 1) for i, part in enumerate(value))]
    if kind in _MAP_TAGS:
        return [_MAP_TAGS[kind], *_pairs(value.items(), path, depth + 1)]
    if kind is TensorRef:
        return ["r", value.fqn]
    if kind is Compound:
        return ["s", value.kind, *(_node(part, path, depth + 1) for part in (value.context, value.tensors))]
    foreign = _foreign(value, path)
    if foreign is None:
        raise UnsupportedStateError(path, f"{kind.__module__}.{kind.__qualname__}", "only tensors and plain data can be stored")
    return foreign


def _big(value: int, path: str) -> str:
    text = hex(value)
    if len(text) > _INT_TEXT_MAX:
        raise UnsupportedStateError(path, "int", f"more than {_INT_TEXT_MAX} digits")
    return text


def _pairs(items: Iterable[tuple[Any, Any]], path: str, depth: int) -> Iterable[object]:
    for key, part in items:
        where = join(path, key)
        yield _key(key, where, depth)
        yield _node(part, where, depth)


def _key(key: object, path: str, depth: int) -> object:
    if type(key) not in _KEYS and type(key) is not bytes:
        raise UnsupportedStateError(path, type(key).__name__, "a dict key must be text, a number, None or a tuple of these")
    return _node(key, path, depth)


def _foreign(value: Any, path: str) -> object | None:
    """Values of libraries that are loaded anyway; None when it is none of them."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None:
        if type(value) is torch.Size:
            return ["t", *map(int, value)]
        if isinstance(value, torch.dtype):
            return ["y", dtype_name(value, path)]
    if numpy is not None and (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
        if value.dtype.kind not in _NUMPY_KINDS:
            raise UnsupportedStateError(path, f"numpy {value.dtype}", "an array of Python objects or records has no safe form")
        if isinstance(value, numpy.generic):
            return ["n", value.dtype.str, value.tobytes()]
        return ["a", value.dtype.str, list(value.shape), value.tobytes()]
    return None


class _Reader:
    """One decode; counts nodes so that a small text can't become a huge tree unnoticed."""

    def __init__(self) -> None:
        self._left = NODES_MAX

    def value(self, node: Any, depth: int) -> Any:
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            raise ProtocolError("typed state is nested too deep or has too many values")
        if type(node) is not list:
            if node is None or type(node) in (bool, int, float, str, bytes):
                return node
            raise ProtocolError(f"typed state can't hold a bare {type(node).__name__}")
        tag, parts = node[0], node[1:]
        if tag == "l":
            return [self.value(part, depth + 1) for part in parts]
        if tag == "t":
            return tuple(self.value(part, depth + 1) for part in parts)
        if tag in _MAPS:
            return self._map(_MAPS[tag](), parts, depth + 1)
        if tag == "r" and len(parts) == 1 and type(parts[0]) is str:
            return TensorRef(parts[0])
        if tag == "s" and len(parts) == 3 and type(parts[0]) is str:
            return self._compound(parts[0], *(self.value(part, depth + 1) for part in parts[1:]))
        if tag == "i" and len(parts) == 1 and type(parts[0]) is str and len(parts[0]) <= _INT_TEXT_MAX:
            return int(parts[0], 16)
        if tag == "y" and len(parts) == 1:
            return _torch_dtype(parts[0])
        if tag in ("a", "n"):
            return _numpy(tag, parts)
        raise ProtocolError(f"typed state has an unknown tag {str(tag)[:20]!r}")

    def _compound(self, kind: str, context: Any, tensors: Any) -> Compound:
        if type(tensors) is not dict or not all(
            type(name) is str and type(one) in (TensorRef, Compound) for name, one in tensors.items()
        ):
            raise ProtocolError("a tensor made of others is malformed in typed state")
        return Compound(kind, context, tensors)

    def _map(self, into: Any, parts: list[Any], depth: int) -> Any:
        if len(parts) % 2:
            raise ProtocolError("a dict in typed state has a key without a value")
        for at in range(0, len(parts), 2):
            key = self.value(parts[at], depth)
            if key in into:
                raise ProtocolError("a dict in typed state has a key twice")
            into[key] = self.value(parts[at + 1], depth)
        return into


def _torch_dtype(name: Any) -> Any:
    found = dtype_of(name) if type(name) is str else None
    if found is None:
        raise ProtocolError(f"this torch has no dtype {str(name)[:40]!r}")
    return found


def _numpy(tag: str, parts: list[Any]) -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ProtocolError("the checkpoint holds numpy values; install numpy to load it") from error
    dtype = numpy.dtype(parts[0]) if type(parts[0]) is str else None
    shape, body = (parts[1], parts[2]) if tag == "a" else ([], parts[1])
    if (
        dtype is None
        or dtype.kind not in _NUMPY_KINDS
        or type(body) is not bytes
        or not all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ProtocolError("a numpy value in typed state is malformed")
    if math.prod(shape) * dtype.itemsize != len(body):
        raise ProtocolError("a numpy value in typed state has another size than its bytes")
    if not body:
        return numpy.empty(shape, dtype)
    array = numpy.frombuffer(body, dtype).reshape(shape)
    return array.copy() if tag == "a" else array[()]


def pack_words(words: Iterable[int]) -> bytes:
    """32-bit words as little-endian bytes."""
    values = list(words)
    return struct.pack(f"<{len(values)}I", *values)


def unpack_words(body: bytes) -> tuple[int, ...]:
    """The words of `pack_words`."""
    return struct.unpack(f"<{len(body) // 4}I", body)
