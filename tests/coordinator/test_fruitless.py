"""Worlds that fail in a row: one commit back, then the end, and nobody stopped who only lost nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.coordinator.convert import to_generation
from ckptd.coordinator.trouble import troubles_of
from ckptd.model.ids import NO_GENERATION
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import OPTIONS, Bench, FakeNode

LIMIT = 3
PATIENT = replace(OPTIONS, fruitless_generations=LIMIT)
BOOM = "rank 0: exit code 1 (ValueError: boom)"


class Two:
    """Nodes a and b of one job, which restore what they are told, fail, get lost and commit on demand."""

    def __init__(self) -> None:
        self.bench = Bench(PATIENT)
        self.a, self.b = self.bench.node("a"), self.bench.node("b")
        self.agents = {"a": "a1", "b": "b1"}
        self.base = 0
        for node in self.nodes:
            node.join(2, 2, agent=self.agents[node.name])

    @property
    def nodes(self) -> tuple[FakeNode, FakeNode]:
        return self.a, self.b

    def run(self) -> pb.RestoreTarget | None:
        """Both nodes take their places and restore; what they were told, None when the job is over."""
        if self.over:
            return None
        assert self.bench.running, self.bench.waits()
        generation = self.bench.generation
        for rank, node in enumerate(self.nodes):
            node.member(generation, rank, 2, 1, 2, 2)
            node.rank_up(generation, rank, 2, process=f"{node.name}-{generation}", ready=False)
            node.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))
        if not self.bench.running:
            return None
        target = [found for found in self.a.told("restore_target") if found.generation == to_generation(generation)][-1]
        for rank, node in enumerate(self.nodes):
            node.say(restore_report=pb.RestoreReport(generation=to_generation(generation), rank=rank))
        self.base = target.seq_plus_one
        return target

    def restore_badly(self, error: str) -> None:
        """Both take their places, and node b finds the checkpoint damaged."""
        generation = self.bench.generation
        for rank, node in enumerate(self.nodes):
            node.member(generation, rank, 2, 1, 2, 2)
            node.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))
        report = pb.RestoreReport(generation=to_generation(generation), rank=1, error=error, corrupt=True)
        self.b.say(restore_report=report)

    def fail(self, words: str = BOOM) -> None:
        """A worker of node a fails, and b's because of it."""
        generation = self.bench.generation
        self.a.join(2, 2, after=generation, failure=words, agent=self.agents["a"])
        self.b.join(2, 2, after=generation, failure="rank 1: exit code 1 (gloo: connection closed)", agent=self.agents["b"])
        self.rest()

    def lose(self) -> None:
        """Node b is gone, a's worker fails because of that; b comes back as another agent."""
        generation = self.bench.generation
        self.a.join(2, 2, after=generation, failure="rank 0: exit code 1 (gloo: connection closed)", agent=self.agents["a"])
        self.b.disconnect()
        self.bench.pass_time(PATIENT.lease_seconds + 1)
        self.agents["b"] += "x"
        self.b.connect()
        self.b.join(2, 2, agent=self.agents["b"])
        self.rest()

    def rest(self) -> None:
        """Wait out the pause."""
        for _ in range(100):
            if self.bench.running or self.over:
                return
            self.bench.pass_time(0.5)

    def commit(self, step: int) -> int:
        return self.bench.commit(step, (self.a, 0), (self.b, 1))

    @property
    def over(self) -> bool:
        return self.bench.engine.state.over is not None

    @property
    def worlds(self) -> int:
        return self.bench.engine.state.last_n

    def diagnosis(self) -> str:
        for node in self.nodes:
            told = node.told("complete")[-1]
            assert told.failed and told.reason == self.bench.engine.state.over.reason
        return self.bench.engine.state.over.reason


def test_a_script_that_crashes_at_once_ends_with_a_diagnosis():
    two = Two()
    while two.run() is not None:
        two.fail()
    assert two.worlds == LIMIT
    said = two.diagnosis()
    assert f"{LIMIT} worlds in a row failed without a new checkpoint." in said
    assert f"{LIMIT} × node a: {BOOM}" in said and "it goes on at step 0" in said
    two.bench.pass_time(300)
    assert two.worlds == LIMIT


