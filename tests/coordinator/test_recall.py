"""That a run has ended is in no record: what a new coordinator makes of what daemons and agents say again (decision 0024)."""

from __future__ import annotations

import pytest

from tests.coordinator.harness import Bench
from tests.coordinator.runs import G11, G12, G21, alone, cut_off, finished, gone


@pytest.mark.parametrize("how", ["member", "join"])
def test_a_straggler_is_told_by_the_next_coordinator_too(how: str):
    """That the job is complete is in no record: it follows from what the daemons say again."""
    bench = Bench()
    a, b, generation = cut_off(bench)
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
