"""A budget of bytes in flight."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteBudget:
    """At most ``limit_bytes`` are taken at once, first come, first served. A request above the limit runs alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        """Return when ``count`` bytes are ours."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(count)
            self._admit()
            raise

    def give_back(self, count: int) -> None:
        """``count`` bytes are free again."""
        self._taken_bytes -= count
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if turn.cancelled():  # who waited hears of it only at its next turn of the loop
                self._waiting.popleft()
                continue
            if self._taken_bytes and self._taken_bytes + count > self._limit_bytes:
                return
            self._waiting.popleft()
            self._taken_bytes += count
            turn.set_result(None)