def test_pauses_grow():
    two, waits = Two(), []
    two.bench.options = replace(PATIENT, fruitless_generations=9)
    two.bench.engine._options = two.bench.options
    while two.run() is not None:
        before = two.bench.clock.now
        two.fail()
        waits.append(two.bench.clock.now - before)
    assert waits == [0, 0, 1, 2, 4, 8, 16, 30, 0]


def test_one_commit_back_then_the_end_and_no_commit_is_lost():
    two = Two()
    two.run()
    older, newer = two.commit(100), two.commit(200)
    told = []
    two.fail()
    while (target := two.run()) is not None:
        told.append((target.step, bool(target.loss)))
        two.fail()
    # The world that made the commits broke without another one after it: it counts, too.
    assert told == [(200, False)] * (LIMIT - 1) + [(100, True)] * LIMIT
    said = two.diagnosis()
    assert f"{2 * LIMIT} worlds in a row" in said and "(step 100)" in said and f"from step 200 (record {newer})" in said
    assert not two.bench.log.quarantined and older < newer


def test_what_was_stepped_over_is_quarantined_with_the_first_commit_without_it():
    two = Two()
    two.run()
    older, newer = two.commit(100), two.commit(200)
    for _ in range(LIMIT):
        two.fail()
        target = two.run()
    assert target.step == 100
    assert f"record {newer} of step 200 stepped over" in target.loss and "100 steps are lost" in target.loss
    said = troubles_of(two.bench.clock.now, two.bench.engine.state, PATIENT, None)["failures"]
    assert said.startswith(f"{LIMIT} worlds in a row") and "before the last one is tried" in said and BOOM in said
    assert not two.bench.log.quarantined
    again = two.commit(200)
    assert two.bench.log.quarantined == {newer}
    assert two.bench.log.commits[-1].over == newer
    two.fail()
    target = two.run()
    assert (target.seq_plus_one, target.step, target.loss) == (again + 1, 200, "")
    assert two.bench.engine.state.fruitless == 1
    two.commit(300)
    assert two.bench.log.commits[-1].over is None and older not in two.bench.log.quarantined


def test_somebody_starts_the_stopped_job_again():
    two = Two()
    while two.run() is not None:
        two.fail()
    two.a.join(2, 2, agent="a1")  # one that was told: it is told again, and nothing else
    assert two.over and len(two.a.told("complete")) == 2
    for node in two.nodes:
        node.say(agent_gone=pb.AgentGone(agent=two.agents[node.name], failed=True, reason="stopped"))
        two.agents[node.name] += "new"
        node.join(2, 2, agent=two.agents[node.name])
    assert two.run() is not None and two.bench.engine.state.fruitless == 0
    two.fail()
    assert two.run() is not None


def test_a_restore_that_fails_for_its_own_reasons_counts_and_a_damaged_checkpoint_does_not():
    for corrupt, count in ((False, 1), (True, 0)):
        two = Two()
        two.run()
        two.commit(100)
        two.commit(200)
        two.fail()
        generation = two.bench.generation
        for rank, node in enumerate(two.nodes):
            node.member(generation, rank, 2, 1, 2, 2)
            node.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))
        report = pb.RestoreReport(generation=to_generation(generation), rank=1, error="no such entry", corrupt=corrupt)
        two.b.say(restore_report=report)
        assert not two.bench.running
        two.fail()
        assert two.bench.engine.state.fruitless == 1 + count
        assert len(two.bench.log.quarantined) == corrupt
        target = two.run()
        assert target.step == (100 if corrupt else 200)
        assert ("100 steps are lost" in target.loss) == corrupt


def test_nobody_starts_at_step_0_when_every_checkpoint_is_bad():
    two = Two()
    two.run()
    seqs = {two.commit(100), two.commit(200)}
    two.fail()
    for _ in seqs:
        generation = two.bench.generation
        for rank, node in enumerate(two.nodes):
            node.member(generation, rank, 2, 1, 2, 2)
            node.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))
        two.a.say(restore_report=pb.RestoreReport(generation=to_generation(generation), rank=0, error="flipped", corrupt=True))
        two.fail()
    assert two.bench.log.quarantined == seqs and two.over and not two.bench.running
    assert "every checkpoint that it had is quarantined" in two.diagnosis()
    assert all(target.seq_plus_one for target in two.a.told("restore_target")[1:])  # the first world had nothing to restore
    for node in two.nodes:  # nor when somebody starts it again
        two.agents[node.name] += "new"
        node.join(2, 2, agent=two.agents[node.name])
    assert two.over and "must not start at step 0" in two.diagnosis()


