"""Rectangles of meshes against torch: its own order of cuts, and tensors of index values cut by torch.chunk in that order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, ShardOrderEntry
from torch.distributed.tensor.placement_types import _StridedShard

from ckptd_client.errors import ConfigError
from ckptd_client.placement import Cut, Holders, Mesh, box, cutting_order, replica_set

MESHES = [shape for dims in (1, 2, 3) for shape in itertools.product((1, 2, 3), repeat=dims) if torch.tensor(shape).prod() <= 8]


class Sizes:
    """Of a DeviceMesh only what torch asks for here."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.ndim = shape, len(shape)

    def size(self, dim: int) -> int:
        return self.shape[dim]


def orders(ndim: int, tensor_ndim: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """All (mesh dimension, dimension of the tensor) in all orders of cutting."""
    for dims in itertools.product((None, *range(tensor_ndim)), repeat=ndim):
        cuts = [(at, dim) for at, dim in enumerate(dims) if dim is not None]
        yield from itertools.permutations(cuts)


def placed(order: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> list[object]:
    plain: list[object] = [Replicate()] * len(shape)
    for at, dim in order:
        plain[at] = Shard(dim)
    entries = tuple(
        ShardOrderEntry(dim, tuple(at for at, cut in order if cut == dim)) for dim in sorted({dim for _, dim in order})
    )
    return list(DTensorSpec._convert_shard_order_to_StridedShard(entries, tuple(plain), Sizes(shape)))  # type: ignore[arg-type]


def cut_of(placement: object) -> Cut:
    if isinstance(placement, _StridedShard):
        return placement.dim, int(placement.split_factor)
    return (placement.dim, 1) if isinstance(placement, Shard) else None


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_brute_force_over_meshes_placements_and_sizes(mesh: tuple[int, ...]) -> None:
    for tensor_ndim, sizes in ((1, (0, 1, 2, 3, 4, 5, 7, 9, 12, 13)), (2, (1, 3, 5, 8))):
        for shape in itertools.product(sizes, repeat=tensor_ndim):
            index = torch.arange(torch.tensor(shape).prod()).view(shape)
            for order in orders(len(mesh), tensor_ndim):
                cuts = [cut_of(placement) for placement in placed(order, mesh)]
                for at in itertools.product(*map(range, mesh)):
                    true = index
                    for mesh_dim, dim in order:
                        chunks = true.chunk(mesh[mesh_dim], dim)
                        true = chunks[at[mesh_dim]] if at[mesh_dim] < len(chunks) else true.narrow(dim, 0, 0)
                    offsets, size = box(shape, cuts, mesh, at)
                    cut = index[tuple(slice(o, o + s) for o, s in zip(offsets, size, strict=True))]
                    assert torch.equal(cut, true), (shape, order, at)


def test_the_order_is_torchs_also_where_there_is_none() -> None:
    refused = 0
    for mesh in MESHES:
        choices = [Replicate(), Shard(0), Shard(1), *(_StridedShard(0, split_factor=n) for n in (1, 2, 3, 4, 6))]
        for placements in itertools.product(choices, repeat=len(mesh)):
            theirs = DTensorSpec._maybe_convert_StridedShard_to_shard_order(placements, Sizes(mesh))  # type: ignore[arg-type]
            try:
                ours = cutting_order([cut_of(placement) for placement in placements], mesh)
            except ValueError:
                assert theirs is None, (mesh, placements)
                refused += 1
                continue
            assert theirs is not None, (mesh, placements)
            assert ours == {entry.tensor_dim: list(entry.mesh_dims) for entry in theirs}, (mesh, placements)
    assert refused


def test_the_offsets_that_torch_gets_wrong() -> None:
    """FSDP2 over TP, three rows over 2 x 2: TP has rows 0-1 and 2, FSDP cuts these."""
    cuts: list[Cut] = [(0, 2), (0, 1)]
    assert [box((3,), cuts, (2, 2), at) for at in itertools.product(range(2), range(2))] == [
        ((0,), (1,)),
        ((2,), (1,)),
        ((1,), (1,)),
        ((3,), (0,)),
    ]


def test_replica_sets_partition_the_holders() -> None:
    whole = Mesh((2, 2, 2), (7, 6, 5, 4, 3, 2, 1, 0))
    holders = Holders(tuple(range(8)), whole)
    for rank in range(8):
        at = whole.coordinate(rank)
        assert at is not None and whole.at(at) == rank
        for dims in ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2)):
            ranks = whole.like(at, dims)
            mesh = Mesh((2,) * len(dims), ranks)
            replicas = replica_set(holders, mesh, ((0, 1),) * len(dims), rank)
            assert rank in replicas and len(replicas) == 8 // len(ranks)
            assert all(
                replica_set(holders, mesh_around(whole, one, dims), ((0, 1),) * len(dims), one) == replicas for one in replicas
            )
            assert replica_set(holders, mesh, (None,) * len(dims), rank) == tuple(range(8))


def mesh_around(whole: Mesh, rank: int, dims: tuple[int, ...]) -> Mesh:
    at = whole.coordinate(rank)
    assert at is not None
    return Mesh((2,) * len(dims), whole.like(at, dims))


def test_a_mesh_of_some_ranks_needs_to_be_told_whose_the_part_is() -> None:
    stage = Mesh((2,), (0, 1))
    assert replica_set(Holders((0, 1)), stage, (None,), 0) == (0, 1)
    for holders in (Holders((0, 1, 2, 3)), Holders((0, 2)), Holders((0, 1, 2, 3), Mesh((2, 2), (0, 2, 3, 1)))):
        with pytest.raises(ConfigError, match=r"over\(part, mesh\)"):
            replica_set(holders, stage, ((0, 1),), 0)
    with pytest.raises(ConfigError, match="not in its mesh"):
        replica_set(Holders((0, 1)), stage, ((0, 1),), 3)
