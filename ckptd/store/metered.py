"""Counts what is asked of a store: requests by verb and outcome, their seconds, and bytes. Innermost, so every try counts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from ckptd.clock import SYSTEM_CLOCK, Clock
from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, StoreError, UnavailableError
from ckptd.store.base import Body, Bytes, ObjectInfo, Store, size_of

T = TypeVar("T")
HANGING_SECONDS: Final = 20.0  # more than a segment takes on a link that is of any use
SECONDS_BUCKETS: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)
_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (NotFoundError, "not_found"),
    (AlreadyExistsError, "exists"),
    (UnavailableError, "unavailable"),
    (StoreConfigError, "refused"),
    (StoreError, "failed"),
)


class StoreMetrics:
    """Of all stores of one process."""

    def __init__(self, registry: CollectorRegistry, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self.in_flight: dict[object, tuple[str, float]] = {}  # verb, and since when
        self.requests = Counter(
            "ckptd_store_requests", "Requests to the object store, each try by itself", ["verb", "outcome"], registry=registry
        )
        self.seconds = Histogram(
            "ckptd_store_request_seconds", "Seconds of a request", ["verb"], buckets=SECONDS_BUCKETS, registry=registry
        )
        self.written = Counter("ckptd_store_written_bytes", "Bytes of successful puts and creates", registry=registry)
        self.read = Counter("ckptd_store_read_bytes", "Bytes of successful gets", registry=registry)

    def hanging(self) -> str | None:
        """What is wrong when the oldest request has no answer for long: its timeout, and the line about that, are far off."""
        verb, began = min(self.in_flight.values(), key=lambda flight: flight[1], default=("", self.clock.monotonic()))
        if self.clock.monotonic() - began < HANGING_SECONDS:
            return None
        return f"a {verb} has no answer for {HANGING_SECONDS:g} s or more; the store, or the way to it, hangs or is very slow"


class MeteredStore:
    """``inner``, counted."""

    def __init__(self, inner: Store, metrics: StoreMetrics) -> None:
        self._inner = inner
        self._metrics = metrics

    @property
    def url(self) -> str:
        return self._inner.url

    async def put(self, key: str, data: Body) -> None:
        await self._counted("put", lambda: self._inner.put(key, data))
        self._metrics.written.inc(size_of(data))

    async def create(self, key: str, data: Bytes) -> None:
        await self._counted("create", lambda: self._inner.create(key, data))
        self._metrics.written.inc(memoryview(data).nbytes)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        body = await self._counted("get", lambda: self._inner.get(key, start, end))
        self._metrics.read.inc(len(body))
        return body

    async def info(self, key: str) -> ObjectInfo:
        return await self._counted("info", lambda: self._inner.info(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async def listed() -> tuple[ObjectInfo, ...]:
            return tuple([info async for info in self._inner.list(prefix)])

        for info in await self._counted("list", listed):
            yield info

    async def children(self, prefix: str) -> Sequence[str]:
        return await self._counted("children", lambda: self._inner.children(prefix))

    async def delete(self, key: str) -> None:
        await self._counted("delete", lambda: self._inner.delete(key))

    async def close(self) -> None:
        await self._inner.close()

    async def _counted(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        metrics, token = self._metrics, object()
        started, outcome = metrics.clock.monotonic(), "cancelled"
        metrics.in_flight[token] = (verb, started)
        try:
            result = await call()
            outcome = "ok"
            return result
        except StoreError as error:
            outcome = next(word for kind, word in _OUTCOMES if isinstance(error, kind))
            raise
        finally:
            del metrics.in_flight[token]
            metrics.requests.labels(verb, outcome).inc()
            metrics.seconds.labels(verb).observe(metrics.clock.monotonic() - started)
