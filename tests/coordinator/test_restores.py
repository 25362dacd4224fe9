"""Restores, scenario by scenario (PROTOCOLS 5)."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import NO_GENERATION, Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench
from tests.coordinator.regrouping import regroup, report

G11, G12 = Generation(1, 1), Generation(1, 2)


def test_late_uploads_of_a_broken_world_count_before_the_restore_is_named():
    """A snapshot that is whole in memory is worth waiting for; the target is named after it (PROTOCOLS 4.4)."""
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    b.sealed(snapshot, 1)
    a.uploaded(snapshot, 0)
    new = regroup(bench, a, b)
    assert new == G12 and not a.told("restore_target")
    b.uploaded(snapshot, 1)
    assert [(t.seq_plus_one, t.step) for t in a.told("restore_target")] == [(2, 100)]


def test_late_uploads_have_a_bound():
    """An upload that hangs must not hold up the restart for ever."""
    bench = Bench()
    a, b, generation = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    a.sealed(Snapshot(generation, 200), 0)
    b.sealed(Snapshot(generation, 200), 1)
    regroup(bench, a, b)
    bench.pass_time(19)
    assert not a.told("restore_target")
    bench.pass_time(2)
    assert [t.step for t in a.told("restore_target")] == [100]


def test_restore_goes_when_all_have_verified_and_the_schedule_comes_first():
    """I5; and no rank passes the first scheduled step unaware."""
    bench = Bench()
    a, b, _ = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    new = regroup(bench, a, b)
    report(a, new, 0)
    bench.pass_time(10)
    assert not a.told("restore_go")
    report(b, new, 1)
    kinds = [message.WhichOneof("body") for message in a.heard]
    assert kinds.index("schedule", kinds.index("restore_target")) < kinds.index("restore_go")
    assert a.told("schedule")[-1].first == 200


def test_nothing_to_restore_needs_no_reports():
    """The first start of a job asks, too."""
    bench = Bench()
    a, b = bench.node("a"), bench.node("b")
    regroup_first = [n.join() for n in (a, b)]
    assert regroup_first and bench.generation == G11
    for rank, node in enumerate((a, b)):
        node.member(G11, rank, 2)
        node.rank_up(G11, rank, 2, ready=False)
        node.say(restore_ask=pb.RestoreAsk(generation=to_generation(G11), rank=rank))
    assert [t.seq_plus_one for t in a.told("restore_target")] == [0]
    assert a.told("restore_go") and b.told("restore_go") and a.told("schedule")


def test_failed_restore_fails_all_and_corruption_is_put_aside():
    """I5: an error to all; the next world is told the commit before."""
    bench = Bench()
    a, b, _ = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    bench.commit(200, (a, 0), (b, 1))
    new = regroup(bench, a, b)
    report(a, new, 0)
    report(b, new, 1, error="frame 3 does not match its digest", corrupt=True)
    assert a.told("restore_failed") and b.told("restore_failed") and not a.told("restore_go")
    assert bench.log.quarantined == {2} and a.told("regroup")
    again = regroup(bench, a, b)
    assert again == Generation(1, 3) and a.told("restore_target")[-1].step == 100


def test_restore_has_a_bound():
    """One rank that never reports must not keep the others for ever."""
    bench = Bench()
    a, b, _ = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    new = regroup(bench, a, b)
    report(a, new, 0)
    bench.pass_time(59)
    assert bench.running
    bench.pass_time(2)
    assert a.told("restore_failed")


def test_world_that_did_not_restore_gets_no_schedule():
    """I8: its snapshots would not descend from the last commit, and the next restart would lose one of the two lines."""
    bench = Bench()
    a = bench.node("a")
    a.rank_up(NO_GENERATION, 0, 1, key="solo-1")
    bench.commit(100, (a, 0))
    a.finished(G11, 0)
    a.rank_up(NO_GENERATION, 0, 1, key="solo-2", process="again")
    a.beat(G12, r0=5)
    assert "did not restore" in bench.engine.state.world.unscheduled
    assert [s.generation.n for s in a.told("schedule")] == [1]
    a.sealed(Snapshot(G12, 100), 0)
    a.uploaded(Snapshot(G12, 100), 0)
    assert "did not restore" in bench.log.aborted[Attempt(Snapshot(G12, 100), 0)]
