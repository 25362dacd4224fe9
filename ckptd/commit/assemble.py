"""From the parts of all writers to one checkpoint: layout, index, manifest (PROTOCOLS 3). The commit itself is a log record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Final

import numpy as np

from ckptd.errors import CorruptError
from ckptd.model.columns import Array
from ckptd.model.dtypes import OBJECT
from ckptd.model.frame import FRAME, PLACE
from ckptd.model.ids import Attempt
from ckptd.model.index import Index, IndexSegment, check_fits
from ckptd.model.keys import index_key, layout_key, manifest_key
from ckptd.model.layout import GLOBAL, Layout, StoredRegion, Tensor
from ckptd.model.manifest import Manifest, ObjectRef
from ckptd.model.part import Entry, Part
from ckptd.model.records import digest
from ckptd.model.region import Region, covered_once
from ckptd.store.base import Store

NONE_KNOWN: Final[frozenset[str]] = frozenset()

# An entry, the place of its part among the parts in writer order.
_Piece = tuple[Entry, int]


async def assemble(
    store: Store,
    job: str,
    attempt: Attempt,
    world_size: int,
    parent: int | None,
    parts: Sequence[Part],
    known_layouts: Set[str] = NONE_KNOWN,
) -> tuple[Manifest, str]:
    """Write layout, index and manifest of ``attempt``, in this order; returns the manifest and its hash, for the COMMIT record.

    A layout whose hash is in ``known_layouts`` is in the store already, for this generation.

    Raises CorruptError when the parts don't make a whole
    state, and what the store raises. May be repeated: equal parts make equal objects.
    """
    layout, index = merge(parts, world_size)
    layout_body, index_body = layout.encode(), index.encode()
    manifest = Manifest(
        job=job,
        attempt=attempt,
        world_size=world_size,
        parent=parent,
        layout=ObjectRef(digest(layout_body), len(layout_body)),
        index=ObjectRef(digest(index_body), len(index_body)),
        raw_bytes=int(index.places["nbytes"].sum()),
        stored_bytes=sum(segment.size_bytes for segment in index.segments),
    )
    body = manifest.encode()
    name = digest(body)
    if manifest.layout.hash not in known_layouts:
        await store.put(layout_key(job, attempt.snapshot.generation, manifest.layout.hash), layout_body)
    await store.put(index_key(job, attempt, manifest.index.hash), index_body)
    await store.put(manifest_key(job, name), body)
    return manifest, name


def merge(parts: Sequence[Part], world_size: int) -> tuple[Layout, Index]:
    """The whole state that all parts make up. Raises CorruptError naming what is missing, double or contradictory (I9)."""
    parts = sorted(parts, key=lambda part: (part.ranks, part.writer))
    _check_ranks(parts, world_size)
    pieces: dict[tuple[str, int], list[_Piece]] = defaultdict(list)
    for number, part in enumerate(parts):
        for entry in part.entries:
            pieces[entry.fqn, entry.rank if entry.scope == "rank" else GLOBAL].append((entry, number))
    tensors: list[Tensor] = []
    ordered: list[_Piece] = []
    for (fqn, rank), found in sorted(pieces.items()):
        dtype, shape = _agreed(fqn, found)
        stored = sorted(
            (piece for piece in found if dtype == OBJECT or piece[0].region.elements),
            key=lambda piece: (piece[0].region.offsets, piece[0].rank),
        )
        if not _is_whole(dtype, shape, stored):
            raise CorruptError(
                f"not every element is stored exactly once fqn={fqn!r:.200} regions={_few(stored)} shape={shape}"
            )
        regions = tuple(StoredRegion(entry.region, entry.rank, number) for entry, number in stored)
        tensors.append(Tensor(fqn, rank, dtype, shape, len(ordered), regions))
        ordered += stored
    layout, index = Layout(tensors), _index(parts, ordered)
    check_fits(index, layout)
    return layout, index


def _check_ranks(parts: Sequence[Part], world_size: int) -> None:
    ranks = sorted(rank for part in parts for rank in part.ranks)
    if ranks != list(range(world_size)):
        raise CorruptError(f"the parts are not of each rank once world_size={world_size} ranks={ranks[:20]}")
    if len({part.writer for part in parts}) < len(parts):
        raise CorruptError("two parts have one writer")


def _agreed(fqn: str, found: Sequence[_Piece]) -> tuple[str, tuple[int, ...]]:
    """dtype and shape on which all pieces agree."""
    kinds = {(entry.dtype, entry.shape) for entry, _ in found}
    if len(kinds) > 1:
        raise CorruptError(f"ranks disagree on type or shape fqn={fqn!r:.200} given={sorted(kinds)[:4]}")
    return kinds.pop()


def _is_whole(dtype: str, shape: tuple[int, ...], stored: Sequence[_Piece]) -> bool:
    if dtype == OBJECT:
        return len(stored) == 1
    return covered_once(Region((0,) * len(shape), shape), [entry.region for entry, _ in stored])


def _few(stored: Sequence[_Piece]) -> str:
    return ", ".join(f"rank {entry.rank}: {entry.region.offsets}+{entry.region.sizes}" for entry, _ in stored[:4])


def _index(parts: Sequence[Part], ordered: Sequence[_Piece]) -> Index:
    first_frames = np.cumsum([0, *(len(part.frames) for part in parts)]).tolist()
    first_segments = np.cumsum([0, *(len(part.segments) for part in parts)]).tolist()
    frames: list[Array] = []
    for part, first in zip(parts, first_segments, strict=False):
        rows = part.frames.copy()
        rows["segment"] += np.uint32(first)
        frames.append(rows)
    places = []
    for entry, number in ordered:
        place = entry.place
        first = place.first_frame + first_frames[number] if place.frame_count else 0
        places.append((place.nbytes, first, place.frame_count, place.frame_offset, 0))
    return Index(
        writers=tuple(part.writer for part in parts),
        segments=tuple(IndexSegment(i, s.n, s.size_bytes) for i, part in enumerate(parts) for s in part.segments),
        places=np.array(places, PLACE),
        frames=np.concatenate([np.zeros(0, FRAME), *frames]),
    )
