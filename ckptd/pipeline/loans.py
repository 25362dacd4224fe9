"""Memory that others read, and the news of when nobody does any more.

A PUT that was cancelled, or timed out and was repeated, may be running still, and would put under its key whatever its memory
holds by then. So memory is written again only when nothing refers to it: not when a call has returned, which proves nothing.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
import weakref
from collections.abc import Callable, Sequence
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Final

import numpy as np

_COLLECT_SECONDS: Final = 1.0


def lend(memory: memoryview | mmap, returned: Callable[[], None]) -> memoryview:
    """A view of ``memory``; ``returned`` is called, in any thread, when all that refers to it is gone or released."""
    owner = np.frombuffer(memory, np.uint8)
    weakref.finalize(owner, returned).atexit = False
    return owner.data


class Loan:
    """One memory, lent once."""

    def __init__(self, memory: memoryview) -> None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def returned() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(over.set)

        self.view = lend(memory, returned)
        self.over = over


async def all_returned(loans: Sequence[Loan], error: BaseException | None) -> None:
    """Return when nobody can read these memories any more. ``error``, which may be on its way, loses its frames' variables.

    Not bounded, as whoever reads can't be stopped: drivers are bounded by their own deadlines. A cancellation is raised at the
    end. What only a reference cycle holds, as of an older error and its frames, is collected.
    """
    if error is not None:
        _clear_frames(error)
    for loan in loans:
        loan.view.release()
    cancelled: asyncio.CancelledError | None = None
    while open_ones := [loan for loan in loans if not loan.over.is_set()]:
        try:
            await asyncio.wait_for(open_ones[0].over.wait(), _COLLECT_SECONDS)
        except TimeoutError:
            gc.collect()
        except asyncio.CancelledError as again:
            cancelled = again
    if cancelled is not None:
        raise cancelled


def _clear_frames(error: BaseException) -> None:
    """Of all calls that the error, and what led to it, came through and that are over; those that run are left alone."""
    seen: dict[int, BaseException] = {}
    found: list[BaseException | None] = [error]
    while found:
        one = found.pop()
        if one is not None and id(one) not in seen:
            seen[id(one)] = one
            traceback.clear_frames(one.__traceback__)
            found += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]


class Bodies:
    """Memory for bodies of PUTs, each of ``size_bytes``, used again once it is returned.

    Mapped, not from the heap: pages are faulted in once per upload (2.4 GB/s of copying instead of 0.75 with a fresh one for
    each body, measured), and all of them are the system's again when this object is gone.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free: list[mmap] = []

    def take(self) -> memoryview:
        """A body's room; it goes back by itself when nothing refers to it."""
        memory = self._free.pop() if self._free else mmap(-1, self._size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        return lend(memory, lambda: self._free.append(memory))
