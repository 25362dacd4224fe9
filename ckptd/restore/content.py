"""What a checkpoint holds, by its description alone: tensors and how they are cut, sizes, codecs, who wrote what. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ckptd.model.dtypes import OBJECT
from ckptd.model.frame import CODECS
from ckptd.model.layout import Tensor
from ckptd.restore.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor or object: how it is cut, its bytes raw and stored, its frames' codecs, and the nodes that wrote it.

    A frame that it shares with others counts by its share of the raw bytes.
    """

    tensor: Tensor
    cut: str
    raw_bytes: int
    stored_bytes: int
    codecs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Codec:
    """The frames of one codec."""

    name: str
    frames: int
    raw_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Writer:
    """A node's part: regions and their raw bytes, and the stored bytes of the frames that it wrote for this very checkpoint."""

    node: str
    regions: int
    raw_bytes: int
    stored_bytes: int


def held(checkpoint: Checkpoint) -> Iterator[Held]:
    """Tensors and objects in layout order."""
    index = checkpoint.index
    places, starts = index.places, index.frame_starts
    ends_stored = np.concatenate([[0], np.cumsum(index.frames["stored_bytes"], dtype=np.int64)])
    begin = starts[places["first_frame"]] + places["frame_offset"].astype(np.int64)
    end = begin + places["nbytes"].astype(np.int64)
    stored = np.interp(end, starts, ends_stored) - np.interp(begin, starts, ends_stored)
    nodes = [writer.rpartition(".")[0] for writer in index.writers]
    for tensor in checkpoint.layout.tensors:
        rows = slice(tensor.first_region, tensor.first_region + len(tensor.regions))
        frames = {
            frame
            for first, count in zip(places["first_frame"][rows].tolist(), places["frame_count"][rows].tolist(), strict=True)
            for frame in range(first, first + count)
        }
        codecs = {int(code) for code in index.frames["codec"][list(frames)]} if frames else set()
        yield Held(
            tensor,
            how_cut(tensor),
            int(places["nbytes"][rows].sum()),
            round(float(stored[rows].sum())),
            tuple(CODECS[code] for code in sorted(codecs)),
            tuple(sorted({nodes[region.writer] for region in tensor.regions})),
        )


def how_cut(tensor: Tensor) -> str:
    """In words: "whole", "8 along dim 0", "2 along dim 0 × 4 along dim 1", or how many regions it has."""
    if tensor.dtype == OBJECT or len(tensor.regions) == 1:
        return "whole"
    if not tensor.regions:
        return "empty"
    counts = [len({stored.region.offsets[dim] for stored in tensor.regions}) for dim in range(len(tensor.shape))]
    if math.prod(counts) != len(tensor.regions):
        return f"{len(tensor.regions)} regions"
    return " × ".join(f"{count} along dim {dim}" for dim, count in enumerate(counts) if count > 1)


def codecs(checkpoint: Checkpoint) -> list[Codec]:
    """All frames by codec, those that lie with a base, too."""
    frames, found = checkpoint.index.frames, []
    for code in np.unique(frames["codec"]).tolist():
        mine = frames[frames["codec"] == code]
        sums = (int(mine[name].sum(dtype=np.int64)) for name in ("raw_bytes", "stored_bytes"))
        found.append(Codec(CODECS[code], len(mine), *sums))
    return found


def writers(checkpoint: Checkpoint) -> list[Writer]:
    """Every node that wrote some of it, by name; it may have done so for a base, and nothing for this checkpoint."""
    index = checkpoint.index
    regions = [stored.writer for tensor in checkpoint.layout.tensors for stored in tensor.regions]
    count = np.bincount(regions, minlength=len(index.writers))
    raw = np.bincount(regions, weights=index.places["nbytes"].astype(np.float64), minlength=len(index.writers))
    own = np.array([segment.base == 0 for segment in index.segments], bool)
    of_segment = np.array([segment.writer for segment in index.segments], np.int64)
    mine = own[index.frames["segment"]]
    whose = of_segment[index.frames["segment"]][mine]
    stored = np.bincount(whose, weights=index.frames["stored_bytes"][mine].astype(np.float64), minlength=len(index.writers))
    found: dict[str, Writer] = {}
    for number, writer in enumerate(index.writers):
        node = writer.rpartition(".")[0]
        before = found.get(node, Writer(node, 0, 0, 0))
        found[node] = Writer(
            node,
            before.regions + int(count[number]),
            before.raw_bytes + int(raw[number]),
            before.stored_bytes + int(stored[number]),
        )
    return [found[node] for node in sorted(found)]
