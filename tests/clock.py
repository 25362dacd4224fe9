"""Time for tests: it moves when somebody sleeps on it or pushes it, and never by itself."""

from __future__ import annotations

import asyncio


class FakeClock:
    """A ckptd.clock.Clock. sleep() moves the time at once and writes the seconds into ``slept``."""

    def __init__(self, start_seconds: float = 1000.0) -> None:
        self.now_seconds = start_seconds
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_seconds += seconds
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self.now_seconds += seconds
