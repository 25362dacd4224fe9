"""An engine with a clock turned by hand, a commit log that is a list, and nodes that remember what they were told."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ckptd.coordinator.convert import to_attempt, to_generation
from ckptd.coordinator.durable import Pinned, Quarantined, Settled, TailAbsent
from ckptd.coordinator.enact import AbortJob, CheckTailJob, CommitJob, LogJob, PinJob, QuarantineJob
from ckptd.coordinator.engine import Engine
from ckptd.coordinator.options import CoordinatorOptions
from ckptd.coordinator.state import Outcome
from ckptd.coordinator.world import NOTHING, Target
from ckptd.model.ids import NO_GENERATION, Attempt, Generation, Snapshot
from ckptd.rpc.v1 import coordinator_pb2 as pb

OPTIONS = CoordinatorOptions(
    heartbeat_seconds=1,
    lease_seconds=5,
    debounce_seconds=3,
    join_seconds=30,
    every_steps=100,
    restore_seconds=60,
    drain_seconds=20,
)


class HandClock:
    """Stands still until somebody turns it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing sleeps here")


@dataclass
class FakeLog:
    """The log as a list; outlives coordinators. ``away``: jobs wait. ``whole``: nothing is damaged, whatever nodes say."""

    away: bool = False
    committed: dict[Attempt, int] = field(default_factory=dict)
    aborted: dict[Attempt, str] = field(default_factory=dict)
    quarantined: set[int] = field(default_factory=set)
    jobs: deque[LogJob] = field(default_factory=deque)
    commits: list[CommitJob] = field(default_factory=list)
    pins: list[tuple[int, str]] = field(default_factory=list)
    next_seq: int = 1
    whole: bool = False

    def submit(self, job: LogJob) -> None:
        self.jobs.append(job)

    def outcome_of(self, attempt: Attempt) -> Outcome | None:
        if attempt in self.committed:
            return Outcome(self.committed[attempt], "")
        return Outcome(None, self.aborted[attempt]) if attempt in self.aborted else None

    def beside(self) -> tuple[Target, tuple[Target, ...]]:
        newest = self.candidate()[0].seq
        after = -1 if newest is None else newest
        every = sorted((seq, attempt.snapshot.step) for attempt, seq in self.committed.items())
        before = [(seq, step) for seq, step in every if seq < after and seq not in self.quarantined]
        bad = tuple(Target(seq, step, f"manifest-{seq}") for seq, step in every if seq > after and seq in self.quarantined)
        return (Target(*before[-1], f"manifest-{before[-1][0]}") if before else NOTHING), bad

    def referable(self, without: int | None) -> tuple[int, ...]:
        newest = self.candidate()[0].seq
        return () if newest is None or newest == without else (newest,)

    def candidate(self) -> tuple[Target, Generation]:
        live = [(seq, attempt) for attempt, seq in self.committed.items() if seq not in self.quarantined]
        if not live:
            return NOTHING, NO_GENERATION
        seq, attempt = max(live)
        return Target(seq, attempt.snapshot.step, f"manifest-{seq}"), attempt.snapshot.generation

    def work(self, engine: Engine) -> bool:
        """Do one job."""
        if self.away or not self.jobs:
            return False
        job = self.jobs.popleft()
        match job:
            case CheckTailJob():
                engine.log_done(TailAbsent())
            case CommitJob():
                self.commits.append(job)
                if job.over is not None:
                    self.quarantined.add(job.over)
                assert job.attempt not in self.aborted and job.attempt not in self.committed
                self.committed[job.attempt] = self.next_seq
                self.next_seq += 1
                engine.log_done(Settled(job.attempt, Outcome(self.committed[job.attempt], "")))
            case AbortJob(attempt, reason):
                assert attempt not in self.committed
                self.aborted[attempt] = reason
                engine.log_done(Settled(attempt, Outcome(None, reason)))
            case QuarantineJob(seq, _):
                if not self.whole:
                    self.quarantined.add(seq)
                engine.log_done(Quarantined(seq, not self.whole))
            case PinJob(seq, holder):
                live = seq in self.committed.values() and seq not in self.quarantined
                if live:
                    self.pins.append((seq, holder))
                engine.log_done(Pinned(seq, holder, live))
        return True


