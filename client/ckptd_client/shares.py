"""Which pieces of a state this rank stores: its own regions, and its share of what others hold, too (PROTOCOLS 2, I9)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ckptd_client.capture import Piece
from ckptd_client.regions import Region, dtype_name, region_of, split_replicated
from ckptd_client.tree import Collected

if TYPE_CHECKING:
    import torch


def pieces_of(found: Collected, rank: int, world_size: int) -> list[Piece]:
    """This rank's pieces, in the order of the walk. Deterministic, without communication. Raises UnsupportedStateError."""
    names = found.structure.names
    regions = {fqn: region_of(found.tensors[number], world_size, fqn) for fqn, number in names.items()}
    shared = [fqn for fqn, region in regions.items() if region.replicated and fqn not in found.structure.whole]
    sizes = [(regions[fqn].shape, found.tensors[names[fqn]].element_size()) for fqn in shared]
    mine = {fqn: shares[rank] for fqn, shares in zip(shared, split_replicated(sizes, world_size), strict=True)}
    pieces = []
    for fqn, number in names.items():
        region = regions[fqn]
        start, count = 0, region.sizes[0] if region.sizes else 1
        if fqn in mine:
            start, count = mine[fqn]
        elif region.replicated and rank != 0:
            continue
        piece = _piece(fqn, number, found.tensors[number], region, start, count, rank)
        if piece is not None:
            pieces.append(piece)
    return pieces


def _piece(fqn: str, number: int, tensor: torch.Tensor, region: Region, start: int, count: int, rank: int) -> Piece | None:
    offsets, sizes = list(region.offsets), list(region.sizes)
    rows = None if not sizes or (start, count) == (0, sizes[0]) else (start, count)
    if sizes:
        offsets[0], sizes[0] = offsets[0] + start, count
    elif count == 0:
        return None
    nbytes = tensor.element_size() * math.prod(sizes)
    if nbytes == 0 and (tensor.numel() > 0 or rank != 0):
        return None  # somebody else's; a tensor without any bytes is listed by the lowest rank so that it isn't forgotten
    dtype = dtype_name(tensor.dtype, fqn)
    return Piece(fqn, "global", dtype, region.shape, tuple(offsets), tuple(sizes), nbytes, number, 0, rows)
