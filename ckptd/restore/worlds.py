"""Worlds that could load a checkpoint, and what each of their nodes would read. Pure.

A world is a mesh of ranks, in row-major order, and a placement for each of its dimensions, in the words of DTensor: "R", or
"S1" for shards along dimension 1, cut in ceil-chunks. A tensor of fewer dimensions is cut along its last; scalars are whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ckptd.errors import ConfigError
from ckptd.model.columns import MAX_NDIM
from ckptd.model.dtypes import OBJECT
from ckptd.model.index import Index
from ckptd.model.layout import GLOBAL, Layout, Tensor
from ckptd.model.region import Ints, Region
from ckptd.restore.fetch import READ_BYTES, coalesce
from ckptd.restore.plan import FrameRead, plan
from ckptd.restore.turns import owners
from ckptd_client.messages.restoring import Want

MAX_RANKS: Final = 100_000
_PLACEMENT: Final = re.compile(r"R|S(\d{1,2})")


@dataclass(frozen=True, slots=True)
class World:
    """``mesh`` has a size, and ``dims`` the dimension that is cut (None: replicated), for each dimension of the mesh."""

    mesh: tuple[int, ...]
    dims: tuple[int | None, ...]
    ranks_per_node: int

    @property
    def size(self) -> int:
        """How many ranks it has."""
        return math.prod(self.mesh)

    @property
    def nodes(self) -> list[range]:
        """The ranks of each node."""
        return [range(at, min(at + self.ranks_per_node, self.size)) for at in range(0, self.size, self.ranks_per_node)]


@dataclass(frozen=True, slots=True)
class NodeRead:
    """What one node would read. ``needed_bytes`` are raw: those that its ranks want, each once, however many want it.

    ``frame_bytes`` are the raw bytes of the frames that hold them. ``fetched_bytes`` are what comes over the link: stored
    bytes, and gaps that are read rather than that a range ends. ``shared_frames`` are wanted by more than one rank.
    """

    ranks: range
    needed_bytes: int
    frame_bytes: int
    fetched_bytes: int
    frames: int
    shared_frames: int
    objects: int
    requests: int

    @property
    def amplification(self) -> float:
        """Raw bytes of the frames per byte that is needed; 1 for nothing of nothing."""
        return self.frame_bytes / self.needed_bytes if self.needed_bytes else 1.0


def world_of(mesh: Sequence[int], placements: Sequence[str], ranks_per_node: int) -> World:
    """Raises ConfigError for what is no world."""
    if not mesh or min(mesh) < 1 or math.prod(mesh) > MAX_RANKS or ranks_per_node < 1:
        raise ConfigError(f"a world has 1 to {MAX_RANKS} ranks, in a mesh as in 8 or 2x4, some of them on each node")
    if len(placements) != len(mesh):
        raise ConfigError(f"a mesh of {len(mesh)} dimensions needs as many placements, as in R,S0; got {','.join(placements)}")
    dims: list[int | None] = []
    for text in placements:
        found = _PLACEMENT.fullmatch(text)
        if found is None or (found[1] is not None and int(found[1]) >= MAX_NDIM):
            raise ConfigError(f"a placement is R (replicated) or S and a dimension, as in S0; got {text[:40]!r}")
        dims.append(None if found[1] is None else int(found[1]))
    return World(tuple(mesh), tuple(dims), ranks_per_node)


def region_of(world: World, rank: int, shape: Sequence[int]) -> Region:
    """What a rank holds of a tensor: cut along its dimensions one mesh dimension after the other, as DTensor does."""
    offsets, sizes = [0] * len(shape), list(shape)
    at = np.unravel_index(rank, world.mesh)
    for place, pieces, wanted in zip(at, world.mesh, world.dims, strict=True):
        if wanted is None or not shape:
            continue
        dim = min(wanted, len(shape) - 1)
        chunk = -(-sizes[dim] // pieces)
        start = min(chunk * int(place), sizes[dim])
        offsets[dim] += start
        sizes[dim] = min(chunk, sizes[dim] - start)
    return Region(tuple(offsets), tuple(sizes))


def wants_of(world: World, rank: int, tensors: Sequence[Tensor]) -> list[Want]:
    """What a rank would want of these tensors of global scope, nothing of what it has no element of."""
    found = []
    for tensor in tensors:
        region = region_of(world, rank, tensor.shape)
        if region.elements:
            found.append(Want(tensor.fqn, tensor.rank, tensor.dtype, tensor.shape, region.offsets, region.sizes))
    return found


def node_read(layout: Layout, index: Index, world: World, ranks: range, ring_bytes: int) -> NodeRead:
    """What the node of these ranks would read, through a ring of that size, as a restore does. Raises what `plan` raises."""
    tensors = [tensor for tensor in layout.tensors if tensor.rank == GLOBAL and tensor.dtype != OBJECT]
    wants = [wants_of(world, rank, tensors) for rank in ranks]
    firsts = np.cumsum([0, *map(len, wants)], dtype=np.int64)[:-1]
    reads = plan(layout, index, [want for some in wants for want in some])
    largest = max((read.raw_bytes for read in reads), default=1)
    ranges = coalesce(reads, READ_BYTES, max(1, min(len(reads), ring_bytes // largest) // 2))
    return NodeRead(
        ranks,
        needed_bytes(reads),
        sum(read.raw_bytes for read in reads),
        sum(part[-1].offset + part[-1].stored_bytes - part[0].offset for part in ranges),
        len(reads),
        sum(int(len(np.unique(owners(read.copies, firsts))) > 1) for read in reads),
        len({read.segment for read in reads}),
        len(ranges),
    )


def needed_bytes(reads: Sequence[FrameRead]) -> int:
    """Raw bytes of the frames that somebody wants, each counted once."""
    if not reads:
        return 0
    counts = np.array([len(read.copies) for read in reads])
    copies = np.concatenate([read.copies for read in reads])
    frame = np.repeat(np.arange(len(reads), dtype=np.int64), counts)
    # Copies of one frame after those of another, on one line: what is covered by an earlier one doesn't count again.
    base = np.concatenate([[0], np.cumsum([read.raw_bytes for read in reads], dtype=np.int64)])[frame]
    begin = base + copies[:, 0]
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], (begin + copies[:, 3])[order]
    reached: Ints = np.concatenate([np.zeros(1, np.int64), np.maximum.accumulate(end)[:-1]])
    return int(np.maximum(end - np.maximum(begin, reached), 0).sum())
