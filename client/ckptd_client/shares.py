"""Which pieces of a state this rank stores: its own regions, and its share of what others hold, too (PROTOCOLS 2, I9)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from ckptd_client.capture import Piece
from ckptd_client.errors import UnsupportedStateError
from ckptd_client.placement import Holders, split_replicated
from ckptd_client.regions import Region, dtype_name, is_plain, regions_of
from ckptd_client.tree import Collected


@dataclass(frozen=True, slots=True)
class _Held:
    """A region that this rank holds: block ``block`` of tensor number ``source``."""

    fqn: str
    scope: str
    dtype: str
    itemsize: int
    source: int
    block: int
    region: Region
    whole: bool


def pieces_of(found: Collected, rank: int, world_size: int) -> list[Piece]:
    """This rank's pieces, in the order of the walk. Raises UnsupportedStateError.

    What several ranks hold alike is split between them by bytes; buffers are stored whole by the lowest of them. Each rank
    finds that out alone: all members of a replica set see the same regions of it in the same order.
    """
    held = _held(found, rank, world_size)
    lines: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, one in enumerate(held):
        if len(one.region.holders) > 1 and not one.whole:
            lines[one.region.holders].append(number)
    rows: dict[int, tuple[int, int]] = {}
    for holders, numbers in lines.items():
        shares = split_replicated([(held[number].region.sizes, held[number].itemsize) for number in numbers], len(holders))
        rows.update((number, share[holders.index(rank)]) for number, share in zip(numbers, shares, strict=True))
    pieces = (_piece(one, rows.get(number), rank) for number, one in enumerate(held))
    return [piece for piece in pieces if piece is not None]


def _held(found: Collected, rank: int, world_size: int) -> list[_Held]:
    structure, everybody = found.structure, Holders(tuple(range(world_size)))
    held = []
    for fqn, number in structure.names.items():
        tensor, home = found.tensors[number], structure.home[fqn]
        scope = structure.objects[home][1]
        if scope == "rank" and not is_plain(tensor):
            raise UnsupportedStateError(fqn, type(tensor).__qualname__, "a part per rank can't hold what is spread over ranks")
        holders = Holders((rank,)) if scope == "rank" else structure.holders[home] or everybody
        dtype = dtype_name(tensor.dtype, fqn)
        regions = regions_of(tensor, holders, rank, fqn)
        whole = fqn in structure.whole
        for block, region in enumerate(regions):
            held.append(_Held(fqn, scope, dtype, tensor.dtype.itemsize, number, block, region, whole))
    return held


def _piece(held: _Held, rows: tuple[int, int] | None, rank: int) -> Piece | None:
    """What of it is this rank's to store; ``rows`` is its share, None for all or nothing."""
    region = held.region
    offsets, sizes = list(region.offsets), list(region.sizes)
    if rows is None and rank != region.holders[0]:
        return None
    if rows is not None and not sizes and rows[1] == 0:
        return None
    if rows is not None and sizes:
        offsets[0], sizes[0] = offsets[0] + rows[0], rows[1]
    nbytes = held.itemsize * math.prod(sizes)
    if nbytes == 0 and (math.prod(region.shape) > 0 or rank != region.holders[0]):
        return None  # somebody else's; a tensor without any bytes is listed so that it isn't forgotten
    cut = None if rows is None or not sizes or rows == (0, region.sizes[0]) else rows
    where = tuple(offsets), tuple(sizes)
    return Piece(held.fqn, held.scope, held.dtype, region.shape, *where, nbytes, held.source, held.block, cut)
