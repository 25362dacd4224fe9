"""Seeded random histories: nodes come, die, freeze and come back, coordinators restart, the store goes away.

The nodes here follow the protocol; their luck doesn't: one is lost, or several at once, or one together with the coordinator.
Checked all along: generations only go up, none is formed with a dead node or below min_nodes, nothing is committed of which a
rank is missing; all ranks of a generation restore one commit (I5), none of a lower one commits after that (I10). In the end,
once all is well again: a generation of all that are allowed runs, and commits (I12). In some histories the job is completed now
and then, and started again on every node that hears of it: no launcher is told of an end that came before it.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from ckptd.coordinator.convert import generation_of, to_generation
from ckptd.model.ids import NO_GENERATION, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb
from tests.coordinator.harness import OPTIONS, Bench, FakeNode

SHAPES = ((2, 3, 4), (1, 3, 3), (3, 5, 6))  # (min_nodes, max_nodes, nodes), in turn over the seeds


class SimNode:
    """A daemon with its agent and one worker, which survive streams and die together."""

    def __init__(self, bench: Bench, name: str, least: int, most: int) -> None:
        self.bench, self.link, self.alive = bench, FakeNode(bench, name), False
        self.lives = self.launches = 0
        self.least, self.most = least, most
        bench.nodes[name] = self.link
        self.clear()

    def clear(self) -> None:
        self.sealed, self.stored, self.ranks, self.read = set(), set(), {}, 0
        self.finished: tuple[Generation, int, int] | None = None
        self.launch()

    def launch(self) -> None:
        """Another agent, of a daemon that still knows of the ranks of the last one."""
        self.agent, self.launches = f"{self.link.incarnation}-agent-{self.launches}", self.launches + 1
        self.born = self.bench.ended
        self.place: tuple[Generation, int, int] | None = None
        self.step, self.restored, self.base, self.after = 0, False, 0, NO_GENERATION

    def start(self) -> None:
        self.alive, self.lives = True, self.lives + 1
        self.link.incarnation = f"{self.link.name}-{self.lives}"
        self.clear()
        self.connect()

    def die(self) -> None:
        self.alive = False
        if self.link.up:
            self.link.disconnect()

    def connect(self) -> None:
        """Repeat all facts, as PROTOCOLS says."""
        self.link.connect()
        self.read = 0
        if self.place is None:
            self.join()
        else:
            self.facts()
            self.link.beat(self.place[0], **{f"r{self.place[1]}": self.step})
        if self.finished is not None:
            self.tell_finished()
        for snapshot in sorted(self.sealed):
            self.link.sealed(snapshot, self.ranks[snapshot])
        for snapshot in sorted(self.stored):
            self.link.uploaded(snapshot, self.ranks[snapshot])

    def facts(self) -> None:
        assert self.place is not None
        generation, rank, size = self.place
        self.link.member(generation, rank, size, 1, self.least, self.most, self.agent)
        self.link.rank_up(
            generation, rank, size, process=f"{self.link.incarnation}-{generation}", ready=self.restored, base=self.base
        )
        self.link.say(restore_ask=pb.RestoreAsk(generation=to_generation(generation), rank=rank))

    def join(self) -> None:
        self.link.join(self.least, self.most, after=self.after, agent=self.agent)

    def tell_finished(self) -> None:
        assert self.finished is not None
        generation, rank, size = self.finished
        self.link.rank_up(generation, rank, size, process=f"{self.link.incarnation}-{generation}", base=self.finished_base)
        self.link.finished(generation, rank)

    def finish(self) -> None:
        self.finished, self.finished_base = self.place, self.base
        if self.link.up:
            self.tell_finished()

    def end(self, message: pb.Complete) -> None:
        """Its agent hears that the job is complete, and somebody starts it again."""
        ended = self.bench.engine.state.ended
        if message.agent != self.agent:
            return
        assert ended is not None
        assert self.born < ended.generation or self.link.name in ended.absent, "an end that came before its launcher"
        self.link.say(agent_gone=pb.AgentGone(agent=self.agent, failed=False, reason="done"))
        self.launch()
        self.join()

    def rejoin(self) -> None:
        if self.place is not None:
            self.after, self.place = self.place[0], None
        if self.link.up:
            self.join()

    def react(self) -> bool:
        """Handle one message; False when there is none."""
        if not self.link.up or self.read >= len(self.link.heard):
            return False
        message = self.link.heard[self.read]
        self.read += 1
        match message.WhichOneof("body"):
            case "formed":
                generation = generation_of(message.formed.generation)
                if self.place is None:
                    ended = self.bench.engine.state.ended
                    late = ended is not None and NO_GENERATION < self.after <= ended.generation < generation
                    assert not late, "its run has ended, and it is taken into the next one"
                    self.finished = None
                    self.place = (generation, message.formed.node_rank, message.formed.num_nodes)
                    self.step, self.restored, self.base = 0, False, 0
                    self.facts()
            case "regroup" if self.place is not None and generation_of(message.regroup.generation) == self.place[0]:
                self.rejoin()
            case "restore_target" if self.place is not None:
                generation, rank, _ = self.place
                target = message.restore_target
                if generation_of(target.generation) == generation and target.seq_plus_one and not self.restored:
                    self.link.say(restore_report=pb.RestoreReport(generation=to_generation(generation), rank=rank))
                    self.step, self.base = target.step, target.seq_plus_one
            case "restore_go" if self.place is not None and generation_of(message.restore_go.generation) == self.place[0]:
                self.restored = True
            case "complete" if message.complete.failed:
                self.die()
            case "complete":
                self.end(message.complete)
            case "committed":
                self.forget(message.committed.attempt)
            case "aborted":
                self.forget(message.aborted.attempt)
        return True

    def forget(self, attempt: pb.Attempt) -> None:
        snapshot = Snapshot(generation_of(attempt.snapshot.generation), attempt.snapshot.step)
        self.sealed.discard(snapshot)
        self.stored.discard(snapshot)

    def train(self, chance: random.Random) -> None:
        if self.place is None or not self.restored or not self.link.up or self.finished:
            return
        generation, rank, _ = self.place
        self.step += 50
        self.link.beat(generation, **{f"r{rank}": self.step})
        if self.step % 100 == 0:
            self.sealed.add(Snapshot(generation, self.step))
            self.ranks[Snapshot(generation, self.step)] = rank
            self.link.sealed(Snapshot(generation, self.step), rank)
        waiting = sorted(snapshot for snapshot in self.sealed - self.stored if snapshot.generation == generation)
        if waiting and chance.random() < 0.5:
            self.stored.add(waiting[0])
            self.link.uploaded(waiting[0], rank)


class Simulation:
    def __init__(self, seed: int, ends: bool = False) -> None:
        self.chance, self.ends = random.Random(seed), ends
        self.bench = Bench(replace(OPTIONS, fruitless_generations=2 + seed % 4))
        self.least, self.most, nodes = SHAPES[seed % len(SHAPES)]
        self.nodes = [SimNode(self.bench, name, self.least, self.most) for name in "abcdef"[:nodes]]
        self.highest, self.runs = NO_GENERATION, 0
        self.worlds: dict[Generation, int] = {}
        self.checked = 0
        self.bases: dict[Generation, int] = {}

    def finish(self) -> None:
        """All ranks of the world have done their last step, unless some have yet to restore."""
        there = [
            node for node in self.nodes if node.alive and node.place is not None and node.place[0] == self.bench.generation
        ]
        if self.bench.running and there and all(node.restored and not node.finished for node in there):
            for node in there:
                node.finish()
            self.drain()

    def event(self) -> None:
        if self.ends and self.chance.random() < 0.08:
            self.finish()
        node, roll = self.chance.choice(self.nodes), self.chance.random()
        if not node.alive:
            if roll < 0.3:
                node.start()
        elif roll < 0.04:
            node.die()
        elif roll < 0.05:
            for lost in self.chance.sample(self.nodes, 2):
                if lost.alive:
                    lost.die()
        elif roll < 0.06:
            node.die()
            self.restart()
        elif roll < 0.08 and node.link.up:
            node.link.disconnect()
        elif roll < 0.3 and not node.link.up:
            node.connect()
        elif roll < 0.34 and node.place is not None and not node.finished:
            node.rejoin()  # its worker failed
        elif roll < 0.36:
            self.restart()
        elif roll < 0.4:
            self.bench.log.away = not self.bench.log.away
        elif roll < 0.7:
            self.bench.pass_time(self.chance.choice([0.5, 1, 3, 8]))
        else:
            for _ in range(4):
                for other in self.nodes:
                    other.train(self.chance)
                self.drain()
        self.drain()
        self.check()

    def restart(self) -> None:
        self.bench.restart()
        for node in self.nodes:
            if node.alive and self.chance.random() < 0.8:
                node.connect()

    def drain(self) -> None:
        self.settle()
        while sum(node.react() for node in self.nodes):
            self.settle()

    def settle(self) -> None:
        self.bench.settle()
        ended = self.bench.engine.state.ended
        if ended is not None and ended.generation > self.bench.ended:
            self.bench.ended = ended.generation
            self.runs += not ended.failed

    def check(self) -> None:
        world, now = self.bench.engine.state.world, self.bench.clock.now
        if world is not None and world.id not in self.worlds:
            assert world.id > self.highest
            self.highest = world.id
            self.worlds[world.id] = world.world_size
            if world.id.epoch == self.bench.epoch:
                assert self.least <= len(world.members) <= self.most
                for name in world.members:
                    state = self.bench.engine.state.nodes[name]
                    assert now - state.last_heard_seconds < self.bench.options.lease_seconds + 8
        restored = max(self.bases, default=NO_GENERATION)
        for job in self.bench.log.commits[self.checked :]:
            assert job.attempt.snapshot.generation >= restored, "a generation that was replaced has committed"
            assert len(job.parts) == job.world_size == self.worlds[job.attempt.snapshot.generation]
        self.checked = len(self.bench.log.commits)
        steps = [(attempt.snapshot.generation, attempt.snapshot.step) for attempt in self.bench.log.committed]
        assert steps == sorted(steps), "the log's order is that of generations and steps"
        for node in self.nodes:
            if node.alive and node.restored and node.place is not None:
                assert self.bases.setdefault(node.place[0], node.base) == node.base, "one restore, two commits"

    def heal(self) -> None:
        self.bench.log.away = False
        for node in self.nodes:
            if not node.alive:
                node.start()
            elif not node.link.up:
                node.connect()
        self.drain()
        before = len(self.bench.log.committed)
        for _ in range(100):
            self.bench.pass_time(2, tick=1)
            self.drain()
            if all(node.restored for node in self.nodes if node.place is not None and node.place[0] == self.bench.generation):
                for node in self.nodes:
                    node.train(self.chance)
            self.drain()
            self.check()
        assert self.bench.running, self.bench.waits()
        assert len(self.bench.engine.state.world.members) == self.most, self.bench.waits()
        assert len(self.bench.log.committed) > before, self.bench.waits()


@pytest.mark.parametrize(("block", "ends"), [*((block, False) for block in range(6)), *((block, True) for block in range(3))])
def test_random_histories(block: int, ends: bool):
    for seed in range(block * 4, block * 4 + 4):
        simulation = Simulation(seed, ends)
        try:
            for _ in range(300):
                simulation.event()
            simulation.heal()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_histories_do_commit_and_regroup():
    """The simulation is worth something only if much happens in it."""
    commits = worlds = stepped = runs = 0
    for seed in range(10):
        simulation = Simulation(seed, ends=seed % 2 == 1)
        for _ in range(300):
            simulation.event()
        commits, worlds = commits + len(simulation.bench.log.committed), worlds + len(simulation.worlds)
        stepped += sum(job.over is not None for job in simulation.bench.log.commits)
        runs += simulation.runs
    assert runs > 10, runs
    assert commits > 10 and worlds > 20, (commits, worlds)
    assert stepped, "a world that stepped back has committed"
