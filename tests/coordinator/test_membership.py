"""Who is in the world, scenario by scenario (PROTOCOLS 5)."""

from __future__ import annotations

from ckptd.coordinator.convert import to_generation
from ckptd.model.ids import Generation
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import Bench

G11, G12 = Generation(1, 1), Generation(1, 2)


def test_first_world_forms_at_once_when_all_are_there():
    """Nobody waits 30 s when nothing is left to wait for."""
    bench = Bench()
    a, b, generation = bench.two()
    assert generation == G11
    assert [(f.node_rank, f.num_nodes, f.world_size) for n in (a, b) for f in n.told("formed")] == [(0, 2, 2), (1, 2, 2)]


def test_first_world_waits_for_more_but_not_for_ever():
    """An elastic job starts small only when the others had their time."""
    bench = Bench()
    bench.node("a").join(least=1, most=3)
    bench.node("b").join(least=1, most=3)
    bench.pass_time(29)
    assert not bench.running and "2 of max 3" in bench.waits()
    bench.pass_time(2)
    assert bench.running and len(bench.engine.state.world.members) == 2


def test_fewer_than_min_nodes_wait_and_say_so():
    """A world below min_nodes is never formed, however long it takes."""
    bench = Bench()
    bench.node("a").join(least=2, most=2)
    bench.pass_time(120)
    assert not bench.running and "1 of min 2 nodes" in bench.waits()
    [told] = bench.nodes["a"].told("waiting")
    assert "1 of min 2 nodes" in told.reason, "the people in front of the node are told, too, and once"
    bench.node("b").join(least=2, most=2)
    assert bench.running


def test_what_passes_at_once_is_not_told():
    """Every formation waits a moment for the store's word; that is no news."""
    bench = Bench()
    a, b, _ = bench.two()
    b.disconnect()
    a.join()
    bench.pass_time(0.5)
    assert not a.told("waiting")
    bench.pass_time(1.5)
    assert "b" in a.told("waiting")[-1].reason


def test_killed_node_is_dead_when_the_lease_is_over_and_a_survivor_rejoined():
    """The main story: kill -9 of a node; the survivor's workers fail, its agent joins, and goes on alone."""
    bench = Bench()
    a, b, _ = bench.two()
    b.disconnect()
    a.join()
    assert not bench.running and bench.generation == G11
    bench.pass_time(4)
    assert bench.generation == G11, "silence within the lease is no death"
    bench.pass_time(1.5)
    assert bench.generation == G12 and bench.running
    assert a.told("formed")[-1].num_nodes == 1


def test_blind_daemon_is_not_dead_while_training_goes_on():
    """A restarting daemon never restarts workers: I1 of operations."""
    bench = Bench()
    a, b, generation = bench.two()
    b.disconnect()
    for step in range(60):
        bench.pass_time(1)
        a.beat(generation, r0=step + 1)
    assert bench.running and bench.engine.blind() == ["b"]
    assert "blind" in bench.waits()
    b.connect()
    b.member(generation, 1, 2)
    b.rank_up(generation, 1, 2)
    assert bench.engine.blind() == [] and bench.generation == generation and not b.told("regroup")


def test_silent_node_without_progress_is_dead():
    """A frozen node stops everybody's collectives: nobody fails, nobody advances."""
    bench = Bench()
    a, b, generation = bench.two()
    for step in range(3):
        bench.pass_time(1)
        a.beat(generation, r0=step + 1)
        b.beat(generation, r1=step + 1)
    b.disconnect()
    bench.pass_time(4)
    assert bench.running
    bench.pass_time(2)
    assert not bench.running and a.told("regroup")
    a.join()
    assert bench.generation == G12


def test_slow_steps_are_no_standstill():
    """With steps of 20 s, 25 s without a step prove nothing."""
    bench = Bench()
    a, b, generation = bench.two()
    for step in range(4):
        bench.pass_time(20)
        a.beat(generation, r0=step + 1)
    b.disconnect()
    bench.pass_time(25)
    assert bench.running


def test_all_silent_is_our_problem():
    """When nobody is heard it may be the coordinator that is cut off; killing the world would help nobody."""
    bench = Bench()
    a, b, _ = bench.two()
    a.disconnect()
    b.disconnect()
    bench.pass_time(100)
    assert bench.running


