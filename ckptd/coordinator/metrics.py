"""What the coordinator counts for Prometheus, of its one job."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ckptd.coordinator.state import OpenSnapshot, Outcome
from ckptd.coordinator.world import World
from ckptd.model.ids import NO_GENERATION
from ckptd.rpc.v1 import coordinator_pb2 as pb
from ckptd.store.metered import StoreMetrics

SECONDS_BUCKETS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
NODE_STATES: Final = ("alive", "blind", "lost", "waiting", "spare", "regrouping", "left", "idle", "silent")


class CoordinatorMetrics:
    """All of them, in a registry of their own; the job is a label of all, and its value never changes."""

    def __init__(self, job: str) -> None:
        self.registry = registry = CollectorRegistry()
        self.store = StoreMetrics(registry)
        labels = ["job"]

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry).labels(job)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, labels, registry=registry).labels(job)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, labels, buckets=SECONDS_BUCKETS, registry=registry).labels(job)

        self.epoch = gauge("ckptd_epoch", "This coordinator's epoch")
        self.generation = gauge("ckptd_generation", "Number of the formed world within its epoch, 0 before the first one")
        self.world_size = gauge("ckptd_world_size", "Ranks of the present world, 0 while none is at work")
        self._nodes = Gauge("ckptd_nodes", "Nodes by state, as in `ckptd status`", ["job", "state"], registry=registry)
        self.nodes = {state: self._nodes.labels(job, state) for state in NODE_STATES}
        self.step = gauge("ckptd_furthest_step", "Furthest step completed by any rank")
        self.step_seconds = gauge("ckptd_step_seconds", "Median seconds of the last steps")
        self.durable_step = gauge("ckptd_durable_step", "Step of the newest committed checkpoint")
        self.durable_time = gauge(
            "ckptd_durable_unix_seconds", "When this coordinator last committed a checkpoint, 0 for never"
        )
        self.commits = counter("ckptd_commits", "Checkpoints committed")
        self.aborts = Counter(
            "ckptd_aborts", "Snapshots given up: missed by a rank, or otherwise", ["job", "kind"], registry=registry
        )
        self.missed, self.given_up = self.aborts.labels(job, "missed"), self.aborts.labels(job, "other")
        self.commit_seconds = histogram("ckptd_commit_seconds", "From the first rank's seal to the commit")
        self.regroups = counter("ckptd_regroups", "Worlds that were broken")
        self.recovery_seconds = histogram("ckptd_recovery_seconds", "From a world's break to the next one's first new step")
        self.lost_steps = counter("ckptd_lost_steps", "Steps that had to be done again")
        self._broken, self._broken_seconds, self._broken_step = NO_GENERATION, 0.0, 0
        self.troubles = gauge("ckptd_troubles", "Troubles of the job as a whole that `ckptd status` shows")

    def settled(self, snapshot: OpenSnapshot | None, outcome: Outcome, now: float, unix_seconds: float) -> None:
        """An attempt was committed or given up; ``snapshot`` is what was known of it."""
        if outcome.seq is None:
            (self.missed if snapshot is not None and snapshot.missed else self.given_up).inc()
            return
        self.commits.inc()
        self.durable_time.set(unix_seconds)
        if snapshot is not None:
            self.commit_seconds.observe(now - snapshot.since_seconds)

    def watch(self, world: World | None, now: float) -> None:
        """See the world break, and the next one's first new step."""
        if world is None:
            return
        if world.broken is not None and self._broken < world.id:
            self.regroups.inc()
            if self._broken == NO_GENERATION:  # else the one before has not recovered, and its time goes on
                self._broken_seconds, self._broken_step = world.broken_seconds, world.furthest_step
            self._broken = world.id
        started = 0 if world.target is None else world.target.step
        if self._broken != NO_GENERATION and world.id > self._broken and world.furthest_step > started:
            self.recovery_seconds.observe(now - self._broken_seconds)
            self.lost_steps.inc(max(0, self._broken_step - started))
            self._broken = NO_GENERATION

    def look(self, status: pb.StatusReply) -> None:
        """Set the gauges."""
        self.epoch.set(status.epoch)
        self.generation.set(status.world.generation.n)
        self.world_size.set(status.world.world_size if status.phase in ("training", "restoring", "finishing") else 0)
        for state, one in self.nodes.items():
            one.set(sum(node.state == state for node in status.nodes))
        self.step.set(status.world.furthest_step)
        self.step_seconds.set(status.world.step_seconds)
        self.durable_step.set(status.newest.step)
        self.troubles.set(len(status.troubles))
