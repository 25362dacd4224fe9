"""Limits on what the daemon asks of a store: calls at once, and bytes per second upwards.

The commit log and the leases use the inner store: a slow upload must never hold up a commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.errors import ConfigError
from ckptd.store.base import Body, Bytes, ObjectInfo, Store, size_of


class TokenBucket:
    """Lets ``per_second`` tokens through, and up to ``burst`` of them at once after a pause.

    A request bigger than the burst passes when the bucket is full, and those after it wait the longer; so nothing starves.
    """

    def __init__(self, per_second: float, burst: float, clock: Clock = SYSTEM_CLOCK) -> None:
        if per_second <= 0 or burst <= 0:
            raise ConfigError(f"a rate limit must be positive per_second={per_second} burst={burst}")
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._tokens = burst  # below zero: so much has been promised to those who wait
        self._filled_at = clock.monotonic()

    async def take(self, tokens: float) -> None:
        """Return when ``tokens`` may pass, in the order of the calls."""
        wait_seconds = self.reserve(tokens)
        if wait_seconds > 0:
            try:
                await self._clock.sleep(wait_seconds)
            except asyncio.CancelledError:
                self._tokens += tokens
                raise

    def reserve(self, tokens: float) -> float:
        """Take ``tokens`` now; return the seconds to wait before acting on them."""
        now = self._clock.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        # Only what goes beyond the burst is waited for before; the rest is a debt of those who come later.
        wait_seconds = max(0.0, (min(tokens, self._burst) - self._tokens) / self._per_second)
        self._tokens -= tokens
        return wait_seconds


class LimitedStore:
    """At most ``concurrency`` calls at once; at most ``upload_bytes_per_second`` written (None: no limit)."""

    def __init__(
        self, inner: Store, concurrency: int, upload_bytes_per_second: int | None = None, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"a store needs a concurrency of at least 1; got {concurrency}")
        self._inner = inner
        self._calls = asyncio.Semaphore(concurrency)
        rate = upload_bytes_per_second
        self._upload_bytes = None if rate is None else TokenBucket(rate, burst=rate, clock=clock)

    @property
    def url(self) -> str:
        return self._inner.url

    async def put(self, key: str, data: Body) -> None:
        await self._pay(data)
        async with self._calls:
            await self._inner.put(key, data)

    async def create(self, key: str, data: Bytes) -> None:
        await self._pay(data)
        async with self._calls:
            await self._inner.create(key, data)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        async with self._calls:
            return await self._inner.get(key, start, end)

    async def info(self, key: str) -> ObjectInfo:
        async with self._calls:
            return await self._inner.info(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        # All at once: a place held while the caller looks at each result would be a deadlock for a caller who deletes.
        async with self._calls:
            found = [info async for info in self._inner.list(prefix)]
        for info in found:
            yield info

    async def children(self, prefix: str) -> Sequence[str]:
        async with self._calls:
            return await self._inner.children(prefix)

    async def delete(self, key: str) -> None:
        async with self._calls:
            await self._inner.delete(key)

    async def close(self) -> None:
        await self._inner.close()

    async def _pay(self, data: Body) -> None:
        # Before a place among the calls is taken: reads must not wait for upload bandwidth.
        if self._upload_bytes is not None:
            await self._upload_bytes.take(size_of(data))
