"""The walk through a state: it takes the tensors out, and finds the structure that is then only followed.

A *part* is a name and a tree of plain data with tensors in it. The walk takes the tensors out, each an item of its own with
FQN = part + "." + dotted path; the tree with references in their places becomes one object item. The tree is what restores
follow, so FQNs only have to be unique. Two names over the very same memory (tied weights) are stored once: both refer to the
first.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ckptd_client import compound
from ckptd_client.errors import UnsupportedStateError
from ckptd_client.placement import Holders
from ckptd_client.regions import check_known
from ckptd_client.structure import Child, Compound, Known, Leaf, Node, Structure, TensorAt, address, whole_memory
from ckptd_client.typed import DEPTH_MAX, TensorRef, encode, encode_key, join, opening, opening_compound

if TYPE_CHECKING:
    import torch

_CONTAINERS: Final = (dict, OrderedDict, list, tuple)
_MAPS: Final = (dict, OrderedDict)


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
        self._known: list[Known] = []

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
            known.append(Known(part.name, part.key, first, tree, pieces))
            every.append(walk.leaves)
        bodies = self._encode(zip(known, every, strict=True), check=True)
        if walk.structure != self._structure:
            self._structure = walk.structure
        self._known = known
        return Collected(self._structure, walk.tensors, bodies)

    def _encode(self, parts: Iterable[tuple[Known, list[object]]], check: bool) -> dict[str, bytes]:
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

    def part(self, part: Part) -> tuple[Child, list[bytes | Leaf]]:
        self._part, self.leaves = part, []
        self.structure.objects.append(part.key)
        self.structure.holders.append(part.holders)
        child, values, pieces = self._visit(part.tree, "", 0)
        self.leaves = values
        return child, _merged(pieces)

    def _visit(self, value: Any, path: str, depth: int) -> tuple[Child, list[object], list[bytes | Leaf]]:
        """What it is, the leaves in it, and the pieces of its encoding."""
        kind = type(value)
        if kind not in _CONTAINERS:
            if isinstance(value, self._tensor):
                if compound.is_compound(value):
                    return self._compound(value, path, depth)
                fqn = self._take(value, path)
                return TensorAt(fqn), [], [encode(TensorRef(fqn))]
            return self._leaf(value, path, depth)
        if depth > DEPTH_MAX:
            raise UnsupportedStateError(self._path(path), kind.__name__, f"nested deeper than {DEPTH_MAX}")
        keys = list(value) if kind in _MAPS else None
        entries = value.items() if keys is not None else enumerate(value)
        found = [(key, *self._visit(part, join(path, key), depth + 1)) for key, part in entries]
        if all(type(child) is Leaf for _, child, _, _ in found):
            return self._leaf(value, path, depth)
        pieces: list[bytes | Leaf] = [opening(kind, len(found))]
        for key, _, _, inner in found:
            if keys is not None:
                pieces.append(encode_key(key, self._path(join(path, key))))
            pieces.extend(inner)
        children = [child for _, child, _, _ in found]
        flat = all(type(child) is TensorAt for child in children)
        node = Node(kind, keys, list(map(type, keys or ())), children, flat)
        return node, [leaf for _, _, leaves, _ in found for leaf in leaves], pieces

    def _compound(self, value: Any, path: str, depth: int) -> tuple[Child, list[object], list[bytes | Leaf]]:
        where = self._path(path)
        compound.check(value, where)
        inner, context = compound.take_apart(value)
        child, leaves, pieces = self._visit(inner, path, depth + 1)
        head = opening_compound(compound.kind_of(value), context, where)
        return Compound(type(value), encode(context), child), leaves, [head, *pieces]

    def _leaf(self, value: object, path: str, depth: int) -> tuple[Child, list[object], list[bytes | Leaf]]:
        leaf = Leaf(self._path(path), depth)
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
            if first != fqn and whole_memory(self.tensors[self.structure.names[first]]) == whole_memory(tensor):
                self.structure.tied.append((index, self.structure.names[first]))
                return first
        self.structure.names[fqn] = index
        self.structure.home[fqn] = len(self.structure.objects) - 1
        if self._part.whole is None or path in self._part.whole:
            self.structure.whole.add(fqn)
        return fqn


def _merged(pieces: list[bytes | Leaf]) -> list[bytes | Leaf]:
    """Neighbouring bytes in one."""
    merged: list[bytes | Leaf] = []
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            run.append(piece)
        else:
            merged += [b"".join(run), piece]
            run = []
    return [*merged, b"".join(run)]
