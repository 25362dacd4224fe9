"""Cutting a tensor into rectangles that fit a buffer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from ckptd.model.region import Region

TILE: Final = 2048
"""Elements of a transposed tensor that lie in a row where it is stored."""


def strides_of(sizes: Sequence[int]) -> tuple[int, ...]:
    """Elements from one index to the next of each dimension, row-major."""
    strides, step = [0] * len(sizes), 1
    for dim in reversed(range(len(sizes))):
        strides[dim] = step
        step *= max(sizes[dim], 1)
    return tuple(strides)


def span_of(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first one to the last one in memory, both included; 0 if there are none."""
    return 0 if 0 in sizes else 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))


def cut(sizes: Sequence[int], strides: Sequence[int], limit: int) -> Iterator[Region]:
    """Rectangles that have each element once and span at most ``limit`` elements of memory each (at least one element).

    The dimension with the widest stride is cut first. Those of a row-major tensor come in the order of its bytes, each a run of
    them.
    """
    if 0 in sizes:
        return
    order = sorted(_wide(sizes), key=lambda dim: (-strides[dim], dim))
    yield from _cut((0,) * len(sizes), tuple(sizes), strides, order, max(limit, 1))


def tiles(sizes: Sequence[int], strides: Sequence[int], limit: int) -> Iterator[Region]:
    """Rectangles of at most ``limit`` elements, good to be read by ``strides`` and to be stored row-major.

    What lies in memory about as it is stored is cut there. What is transposed is cut both ways: whole columns would be fast to
    read here, and then have to be restored element by element.
    """
    wide = _wide(sizes)
    if 0 in sizes or not wide:
        yield from cut(sizes, strides, limit)
        return
    widest = max(wide, key=lambda dim: (strides[dim], -dim))
    if widest == wide[0]:
        yield from cut(sizes, strides, limit)
        return
    inner = list(sizes)
    inner[widest] = min(sizes[widest], TILE)
    for start in range(0, sizes[widest], inner[widest]):
        inner[widest] = min(inner[widest], sizes[widest] - start)
        for region in cut(inner, strides_of(inner), limit):
            offsets = list(region.offsets)
            offsets[widest] += start
            yield Region(tuple(offsets), region.sizes)


def _wide(sizes: Sequence[int]) -> list[int]:
    return [dim for dim, size in enumerate(sizes) if size > 1]


def _cut(
    offsets: tuple[int, ...], sizes: tuple[int, ...], strides: Sequence[int], order: Sequence[int], limit: int
) -> Iterator[Region]:
    span = span_of(sizes, strides)
    if span <= limit or not order:
        yield Region(offsets, sizes)
        return
    dim, rest = order[0], order[1:]
    inner = span - (sizes[dim] - 1) * strides[dim]
    count = max(1, (limit - inner) // strides[dim] + 1) if strides[dim] else sizes[dim]
    for start in range(0, sizes[dim], count):
        part = min(count, sizes[dim] - start)
        yield from _cut(
            (*offsets[:dim], offsets[dim] + start, *offsets[dim + 1 :]),
            (*sizes[:dim], part, *sizes[dim + 1 :]),
            strides,
            rest,
            limit,
        )
