"""Worlds without our rendezvous, under plain torchrun or srun (PROTOCOLS 5)."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import NO_GENERATION, Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench, FakeNode

G11, G12 = Generation(1, 1), Generation(1, 2)


def test_plain_ranks_form_a_world_and_a_second_registration_ends_it():
    """Plain torchrun and srun: W registrations with one master address are a world (PROTOCOLS 5)."""
    bench = Bench()
    a, b = bench.node("a"), bench.node("b")
    a.rank_up(NO_GENERATION, 0, 2)
    b.rank_up(NO_GENERATION, 1, 2)
    assert bench.generation == G11 and a.told("formed")[0].world_key == "host:1"
    a.rank_up(G11, 0, 2)
    b.rank_up(G11, 1, 2)
    a.rank_up(NO_GENERATION, 0, 2, process="new-0")
    assert not bench.running and bench.generation == G11
    b.rank_up(G11, 1, 2, process="new-1")
    assert bench.generation == G12 and bench.running, "its daemon knew the key from the earlier world"
    assert len(b.told("formed")) == 2


def test_plain_rank_that_dies_ends_its_world():
    bench = Bench()
    a = bench.node("a")
    a.rank_up(NO_GENERATION, 0, 1, key="solo-1")
    a.say(rank_gone=pb.RankGone(generation=to_generation(G11), world_key="solo-1", rank=0, process="a-p0", reason="killed"))
    assert not bench.running
    a.rank_up(NO_GENERATION, 0, 1, key="solo-2", process="again")
    assert bench.generation == G12 and bench.running


def solo(bench: Bench) -> tuple[FakeNode, FakeNode]:
    """Nodes a and b train as ranks 0 and 1, without our rendezvous."""
    a, b = bench.node("a"), bench.node("b")
    for rank, node in enumerate((a, b)):
        node.rank_up(NO_GENERATION, rank, 2, key="master:1")
    for rank, node in enumerate((a, b)):
        node.rank_up(G11, rank, 2, key="master:1")
    assert bench.running
    return a, b


def test_plain_world_goes_on_when_a_node_called_dead_is_back():
    """Nobody would restart it: its daemon was away while its steps stood still, and its trainers live."""
    bench = Bench()
    _, b = solo(bench)
    b.disconnect()
    bench.pass_time(6)
    assert not bench.running
    b.incarnation = "b-2"
    b.connect()
    bench.settle()
    assert not bench.running, "its daemon is back; whether its trainers are, it has not said"
    b.rank_up(G11, 1, 2, key="master:1")
    assert bench.running and bench.generation == G11


def test_trainers_that_died_with_their_daemon_do_not_block_the_next_world():
    """Nobody was left to say that they are gone."""
    bench = Bench()
    a, b = solo(bench)
    b.disconnect()
    b.incarnation = "b-2"
    b.connect()
    gone = pb.RankGone(generation=to_generation(G11), world_key="master:1", rank=0, process="a-p0", reason="it ended")
    a.say(rank_gone=gone)
    for node, rank in ((a, 0), (b, 1)):
        node.rank_up(NO_GENERATION, rank, 2, key="master:2", process=f"{node.name}-again")
    bench.pass_time(10)
    assert bench.generation == G12


def test_second_run_after_the_end():
    """A person starts the finished script again: that is a new world, not a late node."""
    bench = Bench()
    a = bench.node("a")
    a.rank_up(NO_GENERATION, 0, 1, key="solo-1")
    a.finished(G11, 0)
    assert bench.engine.state.over
    a.rank_up(NO_GENERATION, 0, 1, key="solo-2", process="again")
    assert bench.generation == G12 and bench.engine.state.over is None
