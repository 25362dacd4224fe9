"""Memory of this process for decoded frames, for whoever restores into his own memory and not for a trainer."""

from __future__ import annotations

import asyncio


class HeapBuffers:
    """``count`` buffers of ``buffer_bytes`` each, as `fetch.Buffers`; number ``i`` is ``memory[i]``."""

    def __init__(self, buffer_bytes: int, count: int) -> None:
        self.count = count
        self.memory = [memoryview(bytearray(buffer_bytes)) for _ in range(count)]
        self._places = asyncio.Semaphore(count)
        self._free = list(range(count))

    async def reserve(self) -> None:
        """Wait until one of them will be free when it is needed."""
        await self._places.acquire()

    async def turn(self, frames: int) -> None:
        """At once: what is decoded is copied by whom it is given to, before anything else."""

    def acquire(self) -> tuple[int, memoryview]:
        """A reserved buffer: its number and its memory. Called in threads."""
        number = self._free.pop()
        return number, self.memory[number]

    def give_back(self, number: int) -> None:
        """What lay in this buffer has been copied."""
        self._free.append(number)
        self._places.release()