class FakeNode:
    """A daemon with an agent, as seen on the stream. ``heard`` are the messages of its present stream."""

    def __init__(self, world: Bench, name: str) -> None:
        self.world, self.name, self.incarnation = world, name, f"{name}-1"
        self.heard: list[pb.ToNode] = []
        self.up = False
        self.beating = True

    # Link
    def send(self, message: pb.ToNode) -> bool:
        self.heard.append(message)
        return True

    def close(self) -> None:
        self.up = False

    # what a daemon does
    def connect(self) -> FakeNode:
        self.heard, self.up = [], True
        self.world.engine.attach(self.name, self.incarnation, self)
        return self

    def disconnect(self) -> None:
        self.up = False
        self.world.engine.detach(self.name, self)

    def say(self, **body: object) -> None:
        self.world.engine.receive(self.name, self, pb.FromNode(**body))
        self.world.settle()

    def join(
        self,
        least: int = 1,
        most: int = 2,
        size: int = 1,
        after: Generation = NO_GENERATION,
        failure: str = "",
        agent: str = "",
    ) -> None:
        who, before = agent or self.name + "-agent", to_generation(after)
        join = pb.Join(agent=who, local_world_size=size, min_nodes=least, max_nodes=most, after=before, failure=failure)
        self.say(join=join)

    def member(
        self,
        generation: Generation,
        node_rank: int,
        num_nodes: int,
        size: int = 1,
        least: int = 1,
        most: int = 2,
        agent: str = "",
    ) -> None:
        self.say(
            member=pb.Member(
                agent=agent or self.name + "-agent",
                generation=to_generation(generation),
                node_rank=node_rank,
                num_nodes=num_nodes,
                local_world_size=size,
                min_nodes=least,
                max_nodes=most,
            )
        )

    def rank_up(
        self,
        generation: Generation,
        rank: int,
        size: int,
        key: str = "host:1",
        process: str = "",
        ready: bool = True,
        base: int = 0,
    ) -> None:
        process = process or f"{self.name}-p{rank}"
        up = pb.RankUp(
            generation=to_generation(generation),
            world_key=key,
            rank=rank,
            world_size=size,
            process=process,
            ready=ready,
            base_seq=base,
        )
        self.say(rank_up=up)

    def beat(self, generation: Generation = NO_GENERATION, free_slots: int = 1, **steps: int) -> None:
        """``r0=5``: rank 0 is at step 5."""
        ranks = [
            pb.RankStatus(generation=to_generation(generation), rank=int(rank[1:]), step=step, free_slots=free_slots)
            for rank, step in steps.items()
        ]
        self.say(heartbeat=pb.Heartbeat(ranks=ranks))

    def sealed(self, snapshot: Snapshot, *ranks: int, number: int = 0) -> None:
        for rank in ranks:
            self.say(sealed=pb.Sealed(attempt=to_attempt(Attempt(snapshot, number)), rank=rank))

    def uploaded(self, snapshot: Snapshot, *ranks: int, number: int = 0) -> None:
        attempt = to_attempt(Attempt(snapshot, number))
        self.say(uploaded=pb.Uploaded(attempt=attempt, ranks=ranks, part=self.name.encode()))

    def finished(self, generation: Generation, rank: int) -> None:
        self.say(finished=pb.Finished(generation=to_generation(generation), rank=rank))

    def told(self, kind: str) -> list[object]:
        """All messages of one kind on the present stream."""
        return [getattr(message, kind) for message in self.heard if message.WhichOneof("body") == kind]


class Bench:
    """One job's coordinator and its nodes."""

    def __init__(self, options: CoordinatorOptions = OPTIONS) -> None:
        self.clock, self.log, self.options = HandClock(), FakeLog(), options
        self.nodes: dict[str, FakeNode] = {}
        self.epoch = 1
        self.ended = NO_GENERATION  # the last one that was seen to be a run's last, by any coordinator
        self.engine = Engine(1, options, self.log, self.clock)

    def restart(self) -> None:
        """A new coordinator on the same log; every stream is gone."""
        self.epoch += 1
        self.log.jobs.clear()
        for node in self.nodes.values():
            node.up = False
        self.engine = Engine(self.epoch, self.options, self.log, self.clock)

    def node(self, name: str) -> FakeNode:
        self.nodes.setdefault(name, FakeNode(self, name)).connect()
        self.settle()
        return self.nodes[name]

    def settle(self) -> None:
        self.engine.step()
        while self.log.work(self.engine):
            self.engine.step()

    def pass_time(self, seconds: float, *, tick: float = 0.5) -> None:
        """Time goes by; connected nodes that are ``beating`` send empty heartbeats."""
        for _ in range(round(seconds / tick)):
            self.clock.now += tick
            for node in self.nodes.values():
                if node.up and node.beating:
                    self.engine.receive(node.name, node, pb.FromNode(heartbeat=pb.Heartbeat()))
            self.settle()

    @property
    def generation(self) -> Generation:
        return self.engine.state.world.id if self.engine.state.world else NO_GENERATION

    @property
    def running(self) -> bool:
        world = self.engine.state.world
        return world is not None and world.broken is None

    def waits(self) -> str:
        return " | ".join(self.engine._reasons.values())

    def two(self) -> tuple[FakeNode, FakeNode, Generation]:
        """Nodes a and b train as ranks 0 and 1 of generation 1-1."""
        a, b = self.node("a"), self.node("b")
        a.join()
        b.join()
        generation = self.generation
        for rank, node in enumerate((a, b)):
            node.member(generation, rank, 2)
            node.rank_up(generation, rank, 2)
        return a, b, generation

    def commit(self, step: int, *owners: tuple[FakeNode, int]) -> int:
        snapshot = Snapshot(self.generation, step)
        for node, rank in owners:
            node.sealed(snapshot, rank)
        for node, rank in owners:
            node.uploaded(snapshot, rank)
        return self.log.committed[Attempt(snapshot, 0)]
