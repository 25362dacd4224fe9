"""Writing a part: memory, cancellation, failures, and what isn't accepted."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ckptd.pipeline.segments as segments_module
from ckptd.codec.frames import Codec
from ckptd.errors import ConfigError, ProtocolError, StoreConfigError, UnavailableError
from ckptd.model.part import Part
from ckptd.pipeline.budget import ByteBudget
from ckptd.pipeline.threads import in_threads
from ckptd.pipeline.write import RankSource, WriteOptions, write_part
from ckptd.store.base import Body, Store, pieces_of, size_of
from ckptd.store.directory import DirectoryStore
from ckptd.store.retry import RetryingStore, RetrySettings
from tests.restore.states import ATTEMPT, JOB, Slot
from tests.waiting import eventually


class GatedStore(DirectoryStore):
    """Its puts wait for ``gate``; notes bytes and puts inside."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = asyncio.Event()
        self.keys: list[str] = []
        self.inside_bytes: list[int] = []
        self.most_bytes = self.most_puts = 0

    async def put(self, key: str, data: Body) -> None:
        self.keys.append(key)
        self.inside_bytes.append(size_of(data))
        self.most_bytes = max(self.most_bytes, sum(self.inside_bytes))
        self.most_puts = max(self.most_puts, len(self.inside_bytes))
        try:
            await self.gate.wait()
            await super().put(key, data)
        finally:
            self.inside_bytes.remove(size_of(data))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def source(tensor_bytes: int = 10_000, rank: int = 0) -> RankSource:
    slot = Slot(rank)
    slot.tensor("w", "uint8", np.arange(tensor_bytes, dtype="u1"), (0,), (tensor_bytes,))
    slot.object("o", b"body", "rank")
    return slot.source()


OPTIONS = WriteOptions(frame_bytes=500, segment_bytes=1000, memory_bytes=3000, concurrency=2)


def write(store: Store, sources: list[RankSource], options: WriteOptions, pool: ThreadPoolExecutor) -> asyncio.Task[Part]:
    return asyncio.create_task(write_part(store, JOB, ATTEMPT, "n.a", sources, options, pool, itertools.count(5)))


@pytest.mark.parametrize(
    ("memory_bytes", "concurrency", "most_bytes", "most_puts"), [(3000, 8, 3000, 3), (100, 8, 1000, 1), (10_000, 2, 2000, 2)]
)
async def test_the_budget_of_bytes_and_the_number_of_puts_hold(
    tmp_path: Path, pool: ThreadPoolExecutor, memory_bytes: int, concurrency: int, most_bytes: int, most_puts: int
) -> None:
    store = GatedStore(tmp_path)
    task = write(store, [source()], replace(OPTIONS, memory_bytes=memory_bytes, concurrency=concurrency), pool)
    await eventually(lambda: len(store.inside_bytes) == most_puts, "puts")
    for _ in range(50):
        await asyncio.sleep(0)
    assert (store.most_bytes, store.most_puts) == (most_bytes, most_puts)
    store.gate.set()
    part = await task
    assert (store.most_bytes, store.most_puts) == (most_bytes, most_puts)
    assert [segment.n for segment in part.segments] == list(range(5, 16))
    assert sorted(store.keys) == sorted(f"job/data/1-2.30.0/n.a-{n}.seg" for n in range(5, 16))


