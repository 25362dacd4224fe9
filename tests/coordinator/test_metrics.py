"""The coordinator's figures, from a job that breaks and recovers; and those of a store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ckptd.coordinator.metrics import CoordinatorMetrics
from ckptd.errors import AlreadyExistsError, NotFoundError
from ckptd.model.ids import Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.base import Bytes
from ckptd.store.directory import DirectoryStore
from ckptd.store.metered import MeteredStore, StoreMetrics
from tests.coordinator.harness import Bench, HandClock


def value(metrics: CoordinatorMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"job": "", **labels})


def test_a_break_and_a_recovery() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    metrics = bench.engine.metrics
    a.beat(generation, r0=130)
    bench.commit(100, (a, 0), (b, 1))
    attempt = pb.Attempt(snapshot=pb.Snapshot(generation=pb.Generation(epoch=1, n=1), step=200))
    a.say(missed=pb.Missed(attempt=attempt, rank=0, reason="no free slot"))
    assert value(metrics, "ckptd_commits_total") == 1
    assert value(metrics, "ckptd_aborts_total", kind="missed") == 1
    b.say(agent_gone=pb.AgentGone(agent="b-agent", failed=True, reason="exit code 1"))
    assert value(metrics, "ckptd_regroups_total") == 1
    bench.clock.now += 4
    a.join()
    again = bench.generation
    assert again > generation
    a.member(again, 0, 1)
    a.rank_up(again, 0, 1, ready=False)
    a.say(restore_ask=pb.RestoreAsk(generation=pb.Generation(epoch=again.epoch, n=again.n), rank=0))
    report = pb.RestoreReport(generation=pb.Generation(epoch=again.epoch, n=again.n), rank=0)
    a.say(restore_report=report)
    assert value(metrics, "ckptd_recovery_seconds_count") == 0
    a.beat(again, r0=101)
    bench.pass_time(2)
    assert value(metrics, "ckptd_recovery_seconds_count") == 1
    assert value(metrics, "ckptd_recovery_seconds_sum") == 4
    assert value(metrics, "ckptd_lost_steps_total") == 30
    assert value(metrics, "ckptd_regroups_total") == 1
    assert value(metrics, "ckptd_durable_step") == 100 and value(metrics, "ckptd_world_size") == 1
    assert value(metrics, "ckptd_nodes", state="left") == 1 and value(metrics, "ckptd_nodes", state="alive") == 1


def test_snapshots_that_are_overtaken_are_counted_apart() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    a.sealed(Snapshot(generation, 100), 0)
    bench.commit(200, (a, 0), (b, 1))
    assert value(bench.engine.metrics, "ckptd_aborts_total", kind="other") == 1
    assert value(bench.engine.metrics, "ckptd_aborts_total", kind="missed") == 0


class StuckStore(DirectoryStore):
    """Answers no get until ``free``."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.free = asyncio.Event()

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Bytes:
        await self.free.wait()
        return await super().get(key, start, end)


async def test_a_store_that_hangs_is_noticed_before_its_timeout(tmp_path: Path) -> None:
    clock = HandClock()
    metrics = StoreMetrics(CollectorRegistry(), clock)
    stuck = StuckStore(tmp_path)
    store = MeteredStore(stuck, metrics)
    await store.put("a", b"1")
    reading = asyncio.create_task(store.get("a"))
    await asyncio.sleep(0)
    clock.now += 19
    await store.put("a", b"2")
    assert metrics.hanging() is None
    clock.now += 1
    assert metrics.hanging() == ("a get has no answer for 20 s or more; the store, or the way to it, hangs or is very slow")
    stuck.free.set()
    assert await reading == b"2"
    assert metrics.hanging() is None


async def test_what_is_asked_of_a_store(tmp_path: Path) -> None:
    metrics = CoordinatorMetrics("")
    store = MeteredStore(DirectoryStore(tmp_path), metrics.store)
    await store.put("a", b"12345")
    await store.create("b", b"123")
    with pytest.raises(AlreadyExistsError):
        await store.create("b", b"123")
    with pytest.raises(NotFoundError):
        await store.get("c")
    assert await store.get("a", 1, 3) == b"23"
    assert sorted([info.key async for info in store.list("")]) == ["a", "b"]
    get = metrics.registry.get_sample_value
    assert get("ckptd_store_requests_total", {"verb": "put", "outcome": "ok"}) == 1
    assert get("ckptd_store_requests_total", {"verb": "create", "outcome": "exists"}) == 1
    assert get("ckptd_store_requests_total", {"verb": "get", "outcome": "not_found"}) == 1
    assert get("ckptd_store_request_seconds_count", {"verb": "get"}) == 2
    assert get("ckptd_store_written_bytes_total") == 8 and get("ckptd_store_read_bytes_total") == 2
    await store.close()
