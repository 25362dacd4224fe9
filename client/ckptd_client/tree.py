"""The structure of a state: walked once with care, then only followed while it stays the same.

A *part* is a name and a tree of plain data with tensors in it. The walk takes the tensors out, each an item of its own with
FQN = part + "." + dotted path; the tree with references in their places becomes one object item. The tree is what restores
follow, so FQNs only have to be unique. Two names over the very same memory (tied weights) are stored once: both refer to the
first.

What a walk learns is kept: subtrees without tensors are *leaves*, encoded anew for each snapshot; what lies between them
(brackets, keys, references) is encoded once. Following a known structure costs some hundred nanoseconds a tensor, most of it
to check that the tensor is still of the same type, dtype, shape and device.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, eq
from typing import TYPE_CHECKING, Any, Final

from ckptd_client import compound
from ckptd_client.errors import UnsupportedStateError
from ckptd_client.placement import Holders
from ckptd_client.regions import blocks_of, check_known, is_plain, local_of, placement_of
from ckptd_client.typed import BYTES_MAX, DEPTH_MAX, TensorRef, encode, encode_key, join, opening, opening_compound

if TYPE_CHECKING:
    import torch

_CONTAINERS: Final = (dict, OrderedDict, list, tuple)
_MAPS: Final = (dict, OrderedDict)
_dtype, _shape, _device, _layout = (attrgetter(name) for name in ("dtype", "shape", "device", "layout"))


@dataclass(frozen=True, slots=True)
class Part:
    """One named piece of state. ``whole`` are dotted paths of tensors that the lowest holder stores whole (None: all of them).

    ``holders`` (None: all ranks) have it alike; the lowest stores the tree, as object ``object`` (by default ``name``).
    """

    name: str
    tree: object
    scope: str = "global"
    whole: frozenset[str] | None = frozenset()
    holders: Holders | None = None
    object: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """(FQN, scope) of its object."""
        return self.object or self.name, self.scope


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A subtree without tensors; ``path`` begins with the part's name."""

    path: str
    depth: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor's place, by its FQN, or that of the first name of its memory."""

    fqn: str


@dataclass(slots=True)
class _Node:
    """A container with tensors somewhere in it."""

    kind: type
    keys: list[object] | None  # None for lists and tuples
    key_types: list[type]
    children: list[_Child]
    flat: bool  # nothing but tensors

    def follow(self, value: Any, tensors: list[Any], leaves: list[object]) -> bool:
        """Take tensors and leaves out of ``value``; False when its containers or keys are others than they were."""
        entries: Any = value
        if type(value) is not self.kind or len(entries) != len(self.children):
            return False
        if self.keys is not None:
            if list(entries) != self.keys or list(map(type, entries)) != self.key_types:  # True equals 1
                return False
            entries = entries.values()
        if self.flat:
            tensors.extend(entries)
            return True
        for part, child in zip(entries, self.children, strict=True):
            if isinstance(child, _Tensor):
                tensors.append(part)
            elif isinstance(child, _Leaf):
                leaves.append(part)
            elif not child.follow(part, tensors, leaves):
                return False
        return True


@dataclass(slots=True)
class _Compound:
    """A tensor made of others. ``context``: encoded, as its class gives it."""

    kind: type
    context: bytes
    inner: _Child

    def follow(self, value: Any, tensors: list[Any], leaves: list[object]) -> bool:
        """As that of a `_Node`."""
        if type(value) is not self.kind:
            return False
        inner, context = compound.take_apart(value)
        assert isinstance(self.inner, _Node)
        return encode(context) == self.context and self.inner.follow(inner, tensors, leaves)


_Child = _Leaf | _Tensor | _Node | _Compound


@dataclass(slots=True)
class _Known:
    """What is known of a part: its tree, and its encoding in pieces, of which each `_Leaf` stands for what it encodes to."""

    name: str
    key: tuple[str, str]
    first: int  # the rank that stores the tree of a global one
    tree: _Child
    pieces: list[bytes | _Leaf]

    def follow(self, value: Any, tensors: list[Any], leaves: list[object]) -> bool:
        if isinstance(self.tree, (_Node, _Compound)):
            return self.tree.follow(value, tensors, leaves)
        (tensors if isinstance(self.tree, _Tensor) else leaves).append(value)
        return True

    def encode(self, leaves: Sequence[object]) -> bytes:
        """Raises UnsupportedStateError for a leaf that has no stored form, or holds a tensor now."""
        values = iter(leaves)
        body = b"".join(
            piece if isinstance(piece, bytes) else encode(next(values), piece.path, piece.depth) for piece in self.pieces
        )
        if len(body) > BYTES_MAX:
            raise UnsupportedStateError(self.name, "tree", f"{len(body)} bytes of non-tensor state are over {BYTES_MAX}")
        return body


