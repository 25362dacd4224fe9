"""The stored form of what is no tensor (the client's `typed`), read and written here without torch.

A tree is None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict, Counter, `DType`, `Opaque`, or a leaf that stands
for a tensor: `TensorRef` where it is stored, something of the reader's own while it is imported.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from ckptd.errors import CorruptError, InterchangeError

DEPTH_MAX: Final = 100
NODES_MAX: Final = 10_000_000
FOREIGN_MAX: Final = 2_000_000
"""Values of an imported tree, which may be a small file that refers to the same lists again and again."""
BYTES_MAX: Final = 1 << 30
_MAPS: Final[dict[str, type]] = {"d": dict, "o": OrderedDict, "c": Counter}
_MAP_TAGS: Final[dict[type, str]] = {made: tag for tag, made in _MAPS.items()}
_ROW_TAGS: Final[dict[type, str]] = {list: "l", tuple: "t"}
_PLAIN: Final = (type(None), bool, int, float, str, bytes)


@dataclass(frozen=True, slots=True)
class DType:
    """A torch dtype, by its name without "torch."."""

    name: str


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that is stored on its own."""

    fqn: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """A stored value that only the trainer's libraries can make (numpy's, torchao's), and what it is in words."""

    what: str


def decode_tree(body: bytes) -> Any:
    """Read a stored tree. Raises CorruptError."""
    if len(body) > BYTES_MAX:
        raise CorruptError(f"an object of {len(body)} bytes is over {BYTES_MAX}")
    try:
        return _Reader().value(msgpack.unpackb(body, strict_map_key=False), 0)
    except (ValueError, TypeError, IndexError, RecursionError, msgpack.UnpackException) as error:
        raise CorruptError(f"an object is no typed state: {type(error).__name__}: {error}") from None


class _Reader:
    def __init__(self) -> None:
        self._left = NODES_MAX

    def value(self, node: Any, depth: int) -> Any:
        self._left -= 1
        if depth > DEPTH_MAX or self._left < 0:
            raise CorruptError("an object is nested too deep or has too many values")
        if type(node) is not list:
            if type(node) in _PLAIN:
                return node
            raise CorruptError(f"typed state can't hold a bare {type(node).__name__}")
        tag, parts = node[0], node[1:]
        if tag in ("l", "t"):
            values = [self.value(part, depth + 1) for part in parts]
            return values if tag == "l" else tuple(values)
        if type(tag) is str and tag in _MAPS and len(parts) % 2 == 0:
            made = _MAPS[tag]()
            for at in range(0, len(parts), 2):
                made[self.value(parts[at], depth + 1)] = self.value(parts[at + 1], depth + 1)
            return made
        return _special(tag, parts)


def _special(tag: object, parts: list[Any]) -> Any:
    texts = [type(part) is str for part in parts]
    if tag == "r" and texts == [True]:
        return TensorRef(parts[0])
    if tag == "i" and texts == [True]:
        return int(parts[0], 16)
    if tag == "y" and texts == [True]:
        return DType(parts[0])
    if tag in ("a", "n") and parts:
        return Opaque(f"numpy {'array' if tag == 'a' else 'scalar'} of {parts[0]!s:.20}")
    if tag == "s" and len(parts) == 3 and type(parts[0]) is str:
        return Opaque(f"tensor made of others, {parts[0]:.100}")
    raise CorruptError(f"typed state has an unknown tag {tag!s:.20}")


def encode_tree(value: object) -> bytes:
    """The stored form; every leaf that is no plain value is a `TensorRef` or a `DType`. Raises InterchangeError by path."""
    body: bytes = msgpack.packb(_node(value, "", 0), use_bin_type=True)
    if len(body) > BYTES_MAX:
        raise InterchangeError(f"{len(body)} bytes of state that is no tensor are over {BYTES_MAX}")
    return body


def _node(value: Any, path: str, depth: int) -> object:
    kind = type(value)
    if depth > DEPTH_MAX:
        raise InterchangeError(f"it is nested deeper than {DEPTH_MAX} path={path!r:.200}")
    if kind is int and not -(1 << 63) <= value < 1 << 64:
        return ["i", hex(value)]
    if kind in _PLAIN:
        return value
    if kind in _ROW_TAGS:
        return [_ROW_TAGS[kind], *(_node(part, join(path, at), depth + 1) for at, part in enumerate(value))]
    if kind in _MAP_TAGS:
        parts: list[object] = [_MAP_TAGS[kind]]
        for key, part in value.items():
            parts += [_node(key, join(path, key), depth + 1), _node(part, join(path, key), depth + 1)]
        return parts
    if kind is TensorRef:
        return ["r", value.fqn]
    if kind is DType:
        return ["y", value.name]
    raise InterchangeError(f"a value of type {kind.__name__} has no stored form path={path!r:.200}")


def join(path: str, key: object) -> str:
    """A child's dotted path."""
    return f"{path}.{key}" if path else str(key)


def leaves(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of all that is no list, tuple or map, or is an empty one; in order."""
    if depth > DEPTH_MAX:
        raise InterchangeError(f"it is nested deeper than {DEPTH_MAX} path={path!r:.200}")
    if type(tree) in _MAP_TAGS and tree:
        for key, part in tree.items():
            yield from leaves(part, join(path, key), depth + 1)
    elif type(tree) in _ROW_TAGS and tree:
        for at, part in enumerate(tree):
            yield from leaves(part, join(path, at), depth + 1)
    else:
        yield path, tree


def replaced(tree: Any, change: Callable[[str, Any], Any]) -> Any:
    """The tree with ``change(path, leaf)`` in the place of each leaf. Raises InterchangeError for one that is too big."""
    left = [FOREIGN_MAX]

    def walk(node: Any, path: str, depth: int) -> Any:
        left[0] -= 1
        if depth > DEPTH_MAX or left[0] < 0:
            raise InterchangeError(f"it is nested deeper than {DEPTH_MAX} or has over {FOREIGN_MAX} values path={path!r:.200}")
        if type(node) in (dict, OrderedDict):
            return type(node)((key, walk(part, join(path, key), depth + 1)) for key, part in node.items())
        if type(node) in _ROW_TAGS:
            return type(node)(walk(part, join(path, at), depth + 1) for at, part in enumerate(node))
        return change(path, node)

    return walk(tree, "", 0)
