"""Tensors of a device into a slot, few large moves instead of many small ones.

A move costs a launch and a transfer of its own, some ten microseconds, in which a device could have sent hundreds of
kilobytes. So neighbours of less than a megabyte are gathered on the device first, in the shape that they have in the slot.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ckptd_client.regions import pieces

if TYPE_CHECKING:
    import torch

Span = tuple[int, int]  # offset in the slot, length; both in bytes

SMALL_BYTES: Final = 1 << 20  # what is larger goes by itself
GATHER_BYTES: Final = 64 << 20  # of device memory, at most, to gather in
_ALIGN: Final = 64  # of `capture.ALIGN`: what is between two neighbours is less, and nobody's


def runs(
    spans: Sequence[Span], homes: Sequence[Hashable], small_bytes: int = SMALL_BYTES, gather_bytes: int = GATHER_BYTES
) -> Iterator[range]:
    """Which of the spans, in ascending order, go together: each run is of one home, small tensors that lie side by side.

    Every span is in exactly one run, and a run covers bytes of nobody else's.
    """
    start = 0
    for at in range(1, len(spans) + 1):
        if at < len(spans) and homes[at] == homes[start] and max(spans[at][1], spans[at - 1][1]) < small_bytes:
            gap = spans[at][0] - sum(spans[at - 1])
            if 0 <= gap < _ALIGN and sum(spans[at]) - spans[start][0] <= gather_bytes:
                continue
        yield range(start, at)
        start = at


def send(slot: torch.Tensor, spans: Sequence[Span], sources: Sequence[torch.Tensor], non_blocking: bool) -> None:
    """Copy each source into its span of ``slot`` (flat, uint8), on the current stream of its device.

    With ``non_blocking`` only told to the stream, if the slot's pages are locked. The bytes are those of the source in
    row-major order, whatever its strides are. What has to be packed or gathered for that is on the device for a while.
    """
    import torch

    with torch.no_grad():
        for run in runs(spans, [source.device for source in sources]):
            some, those = [spans[at] for at in run], [sources[at] for at in run]
            try:
                gathered = _gathered(some, those) if len(run) > 1 else None
            except torch.OutOfMemoryError:
                gathered = None  # slower
            if gathered is not None:
                slot.narrow(0, some[0][0], gathered.numel()).copy_(gathered, non_blocking=non_blocking)
                continue
            for (offset, count), source in zip(some, those, strict=True):
                slot.narrow(0, offset, count).copy_(_flat(source).view(torch.uint8), non_blocking=non_blocking)


def _flat(source: torch.Tensor) -> torch.Tensor:
    # torch would apply a pending conjugation or negation to the host's side of the copy: before the bytes are there.
    return source.resolve_conj().resolve_neg().contiguous().view(-1)


def _gathered(spans: Sequence[Span], sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """One flat tensor on the device with the sources where ``spans`` says, counted from the first."""
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
    start = spans[0][0]
    flat = torch.empty(sum(spans[-1]) - start, dtype=torch.uint8, device=sources[0].device)
    kinds: dict[torch.dtype, list[int]] = {}  # a call of _foreach_copy_ is fast for one dtype, and doesn't know all of them
    for at, source in enumerate(sources):
        kinds.setdefault(words[source.element_size()], []).append(at)
    for word, these in kinds.items():
        width = word.itemsize
        whole = flat.narrow(0, 0, flat.numel() // width * width).view(word)
        places = [((spans[at][0] - start) // width, spans[at][1] // width) for at in these]
        torch._foreach_copy_(pieces(whole, places), [_flat(sources[at]).view(word) for at in these])
    return flat
