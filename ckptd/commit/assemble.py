"""From the parts of all writers to one checkpoint: layout, index, manifest (PROTOCOLS 3). The commit itself is a log record."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from typing import Final

import numpy as np

from ckptd.commit.state import Entry as Commit
from ckptd.errors import CkptdError, CorruptError
from ckptd.model.canonical import digest
from ckptd.model.columns import Array
from ckptd.model.dtypes import OBJECT
from ckptd.model.frame import FRAME, PLACE
from ckptd.model.ids import Attempt
from ckptd.model.index import Index, check_fits, decode_index
from ckptd.model.keys import index_key, layout_key, manifest_key
from ckptd.model.layout import GLOBAL, Layout, StoredRegion, Tensor
from ckptd.model.manifest import BaseRef, Manifest, ObjectRef
from ckptd.model.part import Entry, Part
from ckptd.model.region import Region, covered_once
from ckptd.model.segment import Segment
from ckptd.store.base import Store

NONE_KNOWN: Final[frozenset[str]] = frozenset()
NO_COMMITS: Final[Mapping[int, Commit]] = {}

# An entry, the place of its part among the parts in writer order.
_Piece = tuple[Entry, int]


class BaseGoneError(CkptdError):
    """A part refers to a commit that is no live one (any more): this attempt can't be committed, one without it can."""


async def assemble(
    store: Store,
    job: str,
    attempt: Attempt,
    world_size: int,
    parent: int | None,
    parts: Sequence[Part],
    commits: Mapping[int, Commit] = NO_COMMITS,
    known_layouts: Set[str] = NONE_KNOWN,
) -> tuple[Manifest, str]:
    """Write layout and index of ``attempt``, then its manifest; returns the manifest and its hash, for the COMMIT record.

    ``commits``: the job's, by log number, in which the parts' bases are looked up. A layout whose hash is in ``known_layouts``
    is in the store already, for this generation.

    Raises CorruptError when the parts don't make a whole state, BaseGoneError when a base is no live commit, and what the store
    raises. May be repeated: equal parts make equal objects.
    """
    layout, index, bases = merge(parts, world_size)
    for n in bases:
        if n not in commits or not commits[n].live:
            raise BaseGoneError(f"it refers to frames of record {n}, which is no live commit any more attempt={attempt}")
    stored_bytes = index.stored_by_base()
    layout_body, index_body = layout.encode(), index.encode()
    decode_index(index_body, layout, len(bases))  # what doesn't fit together must fail here, not in a restore
    manifest = Manifest(
        job=job,
        attempt=attempt,
        world_size=world_size,
        parent=parent,
        layout=ObjectRef(digest(layout_body), len(layout_body)),
        index=ObjectRef(digest(index_body), len(index_body)),
        raw_bytes=int(index.places["nbytes"].sum()),
        stored_bytes=stored_bytes[0],
        bases=tuple(BaseRef(n, commits[n].attempt, size) for n, size in zip(bases, stored_bytes[1:], strict=True)),
    )
    body = manifest.encode()
    name = digest(body)
    puts = [store.put(index_key(job, attempt, manifest.index.hash), index_body)]
    if manifest.layout.hash not in known_layouts:
        puts.append(store.put(layout_key(job, attempt.snapshot.generation, manifest.layout.hash), layout_body))
    for result in await asyncio.gather(*puts, return_exceptions=True):  # both are over, then the first error counts
        if result is not None:
            raise result
    await store.put(manifest_key(job, name), body)
    return manifest, name


def merge(parts: Sequence[Part], world_size: int) -> tuple[Layout, Index, tuple[int, ...]]:
    """The whole state that all parts make up, and its bases' log numbers.

    Raises CorruptError naming what is missing, double or contradictory (I9).
    """
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
    bases = tuple(sorted({n for part in parts for n in part.bases}))
    layout, index = Layout(tensors), _index(parts, ordered, bases)
    check_fits(index, layout)
    return layout, index, bases


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


def _index(parts: Sequence[Part], ordered: Sequence[_Piece], bases: Sequence[int]) -> Index:
    first_frames = np.cumsum([0, *(len(part.frames) for part in parts)]).tolist()
    writers, segments, rows = _segments(parts, bases)
    frames: list[Array] = []
    for part, mapping in zip(parts, rows, strict=True):
        moved = part.frames.copy()
        if len(moved):
            moved["segment"] = np.array(mapping, np.uint32)[moved["segment"]]
        frames.append(moved)
    places = []
    for entry, number in ordered:
        place = entry.place
        first = place.first_frame + first_frames[number] if place.frame_count else 0
        places.append((place.nbytes, first, place.frame_count, place.frame_offset, 0))
    return Index(
        writers=writers,
        segments=segments,
        places=np.array(places, PLACE),
        frames=np.concatenate([np.zeros(0, FRAME), *frames]),
    )


def _segments(parts: Sequence[Part], bases: Sequence[int]) -> tuple[tuple[str, ...], tuple[Segment, ...], list[list[int]]]:
    """(all writers, all segments, for each part which of these its own rows are). Parts may share segments of bases."""
    own = [part.writer for part in parts]
    writers = (*own, *sorted({writer for part in parts for writer in part.writers} - set(own)))
    row_of, number_of = {writer: row for row, writer in enumerate(writers)}, {n: k for k, n in enumerate(bases, 1)}
    moved = [
        [
            Segment(row_of[part.writers[s.writer]], s.n, s.size_bytes, number_of[part.bases[s.base - 1]] if s.base else 0)
            for s in part.segments
        ]
        for part in parts
    ]
    mine = [segment for segments in moved for segment in segments if not segment.base]
    others = {segment for segments in moved for segment in segments if segment.base}
    table = (*mine, *sorted(others, key=lambda s: (s.base, s.writer, s.n)))
    place = {segment: row for row, segment in enumerate(table)}
    return writers, table, [[place[segment] for segment in segments] for segments in moved]
