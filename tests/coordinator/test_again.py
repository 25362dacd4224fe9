"""A run has ended, and another one of the same job begins: who belongs to which, and what each is told (PROTOCOLS 5)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.coordinator.alive import of_ended_run
from ckptd.coordinator.convert import to_generation
from ckptd.coordinator.state import Ended, Gone, Joined, MemberOf, Node, State
from ckptd.model.ids import NO_GENERATION, Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import OPTIONS, Bench
from tests.coordinator.runs import G11, G12, G13, alone, cut_off, finished, gone, late, phase


def test_run_after_run_with_one_coordinator():
    bench = Bench()
    runs = [alone(bench, f"agent-{number}", 100 * number)[1] for number in (1, 2, 3)]
    assert runs == [G11, G12, G13]
    assert len(bench.nodes["a"].told("complete")) == 3, "each agent once"


def test_the_next_run_restores_the_newest_commit():
    bench = Bench()
    alone(bench, "first")
    a = bench.nodes["a"]
    a.join(most=1, agent="second")
    a.say(restore_ask=pb.RestoreAsk(generation=to_generation(G12), rank=0))
    target = a.told("restore_target")[-1]
    assert (target.seq_plus_one, target.step, target.loss) == (2, 100, "")


def test_the_next_run_gathers_its_nodes_as_a_first_world_does():
    """And people see it: the job is not complete any more, and why it does not train yet."""
    bench = Bench()
    a, b = finished(bench)
    assert phase(bench) == "complete" and bench.engine.over
    a.join(least=1, most=2, agent="a2")
    assert phase(bench) == "forming" and not bench.engine.over
    bench.pass_time(10)
    assert bench.generation == G11 and "1 of max 2 nodes" in a.told("waiting")[-1].reason
    b.join(least=1, most=2, agent="b2")
    assert bench.generation == G12 and len(bench.engine.state.world.members) == 2
    assert len(a.told("complete")) == len(b.told("complete")) == 1


def test_too_few_for_the_next_run_wait_and_are_not_sent_home():
    bench = Bench()
    a, b = finished(bench)
    a.join(least=2, most=2, agent="a2")
    bench.pass_time(120)
    assert len(a.told("complete")) == 1 and "1 of min 2 nodes" in a.told("waiting")[-1].reason
    assert "1 of min 2 nodes" in {trouble.topic: trouble.what for trouble in bench.engine.status("").troubles}["nodes"]
    b.join(least=2, most=2, agent="b2")
    assert bench.generation == G12


@pytest.mark.parametrize("next_run", [False, True])
@pytest.mark.parametrize("how", ["member", "join"])
def test_a_straggler_is_told_before_the_next_run_and_during_it(next_run: bool, how: str):
    """Node b was cut off when the job ended: whatever its agent says when it is back, and whoever works by then."""
    bench = Bench()
    a, b, generation = cut_off(bench)
    if next_run:
        a.join(most=2, agent="a2")
        bench.pass_time(31)
        assert bench.generation == G12 and bench.running
    b.connect()
    if how == "member":
        b.member(generation, 1, 2)
    else:
        b.join(after=generation)
    assert [told.agent for told in b.told("complete")] == ["b-agent"] and not b.told("regroup")
    b.say(kv_get=pb.KvGet(id=7, generation=to_generation(generation), key="torchelastic/exit"))
    assert [(v.id, v.value) for v in b.told("kv_value")] == [(7, b"")], "torch's exit barrier ends"
    bench.commit(200, (a, 0)) if next_run else None
    bench.pass_time(60)
    assert bench.generation == (G12 if next_run else G11) and bench.running == next_run, "it is no spare"
    gone(b)
    b.join(agent="b2")
    assert len(b.told("complete")) == 1, "its next launcher is of the next run"


def test_a_spare_of_the_run_that_ended_is_told_and_told_again():
    """It was in no generation. What it was told may be lost with its stream."""
    bench = Bench()
    a, b, generation = bench.two()
    c = bench.node("c")
    c.join()
    for rank, node in enumerate((a, b)):
        node.finished(generation, rank)
    assert c.told("complete")[-1].agent == "c-agent"
    c.disconnect()
    c.connect()
    c.join()
    assert len(c.told("complete")) == 1 and bench.generation == G11
    gone(c)
    c.join(agent="c2")
    assert len(c.told("complete")) == 1


def test_an_agent_of_the_same_name_is_another_one_when_the_first_has_ended():
    """Names are process ids where kernels tell no more, and those come again; each node has its own."""
    bench = Bench()
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.finished(generation, 1)
    gone(a)
    a.join(most=1)
    assert bench.generation == G12 and len(a.told("complete")) == 1
    assert bench.running and len(b.told("complete")) == 1


def test_a_node_that_missed_the_end_and_comes_back_alone_is_late():
    """Its launcher was started again by whatever watches over it. The others will not come: the job is complete."""
    bench = Bench()
    _, b = late(bench)
    bench.pass_time(OPTIONS.join_seconds - 1)
    assert not b.told("complete") and phase(bench) == "forming"
    bench.pass_time(2)
    assert [told.agent for told in b.told("complete")] == ["b2"] and phase(bench) == "complete"


def test_a_node_that_missed_the_end_is_of_the_next_run_when_others_come():
    bench = Bench()
    a, b = late(bench)
    bench.pass_time(20)
    a.join(least=2, most=2, agent="a2")
    assert bench.generation == G12 and not b.told("complete")


def test_a_node_is_late_for_the_last_run_only():
    """Its agent failed in the first run, and it took no part in the second."""
    bench = Bench()
    a, b, _ = bench.two()
    c = bench.node("c")
    c.join(most=3)
    gone(c, failed=True)
    for agent in ("-agent", "-again"):
        generation = bench.generation
        for rank, node in enumerate((a, b)):
            node.finished(generation, rank)
        for node in (a, b):
            gone(node, node.name + agent)
        if agent == "-agent":
            a.join(agent="a-again")
            b.join(agent="b-again")
            assert bench.generation == G12
    c.join(least=2, most=2, agent="c2")
    bench.pass_time(60)
    assert not any(told.agent for told in c.told("complete")) and "1 of min 2 nodes" in c.told("waiting")[-1].reason


def test_a_finished_world_of_plain_ranks_is_no_news_of_an_agent():
    """Without agents, ranks whose daemons are slow to come back are waited for as long as it takes."""
    bench = Bench()
    a = bench.node("a")
    a.rank_up(G11, 0, 2)
    a.finished(G11, 0)
    bench.pass_time(60)
    assert not bench.engine.state.over
    b = bench.node("b")
    b.rank_up(G11, 1, 2)
    assert bench.generation == G11 and bench.running


def test_snapshots_of_the_run_that_ended_are_settled_before_the_next_one_restores():
    bench = Bench(replace(OPTIONS, drain_seconds=1000))
    a = bench.node("a")
    a.join(most=1, agent="first")
    a.rank_up(G11, 0, 1)
    last = Snapshot(G11, 100)
    a.sealed(last, 0)
    a.finished(G11, 0)
    gone(a, "first")
    a.join(most=1, agent="second")
    a.rank_up(G12, 0, 1, ready=False, process="p2")
    a.say(restore_ask=pb.RestoreAsk(generation=to_generation(G12), rank=0))
    assert bench.generation == G12 and not a.told("restore_target")
    a.uploaded(last, 0)
    assert Attempt(last, 0) in bench.log.committed and a.told("restore_target")[-1].step == 100


generations = st.builds(Generation, st.integers(1, 4), st.integers(1, 4))


@given(
    ended=generations,
    last=generations | st.just(NO_GENERATION),
    listed=st.booleans(),
    kind=st.sampled_from([Joined, MemberOf, Gone]),
)
def test_of_ended_run(ended: Generation, last: Generation, listed: bool, kind: type) -> None:
    """An agent's last generation decides, and a list for those who have none; who has ended is told nothing."""
    if kind is Joined:
        agent: Joined | MemberOf | Gone = Joined("x", 1, 1, 1, 0.0, last)
    elif kind is MemberOf:
        agent = MemberOf("x", last, 0, 1, 1, 1, 1, acknowledged=True)
    else:
        agent = Gone("x", False, "")
    agents = frozenset({("n", "x")} if listed else {("other", "x"), ("n", "y")})
    state, node = State(9, 0.0), Node("n", "i", True, 0.0, agent)
    assert not of_ended_run(state, node), "nothing has ended yet"
    state.ended = Ended(ended, "done", False, 0.0, agents, frozenset())
    known = listed or (last != NO_GENERATION and last <= ended)
    assert of_ended_run(state, node) == (known and kind is not Gone)
