"""From live state to bytes in a slot: trees, the layout plan, and the copy (PROTOCOLS 2).

A *part* is a name and a tree of plain data with tensors in it. `collect` takes the tensors out and leaves `TensorRef` behind;
the tree becomes one object item, each tensor an item of its own with FQN = part + "." + dotted path. The tree is what restores
follow, so FQNs only have to be unique. Two names over the very same memory (tied weights) are stored once: both refer to the
first.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckptd_client import devices
from ckptd_client.arena import PAGE, Arena
from ckptd_client.errors import SaveError, UnsupportedStateError
from ckptd_client.messages import Item
from ckptd_client.regions import Region, copy_many, dtype_name, is_dtensor, local_of, region_of, split_replicated
from ckptd_client.typed import DEPTH_MAX, TensorRef, encode, join

if TYPE_CHECKING:
    import torch

ALIGN = 64
OBJECT_BYTES_MIN = 4096
_PLAIN = frozenset((type(None), bool, int, float, str, bytes, dict, OrderedDict, list, tuple))


@dataclass(frozen=True, slots=True)
class Part:
    """One named piece of state. ``whole`` are dotted paths of tensors that the lowest rank stores whole (None: all of them)."""

    name: str
    tree: object
    scope: str = "global"
    whole: frozenset[str] | None = frozenset()


@dataclass(slots=True)
class Collected:
    """What one walk over the state found."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    objects: list[tuple[str, str, object]] = field(default_factory=list)  # (fqn, scope, tree with TensorRefs)

    def structure(self) -> list[object]:
        """Equal while the plan holds: names, dtypes, global and local shapes, devices, placements."""
        found: list[object] = [(fqn, scope) for fqn, scope, _ in self.objects]
        for fqn, tensor in self.tensors.items():
            if is_dtensor(tensor):
                found.append((tensor._local_tensor.shape, tensor.placements))  # type: ignore[attr-defined]
            found.append((fqn, tensor.dtype, tensor.shape, tensor.device))
        return found


def collect(parts: Sequence[Part]) -> Collected:
    """Walk the parts. Raises UnsupportedStateError for an FQN that comes up twice or a tree that is too deep."""
    found = Collected()
    seen: dict[int, str] = {}
    names: set[str] = set()
    for part in parts:
        tree = _Walk(found, seen, names, part).replace(part.tree, "", 0)
        found.objects.append((part.name, part.scope, tree))
    return found


class _Walk:
    def __init__(self, found: Collected, seen: dict[int, str], names: set[str], part: Part) -> None:
        self._found, self._seen, self._names, self._part = found, seen, names, part
        torch = sys.modules.get("torch")
        self._tensor: Any = torch.Tensor if torch is not None else ()

    def replace(self, value: Any, path: str, depth: int) -> object:
        kind = type(value)
        if kind not in _PLAIN and isinstance(value, self._tensor):
            return TensorRef(self._take(value, path))
        if depth > DEPTH_MAX and kind in (dict, OrderedDict, list, tuple):
            raise UnsupportedStateError(join(self._part.name, path), kind.__name__, f"nested deeper than {DEPTH_MAX}")
        if kind is dict or kind is OrderedDict:
            return kind((key, self.replace(part, join(path, key), depth + 1)) for key, part in value.items())
        if kind is list or kind is tuple:
            return kind(self.replace(part, join(path, i), depth + 1) for i, part in enumerate(value))
        return Counter(value) if kind is Counter else value

    def _take(self, tensor: torch.Tensor, path: str) -> str:
        fqn = join(self._part.name, path) if path else self._part.name
        if fqn in self._names:
            raise UnsupportedStateError(fqn, "Tensor", "two tensors have this dotted name; rename a key")
        self._names.add(fqn)
        at = _address(tensor)
        if at:
            first = self._seen.setdefault(at, fqn)
            if first != fqn and _memory(self._found.tensors[first]) == _memory(tensor):
                return first
        self._found.tensors[fqn] = tensor
        if self._part.whole is None or path in self._part.whole:
            self._found.whole.add(fqn)
        return fqn


def _address(tensor: torch.Tensor) -> int:
    """Where its memory starts; 0 for what has none of its own. Cheap: every tensor of every snapshot comes by here."""
    local = tensor._local_tensor if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]
    if local.is_cpu or local.is_cuda:
        return local.data_ptr() if local.layout is sys.modules["torch"].strided and local.numel() else 0
    return 0


def _memory(tensor: torch.Tensor) -> object:
    """Equal for two names of one memory seen in the same way."""
    placed = (tensor.shape, tensor.placements) if is_dtensor(tensor) else None  # type: ignore[attr-defined]
    local = local_of(tensor)
    return (local.data_ptr(), local.dtype, local.shape, local.stride(), local.device, local.is_conj(), local.is_neg(), placed)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows ``start`` to ``start + count`` of dimension 0 of a local tensor go to the item's place; ``whole``: all of it."""

    fqn: str
    item: Item
    start: int
    count: int
    whole: bool


