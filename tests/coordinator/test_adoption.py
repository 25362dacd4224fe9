"""A coordinator or a daemon that comes back finds its place in the world again (PROTOCOLS 5)."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench

G11, G12, G21 = Generation(1, 1), Generation(1, 2), Generation(2, 1)


def test_coordinator_and_node_die_together():
    """Survivors that a new coordinator finds stopped don't wait for a full house as a new job does, only one lease."""
    bench = Bench()
    bench.two()
    bench.restart()
    bench.node("a").join(after=G11)
    bench.pass_time(4)
    assert not bench.running and "1 of max 2" in bench.waits()
    bench.pass_time(1.5)
    assert bench.generation == G21 and bench.running


def test_coordinator_and_node_die_together_and_the_node_is_back_at_once():
    bench = Bench()
    bench.two()
    bench.restart()
    bench.node("a").join(after=G11)
    bench.pass_time(2)
    bench.node("b").join()
    assert bench.generation == G21 and len(bench.engine.state.world.members) == 2


def test_lost_formed_is_told_again():
    """The stream breaks between our decision and the daemon: it repeats Join, which is no failure of workers."""
    bench = Bench()
    a, b = bench.node("a"), bench.node("b")
    a.join()
    b.join()
    a.member(G11, 0, 2)
    b.connect()
    b.join()
    assert bench.running and bench.generation == G11 and len(b.told("formed")) == 1


def test_restart_adopts_the_running_generation():
    """A coordinator's restart restarts nobody; facts that come before the adoption count after it."""
    bench = Bench()
    a, b, generation = bench.two()
    bench.restart()
    a = bench.node("a")
    a.member(generation, 0, 2)
    a.rank_up(generation, 0, 2)
    a.sealed(Snapshot(generation, 100), 0)
    bench.pass_time(3)
    b = bench.node("b")
    b.member(generation, 1, 2)
    b.rank_up(generation, 1, 2)
    assert bench.generation == generation and bench.running and not a.told("regroup")
    b.sealed(Snapshot(generation, 100), 1)
    a.uploaded(Snapshot(generation, 100), 0)
    b.uploaded(Snapshot(generation, 100), 1)
    assert Attempt(Snapshot(generation, 100), 0) in bench.log.committed
    a.join()
    b.join()
    assert bench.generation == G21


def test_an_adopted_world_that_has_committed_restores_nothing():
    """Found by chaos: a daemon restarts, then the coordinator. Ranks of the old daemon repeat that they asked what to restore.

    Naming them the world's own newest commit made those of the new daemon look as if they trained without it.
    """
    bench = Bench()
    a, b, generation = bench.two()
    for node, rank in ((a, 0), (b, 1)):
        node.sealed(Snapshot(generation, 100), rank)
        node.uploaded(Snapshot(generation, 100), rank)
    assert Attempt(Snapshot(generation, 100), 0) in bench.log.committed
    bench.restart()
    for name, rank in (("a", 0), ("b", 1)):
        node = bench.node(name)
        node.member(generation, rank, 2)
        node.rank_up(generation, rank, 2)
    a.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=0))
    bench.pass_time(70)
    assert bench.generation == generation and bench.running
    assert not a.told("restore_target") and not a.told("regroup") and not b.told("regroup")


def test_restart_gives_up_after_a_lease():
    """A member that does not come back: the others are regrouped, and form at once."""
    bench = Bench()
    _, _, generation = bench.two()
    bench.restart()
    a = bench.node("a")
    a.member(generation, 0, 2)
    bench.pass_time(4)
    assert not a.told("regroup")
    bench.pass_time(2)
    assert a.told("regroup")
    a.join()
    assert bench.generation == G21


def test_stale_member_is_told_to_regroup():
    """A node that stopped and came back in an older world can't stay in it."""
    bench = Bench()
    a, b, _ = bench.two()
    b.disconnect()
    a.join()
    bench.pass_time(6)
    b.connect()
    b.member(G11, 1, 2)
    assert [r.generation for r in b.told("regroup")] == [to_generation(G11)]
    b.join()
    assert bench.generation == G12


def test_who_waited_before_its_daemon_came_back_says_so_again():
    """Its agent may have died with the daemon: nobody is restarted for it, and a new one waits its own time (seen in chaos)."""
    bench = Bench()
    a, b, generation = bench.two()
    c = bench.node("c")
    for node in (a, b):
        node.member(generation, "ab".index(node.name), 2, most=3)
    c.join(most=3)
    c.disconnect()
    bench.commit(100, (a, 0), (b, 1))
    bench.pass_time(4)
    c.incarnation = "c-2"
    c.connect()
    bench.pass_time(4)
    assert bench.running and bench.generation == generation
    c.say(join=pb.Join(agent="another", local_world_size=1, min_nodes=1, max_nodes=3))
    bench.pass_time(4)
    assert bench.running, "it came after the commit"
    bench.commit(200, (a, 0), (b, 1))
    assert not bench.running
