"""A coordinator of a job that goes on for ever: what it holds doesn't grow with snapshots, worlds and reconnects."""

from __future__ import annotations

import gc
from types import FunctionType, MethodType, ModuleType

from ckptd.coordinator.engine import Engine
from ckptd.coordinator.events import Events
from ckptd.model.ids import Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench, FakeLog, FakeNode
from tests.coordinator.regrouping import regroup, report

EVERY = 100
PERIOD = 30  # snapshots between two worlds


def held(engine: Engine) -> int:
    """How many objects hang on the engine, without the log and the nodes, which are the test's."""
    seen, todo = set[int](), [vars(engine)]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | FunctionType | FakeLog | FakeNode | Bench):
            continue
        seen.add(id(thing))
        todo += gc.get_referents(thing) if not isinstance(thing, MethodType) else [thing.__self__]
    return len(seen)


def life(bench: Bench, a: FakeNode, b: FakeNode, step: int, snapshots: int) -> int:
    """So many snapshots, some of them missed; now and then a reconnect, and a new world. The last step."""
    for number in range(snapshots):
        step += EVERY
        if number % PERIOD == 0:
            regroup(bench, a, b)
            for rank, node in enumerate((a, b)):
                report(node, bench.generation, rank)
            step = bench.engine.state.candidate.step + EVERY
        snapshot = Snapshot(bench.generation, step)
        bench.clock.now += 1
        for rank, node in enumerate((a, b)):
            node.beat(bench.generation, **{f"r{rank}": step})
            node.sealed(snapshot, rank)
            if number % 7 == 3:
                attempt = pb.Attempt(snapshot=pb.Snapshot(generation=_pair(bench), step=step))
                node.say(missed=pb.Missed(attempt=attempt, rank=rank, reason="no free slot"))
            else:
                node.uploaded(snapshot, rank)
            node.heard.clear()
        if number % 11 == 5:
            b.disconnect()
            b.connect()
            b.member(bench.generation, 1, 2)
            b.rank_up(bench.generation, 1, 2, process=f"b-{bench.generation}")
    return step


def _pair(bench: Bench) -> pb.Generation:
    return pb.Generation(epoch=bench.generation.epoch, n=bench.generation.n)


def test_nothing_grows_with_the_jobs_life() -> None:
    bench = Bench()
    bench.engine.events = Events(1, kept=100)  # as always, but full sooner
    a, b, _ = bench.two()
    step = life(bench, a, b, 0, 4 * PERIOD)
    before, commits, worlds = held(bench.engine), len(bench.log.committed), bench.generation.n
    life(bench, a, b, step, 6 * PERIOD)
    assert len(bench.log.committed) > commits + 4 * PERIOD and bench.log.aborted and bench.generation.n == worlds + 6
    assert held(bench.engine) < 1.01 * before
