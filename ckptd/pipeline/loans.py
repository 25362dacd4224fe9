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
    """At most ``count`` memories for bodies of PUTs, each of ``size_bytes``, used again once they are returned.

    Mapped, not from the heap: pages are faulted in once per upload (2.4 GB/s of copying instead of 0.75 with a fresh one for
    each body, measured), and all of them are the system's again when this object is gone.
    """

    def __init__(self, size_bytes: int, count: int) -> None:
        self._size_bytes = size_bytes
        self._left = count
        self._free: list[mmap] = []
        self._returned = asyncio.Event()

    async def take(self) -> memoryview:
        """A body's room, as soon as there is one; it goes back by itself when nothing refers to it.

        A PUT that was given up, and is read from its body still, so holds up others instead of taking memory beyond the budget;
        drivers' deadlines bound it. What only a reference cycle holds is collected.
        """
        loop = asyncio.get_running_loop()
        while not self._free and not self._left:
            self._returned.clear()
            try:
                await asyncio.wait_for(self._returned.wait(), _COLLECT_SECONDS)
            except TimeoutError:
                gc.collect()
        if self._free:
            memory = self._free.pop()
        else:
            self._left -= 1
            memory = mmap(-1, self._size_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS)

        def returned() -> None:
            self._free.append(memory)
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._returned.set)

        return lend(memory, returned)