def test_stopped_coordinator_blames_itself():
    """SIGSTOP of the coordinator: when it goes on, every lease looks over."""
    bench = Bench()
    bench.two()
    bench.clock.now += 1000
    bench.settle()
    assert bench.running and bench.engine.blind() == []


def test_rejoin_of_one_regroups_the_others():
    """A failed worker stops all: its agent joins, the other is asked to."""
    bench = Bench()
    a, b, generation = bench.two()
    a.join()
    assert [r.generation for r in b.told("regroup")] == [to_generation(generation)]
    assert bench.generation == G11
    b.join()
    assert bench.generation == G12
    assert len(a.told("formed")) == 2


def test_failed_agent_leaves_at_once():
    """An agent that says that it ends need not be waited for."""
    bench = Bench()
    a, b, _ = bench.two()
    b.say(agent_gone=pb.AgentGone(agent="b-agent", failed=True, reason="out of restarts"))
    assert a.told("regroup")
    a.join()
    assert bench.generation == G12 and list(bench.engine.state.world.members) == ["a"]


def test_late_word_of_an_earlier_agent_is_ignored():
    """The old agent's end is noticed after the new one joined."""
    bench = Bench()
    _, b, _ = bench.two()
    b.say(agent_gone=pb.AgentGone(agent="older", failed=True))
    assert bench.running


def test_scale_up_waits_for_commit_and_debounce():
    """A returning node must not cost the steps since the last commit, nor two nodes two restarts."""
    bench = Bench()
    a, b, _ = bench.two()
    b.disconnect()
    a.join()
    bench.pass_time(6)
    a.member(G12, 0, 1)
    a.rank_up(G12, 0, 1)
    b.connect()
    b.incarnation = "b-2"
    b.join()
    bench.pass_time(10)
    assert bench.generation == G12 and bench.running and "next commit" in bench.waits()
    a.beat(G12, r0=100)
    bench.commit(100, (a, 0))
    assert not bench.running, "debounce was over before the commit"
    a.join()
    assert bench.generation == Generation(1, 3) and len(bench.engine.state.world.members) == 2


def test_spare_stays_spare():
    """max_nodes is a promise, too."""
    bench = Bench()
    a, b, generation = bench.two()
    bench.node("c").join()
    bench.commit(100, (a, 0), (b, 1))
    bench.pass_time(60)
    assert bench.running and bench.generation == generation and "spare: c" in bench.waits()


def test_spare_replaces_a_dead_node():
    """That is what it waits for; node ranks of the survivors keep their order."""
    bench = Bench()
    a, b, _ = bench.two()
    c = bench.node("c")
    c.join()
    a.disconnect()
    b.join()
    bench.pass_time(6)
    assert [(m, p.node_rank) for m, p in bench.engine.state.world.members.items()] == [("b", 0), ("c", 1)]
    assert c.told("formed")


def test_finished_then_other_node_dies():
    """Nobody redoes the last step: with one rank finished, the loss of another node completes the job."""
    bench = Bench()
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    assert bench.engine.state.over and a.told("complete")
    assert bench.generation == generation
    b.connect()
    b.join()
    assert b.told("complete"), "a late node gets the news at once"


def test_all_finish():
    """Agents that leave after the finish are normal, and gets in torch's exit barrier are answered."""
    bench = Bench()
    a, b, generation = bench.two()
    a.finished(generation, 0)
    a.say(agent_gone=pb.AgentGone(agent="a-agent", failed=False))
    assert bench.running and not bench.engine.state.over
    b.say(kv_get=pb.KvGet(id=7, generation=to_generation(generation), key="torchelastic/exit"))
    b.finished(generation, 1)
    assert bench.engine.state.over
    assert [(v.id, v.found, v.value) for v in b.told("kv_value")] == [(7, True, b"")]


def test_store_away_forms_no_world_and_says_so():
    """A coordinator cut off from the store can't know that it is still in office."""
    bench = Bench()
    bench.log.away = True
    bench.node("a").join(most=1)
    bench.pass_time(60)
    assert not bench.running and "still in office" in bench.waits()
    bench.log.away = False
    bench.settle()
    assert bench.running
