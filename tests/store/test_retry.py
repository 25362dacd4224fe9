"""RetryingStore, on a clock that moves only when it sleeps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ckptd.errors import (
    AlreadyExistsError,
    ConfigError,
    NotFoundError,
    StoreConfigError,
    StoreError,
    UnavailableError,
    UnsafeStoreError,
)
from ckptd.store.base import Body, Bytes, ObjectInfo
from ckptd.store.directory import DirectoryStore
from ckptd.store.retry import RetryingStore, RetrySettings
from tests.clock import FakeClock


class FlakyStore(DirectoryStore):
    """Fails the next calls with the errors in ``coming``; counts the calls."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.coming: list[Exception] = []
        self.calls = 0

    def _maybe_fail(self) -> None:
        self.calls += 1
        if self.coming:
            raise self.coming.pop(0)

    async def put(self, key: str, data: Body) -> None:
        self._maybe_fail()
        await super().put(key, data)

    async def create(self, key: str, data: Bytes) -> None:
        self._maybe_fail()
        await super().create(key, data)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        self._maybe_fail()
        return await super().get(key, start, end)

    async def info(self, key: str) -> ObjectInfo:
        self._maybe_fail()
        return await super().info(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix):
            yield info
        self._maybe_fail()  # in the middle of things, as far as the caller can tell

    async def delete(self, key: str) -> None:
        self._maybe_fail()
        await super().delete(key)


@pytest.fixture
def clock() -> FakeClock:
    random.seed(7)
    return FakeClock()


@pytest.fixture
def flaky(tmp_path: Path) -> FlakyStore:
    return FlakyStore(tmp_path)


def away(count: int) -> list[Exception]:
    return [UnavailableError("away")] * count


async def test_repeatable_verbs_are_repeated(flaky: FlakyStore, clock: FakeClock) -> None:
    store = RetryingStore(flaky, clock=clock)
    flaky.coming = away(3)
    await store.put("a", b"x")
    flaky.coming = away(2)
    assert await store.get("a", 0, 1) == b"x"
    flaky.coming = away(2)
    assert (await store.info("a")).size_bytes == 1
    flaky.coming = away(2)
    assert [info.key async for info in store.list("")] == ["a"]  # once, though it was begun three times
    flaky.coming = away(1)
    await store.delete("a")
    assert flaky.calls == 4 + 3 + 3 + 3 + 2
    assert len(clock.slept) == 3 + 2 + 2 + 2 + 1


async def test_create_is_not_repeated(flaky: FlakyStore, clock: FakeClock) -> None:
    store = RetryingStore(flaky, clock=clock)
    flaky.coming = away(1)
    with pytest.raises(UnavailableError):
        await store.create("a", b"x")
    assert (flaky.calls, clock.slept) == (1, [])


@pytest.mark.parametrize("error", [NotFoundError, AlreadyExistsError, StoreConfigError, UnsafeStoreError, StoreError])
async def test_other_errors_pass_at_once(flaky: FlakyStore, clock: FakeClock, error: type[StoreError]) -> None:
    store = RetryingStore(flaky, clock=clock)
    flaky.coming = [error("no")]
    with pytest.raises(error):
        await store.get("a")
    assert (flaky.calls, clock.slept) == (1, [])


async def test_no_try_begins_after_the_deadline(flaky: FlakyStore, clock: FakeClock) -> None:
    settings = RetrySettings(deadline_seconds=30.0)
    store = RetryingStore(flaky, settings, clock)
    flaky.coming = away(1000)
    before = clock.monotonic()
    with pytest.raises(UnavailableError, match="away"):
        await store.get("a")
    assert 15.0 < clock.monotonic() - before <= 30.0
    assert 4 < flaky.calls < 40
    assert max(clock.slept) <= settings.longest_wait_seconds


async def test_waits_are_random_and_grow(flaky: FlakyStore, clock: FakeClock) -> None:
    store = RetryingStore(flaky, RetrySettings(deadline_seconds=None, first_wait_seconds=0.1), clock)
    flaky.coming = away(200)
    await store.put("a", b"x")
    for number, seconds in enumerate(clock.slept[:7]):
        assert 0 <= seconds <= 0.1 * 2**number
    late = clock.slept[20:]
    assert len(set(late)) == len(late)
    assert 4 < sum(late) / len(late) < 6  # uniform up to the longest wait of 10 s


async def test_without_a_deadline_an_outage_is_waited_out(flaky: FlakyStore, clock: FakeClock) -> None:
    store = RetryingStore(flaky, RetrySettings(deadline_seconds=None), clock)
    flaky.coming = away(2000)
    before = clock.monotonic()
    await store.put("a", b"x")
    assert clock.monotonic() - before > 3600
    assert await flaky.get("a") == b"x"


async def test_all_calls_share_one_budget(flaky: FlakyStore, clock: FakeClock) -> None:
    settings = RetrySettings(deadline_seconds=None, first_wait_seconds=1e-6, longest_wait_seconds=1e-6, retries_per_second=5)
    store = RetryingStore(flaky, settings, clock)
    before = clock.monotonic()
    for key in ("a", "b"):
        flaky.coming = away(50)
        await store.put(key, b"x")
    assert clock.monotonic() - before == pytest.approx((100 - 5) / 5, rel=0.05)


def test_impossible_settings_are_refused() -> None:
    for bad in ({"deadline_seconds": -1}, {"first_wait_seconds": 0}, {"first_wait_seconds": 5, "longest_wait_seconds": 1}):
        with pytest.raises(ConfigError):
            RetrySettings(**bad)
