"""What people see of a job: its status, its troubles and its events."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ckptd.commit.log import CommitLog
from ckptd.commit.office import Committer, take_office
from ckptd.commit.retention import Retention
from ckptd.coordinator.events import Event, Events
from ckptd.coordinator.tidy import Tidier
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.directory import DirectoryStore
from tests.coordinator.harness import Bench
from tests.waiting import eventually


def topics(bench: Bench) -> dict[str, str]:
    """{topic: what} of all troubles."""
    return {trouble.topic: trouble.what for trouble in bench.engine.troubles.all()}


def states(bench: Bench) -> dict[str, str]:
    return {node.node: node.state for node in bench.engine.status("job").nodes}


def kinds(bench: Bench) -> list[str]:
    return [event.kind for event in bench.engine.events.since(0, 0)[0]]


# ---- status


def test_a_job_that_trains() -> None:
    bench = Bench()
    assert bench.engine.status("job").phase == "forming"
    a, b, generation = bench.two()
    a.beat(generation, r0=7)
    bench.clock.now += 1
    b.beat(generation, r1=9)
    bench.commit(100, (a, 0), (b, 1))
    bench.clock.now += 2
    status = bench.engine.status("job")
    assert (status.phase, status.world.world_size, list(status.world.nodes)) == ("training", 2, ["a", "b"])
    assert (status.world.furthest_step, status.world.step_seconds, status.world.every_steps) == (9, 0.5, 100)
    assert [(node.node, node.state, list(node.ranks), node.step) for node in status.nodes] == [
        ("a", "alive", [0], 7),
        ("b", "alive", [1], 9),
    ]
    assert (status.newest.step, status.newest.seconds) == (100, 2)
    assert not status.troubles


def test_the_states_of_nodes() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    c = bench.node("c")
    assert states(bench) == {"a": "alive", "b": "alive", "c": "idle"}
    c.join(most=2)
    assert states(bench)["c"] == "spare"
    b.disconnect()
    for n in range(1, 15):  # training goes on, so b is not dead
        a.beat(generation, r0=n)
        bench.pass_time(0.5)
    assert states(bench) == {"a": "alive", "b": "blind", "c": "spare"}
    assert "node b" in topics(bench)
    a.say(rank_gone=pb.RankGone(generation=pb.Generation(epoch=generation.epoch, n=generation.n), rank=0, process="a-p0"))
    assert states(bench)["b"] == "lost"
    assert bench.engine.status("job").phase == "regrouping"
    b.connect()
    b.join()
    a.join()
    assert states(bench) == {"a": "alive", "b": "alive", "c": "spare"}
    c.say(goodbye=pb.Goodbye(reason="told to stop"))
    assert states(bench)["c"] == "left"


def test_what_a_node_reports_is_cut_to_size() -> None:
    bench = Bench()
    a = bench.node("a")
    troubles = [pb.Trouble(topic=str(n), what="x" * 10_000) for n in range(100)]
    a.say(heartbeat=pb.Heartbeat(report=pb.NodeReport(troubles=troubles, newest=pb.Durable(step=3))))
    report = bench.engine.status("job").nodes[0].report
    assert len(report.troubles) == 16 and len(report.troubles[0].what) == 1000
    assert report.newest.step == 3
    a.say(heartbeat=pb.Heartbeat())
    assert not bench.engine.status("job").nodes[0].report.troubles


# ---- troubles


def test_too_few_nodes() -> None:
    bench = Bench()
    bench.node("a").join(least=2)
    assert topics(bench) == {"nodes": "1 of min 2 nodes are there; training waits for more"}
    assert bench.engine.status("job").waiting[0].reason == "1 of min 2 nodes"
    bench.node("b").join(least=2)
    assert topics(bench) == {}


def test_a_store_that_is_away() -> None:
    bench = Bench()
    bench.engine.heard_of_store("connection refused")
    bench.settle()
    assert topics(bench) == {"store": "the coordinator can't write; training goes on, commits wait: connection refused"}
    bench.engine.heard_of_store(None)
    bench.settle()
    assert topics(bench) == {}
    assert kinds(bench)[-2:] == ["trouble", "over"]


def test_snapshots_given_up_over_and_over() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    for step in (100, 200, 300):
        assert topics(bench) == {}
        snapshot = Snapshot(generation, step)
        a.say(missed=pb.Missed(attempt=_attempt(snapshot), rank=0, reason="no free slot"))
    assert topics(bench) == {"aborts": "the last 3 snapshots or more were given up: rank 0: no free slot"}
    bench.commit(400, (a, 0), (b, 1))
    assert topics(bench) == {}


def test_no_commit_for_long() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    a.beat(generation, r0=1)
    b.beat(generation, r1=1)
    assert bench.engine.status("job").world.every_steps == 100
    for n in range(100):
        a.beat(generation, r0=5 * n)
        b.beat(generation, r1=5 * n)
        bench.pass_time(0.5)
    assert topics(bench)["commits"].startswith("step 495 is done, and the newest durable one is 0")
    bench.commit(500, (a, 0), (b, 1))
    bench.settle()
    assert topics(bench) == {}


def _attempt(snapshot: Snapshot) -> pb.Attempt:
    generation = pb.Generation(epoch=snapshot.generation.epoch, n=snapshot.generation.n)
    return pb.Attempt(snapshot=pb.Snapshot(generation=generation, step=snapshot.step), number=0)


# ---- events


def test_events_of_a_life() -> None:
    bench = Bench()
    a, b, generation = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    a.say(agent_gone=pb.AgentGone(agent="a-agent", failed=True, reason="exit code 1"))
    told = [event.text for event in bench.engine.events.since(0, 0)[0]]
    assert kinds(bench)[:2] == ["connected", "connected"]
    assert [kind for kind in kinds(bench) if kind in ("formed", "committed", "regroup")] == ["formed", "committed", "regroup"]
    assert f"generation {generation} was formed: 2 ranks on 2 nodes (a, b)" in told
    assert f"step 100 of generation {generation}, record {bench.log.committed[Attempt(Snapshot(generation, 100), 0)]}" in told
    assert any("exit code 1" in text for text in told)


def test_events_are_bounded_and_what_is_missed_is_counted() -> None:
    events = Events(3, lambda: 7.0, kept=10)
    for n in range(1, 26):
        events.add("kind", str(n))
    found, missed = events.since(3, 4)
    assert (found[0], len(found), missed) == (Event(3, 16, 7.0, "kind", "16"), 10, 11)
    assert [event.number for event in events.since(3, 23)[0]] == [24, 25]
    assert events.since(3, 25) == ([], 0)
    # another epoch: what its follower saw last says nothing of ours
    assert events.since(2, 24)[0][0].number == 16 and events.since(2, 24)[1] == 15


async def test_a_follower_gets_each_event_once() -> None:
    events = Events(1, kept=100)
    events.add("early", "0")
    heard: list[str] = []

    async def follow() -> None:
        async for event, missed in events.follow(0, 0):
            assert missed == 0
            heard.append(event.text)

    following = asyncio.create_task(follow())
    for n in range(1, 50):
        events.add("kind", str(n))
        if n % 7 == 0:
            await asyncio.sleep(0)
    events.close()
    await following
    assert heard == [str(n) for n in range(50)]


async def test_what_is_retired_is_an_event(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    log = CommitLog(store, "job")
    committer = Committer(log, await take_office(log))
    for step in (10, 20):
        await committer.commit(Attempt(Snapshot(Generation(1, 1), step), 0), "a" * 64)
    events = Events(1)
    tidying = asyncio.create_task(Tidier(log, committer, Retention(keep_last=1), lambda: None, told=events.add).run())
    await eventually(lambda: bool(events.since(0, 0)[0]), "an event")
    tidying.cancel()
    assert [(event.kind, event.text) for event in events.since(0, 0)[0]] == [
        ("retired", "step 10, record 1: newer ones are kept")
    ]
    await store.close()
