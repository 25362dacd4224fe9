"""Cutting a tensor into rectangles that fit a buffer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckptd.model.region import Region


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

    The dimension with the widest stride is cut first, so what is stored transposed is read in the order of its memory; those of
    a row-major tensor come in the order of its bytes, each of them a run of these.
    """
    if 0 in sizes:
        return
    order = sorted((dim for dim, size in enumerate(sizes) if size > 1), key=lambda dim: (-strides[dim], dim))
    yield from _cut((0,) * len(sizes), tuple(sizes), strides, order, max(limit, 1))


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
