"""Schedules and snapshots, scenario by scenario (PROTOCOLS 2 and 4)."""

from __future__ import annotations

from ckptd.coordinator.convert import to_attempt
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench, FakeNode

G11, G12 = Generation(1, 1), Generation(1, 2)


def test_schedule_is_announced_once_all_are_ready():
    """A rank that doesn't know the schedule would miss its first step."""
    bench = Bench()
    a, b = bench.node("a"), bench.node("b")
    a.join()
    b.join()
    a.member(G11, 0, 2)
    b.member(G11, 1, 2)
    a.rank_up(G11, 0, 2)
    a.beat(G11, r0=99)
    assert not a.told("schedule")
    b.rank_up(G11, 1, 2)
    assert [(s.first, s.every) for n in (a, b) for s in n.told("schedule")] == [(200, 100)] * 2, "99 + 2 is past 100"


def test_commit_needs_every_rank():
    """I2, and one thing for all ranks: nothing is committed of which a part is missing."""
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    a.uploaded(snapshot, 0)
    bench.pass_time(30)
    assert not bench.log.committed and not bench.log.aborted
    b.sealed(snapshot, 1)
    assert not bench.log.committed
    b.uploaded(snapshot, 1)
    assert bench.log.commits[0].parts == (b"a", b"b") and bench.log.commits[0].world_size == 2
    assert [c.seq for n in (a, b) for c in n.told("committed")] == [1, 1]


def test_part_of_another_nodes_rank_is_refused():
    """A node can't complete a snapshot on another's behalf."""
    bench = Bench()
    a, _, generation = bench.two()
    a.uploaded(Snapshot(generation, 100), 0, 1)
    assert not bench.log.committed


def test_missed_aborts_everywhere_at_once():
    """Ranks that skip on their own skip different steps, and nothing ever completes."""
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    b.say(missed=pb.Missed(attempt=to_attempt(Attempt(snapshot, 0)), rank=1, reason="no free slot"))
    assert "no free slot" in bench.log.aborted[Attempt(snapshot, 0)]
    assert a.told("aborted") and b.told("aborted")
    b.sealed(snapshot, 1)
    assert not bench.engine.state.snapshots, "what is settled stays settled"


def test_after_a_miss_snapshots_pause_until_all_have_a_free_slot():
    """Else one rank misses what the other sealed, then the other way round, for ever: seen with a restarted daemon."""
    bench = Bench()
    a, b, generation = bench.two()
    first, second = Snapshot(generation, 100), Snapshot(generation, 200)
    a.sealed(first, 0)
    b.sealed(first, 1)
    a.sealed(second, 0)
    b.say(missed=pb.Missed(attempt=to_attempt(Attempt(second, 0)), rank=1, reason="no free slot"))
    assert [(s.first, s.every) for s in a.told("schedule")] == [(100, 100), (0, 0)]
    assert "no free slot" in bench.waits()
    a.uploaded(first, 0)
    b.uploaded(first, 1)
    a.beat(generation, r0=250)
    b.beat(generation, r1=250, free_slots=0)
    bench.pass_time(5)
    assert len(a.told("schedule")) == 2, "rank 1 has none yet"
    b.beat(generation, r1=251)
    assert [(s.first, s.every) for n in (a, b) for s in n.told("schedule")][2::3] == [(300, 100)] * 2
    assert bench.log.candidate()[0].step == 100 and bench.running


def test_a_seal_lost_with_its_daemon_does_not_end_all_snapshots():
    """The new daemon doesn't know of it, and the trainer believes that it was heard: seen with SIGKILL of a daemon."""
    bench = Bench()
    a, b, generation = bench.two()
    a.sealed(Snapshot(generation, 100), 0)
    a.say(missed=pb.Missed(attempt=to_attempt(Attempt(Snapshot(generation, 200), 0)), rank=0, reason="no free slot"))
    a.beat(generation, r0=250)
    b.beat(generation, r1=250)
    assert a.told("schedule")[-1].every == 0
    bench.pass_time(6)
    assert (
        a.told("schedule")[-1].first == 300
        and "not all ranks had sealed" in bench.log.aborted[Attempt(Snapshot(generation, 100), 0)]
    )


def test_a_pause_waits_for_a_blind_daemons_next_life():
    """Sealed while no daemon listened: the next one finds it and says so with its first facts."""
    bench = Bench()
    a, b, generation = bench.two()
    first = Snapshot(generation, 100)
    a.sealed(first, 0)
    a.uploaded(first, 0)
    b.disconnect()
    a.say(missed=pb.Missed(attempt=to_attempt(Attempt(Snapshot(generation, 200), 0)), rank=0, reason="no free slot"))
    for step in range(250, 280):
        bench.pass_time(1)
        a.beat(generation, r0=step)
    assert Attempt(first, 0) not in bench.log.aborted
    b.incarnation = "b-2"
    b.connect()
    bench.pass_time(1)
    b.member(generation, 1, 2)
    b.sealed(first, 1)
    b.uploaded(first, 1)
    assert Attempt(first, 0) in bench.log.committed and bench.running


def test_a_schedule_begins_where_no_rank_is_past_it():
    """Fast steps: what a heartbeat said is old when the schedule arrives."""
    bench = Bench()
    a, b, generation = bench.two()
    for step in range(0, 500, 50):
        bench.pass_time(1)
        a.beat(generation, r0=step)
        b.beat(generation, r1=step)
    b.say(missed=pb.Missed(attempt=to_attempt(Attempt(Snapshot(generation, 400), 0)), rank=1, reason="no free slot"))
    a.beat(generation, r0=450)
    b.beat(generation, r1=450)
    assert a.told("schedule")[-1].first == 600, "450, and 50 steps a second for two heartbeats"


