"""The arithmetic of placements: which rectangle of a tensor a place in a mesh holds, and who else holds it. Pure; no torch.

A tensor on a mesh has a *cut* per mesh dimension: (dimension of the tensor, split factor), or None where it is replicated. The
split factor is 1 but for torch's `_StridedShard`: FSDP2 over tensor parallelism cuts a dimension along a later mesh dimension
first, and marks the earlier one with the number of pieces that it found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

from ckptd_client.errors import ConfigError

Cut = tuple[int, int] | None
Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks in a grid of this shape, row-major. Each rank stands there once."""

    shape: Ints
    ranks: Ints

    def coordinate(self, rank: int) -> Ints | None:
        """Where it stands; None if it doesn't."""
        if rank not in self.ranks:
            return None
        at, found = self.ranks.index(rank), []
        for size in reversed(self.shape):
            found.append(at % size)
            at //= size
        return tuple(reversed(found))

    def at(self, coordinate: Sequence[int]) -> int:
        """Who stands there."""
        number = 0
        for size, place in zip(self.shape, coordinate, strict=True):
            number = number * size + place
        return self.ranks[number]

    def like(self, coordinate: Ints, dims: Sequence[int]) -> Ints:
        """All who have this coordinate but in ``dims``, row-major."""
        ranges = [range(size) if dim in dims else (coordinate[dim],) for dim, size in enumerate(self.shape)]
        return tuple(self.at(place) for place in product(*ranges))


@dataclass(frozen=True, slots=True)
class Holders:
    """The ranks that hold a part of the state alike, ascending; ``mesh`` is how they stand, if that was said."""

    ranks: Ints
    mesh: Mesh | None = None


def chunk_bounds(length: int, pieces: int, index: int) -> tuple[int, int]:
    """(start, size) of piece ``index`` of a dimension cut into ceil-chunks as torch does; the last ones may be empty."""
    chunk = -(-length // pieces)
    start = min(chunk * index, length)
    return start, min(chunk, length - start)


def cutting_order(cuts: Sequence[Cut], mesh_shape: Ints) -> dict[int, list[int]]:
    """For each dimension of the tensor that is cut: the mesh dimensions that cut it, in the order in which they do.

    What `DTensorSpec._maybe_convert_StridedShard_to_shard_order` of torch 2.13 says, for every torch that has `_StridedShard`:
    from the last mesh dimension on each takes the place before which exactly its split factor of pieces has been cut. Raises
    ValueError when there is no such place: the pieces then are no rectangles.
    """
    orders: dict[int, list[int]] = {}
    for mesh_dim in reversed(range(len(cuts))):
        cut = cuts[mesh_dim]
        if cut is None:
            continue
        order = orders.setdefault(cut[0], [])
        before = [math.prod(mesh_shape[dim] for dim in order[:place]) for place in range(len(order) + 1)]
        if cut[1] not in before:
            raise ValueError(f"a split factor of {cut[1]} fits no order of cutting on a mesh of {list(mesh_shape)}")
        order.insert(before.index(cut[1]), mesh_dim)
    return orders


def box(shape: Ints, cuts: Sequence[Cut], mesh_shape: Ints, coordinate: Ints) -> tuple[Ints, Ints]:
    """(offsets, sizes) of what the place ``coordinate`` holds. Sizes may be 0. Raises ValueError as `cutting_order` does."""
    offsets, sizes = [0] * len(shape), list(shape)
    for dim, order in cutting_order(cuts, mesh_shape).items():
        for mesh_dim in order:
            start, sizes[dim] = chunk_bounds(sizes[dim], mesh_shape[mesh_dim], coordinate[mesh_dim])
            offsets[dim] += start
    return tuple(offsets), tuple(sizes)


@lru_cache(maxsize=256)  # thousands of tensors on a few meshes, which may have thousands of ranks
def replica_set(holders: Holders, mesh: Mesh, cuts: tuple[Cut, ...], rank: int) -> Ints:
    """The ranks, ascending, that hold the same bytes as ``rank`` of a tensor on ``mesh``, which is cut so.

    A tensor on a part of the holders' mesh is replicated over the rest of it. Raises ConfigError when the mesh doesn't say who
    of the holders holds what.
    """
    coordinate = mesh.coordinate(rank)
    if coordinate is None:
        raise ConfigError(f"rank {rank} is not in its mesh of ranks {_few(mesh.ranks)}")
    same = mesh.like(coordinate, [dim for dim, cut in enumerate(cuts) if cut is None])
    if set(mesh.ranks) == set(holders.ranks):
        return tuple(sorted(same))
    for siblings in _siblings(holders, mesh, rank):
        places = [mesh.ranks.index(one) for one in same]
        return tuple(sorted(sibling[place] for sibling in siblings for place in places))
    raise ConfigError(
        f"it is on a mesh of ranks {_few(mesh.ranks)}, its part is held by ranks {_few(holders.ranks)}; say whose the part"
        " is with ckptd_client.over(part, mesh): the stage's mesh in a pipeline, the whole one if its rest holds replicas"
    )


def _siblings(holders: Holders, mesh: Mesh, rank: int) -> list[list[Ints]]:
    """Ranks in the order of ``mesh``, of it and of each other mesh that the holders' is made of; none if it isn't."""
    whole = holders.mesh
    coordinate = whole.coordinate(rank) if whole is not None else None
    if whole is None or coordinate is None:
        return []
    dims = range(len(whole.shape))
    for count in range(1, len(whole.shape)):
        for mine in combinations(dims, count):
            slice_ = whole.like(coordinate, mine)
            if set(slice_) != set(mesh.ranks):
                continue
            order = [slice_.index(one) for one in mesh.ranks]
            starts = whole.like(coordinate, [dim for dim in dims if dim not in mine])
            others = [whole.like(whole.coordinate(start) or coordinate, mine) for start in starts]
            return [[tuple(other[place] for place in order) for other in others]]
    return []


def _few(ranks: Ints) -> str:
    return f"{', '.join(map(str, ranks[:8]))}{', …' if len(ranks) > 8 else ''}"


def split_replicated(items: Sequence[tuple[Ints, int]], replicas: int) -> list[list[tuple[int, int]]]:
    """Share items that all replicas hold: for each item, each replica's (first row, number of rows) of dimension 0.

    ``items`` are (shape, bytes per element). The items' bytes in order are one line, cut in ``replicas`` equal parts, and each
    cut is rounded to a row; a 0-dim item is one row. An item without bytes goes to replica 0. Deterministic, no communication,
    and an exact partition (I9).
    """
    widths = []
    for shape, itemsize in items:
        row = itemsize
        for size in shape[1:]:
            row *= size
        widths.append((shape[0] if shape else 1, row))
    total = sum(rows * row for rows, row in widths)
    cuts = [total * replica // replicas for replica in range(replicas + 1)]
    shares, start = [], 0
    for rows, row in widths:
        if rows * row == 0:
            shares.append([(0, rows)] + [(0, 0)] * (replicas - 1))
            continue
        edges = [min(max((2 * (cut - start) + row) // (2 * row), 0), rows) for cut in cuts]
        edges[0], edges[-1] = 0, rows
        shares.append([(edges[i], edges[i + 1] - edges[i]) for i in range(replicas)])
        start += rows * row
    return shares
