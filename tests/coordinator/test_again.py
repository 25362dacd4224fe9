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
from tests.coordinator.harness import OPTIONS, Bench, FakeNode

G11, G12, G13, G21, G22 = Generation(1, 1), Generation(1, 2), Generation(1, 3), Generation(2, 1), Generation(2, 2)


def gone(node: FakeNode, agent: str = "", failed: bool = False) -> None:
    node.say(agent_gone=pb.AgentGone(agent=agent or f"{node.name}-agent", failed=failed, reason="done"))


def phase(bench: Bench) -> str:
    return bench.engine.status("job").phase


def alone(bench: Bench, agent: str, total: int = 100) -> tuple[FakeNode, Generation]:
    """A whole run on node a, from join to end, with a commit of its last step."""
    a = bench.nodes.get("a") or bench.node("a")
    a.join(most=1, agent=agent)
    generation = bench.generation
    assert bench.running and not bench.engine.state.over and phase(bench) != "complete"
    a.say(member=pb.Member(agent=agent, generation=to_generation(generation), num_nodes=1, local_world_size=1))
    newest = bench.engine.state.candidate.seq
    a.rank_up(generation, 0, 1, base=0 if newest is None else newest + 1)
    bench.commit(total, (a, 0))
    a.finished(generation, 0)
    assert a.told("complete")[-1].agent == agent and phase(bench) == "complete"
    gone(a, agent)
    return a, generation


def finished(bench: Bench) -> tuple[FakeNode, FakeNode]:
    """A run of two nodes is complete, all have heard of it, and both agents have ended."""
    a, b, generation = bench.two()
    bench.commit(100, (a, 0), (b, 1))
    for rank, node in enumerate((a, b)):
        node.finished(generation, rank)
    for node in (a, b):
        assert node.told("complete")
        gone(node)
    return a, b


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
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    assert bench.engine.state.over
    gone(a)
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
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    gone(a)
    b.incarnation = "b-2"
    b.connect()
    b.join(least=2, most=2, agent="b2")
    bench.pass_time(OPTIONS.join_seconds - 1)
    assert not b.told("complete") and phase(bench) == "forming"
    bench.pass_time(2)
    assert [told.agent for told in b.told("complete")] == ["b2"] and phase(bench) == "complete"


def test_a_node_that_missed_the_end_is_of_the_next_run_when_others_come():
    bench = Bench()
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    gone(a)
    b.incarnation = "b-2"
    b.connect()
    b.join(least=2, most=2, agent="b2")
    bench.pass_time(20)
    a.join(least=2, most=2, agent="a2")
    assert bench.generation == G12 and not b.told("complete")


@pytest.mark.parametrize("how", ["member", "join"])
def test_a_straggler_is_told_by_the_next_coordinator_too(how: str):
    """That the job is complete is in no record: it follows from what the daemons say again."""
    bench = Bench()
    a, b, generation = bench.two()
    a.finished(generation, 0)
    b.disconnect()
    bench.pass_time(10)
    gone(a)
    bench.restart()
    a = bench.node("a")
    gone(a)
    a.rank_up(generation, 0, 2)
    a.finished(generation, 0)
    b = bench.node("b")
    if how == "member":
        b.member(generation, 1, 2)
    else:
        b.join(after=generation)
    bench.pass_time(4)
    assert not b.told("complete") and not b.told("formed"), "the other ranks may still be on their way back to us"
    bench.pass_time(2)
    assert [told.agent for told in b.told("complete")] == ["b-agent"] and not b.told("formed") and not b.told("regroup")
    gone(b)
    a.join(agent="a2")
    b.join(agent="b2")
    assert bench.generation == G21 and len(bench.engine.state.world.members) == 2


def test_a_new_coordinator_that_finds_all_finished_lets_the_next_run_begin_at_once():
    """The daemons live on, and still say what became of the last run."""
    bench = Bench()
    alone(bench, "first")
    bench.restart()
    a = bench.node("a")
    gone(a, "first")
    a.rank_up(G11, 0, 1)
    a.finished(G11, 0)
    a.join(most=1, agent="second")
    assert bench.generation == G21 and bench.running and not a.told("complete")