def test_trainers_without_our_rendezvous_are_told_so_too():
    bench = Bench(PATIENT)
    a = bench.node("a")
    for turn in range(3):
        a.rank_up(NO_GENERATION, 0, 1, key=f"k{turn}", process=f"p{turn}", ready=False)
        a.say(restore_ask=pb.RestoreAsk(generation=to_generation(NO_GENERATION), rank=0))
        bench.pass_time(1)
        generation = bench.generation
        a.rank_up(generation, 0, 1, key=f"k{turn}", process=f"p{turn}", ready=turn == 0)
        if turn == 0:
            bench.commit(100, (a, 0))
        elif turn == 1:
            bad = pb.RestoreReport(generation=to_generation(generation), rank=0, error="flipped", corrupt=True)
            a.say(restore_report=bad)
        else:
            assert "must not start at step 0" in a.told("restore_failed")[-1].reason
            assert bench.engine.state.over.failed
        gone = pb.RankGone(generation=to_generation(generation), world_key=f"k{turn}", rank=0, process=f"p{turn}", reason="x")
        a.say(rank_gone=gone)
    assert bench.log.quarantined


def test_a_world_that_stepped_back_under_an_earlier_coordinator_regroups():
    two = Two()
    two.run()
    older, _ = two.commit(100), two.commit(200)
    for _ in range(LIMIT):
        two.fail()
        two.run()
    generation = two.bench.generation
    two.bench.restart()
    for rank, node in enumerate(two.nodes):
        node.connect()
        node.member(generation, rank, 2, 1, 2, 2)
        node.rank_up(generation, rank, 2, process=f"{node.name}-{generation}", base=older + 1)
        node.beat(generation, **{f"r{rank}": 150})
    for node in two.nodes:
        assert "earlier coordinator's word" in node.told("regroup")[-1].reason
        node.join(2, 2, after=generation, agent=two.agents[node.name])
    assert two.run().step == 200 and two.bench.engine.state.fruitless == 0


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["fail", "fail", "fail", "lose", "commit", "restart"]), max_size=25))
def test_only_failures_in_a_row_stop_a_job(events: list[str]):
    two, count, step, stepped = Two(), 0, 0, False
    two.run()
    for event in events:
        if event == "fail":
            two.fail()
            count += 1
        elif event == "lose":
            two.lose()
        elif event == "commit":
            step += 100
            two.commit(step)
            count, stepped = 0, False
        else:
            restarted(two)
            if stepped:  # its commit could not be told from a straggler's: it regroups
                for node in two.nodes:
                    node.join(2, 2, after=two.bench.generation, agent=two.agents[node.name])
            count, stepped = 0, False
            if two.bench.generation.epoch != two.bench.epoch:
                continue
        live = len(two.bench.log.committed) - len(two.bench.log.quarantined)
        assert two.over == (count >= (2 * LIMIT if live > 1 else LIMIT)), two.bench.waits()
        if two.over:
            return
        assert two.bench.engine.state.fruitless == count
        stepped = live > 1 and count >= LIMIT
        if event != "commit":
            target = two.run()
            assert bool(target.loss) == stepped


def restarted(two: Two) -> None:
    """A new coordinator adopts the running world."""
    generation = two.bench.generation
    two.bench.restart()
    for rank, node in enumerate(two.nodes):
        node.connect()
        node.member(generation, rank, 2, 1, 2, 2)
        node.rank_up(generation, rank, 2, process=f"{node.name}-{generation}", base=two.base)
        node.beat(generation, **{f"r{rank}": 1})


@pytest.mark.parametrize("settings_", [{"fruitless_generations": 0}, {"backoff_seconds": -1}])
def test_impossible_patience_is_refused(settings_: dict[str, float]):
    with pytest.raises(Exception, match=next(iter(settings_))):
        replace(OPTIONS, **settings_)