async def test_encoding_goes_on_while_puts_are_in_flight(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    real = segments_module.frame_hash
    monkeypatch.setattr(segments_module, "frame_hash", lambda views: hashed.append(1) or real(views))
    store = GatedStore(tmp_path)
    task = write(store, [source()], replace(OPTIONS, concurrency=1), pool)
    # Three segments of two frames, as the budget allows; one of them is in its PUT.
    await eventually(lambda: len(hashed) == 6, "encoding")
    assert store.most_puts == 1
    store.gate.set()
    await task


@pytest.mark.parametrize("codec", ["raw", "planes"])
async def test_after_a_cancel_no_thread_touches_the_slot(
    tmp_path: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, codec: Codec
) -> None:
    begun, go_on, inside = threading.Event(), threading.Event(), []
    real = segments_module.frame_hash

    def slow_hash(views: list[memoryview]) -> bytes:
        inside.append(1)
        begun.set()
        go_on.wait(10)
        digest = real(views)
        inside.pop()
        return digest

    monkeypatch.setattr(segments_module, "frame_hash", slow_hash)
    task = write(GatedStore(tmp_path), [source()], replace(OPTIONS, codec=codec), pool)
    await asyncio.to_thread(begun.wait)
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()  # a thread is in the slot still
    task.cancel()  # an impatient caller changes nothing
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not inside


async def test_a_cancel_during_a_put_does_not_wait_for_the_store(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    store = GatedStore(tmp_path)
    task = write(store, [source()], OPTIONS, pool)
    await eventually(lambda: store.most_puts == 2, "puts")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert not store.inside_bytes


class Overtaken(DirectoryStore):
    """The first PUT of each segment times out for its caller, and goes on reading what it was given until ``stop``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.stale: dict[str, list[memoryview]] = {}
        self.seen: dict[str, bytes] = {}

    async def put(self, key: str, data: Body) -> None:
        if key not in self.stale:
            self.stale[key] = [memoryview(piece)[:] for piece in pieces_of(data)]  # as a library holds it, out of our reach
            self.seen[key] = b"".join(self.stale[key])
            raise UnavailableError("timed out")
        await super().put(key, data)

    def unchanged(self) -> bool:
        return all(b"".join(self.stale[key]) == self.seen[key] for key in self.stale)

    def stop(self) -> None:
        self.stale.clear()


@pytest.mark.parametrize("codec", ["raw", "planes"])
async def test_memory_that_a_put_may_still_read_is_not_written_again(
    tmp_path: Path, pool: ThreadPoolExecutor, codec: Codec
) -> None:
    inner = Overtaken(tmp_path)
    store = RetryingStore(inner, RetrySettings(first_wait_seconds=0.001, longest_wait_seconds=0.001, retries_per_second=1e6))
    item = source(100_000)
    task = write(store, [item], WriteOptions(frame_bytes=8000, segment_bytes=16_000, codec=codec, concurrency=2), pool)
    # Raw, they read the slot itself; encoded, the bodies, of which there are as many as may be in flight.
    await eventually(lambda: len(stored_keys(tmp_path)) == (7 if codec == "raw" else 4), "segments in the store")
    for _ in range(50):
        await asyncio.sleep(0)
    assert not task.done() and inner.unchanged()
    inner.stop()
    await asyncio.wait_for(task, 30)
    assert len(inner.seen) == 7
    if codec == "planes":  # the slot is free, while three bodies are read still
        item.slot[:] = bytes(item.slot.nbytes)
        assert len(inner.stale) == 3 and inner.unchanged()


def stored_keys(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*.seg"))


@pytest.mark.parametrize("codec", ["raw", "planes"])
async def test_an_error_holds_no_memory(tmp_path: Path, pool: ThreadPoolExecutor, codec: Codec) -> None:
    """Its frames have variables, and they would keep the slot for as long as somebody looks at the error."""

    class Failing(DirectoryStore):
        async def put(self, key: str, data: Body) -> None:
            kept = [memoryview(piece)[:] for piece in pieces_of(data)]
            await asyncio.sleep(0)
            raise StoreConfigError(f"no such bucket: {len(kept)}")

    with pytest.raises(StoreConfigError, match="no such bucket"):
        await asyncio.wait_for(write(Failing(tmp_path), [source()], replace(OPTIONS, codec=codec), pool), 10)


async def test_the_stores_error_comes_out_as_it_is(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    class Failing(DirectoryStore):
        async def put(self, key: str, data: Body) -> None:
            raise StoreConfigError("no such bucket")

    with pytest.raises(StoreConfigError, match="no such bucket"):
        await write(Failing(tmp_path), [source()], OPTIONS, pool)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot_offset": 1}, "no room"),
        ({"slot_offset": -1}, "no room"),
        ({"capacity": 10}, "no room"),
        ({"sizes": (9_999_999,)}, "no room"),
        ({"offsets": (1,)}, "outside"),
        ({"offsets": ()}, "no region"),
        ({"kind": "pickle"}, "unknown kind"),
        ({"scope": "axis"}, "unknown kind"),
        ({"dtype": "object"}, "unknown kind"),
        ({"fqn": ""}, "name"),
    ],
)
async def test_items_that_do_not_fit_are_refused(
    tmp_path: Path, pool: ThreadPoolExecutor, change: dict[str, object], message: str
) -> None:
    bad = source(10_000)
    bad = replace(bad, slot=bad.slot[:10_000], lengths=[], items=[replace(bad.items[0], **change)])  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=message):
        await write(DirectoryStore(tmp_path), [bad], OPTIONS, pool)


async def test_lengths_must_be_those_of_the_objects(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    for lengths in ([], [4, 4], [4000], [-1]):
        with pytest.raises(ProtocolError):
            await write(DirectoryStore(tmp_path), [replace(source(), lengths=lengths)], OPTIONS, pool)
    with pytest.raises(ProtocolError, match="only once"):
        await write(DirectoryStore(tmp_path), [source(), source()], OPTIONS, pool)


def test_impossible_options_are_refused() -> None:
    for change in ({"frame_bytes": 5 << 20}, {"segment_bytes": 65 << 20}, {"memory_bytes": 0}, {"concurrency": 0}):
        with pytest.raises(ConfigError):
            WriteOptions(**change)  # type: ignore[arg-type]


async def test_a_cancelled_wait_for_the_budget_takes_nothing() -> None:
    budget = ByteBudget(10)
    await budget.take(6)
    waiting = [asyncio.create_task(budget.take(count)) for count in (5, 4)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)  # 4 would fit, but 5 came first
    waiting[0].cancel()
    await asyncio.wait(waiting)
    assert waiting[1].exception() is None
    late = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    budget.give_back(4)  # its turn comes and it is cancelled before it runs: the bytes come back
    late.cancel()
    await asyncio.wait([late])
    await asyncio.wait_for(budget.take(4), 5)


async def test_a_failed_call_waits_for_the_others_and_drops_the_rest(pool: ThreadPoolExecutor) -> None:
    go_on, ended, begun = threading.Event(), [], []

    def slow() -> None:
        begun.append(1)
        go_on.wait(10)
        ended.append(1)

    def fail() -> None:
        raise ValueError("no")

    task = asyncio.create_task(in_threads(pool, [slow, fail, *[slow] * 50]))
    await eventually(lambda: len(begun) >= 1, "a running call")
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(ValueError, match="no"):
        await task
    assert len(begun) == len(ended) < 51


async def test_bytes_given_back_in_the_very_turn_of_a_cancellation_go_to_the_next() -> None:
    """Who was cancelled hears of it a turn later than the budget: a daemon that was told to stop in mid-drain failed by it."""
    budget = ByteBudget(10)
    await budget.take(10)
    waiting = [asyncio.create_task(budget.take(10)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    budget.give_back(10)
    await asyncio.wait_for(waiting[1], 5)
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    budget.give_back(10)
    await asyncio.wait_for(budget.take(10), 5)
