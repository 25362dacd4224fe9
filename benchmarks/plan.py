"""How long the plan of a restore takes: 100,000 stored regions, in one tensor and in as many tensors.

CPU seconds of one process, no store: the layout and index of each shape are made up, and read as a restore reads them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.result import OURS, Result, at_most, from_rounds
from benchmarks.rounds import interleave
from benchmarks.run import alone
from ckptd.model.frame import FRAME, PLACE
from ckptd.model.index import Index, decode_index, expected_bytes
from ckptd.model.layout import GLOBAL, Layout, StoredRegion, Tensor, decode_layout
from ckptd.model.region import Region
from ckptd.model.segment import Segment
from ckptd.restore.plan import plan
from ckptd_client.messages.restoring import Want

_REGIONS, _WANTS, _SIDE, _TILES = 100_000, 1000, 320, 32
_SEGMENT = 16 << 20
_SECONDS = 2.0
Shape = tuple[bytes, bytes, list[Want]]  # layout, index, and what is wanted


def measure(rounds: int) -> list[Result]:
    """`plan` is the bar's; decoding the layout and the index is told beside it."""
    shapes = {OURS: _rows(), "columns": _columns(), "grid": _grid(), "tensors": _tensors()}
    decoded = {name: (decode_layout(shape[0]), shape[2]) for name, shape in shapes.items()}
    found = interleave({name: partial(_plan, shapes[name], *decoded[name]) for name in shapes}, rounds, warm_up=1)
    decode = interleave({name: partial(_decode, shape) for name, shape in shapes.items()}, rounds, warm_up=1)
    notes = {
        "ckptd": "100,000 row regions of one tensor × 1000 row shards",
        "columns": "the same regions × 8 column shards: each needs some of every region",
        "grid": "a grid of 320 × 320 regions × 32 × 32 tiles",
        "tensors": "100,000 tensors of one region, all wanted",
        "decode_seconds": {name: sorted(values)[len(values) // 2] for name, values in decode.raw.items()},
    }
    result = from_rounds("plan", "CPU seconds to plan, 100,000 stored × 1000 wanted regions", "s", found, None, notes=notes)
    values = {"rows": result.ckptd, **result.peers}
    return [result.holding(*(at_most(name, value, _SECONDS) for name, value in values.items()))]


def _plan(shape: Shape, layout: Layout, wants: Sequence[Want], _: int) -> float:
    index = decode_index(shape[1], layout, 0)  # a new one each time: what it keeps for the next plan is part of the cost
    begun = time.process_time()
    plan(layout, index, wants)
    return time.process_time() - begun


def _decode(shape: Shape, _: int) -> float:
    begun = time.process_time()
    decode_index(shape[1], decode_layout(shape[0]), 0)
    return time.process_time() - begun


def _rows() -> Shape:
    shape = (2 * _REGIONS, 64)
    regions = [Region((2 * i, 0), (2, 64)) for i in range(_REGIONS)]
    return _one(shape, regions, [((i * 200, 0), (200, 64)) for i in range(_WANTS)])


def _columns() -> Shape:
    shape = (2 * _REGIONS, 64)
    regions = [Region((2 * i, 0), (2, 64)) for i in range(_REGIONS)]
    return _one(shape, regions, [((0, 8 * i), (shape[0], 8)) for i in range(8)])


def _grid() -> Shape:
    shape, tile = (4 * _SIDE, 4 * _SIDE), 4 * _SIDE // _TILES
    regions = [Region((4 * i, 4 * j), (4, 4)) for i in range(_SIDE) for j in range(_SIDE)]
    tiles = [((i * tile, j * tile), (tile, tile)) for i in range(_TILES) for j in range(_TILES)]
    return _one(shape, regions, tiles)


def _tensors() -> Shape:
    shape = (64, 64)
    names = [f"layer{i:06}.weight" for i in range(_REGIONS)]
    region = (StoredRegion(Region((0, 0), shape), 0, 0),)
    layout = Layout([Tensor(name, GLOBAL, "float32", shape, i, region) for i, name in enumerate(names)])
    return layout.encode(), _index(layout), [Want(name, GLOBAL, "float32", shape, (0, 0), shape) for name in names]


def _one(shape: tuple[int, int], regions: Sequence[Region], wanted: Sequence[tuple[tuple[int, int], tuple[int, int]]]) -> Shape:
    stored = tuple(StoredRegion(region, 0, 0) for region in regions)
    layout = Layout([Tensor("weight", GLOBAL, "float32", shape, 0, stored)])
    return layout.encode(), _index(layout), [Want("weight", GLOBAL, "float32", shape, *one) for one in wanted]


def _index(layout: Layout) -> bytes:
    """A frame per region, in segments of 16 MiB."""
    nbytes = expected_bytes(layout)
    frames, places = np.zeros(len(nbytes), FRAME), np.zeros(len(nbytes), PLACE)
    begin = np.cumsum(nbytes) - nbytes
    segment = begin // _SEGMENT
    _, first = np.unique(segment, return_index=True)
    frames["raw_bytes"] = frames["stored_bytes"] = places["nbytes"] = nbytes
    frames["segment"], frames["offset"] = segment, begin - begin[first][segment]
    places["first_frame"], places["frame_count"] = np.arange(len(nbytes)), 1
    sizes = np.bincount(segment, weights=nbytes).astype(np.int64).tolist()
    return Index(("a",), tuple(Segment(0, n, size) for n, size in enumerate(sizes)), places, frames).encode()


if __name__ == "__main__":
    alone(measure, rounds=5)
