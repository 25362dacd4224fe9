"""The structure of a state: walked once with care (`tree`), then only followed while it stays the same.

What a walk learns is kept: subtrees without tensors are *leaves*, encoded anew for each snapshot; what lies between them
(brackets, keys, references) is encoded once. Following a known structure costs some hundred nanoseconds a tensor, most of it
to check that the tensor is still of the same type, dtype, shape and device.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter, eq
from typing import TYPE_CHECKING, Any

from ckptd_client import compound
from ckptd_client.errors import UnsupportedStateError
from ckptd_client.placement import Holders
from ckptd_client.regions import blocks_of, is_plain, local_of, placement_of
from ckptd_client.typed import BYTES_MAX, encode

if TYPE_CHECKING:
    import torch

_dtype, _shape, _device, _layout = (attrgetter(name) for name in ("dtype", "shape", "device", "layout"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """A subtree without tensors; ``path`` begins with the part's name."""

    path: str
    depth: int


@dataclass(frozen=True, slots=True)
class TensorAt:
    """A tensor's place, by its FQN, or that of the first name of its memory."""

    fqn: str


@dataclass(slots=True)
class Node:
    """A container with tensors somewhere in it."""

    kind: type
    keys: list[object] | None  # None for lists and tuples
    key_types: list[type]
    children: list[Child]
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
            if isinstance(child, TensorAt):
                tensors.append(part)
            elif isinstance(child, Leaf):
                leaves.append(part)
            elif not child.follow(part, tensors, leaves):
                return False
        return True


@dataclass(slots=True)
class Compound:
    """A tensor made of others. ``context``: encoded, as its class gives it."""

    kind: type
    context: bytes
    inner: Child

    def follow(self, value: Any, tensors: list[Any], leaves: list[object]) -> bool:
        """As that of a `Node`."""
        if type(value) is not self.kind:
            return False
        inner, context = compound.take_apart(value)
        assert isinstance(self.inner, Node)
        return encode(context) == self.context and self.inner.follow(inner, tensors, leaves)


Child = Leaf | TensorAt | Node | Compound


@dataclass(slots=True)
class Known:
    """What is known of a part: its tree, and its encoding in pieces, of which each `Leaf` stands for what it encodes to."""

    name: str
    key: tuple[str, str]
    first: int  # the rank that stores the tree of a global one
    tree: Child
    pieces: list[bytes | Leaf]

    def follow(self, value: Any, tensors: list[Any], leaves: list[object]) -> bool:
        """As `Node.follow`, for the whole part."""
        if isinstance(self.tree, (Node, Compound)):
            return self.tree.follow(value, tensors, leaves)
        (tensors if isinstance(self.tree, TensorAt) else leaves).append(value)
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
            and all(whole_memory(tensors[index]) == whole_memory(tensors[first]) for index, first in self.tied)
        )


def address(tensor: Any) -> int:
    """Where its local memory starts; 0 for what has none of its own."""
    local = local_of(tensor)
    if is_plain(local) and (local.is_cpu or local.is_cuda):
        start: int = local.data_ptr() if local.layout is sys.modules["torch"].strided and local.numel() else 0
        return start
    return 0


def whole_memory(tensor: torch.Tensor) -> object:
    """Equal for two names of one memory seen in the same way."""
    return tuple(map(memory, blocks_of(tensor))), None if is_plain(tensor) else placement_of(tensor)


def memory(block: torch.Tensor) -> object:
    """Equal for two views of the very same bytes."""
    return (block.data_ptr(), block.dtype, block.shape, block.stride(), block.device, block.is_conj(), block.is_neg())