class Plan:
    """A layout: items with their places in a slot. Made once, used while `Collected.structure` stays equal."""

    def __init__(self, found: Collected, bodies: dict[str, bytes], rank: int, world_size: int) -> None:
        """``bodies`` are the encoded objects, which size their places. Raises UnsupportedStateError."""
        self.structure = found.structure()
        self._offset = 0
        self.objects: list[Item] = [
            self._place(Item(fqn, "object", scope, "object", (), (), (), 0, _object_room(len(bodies[fqn]))))
            for fqn, scope, _ in found.objects
            if scope == "rank" or rank == 0
        ]
        self._pieces = self._share(found, rank, world_size)
        self.items = self.objects + [piece.item for piece in self._pieces]
        self.slot_bytes = max(PAGE, -(-self._offset // PAGE) * PAGE)
        self._devices = {local_of(found.tensors[piece.fqn]).device for piece in self._pieces}
        self._views: dict[int, list[torch.Tensor]] = {}
        self._views_of: Arena | None = None

    def _place(self, item: Item) -> Item:
        placed = Item(
            item.fqn, item.kind, item.scope, item.dtype, item.shape, item.offsets, item.sizes, self._offset, item.capacity
        )
        self._offset += -(-item.capacity // ALIGN) * ALIGN
        return placed

    def _share(self, found: Collected, rank: int, world_size: int) -> list[_Piece]:
        regions = {fqn: region_of(tensor, world_size, fqn) for fqn, tensor in found.tensors.items()}
        shared = [fqn for fqn, region in regions.items() if region.replicated and fqn not in found.whole]
        rows = split_replicated([(regions[fqn].shape, found.tensors[fqn].element_size()) for fqn in shared], world_size)
        mine = {fqn: shares[rank] for fqn, shares in zip(shared, rows, strict=True)}
        pieces = []
        for fqn, tensor in found.tensors.items():
            region = regions[fqn]
            start, count = 0, region.sizes[0] if region.sizes else 1
            if fqn in mine:
                start, count = mine[fqn]
            elif region.replicated and rank != 0:
                continue
            piece = self._piece(fqn, tensor, region, start, count, rank)
            if piece is not None:
                pieces.append(piece)
        return pieces

    def _piece(self, fqn: str, tensor: torch.Tensor, region: Region, start: int, count: int, rank: int) -> _Piece | None:
        offsets, sizes = list(region.offsets), list(region.sizes)
        whole = not sizes or (start, count) == (0, sizes[0])
        if sizes:
            offsets[0], sizes[0] = offsets[0] + start, count
        elif count == 0:
            return None
        length = tensor.element_size()
        for size in sizes:
            length *= size
        if length == 0 and (tensor.numel() > 0 or rank != 0):
            return None  # somebody else's; a tensor without any bytes is listed by the lowest rank so that it isn't forgotten
        name = dtype_name(tensor.dtype, fqn)
        item = self._place(Item(fqn, "tensor", "global", name, region.shape, tuple(offsets), tuple(sizes), 0, length))
        return _Piece(fqn, item, start, count, whole)

    def drop_views(self) -> None:
        """Let go of the arena, so that its memory can go before a new one comes."""
        self._views, self._views_of = {}, None

    def fits(self, bodies: dict[str, bytes]) -> bool:
        """Whether the objects still fit in their places."""
        return all(len(bodies[item.fqn]) <= item.capacity for item in self.objects)

    def copy_into(self, arena: Arena, slot: int, found: Collected, bodies: dict[str, bytes]) -> list[int]:
        """Copy the state into a slot and wait for it; returns the length of each object, in item order."""
        if self._views_of is not arena:
            self._views, self._views_of = {}, arena
        if slot not in self._views:
            self._views[slot] = [
                _view(arena, slot, piece.item, found.tensors[piece.fqn]) for piece in self._pieces if piece.item.capacity
            ]
        sources = []
        for piece in self._pieces:
            if piece.item.capacity:
                local = local_of(found.tensors[piece.fqn])
                sources.append(local if piece.whole else local.narrow(0, piece.start, piece.count))
        copy_many(self._views[slot], sources)
        place = arena.slot(slot)
        for item in self.objects:
            body = bodies[item.fqn]
            if len(body) > item.capacity:
                raise SaveError(f"object {item.fqn!r} outgrew its place bytes={len(body)} capacity={item.capacity}")
            place[item.slot_offset : item.slot_offset + len(body)] = body
        devices.synchronize(self._devices)
        return [len(bodies[item.fqn]) for item in self.objects]


def _view(arena: Arena, slot: int, item: Item, like: torch.Tensor) -> torch.Tensor:
    """The item's place in the slot as a tensor. It keeps the mapping alive; the arena never closes it (FACTS)."""
    import torch

    offset = arena.slot_start(slot) + item.slot_offset
    flat = torch.frombuffer(arena.map, dtype=torch.uint8, count=item.capacity, offset=offset)
    return flat.view(like.dtype).view(item.sizes)


def _object_room(length: int) -> int:
    """Room for an object that may grow: at least twice what it is now."""
    return max(OBJECT_BYTES_MIN, -(-2 * length // OBJECT_BYTES_MIN) * OBJECT_BYTES_MIN)


def encode_objects(found: Collected, rank: int) -> dict[str, bytes]:
    """The stored form of the objects that this rank stores; on the others everything is checked when a plan is made."""
    return {fqn: encode(tree, fqn) for fqn, scope, tree in found.objects if scope == "rank" or rank == 0}


def check_objects(found: Collected) -> None:
    """Raise UnsupportedStateError unless every object has a stored form."""
    for fqn, _, tree in found.objects:
        encode(tree, fqn)


def unwrap(module: Any) -> Any:
    """The module below DistributedDataParallel and torch.compile, so that names don't depend on how it is run."""
    import torch

    while True:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        else:
            return module


def plain_name(key: str) -> str:
    """A key of a module's state dict without torch.compile's marks on inner modules."""
    return ".".join(segment for segment in key.split(".") if segment != "_orig_mod")


def part_of(name: str, thing: Any) -> Part:
    """The state of a registered object. A module's buffers are marked as whole: they differ from rank to rank (PROTOCOLS 2)."""
    import torch

    if not isinstance(thing, torch.nn.Module):
        return Part(name, thing.state_dict())
    module = unwrap(thing)
    tree = {plain_name(key): value for key, value in module.state_dict().items()}
    return Part(name, tree, whole=frozenset(plain_name(key) for key, _ in module.named_buffers(remove_duplicate=False)))
