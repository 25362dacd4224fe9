"""Memory of this process for decoded frames, for whoever restores into his own memory and not for a trainer."""

from __future__ import annotations

import asyncio


class HeapBuffers:
    """``count`` buffers of ``buffer_bytes`` each, as `fetch.Buffers`; number ``i`` is ``memory[i]``."""

    def __init__(self, buffer_bytes: int, count: int) -> None:
        self.count = count
        self.memory = [memoryview(bytearray(buffer_bytes)) for _ in range(count)]
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for number in range(count):
            self._free.put_nowait(number)

    async def acquire(self) -> tuple[int, memoryview]:
        """Wait for a free buffer: its number and its memory."""
        number = await self._free.get()
        return number, self.memory[number]

    def give_back(self, number: int) -> None:
        """What lay in this buffer has been copied."""
        self._free.put_nowait(number)
