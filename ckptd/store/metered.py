"""Counts what is asked of a store: requests by verb and outcome, their seconds, and bytes. Innermost, so every try counts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram

from ckptd.errors import AlreadyExistsError, NotFoundError, StoreConfigError, StoreError, UnavailableError
from ckptd.store.base import Bytes, ObjectInfo, Store

T = TypeVar("T")
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

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "ckptd_store_requests", "Requests to the object store, each try by itself", ["verb", "outcome"], registry=registry
        )
        self.seconds = Histogram(
            "ckptd_store_request_seconds", "Seconds of a request", ["verb"], buckets=SECONDS_BUCKETS, registry=registry
        )
        self.written = Counter("ckptd_store_written_bytes", "Bytes of successful puts and creates", registry=registry)
        self.read = Counter("ckptd_store_read_bytes", "Bytes of successful gets", registry=registry)


class MeteredStore:
    """``inner``, counted."""

    def __init__(self, inner: Store, metrics: StoreMetrics) -> None:
        self._inner = inner
        self._metrics = metrics

    @property
    def url(self) -> str:
        return self._inner.url

    async def put(self, key: str, data: Bytes) -> None:
        await self._counted("put", lambda: self._inner.put(key, data))
        self._metrics.written.inc(memoryview(data).nbytes)

    async def create(self, key: str, data: Bytes) -> None:
        await self._counted("create", lambda: self._inner.create(key, data))
        self._metrics.written.inc(memoryview(data).nbytes)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
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
        started, outcome = time.monotonic(), "cancelled"
        try:
            result = await call()
            outcome = "ok"
            return result
        except StoreError as error:
            outcome = next(word for kind, word in _OUTCOMES if isinstance(error, kind))
            raise
        finally:
            self._metrics.requests.labels(verb, outcome).inc()
            self._metrics.seconds.labels(verb).observe(time.monotonic() - started)
