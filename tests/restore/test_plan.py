"""The plan for tensors of many regions, against numpy's indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.errors import CorruptError
from ckptd.model.frame import FRAME, PLACE
from ckptd.model.index import Index, expected_bytes
from ckptd.model.layout import GLOBAL, Layout, StoredRegion, Tensor
from ckptd.model.region import Region
from ckptd.model.segment import Segment
from ckptd.restore.plan import plan
from ckptd_client.messages.restoring import Want

SIDE = 36


def stored(cuts: list[tuple[int, int, int, int]]) -> tuple[Layout, Index]:
    """One tensor of bytes, SIDE × SIDE, in these regions (low, size, low, size); each region is one frame."""
    regions = tuple(StoredRegion(Region((y, x), (height, width)), 0, 0) for y, height, x, width in cuts)
    layout = Layout([Tensor("w", GLOBAL, "uint8", (SIDE, SIDE), 0, regions)])
    nbytes = expected_bytes(layout)
    frames, places = np.zeros(len(nbytes), FRAME), np.zeros(len(nbytes), PLACE)
    frames["raw_bytes"] = frames["stored_bytes"] = places["nbytes"] = nbytes
    frames["offset"] = np.cumsum(nbytes) - nbytes
    places["first_frame"], places["frame_count"] = np.arange(len(nbytes)), 1
    return layout, Index(("a",), (Segment(0, 0, int(nbytes.sum())),), places, frames)


def grid(edges: list[int]) -> list[tuple[int, int, int, int]]:
    spans = [(a, b - a) for a, b in zip(edges, [*edges[1:], SIDE], strict=True)]
    return [(*row, *column) for row in spans for column in spans]


@given(
    st.sets(st.integers(1, SIDE - 1), min_size=8, max_size=SIDE - 1),
    st.lists(st.tuples(*[st.integers(0, SIDE)] * 4), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_a_grid_of_many_regions(cut: set[int], corners: list[tuple[int, int, int, int]], chance: object) -> None:
    whole = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
    cuts = grid([0, *sorted(cut)])
    chance.shuffle(cuts)  # type: ignore[attr-defined]
    layout, index = stored(cuts)
    bodies = [whole[y : y + height, x : x + width].ravel() for y, height, x, width in cuts]
    wants = []
    for a, b, c, d in corners:
        low, size = (min(a, b), min(c, d)), (abs(a - b), abs(c - d))
        wants.append(Want("w", -1, "uint8", (SIDE, SIDE), low, size))
    found = [np.full(want.sizes[0] * want.sizes[1], -1) for want in wants]
    for read in plan(layout, index, wants):
        for offset, number, target, count in read.copies.tolist():
            assert (found[number][target : target + count] == -1).all()
            found[number][target : target + count] = bodies[read.frame][offset : offset + count]
    for want, body in zip(wants, found, strict=True):
        cut_out = whole[tuple(slice(o, o + s) for o, s in zip(want.offsets, want.sizes, strict=True))]
        assert body.tolist() == cut_out.ravel().tolist()


@pytest.mark.parametrize("edges", [[0, 18], list(range(0, SIDE, 3))])  # 4 regions, and 144
def test_an_element_twice_or_not_at_all(edges: list[int]) -> None:
    want = Want("w", -1, "uint8", (SIDE, SIDE), (0, 0), (SIDE, SIDE))
    cuts = grid(edges)
    plan(*stored(cuts), [want])
    y, height, x, width = cuts[1]
    for wrong in ([*cuts[:1], *cuts[2:]], [cuts[0], *cuts], [cuts[0], (y, height, x - 1, width), *cuts[2:]]):
        with pytest.raises(CorruptError, match="doesn't have each element once"):
            plan(*stored(wrong), [want])
