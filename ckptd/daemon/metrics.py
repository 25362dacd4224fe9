"""What the daemon counts for Prometheus. Labels: the job, and words of which there are a few."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ckptd.store.metered import StoreMetrics

DURABLE_BUCKETS: Final = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class DaemonMetrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.store = StoreMetrics(registry)
        jobs = ["job"]
        self.snapshots = Counter(
            "ckptd_snapshots", "Snapshots of this node by their fate: sealed, durable, aborted, missed", ["job", "fate"],
            registry=registry,
        )  # fmt: skip
        self.durable_seconds = Histogram(
            "ckptd_staged_to_durable_seconds", "From the last local rank's seal until the commit was known", jobs,
            buckets=DURABLE_BUCKETS, registry=registry,
        )  # fmt: skip
        self.raw_bytes = Counter("ckptd_uploaded_raw_bytes", "Bytes of state in stored segments", jobs, registry=registry)
        self.stored_bytes = Counter("ckptd_uploaded_stored_bytes", "Bytes of stored segments", jobs, registry=registry)
        self.arena_bytes = Gauge("ckptd_arena_bytes", "Shared memory reserved for trainers and restores", registry=registry)
        self.step = Gauge("ckptd_step", "Furthest completed step of the ranks on this node", jobs, registry=registry)
        self.free_slots = Gauge("ckptd_free_slots", "Free slots of the local rank that has the fewest", jobs, registry=registry)
        self.ranks = Gauge("ckptd_ranks", "Trainers connected to this daemon", jobs, registry=registry)
        self.connected = Gauge("ckptd_coordinator_connected", "1 while a coordinator is listening", jobs, registry=registry)
        self.troubles = Gauge("ckptd_troubles", "Troubles that `ckptd status` shows for this node", registry=registry)

    def forget(self, job: str) -> None:
        """A job is no more here: its figures go, so that names don't pile up."""
        for fate in ("sealed", "durable", "aborted", "missed"):
            self.snapshots.remove_by_labels({"job": job, "fate": fate})
        for one in (
            self.durable_seconds, self.raw_bytes, self.stored_bytes, self.step, self.free_slots, self.ranks, self.connected,
        ):  # fmt: skip
            one.remove_by_labels({"job": job})
