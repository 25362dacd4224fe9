"""Whose a part is, at registering and at loading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Partial

from ckptd_client import over, per_index, per_rank
from ckptd_client.errors import ConfigError, MissingStateError, UnsupportedStateError
from ckptd_client.messages.restoring import RestoreInfo
from ckptd_client.placement import Holders
from ckptd_client.regions import mesh_of, regions_of
from ckptd_client.scopes import Scope, scope_of, stored_objects, world
from ckptd_client.shares import pieces_of
from ckptd_client.tree import Collector, Part


def grid(rank: int, *shape: int, start: int = 0) -> DeviceMesh:
    names = ("dp", "tp", "x")[: len(shape)]
    ranks = torch.arange(start, start + int(torch.tensor(shape).prod())).view(shape)
    return DeviceMesh("cpu", ranks, mesh_dim_names=names, _init_backend=False, _rank=rank)


def scoped(given: Any, rank: int, size: int) -> Scope:
    return scope_of("part", given, rank, size)[1]


def test_who_holds_what() -> None:
    assert scoped("x", 1, 4) == world(4) == Scope("global", Holders((0, 1, 2, 3)))
    assert scoped(per_rank("x"), 1, 4) == Scope("rank", Holders((1,)))
    index = scoped(per_index("x", grid(2, 2, 2), "dp"), 2, 4)
    assert (index.kind, index.holders.ranks, index.label, index.count, index.stored) == (
        "index",
        (2, 3),
        "[1 of 2]",
        2,
        "global",
    )
    assert scoped(per_index("x", grid(2, 2, 2), "tp"), 2, 4).holders.ranks == (0, 2)
    assert (scoped(over("x", [3, 2]), 2, 4).piece, scoped(over("x", range(4)), 2, 4).piece) == ("[2]", "")
    mesh = grid(2, 2, start=2)
    assert scoped(over("x", mesh), 2, 4).holders == Holders((2, 3), mesh_of(mesh))


def test_what_can_not_be() -> None:
    for given in ("dp", [1]):
        with pytest.raises(ConfigError, match="needs a DeviceMesh"):
            per_index("x", given, "dp")
    with pytest.raises(ConfigError, match=r"has=\['dp', 'tp'\]"):
        per_index("x", grid(0, 2, 2), "pp")
    with pytest.raises(ConfigError, match="whole world"):
        scoped(per_index("x", grid(0, 2), "dp"), 0, 4)
    with pytest.raises(ConfigError, match="needs a DeviceMesh, a process group or ranks"):
        over("x", 3)


def info(*, objects: tuple[str, ...] = (), own: tuple[str, ...] = (), size: int = 2) -> RestoreInfo:
    bodies, mine = {name: name.encode() for name in objects}, {name: name.encode() for name in own}
    return RestoreInfo(1, (1, 1), 0, 5, size, bodies, mine, [], "")


def test_a_load_finds_the_part_in_its_scope_or_says_why_not() -> None:
    whole, mine = world(2), scoped(per_rank("x"), 0, 2)
    index = scoped(per_index("x", grid(1, 2), "dp"), 1, 2)
    assert stored_objects(info(objects=("part", "other")), "part", whole, 2) == [b"part"]
    assert stored_objects(info(objects=("part[10]", "part[2]", "part2[1]")), "part", whole, 2) == [b"part[2]", b"part[10]"]
    assert stored_objects(info(own=("part",)), "part", mine, 2) == [b"part"]
    assert stored_objects(info(objects=("part[0 of 2]", "part[1 of 2]")), "part", index, 2) == [b"part[1 of 2]"]
    for stored, scope, size, said in (
        (info(objects=("other[3]",), own=("ckptd.rng",)), whole, 2, r"no part 'part'.*has=\['ckptd.rng', 'other'\]"),
        (info(objects=("part",)), mine, 2, "saved as one of the whole world, and is registered as one of each rank"),
        (info(objects=("part[0]",)), index, 2, "saved as one of the whole world, and is registered as one per index"),
        (info(objects=("part[0 of 2]", "part[1 of 2]")), whole, 2, "saved as one per index of a mesh dimension"),
        (info(own=("part",), size=3), mine, 2, "saved for 3 ranks, and there are 2"),
        (info(size=1), mine, 2, "saved for 1 ranks, and there are 2"),
        (info(objects=("part[0 of 3]", "part[1 of 3]", "part[2 of 3]")), index, 2, "saved for 3 indices, and there are 2"),
    ):
        with pytest.raises(MissingStateError, match=said):
            stored_objects(stored, "part", scope, size)


def placed(mesh: DeviceMesh, local: torch.Tensor, *placements: Any, shape: tuple[int, ...] = (4,)) -> torch.Tensor:
    made: torch.Tensor = DTensor.from_local(local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(1,))
    return made


def test_what_can_not_be_placed_is_refused_by_its_path() -> None:
    everybody = Holders((0, 1, 2, 3))
    for tensor, said in (
        (placed(grid(0, 2, 2), torch.ones(4), Partial(), Replicate()), "partial sums"),
        (placed(grid(0, 2), torch.ones(2), Shard(0)), r"over\(part, mesh\)"),
        (placed(grid(0, 4), torch.ones(2), Shard(0)), r"local=\(2,\) region=\(1,\)"),
        (placed(grid(1, 4), torch.ones(1), Shard(0)), "another rank than RANK=0"),
    ):
        with pytest.raises(UnsupportedStateError, match=said) as caught:
            regions_of(tensor, everybody, 0, "some.path")
        assert caught.value.path == "some.path"


def test_nothing_of_others_is_stored_per_rank() -> None:
    part = Part("own", {"x": placed(grid(0, 4), torch.ones(1), Shard(0))}, "rank", holders=Holders((0,)))
    with pytest.raises(UnsupportedStateError, match=r"own\.x"):
        pieces_of(Collector(0).collect([part]), 0, 4)


def test_norms_on_one_dimension_are_shared_by_all_who_hold_them() -> None:
    """FSDP2 and TP: what is not parallelised is on "dp" alone, and so each rank of "tp" holds it, too."""
    sizes = []
    for rank in range(4):
        mesh = grid(rank, 2, 2)
        column = DeviceMesh("cpu", [rank % 2, rank % 2 + 2], _init_backend=False, _rank=rank)  # mesh["dp"]
        tensor = placed(column, torch.ones(8), Shard(0), shape=(16,))
        _, scope = scope_of("model", over("x", mesh), rank, 4)
        part = Part("model", {"norm": tensor}, holders=scope.holders)
        sizes += [(piece.offsets, piece.sizes) for piece in pieces_of(Collector(rank).collect([part]), rank, 4)]
    assert sizes == [((0,), (4,)), ((4,), (4,)), ((8,), (4,)), ((12,), (4,))]


def test_ties_do_not_cross_scopes() -> None:
    """A rank's own tensor may be the same memory as everybody's: who loads it looks in its own scope."""
    shared = torch.ones(3)
    parts = [Part("a", {"x": shared}), Part("b", {"x": shared}, "rank", holders=Holders((0,))), Part("c", {"x": shared})]
    assert list(Collector(0).collect(parts).structure.names) == ["a.x", "b.x"]
