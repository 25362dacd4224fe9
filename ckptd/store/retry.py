"""Trying again, for the verbs that may be repeated blindly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.errors import ConfigError, UnavailableError
from ckptd.store.base import Body, Bytes, ObjectInfo, Store
from ckptd.store.limit import TokenBucket
from ckptd.troubles import Troubles

T = TypeVar("T")
READS, WRITES = "store reads", "store writes"  # troubles: a full store can still be read


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How long and how often to try again.

    deadline_seconds: no new try begins later than this after the first; None: for ever (uploads, which wait out any outage).
    first_wait_seconds, longest_wait_seconds: the wait before try n is random between 0 and first × 2^(n-1), at most longest.
    retries_per_second: budget of all calls of one store together, so that a store that comes back isn't trampled on.
    """

    deadline_seconds: float | None = 60.0
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0
    retries_per_second: float = 20.0

    def __post_init__(self) -> None:
        if self.deadline_seconds is not None and self.deadline_seconds < 0:
            raise ConfigError(f"a deadline can't be negative deadline_seconds={self.deadline_seconds}")
        if not 0 < self.first_wait_seconds <= self.longest_wait_seconds:
            raise ConfigError(
                f"waits must be positive and grow first={self.first_wait_seconds} longest={self.longest_wait_seconds}"
            )


class RetryingStore:
    """Repeats a call of ``inner`` while it raises UnavailableError; every other error passes at once.

    create() is not repeated. After UnavailableError the object may be there, so a second try could find our own success and
    report AlreadyExistsError for it; only the commit log knows how to tell (it reads back and compares nonces, PROTOCOLS 4.3).
    What had to be tried again twice is a trouble, until a call of its kind succeeds.
    """

    def __init__(
        self,
        inner: Store,
        settings: RetrySettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        troubles: Troubles | None = None,
    ) -> None:
        self._inner = inner
        self._settings = settings or RetrySettings()
        self._clock = clock
        self._troubles = troubles or Troubles(clock)
        per_second = self._settings.retries_per_second
        self._budget = TokenBucket(per_second, burst=max(1.0, per_second), clock=clock)
        self._wait = wait_random_exponential(
            multiplier=self._settings.first_wait_seconds, max=self._settings.longest_wait_seconds
        )

    @property
    def url(self) -> str:
        return self._inner.url

    async def put(self, key: str, data: Body) -> None:
        await self._retrying(WRITES, lambda: self._inner.put(key, data))

    async def create(self, key: str, data: Bytes) -> None:
        await self._inner.create(key, data)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        return await self._retrying(READS, lambda: self._inner.get(key, start, end))

    async def info(self, key: str) -> ObjectInfo:
        return await self._retrying(READS, lambda: self._inner.info(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        # All at once: a listing that is begun again in the middle would give objects twice.
        async def listed() -> tuple[ObjectInfo, ...]:
            return tuple([info async for info in self._inner.list(prefix)])

        for info in await self._retrying(READS, listed):
            yield info

    async def children(self, prefix: str) -> Sequence[str]:
        return await self._retrying(READS, lambda: self._inner.children(prefix))

    async def delete(self, key: str) -> None:
        await self._retrying(WRITES, lambda: self._inner.delete(key))

    async def close(self) -> None:
        await self._inner.close()

    async def _retrying(self, topic: str, call: Callable[[], Awaitable[T]]) -> T:
        started_at = self._clock.monotonic()

        async def attempt() -> T:  # tenacity awaits what it can see to be a coroutine function: not a lambda
            result = await call()
            self._troubles.end(topic)
            return result

        def say(state: RetryCallState) -> None:
            if state.attempt_number > 1 and state.outcome is not None:  # a single failure is nothing
                self._troubles.begin(topic, f"tried again and again: {state.outcome.exception()}")

        def wait(state: RetryCallState) -> float:
            return self._wait(state) + self._budget.reserve(1)

        def stop(state: RetryCallState) -> bool:
            deadline_seconds = self._settings.deadline_seconds
            if deadline_seconds is None:
                return False
            return self._clock.monotonic() - started_at + state.upcoming_sleep > deadline_seconds

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            wait=wait,
            stop=stop,
            retry=retry_if_exception_type(UnavailableError),
            before_sleep=say,
            reraise=True,
        )
        return await retrying(attempt)
