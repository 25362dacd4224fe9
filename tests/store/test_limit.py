"""LimitedStore: how many at once, how many bytes per second."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from chaos.minio import MinioServer
from ckptd.errors import ConfigError
from ckptd.store.base import Body
from ckptd.store.directory import DirectoryStore
from ckptd.store.limit import LimitedStore, TokenBucket
from ckptd.store.open import open_store
from tests.clock import FakeClock
from tests.waiting import eventually


class GatedStore(DirectoryStore):
    """Its puts wait until ``gate`` opens; notes how many were inside at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = asyncio.Event()
        self.inside = self.most_inside = 0

    async def put(self, key: str, data: Body) -> None:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        await self.gate.wait()
        await super().put(key, data)
        self.inside -= 1


async def test_no_more_calls_at_once_than_allowed(tmp_path: Path) -> None:
    inner = GatedStore(tmp_path)
    store = LimitedStore(inner, concurrency=3)
    puts = asyncio.gather(*(store.put(f"k{n}", b"x") for n in range(10)))
    await eventually(lambda: inner.inside == 3, "three puts inside")
    inner.gate.set()
    await puts
    assert inner.most_inside == 3
    assert len([info async for info in inner.list("")]) == 10


async def test_a_failed_call_gives_its_place_back(tmp_path: Path) -> None:
    store = LimitedStore(DirectoryStore(tmp_path), concurrency=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="key"):
            await store.put("../x", b"x")
    await store.put("ok", b"x")


async def test_deleting_while_listing_does_not_lock_up(tmp_path: Path) -> None:
    store = LimitedStore(DirectoryStore(tmp_path), concurrency=1)
    for n in range(3):
        await store.put(f"k{n}", b"x")
    async for info in store.list(""):
        await store.delete(info.key)
    assert [info async for info in store.list("")] == []


async def test_uploads_keep_to_the_rate(tmp_path: Path) -> None:
    clock = FakeClock()
    store = LimitedStore(DirectoryStore(tmp_path), concurrency=4, upload_bytes_per_second=1000, clock=clock)
    before = clock.monotonic()
    for n in range(20):
        await store.put(f"p{n}", bytes(500))
        assert 500 * (n + 1) <= 1000 + 1000 * (clock.monotonic() - before)  # one second's worth may go at once
        await store.get(f"p{n}")
    assert clock.monotonic() - before == pytest.approx(9.0)
    await store.create("c", bytes(500))
    assert clock.monotonic() - before == pytest.approx(9.5)


async def test_something_bigger_than_the_burst_goes_through_and_is_paid_for_after() -> None:
    clock = FakeClock()
    bucket = TokenBucket(100, burst=100, clock=clock)
    await bucket.take(1000)
    assert clock.slept == []
    await bucket.take(100)
    assert clock.slept == [pytest.approx(10.0)]


async def test_a_pause_earns_no_more_than_the_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(100, burst=100, clock=clock)
    clock.advance(3600)
    await bucket.take(100)
    await bucket.take(50)
    assert clock.slept == [pytest.approx(0.5)]


async def test_who_gives_up_waiting_gives_the_tokens_back() -> None:
    class Frozen(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    bucket = TokenBucket(100, burst=100, clock=Frozen())
    await bucket.take(100)
    waiting = asyncio.create_task(bucket.take(100))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert bucket.reserve(1) == pytest.approx(0.01)


def test_impossible_limits_are_refused(tmp_path: Path) -> None:
    inner = DirectoryStore(tmp_path)
    with pytest.raises(ConfigError):
        LimitedStore(inner, concurrency=0)
    with pytest.raises(ConfigError):
        LimitedStore(inner, concurrency=1, upload_bytes_per_second=0)


async def test_the_rate_holds_on_a_real_store_and_the_log_is_not_held_up(minio: MinioServer, minio_url: str) -> None:
    """Pauses of the machine don't count: what wasn't used of the last second is made up for."""
    inner = open_store(minio_url, minio.storage_options)
    rate, seconds = 8 << 20, 4
    store = LimitedStore(inner, concurrency=4, upload_bytes_per_second=rate)
    await store.put("first", bytes(rate))  # which may go at once
    began = time.monotonic()
    uploads = asyncio.gather(*(store.put(f"data/{n}", bytes(rate // 4)) for n in range(4 * seconds)))
    for n in range(10):
        await inner.create(f"log/{n}", b"record")
        assert await inner.get(f"log/{n}") == b"record"
    assert not uploads.done()
    await uploads
    assert rate * seconds / (time.monotonic() - began) == pytest.approx(rate, rel=0.05)
    await store.close()
