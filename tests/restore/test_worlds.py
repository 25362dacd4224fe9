"""What the nodes of a world would read: counted again element by element, and as DTensor cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.errors import ConfigError
from ckptd.model.frame import FRAME, PLACE
from ckptd.model.index import Index, expected_bytes
from ckptd.model.layout import GLOBAL, Layout, StoredRegion, Tensor
from ckptd.model.region import Region
from ckptd.model.segment import Segment
from ckptd.restore.worlds import node_read, region_of, world_of


def stored(shape: tuple[int, int], rows: int, frame_bytes: int) -> tuple[Layout, Index]:
    """A tensor of bytes in row shards of so many rows, each cut into frames, all in one segment; and an object."""
    regions = [Region((low, 0), (min(rows, shape[0] - low), shape[1])) for low in range(0, shape[0], rows)]
    tensor = Tensor("w", GLOBAL, "uint8", shape, 0, tuple(StoredRegion(region, 0, 0) for region in regions))
    layout = Layout([tensor, Tensor("z", 0, "uint8", (1,), len(regions), ())])
    places = np.zeros(len(regions), PLACE)
    places["nbytes"] = nbytes = expected_bytes(layout)
    sizes = [[min(frame_bytes, n - at) for at in range(0, n, frame_bytes)] for n in nbytes.tolist()]
    places["frame_count"] = [len(some) for some in sizes]
    places["first_frame"] = np.cumsum(places["frame_count"]) - places["frame_count"]
    raw = np.array([n for some in sizes for n in some])
    frames = np.zeros(len(raw), FRAME)
    frames["raw_bytes"] = frames["stored_bytes"] = raw
    frames["offset"] = np.cumsum(raw) - raw
    return layout, Index(("a",), (Segment(0, 0, int(raw.sum())),), places, frames)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([([1], ["S0"]), ([3], ["S0"]), ([2], ["S1"]), ([2, 2], ["R", "S0"]), ([2, 3], ["S0", "S1"]), ([4], ["R"])]),
    st.integers(1, 4),
)
def test_every_byte_counted_once(
    shape: tuple[int, int], rows: int, frame_bytes: int, mesh: tuple[list[int], list[str]], per_node: int
) -> None:
    layout, index = stored(shape, rows, frame_bytes)
    world = world_of(*mesh, per_node)
    # the frame that holds each element
    frame_of = np.concatenate(
        [int(place["first_frame"]) + np.arange(int(place["nbytes"])) // frame_bytes for place in index.places]
    ).reshape(shape)
    assert [rank for ranks in world.nodes for rank in ranks] == list(range(world.size))
    for ranks in world.nodes:
        wanted, by_frame = np.zeros(shape, bool), dict[int, set[int]]()
        for rank in ranks:
            region = region_of(world, rank, shape)
            cut = tuple(slice(o, o + s) for o, s in zip(region.offsets, region.sizes, strict=True))
            wanted[cut] = True
            for frame in np.unique(frame_of[cut]).tolist():
                by_frame.setdefault(frame, set()).add(rank)
        read = node_read(layout, index, world, ranks, 1 << 20)
        raw = index.frames["raw_bytes"][sorted(by_frame)].sum()
        assert (read.needed_bytes, read.frames, read.frame_bytes) == (wanted.sum(), len(by_frame), raw)
        assert read.shared_frames == sum(len(those) > 1 for those in by_frame.values())
        assert read.objects == bool(by_frame) and read.fetched_bytes >= raw
        assert read.amplification == pytest.approx(raw / wanted.sum() if wanted.any() else 1.0)


@pytest.mark.parametrize(
    ("mesh", "places"), [([3], ["S0"]), ([4], ["S1"]), ([2, 3], ["S0", "S0"]), ([2, 2], ["S1", "S0"]), ([2, 2], ["R", "S1"])]
)
def test_as_dtensor_cuts(mesh: list[int], places: list[str]) -> None:
    from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
    from torch.distributed.tensor.placement_types import Replicate, Shard

    world = world_of(mesh, places, 1)
    placements = [Replicate() if place == "R" else Shard(int(place[1:])) for place in places]
    for shape in ((7, 10), (1, 3), (6, 8)):
        for rank in range(world.size):
            at = [int(i) for i in np.unravel_index(rank, mesh)]
            sizes, offsets = _compute_local_shape_and_global_offset(shape, mesh, lambda dim, at=at: at[dim], placements)
            region = region_of(world, rank, shape)
            assert region.sizes == tuple(sizes)
            assert 0 in region.sizes or region.offsets == tuple(offsets)


def test_few_dimensions_and_none() -> None:
    world = world_of([2], ["S1"], 1)
    assert region_of(world, 1, (5,)) == Region((3,), (2,))
    assert region_of(world, 1, ()) == Region((), ())


@pytest.mark.parametrize(
    ("mesh", "places"), [([0], ["S0"]), ([2], ["S0", "R"]), ([2], ["X"]), ([2], ["S64"]), ([100_001], ["R"]), ([2], ["S"])]
)
def test_no_world(mesh: list[int], places: list[str]) -> None:
    with pytest.raises(ConfigError):
        world_of(mesh, places, 1)