def test_an_agent_that_joins_before_its_daemon_has_told_of_the_last_run_is_of_the_next():
    """A daemon speaks of its agent first. Who was in no generation may be a spare of the old run: then it ends by itself."""
    bench = Bench()
    alone(bench, "first")
    bench.restart()
    bench.log.away = True
    a = bench.node("a")
    a.join(most=1, agent="second")
    a.rank_up(G11, 0, 1)
    a.finished(G11, 0)
    bench.log.away = False
    bench.settle()
    assert bench.generation == G21 and bench.running and not a.told("complete")


def test_a_coordinator_restart_in_the_next_run_adopts_that():
    bench = Bench()
    a, b = finished(bench)
    a.join(agent="a2")
    b.join(agent="b2")
    bench.restart()
    for rank, name in enumerate("ab"):
        node = bench.node(name)
        node.rank_up(G11, rank, 2)  # what its daemon still knows of the first run
        node.finished(G11, rank)
        node.member(G12, rank, 2)
        node.rank_up(G12, rank, 2)
    assert bench.generation == G12 and bench.running and not bench.engine.state.over
    assert not any(node.told("complete") or node.told("regroup") for node in bench.nodes.values())


def test_who_waits_beside_an_adopted_world_begins_the_next_run_when_that_ends():
    """Was it a spare, or started after the last coordinator had seen the end? It does no harm, unlike sending it home."""
    bench = Bench()
    bench.two()
    bench.restart()
    for rank, name in enumerate("ab"):
        node = bench.node(name)
        node.member(G11, rank, 2)
        node.rank_up(G11, rank, 2)
    c = bench.node("c")
    c.join(most=1)
    assert bench.generation == G11
    for rank, name in enumerate("ab"):
        bench.nodes[name].finished(G11, rank)
        assert rank == 0 or bench.nodes[name].told("complete")
    assert not c.told("complete") and bench.generation == G21


def test_a_straggler_forms_no_world_while_it_is_found_out_that_its_run_has_ended():
    bench = Bench()
    bench.restart()
    b = bench.node("b")
    b.join(after=G11)
    bench.pass_time(4)
    a = bench.node("a")
    gone(a)
    a.rank_up(G11, 0, 2)
    a.finished(G11, 0)
    bench.pass_time(3)
    assert not b.told("formed") and not b.told("complete")
    bench.pass_time(3)
    assert not b.told("formed") and b.told("complete")


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


def test_what_is_recalled_of_the_last_run_ends_no_later_one():
    """Found by the simulation: the coordinator restarts while the next run regroups; a daemon still tells of the last."""
    bench = Bench()
    bench.restart()
    c = bench.node("c")
    gone(c)
    c.rank_up(G11, 0, 1)
    c.finished(G11, 0)
    assert bench.engine.state.ended.generation == G11
    a, b = bench.node("a"), bench.node("b")
    a.member(G12, 0, 2)
    b.join(after=G12)
    bench.pass_time(6)
    assert a.told("regroup") and not a.told("complete") and not b.told("complete")
    a.join(after=G12)
    assert bench.generation == G21 and set(bench.engine.state.world.members) == {"a", "b"}


def test_a_straggler_that_is_adopted_ends_no_later_run():
    """Found by the simulation: of two old worlds the one that is over is adopted, for the other's agents have stopped."""
    bench = Bench()
    bench.restart()
    d = bench.node("d")
    d.member(G11, 1, 2)
    d.rank_up(G11, 1, 2)
    d.finished(G11, 1)
    c = bench.node("c")
    c.join(after=G12)
    bench.pass_time(6)
    assert d.told("regroup")
    d.join(after=G11)
    assert d.told("complete") and not c.told("complete")
    bench.pass_time(1)
    assert bench.generation == G21 and set(bench.engine.state.world.members) == {"c"}


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