@dataclass(slots=True)
class Structure:
    """Equal while a layout plan holds. ``names``: FQN → index in the walk's tensors, each memory once, in order of the walk."""

    objects: list[tuple[str, str]] = field(default_factory=list)  # (fqn, scope) of each part's
    holders: list[Holders | None] = field(default_factory=list)  # of each part
    home: dict[str, int] = field(default_factory=dict)  # FQN → number of its part
    names: dict[str, int] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    tied: list[tuple[int, int]] = field(default_factory=list)  # (index, index of the first name)
    types: list[type] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    devices: list[torch.device] = field(default_factory=list)
    layouts: list[torch.layout] = field(default_factory=list)
    placed: list[tuple[int, object]] = field(default_factory=list)  # (index, how it is distributed)

    def take(self, tensor: Any) -> int:
        """Note one more tensor; returns its index."""
        index = len(self.types)
        self.types.append(type(tensor))
        self.dtypes.append(tensor.dtype)
        self.shapes.append(tensor.shape)
        self.devices.append(tensor.device)
        self.layouts.append(tensor.layout)
        if not is_plain(tensor):
            self.placed.append((index, placement_of(tensor)))
        return index

    def holds(self, tensors: list[Any]) -> bool:
        """Whether these are tensors as they were. No object is kept per tensor, lest the collector of cycles wakes up."""
        return (
            all(map(eq, map(type, tensors), self.types))
            and all(map(eq, map(_dtype, tensors), self.dtypes))
            and all(map(eq, map(_shape, tensors), self.shapes))
            and all(map(eq, map(_device, tensors), self.devices))
            and all(map(eq, map(_layout, tensors), self.layouts))
            and all(placement_of(tensors[index]) == placed for index, placed in self.placed)
            and all(_memory(tensors[index]) == _memory(tensors[first]) for index, first in self.tied)
        )


@dataclass(slots=True)
class Collected:
    """A state to be saved: its tensors, as `Structure.names` numbers them, and the encoded objects that this rank stores."""

    structure: Structure
    tensors: list[torch.Tensor]
    bodies: dict[str, bytes]