def test_what_was_given_up_may_be_tried_again():
    """The last step of a job must not be lost because a daemon died in mid-upload: its ranks seal it once more."""
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    b.say(missed=pb.Missed(attempt=to_attempt(Attempt(snapshot, 0)), rank=1, reason="its daemon was lost"))
    for node, rank in ((a, 0), (b, 1)):
        node.sealed(snapshot, rank, number=1)
        b.sealed(snapshot, 1)  # a late word about the first try changes nothing
        node.uploaded(snapshot, rank, number=1)
    assert [str(commit.attempt) for commit in bench.log.commits] == [f"{snapshot}.1"]


def test_release_waits_for_a_newer_complete_one_and_older_open_ones():
    """The only complete snapshot is never overwritten."""
    bench = Bench()
    a, b, generation = bench.two()
    bench.log.away = True
    first, second = Snapshot(generation, 100), Snapshot(generation, 200)
    for snapshot in (first, second):
        a.sealed(snapshot, 0)
        b.sealed(snapshot, 1)
    assert [r.before.step for r in a.told("release")] == [100]
    for node, rank in ((a, 0), (b, 1)):
        node.uploaded(first, rank)
    assert [r.before.step for r in a.told("release")] == [100], "the commit of 100 waits for the store"
    bench.log.away = False
    bench.settle()
    assert [r.before.step for r in a.told("release")] == [100, 200]


def test_commits_keep_the_order_of_steps():
    """The newest commit is the last in the log: an older one after it would be a step back."""
    bench = Bench()
    a, b, generation = bench.two()
    first, second = Snapshot(generation, 100), Snapshot(generation, 200)
    for snapshot in (first, second):
        a.sealed(snapshot, 0)
        b.sealed(snapshot, 1)
    a.uploaded(second, 0)
    b.uploaded(second, 1)
    assert bench.log.candidate()[0].step == 200
    a.uploaded(first, 0)
    b.uploaded(first, 1)
    assert bench.log.candidate()[0].step == 200 and Attempt(first, 0) in bench.log.aborted


def blind_with_a_sealed_share() -> tuple[Bench, FakeNode, FakeNode, Snapshot]:
    """Node b's daemon was killed in mid-drain; training goes on for far longer than a lease."""
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    b.sealed(snapshot, 1)
    a.uploaded(snapshot, 0)
    b.disconnect()
    for step in range(100, 130):
        bench.pass_time(1)
        a.beat(generation, r0=step)
    assert bench.running and not bench.log.aborted and "is blind" in bench.waits()
    return bench, a, b, snapshot


def test_what_a_killed_daemon_had_sealed_is_waited_for():
    """A blind node is not a dead one: its next daemon finds the sealed share in shared memory, and says so again."""
    bench, _, b, snapshot = blind_with_a_sealed_share()
    b.incarnation = "b-2"
    b.connect()
    b.member(snapshot.generation, 1, 2)
    b.sealed(snapshot, 1)
    assert not bench.log.committed
    b.uploaded(snapshot, 1)
    assert Attempt(snapshot, 0) in bench.log.committed and bench.running
    assert [c.seq for c in b.told("committed")] == [bench.log.committed[Attempt(snapshot, 0)]]


def test_what_a_killed_daemon_had_sealed_is_lost_with_its_memory():
    """The trainer is told by the next daemon that its arena is not there, and says that it misses the step."""
    bench, _, b, snapshot = blind_with_a_sealed_share()
    b.incarnation = "b-2"
    b.connect()
    b.member(snapshot.generation, 1, 2)
    b.say(missed=pb.Missed(attempt=to_attempt(Attempt(snapshot, 0)), rank=1, reason="its shared memory was lost"))
    assert "memory was lost" in bench.log.aborted[Attempt(snapshot, 0)] and bench.running


def test_a_silent_member_of_a_broken_world_is_not_waited_for():
    bench, a, _, snapshot = blind_with_a_sealed_share()
    a.join()
    assert "node b" in bench.log.aborted[Attempt(snapshot, 0)]


def test_a_node_that_left_is_not_waited_for():
    bench = Bench()
    a, b, generation = bench.two()
    snapshot = Snapshot(generation, 100)
    a.sealed(snapshot, 0)
    b.say(goodbye=pb.Goodbye(reason="told to stop"))
    assert bench.log.aborted[Attempt(snapshot, 0)] == "node b has left"


def test_stale_generation_is_ignored():
    """I10: a node that slept through a regrouping can at worst upload objects that nobody refers to."""
    bench = Bench()
    a, b, _ = bench.two()
    a.join()
    b.join()
    assert bench.generation == G12
    stale = Snapshot(G11, 100)
    a.sealed(stale, 0)
    a.uploaded(stale, 0)
    b.uploaded(stale, 1)
    assert not bench.log.committed and Attempt(stale, 0) in bench.log.aborted
    b.finished(G11, 1)
    assert not bench.engine.state.over


def test_restart_in_mid_training_keeps_the_schedule_going():
    """An adopted world that restored commit 0 goes on to take snapshots, on the grid that it knew."""
    bench = Bench()
    a, b, _ = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    bench.restart()
    a, b = bench.node("a"), bench.node("b")
    for rank, node in enumerate((a, b)):
        node.member(G11, rank, 2)
        node.rank_up(G11, rank, 2)
    for rank, node in enumerate((a, b)):
        assert not a.told("schedule"), "nobody knows yet how far they are"
        node.beat(G11, **{f"r{rank}": 150})
    assert a.told("schedule")[-1].first == 200 and bench.running
    b.sealed(Snapshot(G11, 100), 1)
    assert [c.seq for c in b.told("committed")] == [1], "who did not hear the outcome hears it now"
