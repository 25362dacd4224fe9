"""Dataclasses of plain kinds of fields to msgpack's values and back, every field's type checked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

import msgpack

from ckptd_client.errors import ProtocolError

Read = Callable[[Any], Any]
T = TypeVar("T")


def pack(value: object) -> bytes:
    """A dataclass of plain kinds of fields, as msgpack."""
    packed: bytes = msgpack.packb(value, default=plain_fields, use_bin_type=True)
    return packed


def unpack(kind: type[T], body: bytes) -> T:
    """Read what `pack` wrote, every field's type checked. Raises ProtocolError."""
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"not a packed {kind.__name__}: {type(error).__name__}") from error
    built: T = reader(cast(Hashable, kind))(value)
    return built


def plain_fields(value: object) -> object:
    """What msgpack asks for where it meets a dataclass."""
    if not hasattr(value, "__dataclass_fields__"):
        raise TypeError(f"a {type(value).__name__} is no field of a ckptd message")
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@cache
def reader(kind: Any) -> Read:
    """What makes a value of the annotation ``kind`` out of msgpack's: lists, rows, tuples, dicts, dataclasses.

    Made once for each, as a layout or a restore has tens of thousands of the same.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is list:
        return _list_reader(kind, reader(args[0]))
    if origin is tuple:
        return _row_reader(kind, args[0]) if len(args) == 2 and args[1] is ... else _tuple_reader(kind, args)
    if origin is dict:
        return _dict_reader(kind, reader(args[0]), reader(args[1]))
    if hasattr(kind, "__dataclass_fields__"):
        return _record_reader(kind)

    def leaf(value: Any) -> Any:
        if type(value) is not kind:
            raise _no(kind, value)
        return value

    return leaf


def _no(kind: Any, value: object) -> ProtocolError:
    return ProtocolError(f"a field of a ckptd message is no {kind}: {str(value)[:80]!r}")


def _list_reader(kind: Any, item: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _no(kind, value)
        return [item(part) for part in value]

    return read


def _row_reader(kind: Any, item: type) -> Read:
    """Of tuples of any length, whose items are all of a plain type."""

    def read(value: Any) -> Any:
        if type(value) is not list:
            raise _no(kind, value)
        for part in value:
            if type(part) is not item:
                raise _no(item, part)
        return tuple(value)

    return read


def _tuple_reader(kind: Any, args: tuple[Any, ...]) -> Read:
    items = [reader(arg) for arg in args]

    def read(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            raise _no(kind, value)
        return tuple([item(part) for item, part in zip(items, value, strict=True)])

    return read


def _dict_reader(kind: Any, key: Read, item: Read) -> Read:
    def read(value: Any) -> Any:
        if type(value) is not dict:
            raise _no(kind, value)
        return {key(name): item(part) for name, part in value.items()}

    return read


def _record_reader(kind: Any) -> Read:
    hints = get_type_hints(kind)
    parts = [(field.name, reader(hints[field.name])) for field in fields(kind)]
    names = {name for name, _ in parts}

    def read(value: Any) -> Any:
        if type(value) is not dict or value.keys() != names:
            raise _no(kind, value)
        return kind(*[part(value[name]) for name, part in parts])

    return read
