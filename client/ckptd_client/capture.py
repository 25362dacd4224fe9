"""From live state to bytes in a slot: the layout plan, and the copy (PROTOCOLS 2). `tree` says what the state is made of, and
`shares` which pieces of it this rank stores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptd_client import devices
from ckptd_client.arena import PAGE, Arena
from ckptd_client.errors import SaveError
from ckptd_client.messages.saving import Item
from ckptd_client.moving import copy_many
from ckptd_client.regions import block_of, is_plain
from ckptd_client.tree import Collected

if TYPE_CHECKING:
    import torch

ALIGN = 64
OBJECT_BYTES_MIN = 4096


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a tensor that this rank stores: ``sizes`` elements from ``offsets`` on of one of shape ``shape``.

    Its bytes are block number ``block`` of what this rank holds of tensor number ``source`` in `Collected.tensors`; of that
    block only ``rows`` (first, count) of dimension 0, or all of it (None). Names and scopes are those of `Item`.
    """

    fqn: str
    scope: str
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    nbytes: int
    source: int
    block: int = 0
    rows: tuple[int, int] | None = None


class Plan:
    """A layout: items with their places in a slot. Made once, used while the state's structure stays equal."""

    cuda_device: torch.device | None = None
    """One of the CUDA devices that pieces lie on: there pinned memory is of use."""

    def __init__(self, found: Collected, pieces: Sequence[Piece]) -> None:
        """``pieces`` are what this rank stores of ``found``'s tensors; the encoded objects size their places.

        A piece without bytes is listed, so that its tensor isn't forgotten, and never copied.
        """
        self.structure = found.structure
        self._offset = 0
        self.objects: list[Item] = [
            self._place(Item(fqn, "object", scope, "object", (), (), (), 0, _object_room(len(found.bodies[fqn]))))
            for fqn, scope in found.structure.objects
            if fqn in found.bodies
        ]
        items = [self._place(_item(piece)) for piece in pieces]
        self.items = self.objects + items
        self.slot_bytes = max(PAGE, -(-self._offset // PAGE) * PAGE)
        self.stored = [item for item in items if item.capacity]  # and their pieces:
        self.pieces = [piece for piece in pieces if piece.nbytes]
        tensors = [found.tensors[piece.source] for piece in self.pieces]
        self._cut = {at for at, piece in enumerate(self.pieces) if piece.rows is not None or not is_plain(tensors[at])}
        blocks = self.sources(found, range(len(self.pieces)))
        self._devices = {block.device for block in blocks if not block.is_cuda}
        self._cuda = {at for at, block in enumerate(blocks) if block.is_cuda}
        self.cuda_device = next((blocks[at].device for at in sorted(self._cuda)), None)
        self._dtypes = [block.dtype for block in blocks]
        self._views: dict[int, list[torch.Tensor]] = {}
        self._views_of: Arena | None = None

    def _place(self, item: Item) -> Item:
        placed = Item(
            item.fqn, item.kind, item.scope, item.dtype, item.shape, item.offsets, item.sizes, self._offset, item.capacity
        )
        self._offset += -(-item.capacity // ALIGN) * ALIGN
        return placed

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
        sources = [found.tensors[self.pieces[at].source] for at in places]
        if self._cut:
            for n, at in enumerate(places):
                if at in self._cut:
                    piece = self.pieces[at]
                    block = block_of(sources[n], piece.block)
                    sources[n] = block if piece.rows is None else block.narrow(0, *piece.rows)
        return sources

    def spans(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Where these pieces are in a slot: (offset, length), in bytes."""
        return [(self.stored[at].slot_offset, self.stored[at].capacity) for at in places]

    def place(self, arena: Arena, slot: int) -> torch.Tensor:
        """All bytes of a slot, flat uint8. Keeps the mapping alive."""
        import torch

        return torch.frombuffer(arena.map, dtype=torch.uint8, count=self.slot_bytes, offset=arena.slot_start(slot))

    def destinations(self, arena: Arena, slot: int) -> list[torch.Tensor]:
        """The place of each piece in a slot. They keep the mapping alive; the arena never closes it (FACTS)."""
        if self._views_of is not arena:
            self._views, self._views_of = {}, arena
        if slot not in self._views:
            self._views[slot] = [_view(arena, slot, item, dtype) for item, dtype in zip(self.stored, self._dtypes, strict=True)]
        return self._views[slot]


def _item(piece: Piece) -> Item:
    return Item(piece.fqn, "tensor", piece.scope, piece.dtype, piece.shape, piece.offsets, piece.sizes, 0, piece.nbytes)


def _view(arena: Arena, slot: int, item: Item, dtype: torch.dtype) -> torch.Tensor:
    import torch

    offset = arena.slot_start(slot) + item.slot_offset
    flat = torch.frombuffer(arena.map, dtype=torch.uint8, count=item.capacity, offset=offset)
    return flat.view(dtype).view(item.sizes)


def _object_room(length: int) -> int:
    """Room for an object that may grow: at least twice what it is now."""
    return max(OBJECT_BYTES_MIN, -(-2 * length // OBJECT_BYTES_MIN) * OBJECT_BYTES_MIN)
