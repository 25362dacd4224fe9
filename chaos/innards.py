"""Does a commit of the stand-in hold the bytes of its step, each in its place and once (I5, I9)? Read from the store alone.

Wrong bytes that were hashed after they had become wrong look sound to every hash; only who knows what they should be can tell.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np

from chaos.content import Cells, Filler, Piece, tensors
from chaos.invariants import FRAME, SEGMENT, places_of, sections_of, writers_of
from chaos.logbook import Committed
from chaos.objects import Objects
from chaos.planes import raw_bytes_of

_TENSOR = struct.Struct("<iBBHI")  # rank, dtype, dimensions, zero, regions
_PLACE = struct.Struct("<QIIII")  # bytes, first frame, frames, offset in the first, zero


def wrong_contents(objects: Objects, job: str, commit: Committed, seed: int, total_bytes: int) -> Iterator[str]:
    """What is not as `content` would have it after the commit's step. All objects are there and have their digests."""
    fields: dict[str, Any] = msgpack.unpackb(_got(objects, f"{job}/manifest/{commit.manifest}"))
    layout = sections_of(_got(objects, f"{job}/layout/{commit.attempt.partition('.')[0]}/{fields['layout'][0]}"))
    index = sections_of(_got(objects, f"{job}/data/{commit.attempt}/{fields['index'][0]}.idx"))
    frames = _frames(objects, index, places_of(job, fields))
    known = {tensor.name: tensor for tensor in tensors(seed, total_bytes)}
    places, region, dimension = index["places"][1], 0, 0
    for fqn, count, dimensions in _tensors(layout):
        tensor, cells = known.pop(fqn, None), 0
        for _ in range(count):
            nbytes, first, number, start, _zero = _PLACE.unpack_from(places, region * _PLACE.size)
            region += 1
            offsets = struct.unpack_from(f"<{dimensions}q", layout["offsets"][1], 8 * dimension)
            sizes = struct.unpack_from(f"<{dimensions}q", layout["sizes"][1], 8 * dimension)
            dimension += dimensions
            if tensor is None:
                continue
            raw = b"".join(frames[first : first + number])[start : start + nbytes]
            piece = Piece(tensor, (offsets[0], offsets[1]), (sizes[0], sizes[1]))
            cells += sizes[0] * sizes[1]
            if len(raw) != piece.nbytes:
                yield f"{fqn} at {offsets}+{sizes} has {len(raw)} bytes"
                continue
            got: Cells = np.frombuffer(raw, tensor.dtype)
            if problem := Filler(seed, piece).wrong(commit.step, got):
                yield problem
        if tensor is not None and cells != tensor.shape[0] * tensor.shape[1]:
            yield f"{fqn} has {cells} elements of {tensor.shape}"
    if known:
        yield f"there is nothing of {', '.join(known)}"


def _tensors(layout: dict[str, tuple[int, bytes]]) -> Iterator[tuple[str, int, int]]:
    """(name, regions, dimensions) of each, in layout order."""
    count, rows = layout["tensors"]
    ends = [0, *struct.unpack_from(f"<{count}q", layout["fqn_ends"][1])]
    for number, (start, end) in enumerate(pairwise(ends)):
        _rank, _dtype, dimensions, _zero, regions = _TENSOR.unpack_from(rows, number * _TENSOR.size)
        yield layout["fqn_text"][1][start:end].decode(), regions, dimensions


def _frames(objects: Objects, index: dict[str, tuple[int, bytes]], places: Sequence[str]) -> list[bytes]:
    """The raw bytes of all frames, in the index's order."""
    names = writers_of(index)
    count, table = index["segments"]
    bodies = []
    for number in range(count):
        writer, base, n, _size = SEGMENT.unpack_from(table, number * SEGMENT.size)
        bodies.append(_got(objects, f"{places[base]}{names[writer]}-{n}.seg"))
    rows, frames = index["frames"]
    found = []
    for number in range(rows):
        segment, codec, offset, stored, raw, _, _ = FRAME.unpack_from(frames, number * FRAME.size)
        body = bodies[segment][offset : offset + stored]
        found.append(raw_bytes_of(codec, body, raw))
    return found


def _got(objects: Objects, key: str) -> bytes:
    data = objects.get(key)
    if data is None:
        raise LookupError(f"{key} was there just now")
    return data
