"""Figures of one tensor, frame by frame, and some of its values: only the frames that hold them are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ckptd.codec.values import values
from ckptd.errors import CorruptError
from ckptd.model.columns import Array
from ckptd.model.dtypes import item_bytes
from ckptd.model.layout import Tensor
from ckptd.model.region import Region
from ckptd.restore.plan import FrameRead, plan
from ckptd.restore.source import AT_ONCE, Source
from ckptd_client.messages.restoring import Want

_CHUNK = 1 << 20  # elements that are decoded at once


@dataclass(slots=True)
class Statistics:
    """Of elements; of complex numbers' absolute values. ``low``, ``high``, ``mean`` and ``std`` are of the finite ones.

    The mean and the sum of squared deviations of parts are merged as in Chan, Golub, LeVeque, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances" (1979).
    """

    count: int = 0
    nan: int = 0
    infinite: int = 0
    zero: int = 0
    low: float | int | None = None
    high: float | int | None = None
    mean: float = 0.0
    _squares: float = 0.0
    _finite: int = 0

    @property
    def std(self) -> float | None:
        """Of the whole population; None without finite elements."""
        return math.sqrt(max(self._squares, 0.0) / self._finite) if self._finite else None

    def add(self, found: Array) -> None:
        """More elements."""
        with np.errstate(all="ignore"):
            numbers = np.abs(found) if np.iscomplexobj(found) else found
            self.count += len(numbers)
            self.zero += int((numbers == 0).sum())
            if numbers.dtype.kind == "f":
                finite = np.isfinite(numbers)
                nan = int(np.isnan(numbers).sum())
                self.nan += nan
                self.infinite += len(numbers) - int(finite.sum()) - nan
                numbers = numbers[finite]
            if not len(numbers):
                return
            low, high, wide = numbers.min().item(), numbers.max().item(), numbers.astype(np.float64)
            mean, squares = float(wide.mean()), float(((wide - wide.mean()) ** 2).sum())
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)
        total = self._finite + len(numbers)
        apart = mean - self.mean
        self.mean += apart * len(numbers) / total
        self._squares += squares + apart * apart * self._finite * len(numbers) / total
        self._finite = total


async def statistics(source: Source, tensor: Tensor) -> Statistics:
    """Of the whole tensor, a dozen frames in memory at a time. Raises CorruptError, and what the store raises."""
    found = Statistics()
    wants = [_want(tensor, stored.region) for stored in tensor.regions]  # a region lies in its frames in one piece
    reads = plan(source.checkpoint.layout, source.checkpoint.index, wants)
    step = _CHUNK * item_bytes(tensor.dtype)
    for some in _batches(reads):
        bodies = await source.frames([read.frame for read in some])
        for read in some:
            for offset, _, _, count in read.copies.tolist():
                check_whole(tensor, offset, count)
                for begin, end in pairwise([*range(offset, offset + count, step), offset + count]):
                    found.add(values(bytes(bodies[read.frame][begin:end]), tensor.dtype))
    return found


async def part(source: Source, tensor: Tensor, region: Region) -> Array:
    """The elements of a region, in its shape, all in memory. Raises as `statistics` does.

    float4_e2m1fn_x2: two for each in the last dimension.
    """
    body = bytearray(region.elements * item_bytes(tensor.dtype))
    if body:
        for some in _batches(plan(source.checkpoint.layout, source.checkpoint.index, [_want(tensor, region)])):
            bodies = await source.frames([read.frame for read in some])
            for read in some:
                for offset, _, target, count in read.copies.tolist():
                    body[target : target + count] = bodies[read.frame][offset : offset + count]
    found = values(bytes(body), tensor.dtype)
    if len(found) != region.elements:
        return found.reshape(*region.sizes[:-1], -1)
    return found.reshape(region.sizes)


def check_whole(tensor: Tensor, offset: int, count: int) -> None:
    """Raise CorruptError for a frame that tears an element: no ckptd has written one."""
    if offset % item_bytes(tensor.dtype) or count % item_bytes(tensor.dtype):
        raise CorruptError(f"a frame ends in the middle of an element fqn={tensor.fqn!r}")


def _want(tensor: Tensor, region: Region) -> Want:
    return Want(tensor.fqn, tensor.rank, tensor.dtype, tensor.shape, region.offsets, region.sizes)


def _batches(reads: list[FrameRead]) -> list[list[FrameRead]]:
    return [reads[at : at + AT_ONCE] for at in range(0, len(reads), AT_ONCE)]
