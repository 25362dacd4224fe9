"""From live state to bytes in a slot: the layout plan, and the copy (PROTOCOLS 2). `tree` says what the state is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptd_client import devices
from ckptd_client.arena import PAGE, Arena
from ckptd_client.errors import SaveError
from ckptd_client.messages import Item
from ckptd_client.regions import Region, copy_many, dtype_name, is_dtensor, local_of, region_of, split_replicated
from ckptd_client.tree import Collected, Part

if TYPE_CHECKING:
    import torch

ALIGN = 64
OBJECT_BYTES_MIN = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """What this rank stores of a tensor: rows ``start`` to ``start + count`` of dimension 0 of the local one, or ``whole``."""

    fqn: str
    item: Item
    start: int
    count: int
    whole: bool


class Plan:
    """A layout: items with their places in a slot. Made once, used while the state's structure stays equal."""

    cuda_device: torch.device | None = None
    """One of the CUDA devices that pieces lie on: there pinned memory is of use."""

    def __init__(self, found: Collected, rank: int, world_size: int) -> None:
        """The encoded objects size their places. Raises UnsupportedStateError."""
        self.structure = found.structure
        self._offset = 0
        self.objects: list[Item] = [
            self._place(Item(fqn, "object", scope, "object", (), (), (), 0, _object_room(len(found.bodies[fqn]))))
            for fqn, scope in found.structure.objects
            if fqn in found.bodies
        ]
        pieces = self._share(found, rank, world_size)
        self.items = self.objects + [piece.item for piece in pieces]
        self.slot_bytes = max(PAGE, -(-self._offset // PAGE) * PAGE)
        self.pieces = [piece for piece in pieces if piece.item.capacity]
        self._numbers = [found.structure.names[piece.fqn] for piece in self.pieces]
        tensors = [found.tensors[number] for number in self._numbers]
        self._cut = {at for at, piece in enumerate(self.pieces) if not piece.whole or is_dtensor(tensors[at])}
        self._devices = {local_of(tensor).device for tensor in tensors if not tensor.is_cuda}
        self._cuda = {at for at, tensor in enumerate(tensors) if tensor.is_cuda}
        self.cuda_device = next((local_of(tensors[at]).device for at in sorted(self._cuda)), None)
        self._dtypes = [tensor.dtype for tensor in tensors]
        self._views: dict[int, list[torch.Tensor]] = {}
        self._views_of: Arena | None = None

    def _place(self, item: Item) -> Item:
        placed = Item(
            item.fqn, item.kind, item.scope, item.dtype, item.shape, item.offsets, item.sizes, self._offset, item.capacity
        )
        self._offset += -(-item.capacity // ALIGN) * ALIGN
        return placed

    def _share(self, found: Collected, rank: int, world_size: int) -> list[Piece]:
        tensors = {fqn: found.tensors[number] for fqn, number in found.structure.names.items()}
        regions = {fqn: region_of(tensor, world_size, fqn) for fqn, tensor in tensors.items()}
        shared = [fqn for fqn, region in regions.items() if region.replicated and fqn not in found.structure.whole]
        rows = split_replicated([(regions[fqn].shape, tensors[fqn].element_size()) for fqn in shared], world_size)
        mine = {fqn: shares[rank] for fqn, shares in zip(shared, rows, strict=True)}
        pieces = []
        for fqn, tensor in tensors.items():
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

    def _piece(self, fqn: str, tensor: torch.Tensor, region: Region, start: int, count: int, rank: int) -> Piece | None:
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
        return Piece(fqn, item, start, count, whole)

    def drop_views(self) -> None:
        """Let go of the arena, so that its memory can go before a new one comes."""
        self._views, self._views_of = {}, None

    def fits(self, found: Collected) -> bool:
        """Whether the state still has this layout, and its objects fit in their places."""
        same = found.structure is self.structure or found.structure == self.structure
        return same and all(len(found.bodies[item.fqn]) <= item.capacity for item in self.objects)

    def copy_into(
        self, arena: Arena, slot: int, found: Collected, later: Sequence[int] = (), outgoing: devices.Outgoing | None = None
    ) -> list[int]:
        """Copy the state into a slot and wait for it; returns the length of each object, in item order.

        ``later`` are numbers of pieces that are left out. ``outgoing`` gets what lies on CUDA devices, and isn't waited for.
        """
        left_out = {*later, *self._cuda}
        now = [at for at in range(len(self.pieces)) if at not in left_out]
        on_cuda = sorted(self._cuda.difference(later))
        if on_cuda and outgoing is not None:
            outgoing.now(self.spans(on_cuda), self.sources(found, on_cuda))
        elif on_cuda:
            devices.send(self.place(arena, slot), self.spans(on_cuda), self.sources(found, on_cuda), non_blocking=False)
        destinations = self.destinations(arena, slot)
        copy_many([destinations[at] for at in now], self.sources(found, now))
        lengths = self.copy_objects(arena, slot, found)
        devices.synchronize(self._devices)
        return lengths

    def copy_objects(self, arena: Arena, slot: int, found: Collected) -> list[int]:
        """The objects alone."""
        place = arena.slot(slot)
        for item in self.objects:
            body = found.bodies[item.fqn]
            if len(body) > item.capacity:
                raise SaveError(f"object {item.fqn!r} outgrew its place bytes={len(body)} capacity={item.capacity}")
            place[item.slot_offset : item.slot_offset + len(body)] = body
        return [len(found.bodies[item.fqn]) for item in self.objects]

    def sources(self, found: Collected, places: Sequence[int]) -> list[torch.Tensor]:
        """The memory of these pieces."""
        sources = [found.tensors[self._numbers[at]] for at in places]
        if self._cut:
            for n, at in enumerate(places):
                if at in self._cut:
                    piece, local = self.pieces[at], local_of(sources[n])
                    sources[n] = local if piece.whole else local.narrow(0, piece.start, piece.count)
        return sources

    def spans(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Where these pieces are in a slot: (offset, length), in bytes."""
        return [(self.pieces[at].item.slot_offset, self.pieces[at].item.capacity) for at in places]

    def place(self, arena: Arena, slot: int) -> torch.Tensor:
        """All bytes of a slot, flat uint8. Keeps the mapping alive."""
        import torch

        return torch.frombuffer(arena.map, dtype=torch.uint8, count=self.slot_bytes, offset=arena.slot_start(slot))

    def destinations(self, arena: Arena, slot: int) -> list[torch.Tensor]:
        """The place of each piece in a slot. They keep the mapping alive; the arena never closes it (FACTS)."""
        if self._views_of is not arena:
            self._views, self._views_of = {}, arena
        if slot not in self._views:
            self._views[slot] = [
                _view(arena, slot, piece.item, dtype) for piece, dtype in zip(self.pieces, self._dtypes, strict=True)
            ]
        return self._views[slot]


def _view(arena: Arena, slot: int, item: Item, dtype: torch.dtype) -> torch.Tensor:
    import torch

    offset = arena.slot_start(slot) + item.slot_offset
    flat = torch.frombuffer(arena.map, dtype=torch.uint8, count=item.capacity, offset=offset)
    return flat.view(dtype).view(item.sizes)


def _object_room(length: int) -> int:
    """Room for an object that may grow: at least twice what it is now."""
    return max(OBJECT_BYTES_MIN, -(-2 * length // OBJECT_BYTES_MIN) * OBJECT_BYTES_MIN)


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
    if "_orig_mod" not in key:
        return key
    return ".".join(segment for segment in key.split(".") if segment != "_orig_mod")


def part_of(name: str, thing: Any) -> Part:
    """The state of a registered object. A module's buffers are marked as whole: they differ from rank to rank (PROTOCOLS 2)."""
    import torch

    if not isinstance(thing, torch.nn.Module):
        return Part(name, thing.state_dict())
    module = unwrap(thing)
    tree = {plain_name(key): value for key, value in module.state_dict().items()}
    return Part(name, tree, whole=frozenset(plain_name(key) for key, _ in module.named_buffers(remove_duplicate=False)))
