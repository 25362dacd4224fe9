"""Reading pickles without running anything of them.

A small stack machine over the opcodes that torch's files are made of. Names are looked up in a table that the caller gives;
what isn't in it ends the reading. Nothing is imported, nothing is called but the table's own plain functions.
"""

from __future__ import annotations

import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ckptd.errors import InterchangeError

PICKLE_MAX: Final = 256 << 20
_INT_BYTES_MAX: Final = 4096
_LITERALS: Final = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
    )
)
_SIMPLE: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class Function:
    """Stands for a function or class of the writer's. ``make`` gets the arguments and returns a plain value."""

    name: str
    make: Callable[..., Any]


@dataclass(slots=True, eq=False)
class Record:
    """Stands for an object of the writer's: its class, and its attributes, or whatever else it was built from."""

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = field(default=None)

    def get(self, name: str) -> Any:
        """An attribute; None if it has none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def record(kind: str) -> Function:
    """A class whose objects become Records."""
    return Function(kind, lambda *args: Record(kind, args))


def load(data: bytes, what: str, names: Mapping[str, Any], storage: Callable[[Any], Any] | None = None) -> Any:
    """The value of a pickle, made of plain values, Records, and what ``names`` ("module.name" → Function or value) makes.

    ``storage`` answers persistent ids. Raises InterchangeError for whatever else is in it; ``what`` says what it is.
    """
    if len(data) > PICKLE_MAX:
        raise InterchangeError(f"{what} has {len(data)} bytes, over {PICKLE_MAX}")
    machine = _Machine(what, names, storage)
    try:
        for opcode, arg, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = machine.stack
                if machine.below:
                    break
                return value
            machine.step(opcode.name, arg)
    except InterchangeError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise InterchangeError(f"{what} doesn't parse: {type(error).__name__}: {error!s:.200}") from None
    raise InterchangeError(f"{what} doesn't parse: it has no end")


class _Machine:
    def __init__(self, what: str, names: Mapping[str, Any], storage: Callable[[Any], Any] | None) -> None:
        self._what, self._names, self._storage = what, names, storage
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> None:
        """Do what one opcode says."""
        if name in _LITERALS:
            self.stack.append(arg)
        elif name in _SIMPLE:
            self.stack.append(_SIMPLE[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack[-count:] = [tuple(self._last(count))]
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[arg] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[arg])
        elif name not in ("PROTO", "FRAME"):
            act: Callable[[Any], None] | None = getattr(self, f"_do_{name.lower()}", None)
            if act is None:
                raise InterchangeError(
                    f"{self._what} has the opcode {name}, which checkpoints don't need; nothing of it was run"
                )
            act(arg)

    def _last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("too few values")
        return self.stack[-count:]

    def _take(self) -> list[Any]:
        """What came since the mark."""
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def _do_mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _do_long4(self, arg: int) -> None:
        if arg.bit_length() > 8 * _INT_BYTES_MAX:
            raise ValueError("an int is too long")
        self.stack.append(arg)

    def _do_tuple(self, _: Any) -> None:
        taken = tuple(self._take())
        self.stack.append(taken)

    def _do_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._rows().append(value)

    def _do_appends(self, _: Any) -> None:
        values = self._take()
        self._rows().extend(values)

    def _rows(self) -> list[Any]:
        if type(self.stack[-1]) is not list:
            raise TypeError("values are appended to what is no list")
        rows: list[Any] = self.stack[-1]
        return rows

    def _do_setitem(self, _: Any) -> None:
        key, value = self._last(2)
        del self.stack[-2:]
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._take())

    def _set(self, values: list[Any]) -> None:
        into = self.stack[-1]
        if type(into) not in (dict, OrderedDict, Counter) or len(values) % 2:
            raise TypeError("keys are set in what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            into[key] = value

    def _do_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.stack.append(self._named(module, name))

    def _do_stack_global(self, _: Any) -> None:
        module, name = self._last(2)
        del self.stack[-2:]
        self.stack.append(self._named(module, name))

    def _named(self, module: Any, name: Any) -> Any:
        full = f"{module}.{name}"
        if type(module) is not str or type(name) is not str or full not in self._names:
            raise InterchangeError(
                f"{self._what} names {full[:200]!r}, which ckptd doesn't know as part of a checkpoint; nothing of it was run"
            )
        return self._names[full]

    def _do_reduce(self, _: Any) -> None:
        function, args = self._last(2)
        del self.stack[-2:]
        if type(function) is not Function or type(args) is not tuple:
            raise TypeError("something is called that is no function")
        self.stack.append(function.make(*args))

    _do_newobj = _do_reduce

    def _do_build(self, _: Any) -> None:
        state = self.stack.pop()
        built = self.stack[-1]
        if type(built) is Record:
            built.state = state
        elif type(built) is not OrderedDict:  # of which it sets attributes that a state dict doesn't need
            raise TypeError(f"a {type(built).__name__} is given attributes")

    def _do_binpersid(self, _: Any) -> None:
        if self._storage is None:
            raise TypeError("it refers to a storage")
        self.stack.append(self._storage(self.stack.pop()))