class Collector:
    """Takes states apart. Remembers the last structure."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._structure = Structure()
        self._known: list[_Known] = []

    def collect(self, parts: Sequence[Part]) -> Collected:
        """The tensors are the state's own, not copies. Raises UnsupportedStateError, naming the path and type, for an FQN that
        comes up twice, a tree that is too deep, a value without a stored form.
        """
        return self._follow(parts) or self._walk(parts)

    def _follow(self, parts: Sequence[Part]) -> Collected | None:
        if [part.key for part in parts] != self._structure.objects or [p.holders for p in parts] != self._structure.holders:
            return None
        tensors: list[Any] = []
        every: list[list[object]] = []
        for part, known in zip(parts, self._known, strict=True):
            leaves: list[object] = []
            if not known.follow(part.tree, tensors, leaves):
                return None
            every.append(leaves)
        if not self._structure.holds(tensors):
            return None
        try:
            bodies = self._encode(zip(self._known, every, strict=True), check=False)
        except UnsupportedStateError:
            return None  # a leaf may hold a tensor now; the walk will tell
        return Collected(self._structure, tensors, bodies)

    def _walk(self, parts: Sequence[Part]) -> Collected:
        walk = _Walk()
        known, every = [], []
        for part in parts:
            tree, pieces = walk.part(part)
            first = part.holders.ranks[0] if part.holders is not None else 0
            known.append(_Known(part.name, part.key, first, tree, pieces))
            every.append(walk.leaves)
        bodies = self._encode(zip(known, every, strict=True), check=True)
        if walk.structure != self._structure:
            self._structure = walk.structure
        self._known = known
        return Collected(self._structure, walk.tensors, bodies)

    def _encode(self, parts: Iterable[tuple[_Known, list[object]]], check: bool) -> dict[str, bytes]:
        """The objects that this rank stores; with ``check`` the others are encoded, too, to see whether they can be."""
        bodies = {}
        for known, leaves in parts:
            fqn, scope = known.key
            mine = scope == "rank" or self._rank == known.first
            if mine or check:
                body = known.encode(leaves)
                if mine:
                    bodies[fqn] = body
        return bodies


class _Walk:
    """One walk over all parts; ``leaves`` are those of the part that was walked last."""

    def __init__(self) -> None:
        self.structure = Structure()
        self.tensors: list[Any] = []
        self.leaves: list[object] = []
        self._part = Part("", None)
        self._names: set[str] = set()
        self._seen: dict[object, str] = {}
        torch = sys.modules.get("torch")
        self._tensor: Any = torch.Tensor if torch is not None else ()

    def part(self, part: Part) -> tuple[_Child, list[bytes | _Leaf]]:
        self._part, self.leaves = part, []
        self.structure.objects.append(part.key)
        self.structure.holders.append(part.holders)
        child, values, pieces = self._visit(part.tree, "", 0)
        self.leaves = values
        return child, _merged(pieces)

    def _visit(self, value: Any, path: str, depth: int) -> tuple[_Child, list[object], list[bytes | _Leaf]]:
        """What it is, the leaves in it, and the pieces of its encoding."""
        kind = type(value)
        if kind not in _CONTAINERS:
            if isinstance(value, self._tensor):
                if compound.is_compound(value):
                    return self._compound(value, path, depth)
                fqn = self._take(value, path)
                return _Tensor(fqn), [], [encode(TensorRef(fqn))]
            return self._leaf(value, path, depth)
        if depth > DEPTH_MAX:
            raise UnsupportedStateError(self._path(path), kind.__name__, f"nested deeper than {DEPTH_MAX}")
        keys = list(value) if kind in _MAPS else None
        entries = value.items() if keys is not None else enumerate(value)
        found = [(key, *self._visit(part, join(path, key), depth + 1)) for key, part in entries]
        if all(type(child) is _Leaf for _, child, _, _ in found):
            return self._leaf(value, path, depth)
        pieces: list[bytes | _Leaf] = [opening(kind, len(found))]
        for key, _, _, inner in found:
            if keys is not None:
                pieces.append(encode_key(key, self._path(join(path, key))))
            pieces.extend(inner)
        children = [child for _, child, _, _ in found]
        flat = all(type(child) is _Tensor for child in children)
        node = _Node(kind, keys, list(map(type, keys or ())), children, flat)
        return node, [leaf for _, _, leaves, _ in found for leaf in leaves], pieces

    def _compound(self, value: Any, path: str, depth: int) -> tuple[_Child, list[object], list[bytes | _Leaf]]:
        where = self._path(path)
        compound.check(value, where)
        inner, context = compound.take_apart(value)
        child, leaves, pieces = self._visit(inner, path, depth + 1)
        head = opening_compound(compound.kind_of(value), context, where)
        return _Compound(type(value), encode(context), child), leaves, [head, *pieces]

    def _leaf(self, value: object, path: str, depth: int) -> tuple[_Child, list[object], list[bytes | _Leaf]]:
        leaf = _Leaf(self._path(path), depth)
        return leaf, [value], [leaf]

    def _path(self, path: str) -> str:
        return join(self._part.name, path) if path else self._part.name

    def _take(self, tensor: torch.Tensor, path: str) -> str:
        fqn = self._path(path)
        if fqn in self._names:
            raise UnsupportedStateError(fqn, "Tensor", "two tensors have this dotted name; rename a key")
        self._names.add(fqn)
        check_known(tensor, fqn)
        index = self.structure.take(tensor)
        self.tensors.append(tensor)
        at = address(tensor)
        if at:
            # Whoever holds the one name must hold the other.
            first = self._seen.setdefault((at, self._part.scope, self._part.holders), fqn)
            if first != fqn and _memory(self.tensors[self.structure.names[first]]) == _memory(tensor):
                self.structure.tied.append((index, self.structure.names[first]))
                return first
        self.structure.names[fqn] = index
        self.structure.home[fqn] = len(self.structure.objects) - 1
        if self._part.whole is None or path in self._part.whole:
            self.structure.whole.add(fqn)
        return fqn


def _merged(pieces: list[bytes | _Leaf]) -> list[bytes | _Leaf]:
    """Neighbouring bytes in one."""
    merged: list[bytes | _Leaf] = []
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            run.append(piece)
        else:
            merged += [b"".join(run), piece]
            run = []
    return [*merged, b"".join(run)]


def address(tensor: Any) -> int:
    """Where its local memory starts; 0 for what has none of its own."""
    local = local_of(tensor)
    if is_plain(local) and (local.is_cpu or local.is_cuda):
        start: int = local.data_ptr() if local.layout is sys.modules["torch"].strided and local.numel() else 0
        return start
    return 0


def _memory(tensor: torch.Tensor) -> object:
    """Equal for two names of one memory seen in the same way."""
    return tuple(map(memory, blocks_of(tensor))), None if is_plain(tensor) else placement_of(tensor)


def memory(block: torch.Tensor) -> object:
    """Equal for two views of the very same bytes."""
    return (block.data_ptr(), block.dtype, block.shape, block.stride(), block.device, block.is_conj(), block.is_neg())
