"""Does anything grow? A small job makes thousands of checkpoints through one daemon and one coordinator on MinIO.

Every so many checkpoints both processes, the shared memory and the store are looked at. After the warm-up memory may not grow
by more than a fraction of what a leak would cost, and what is counted in pieces may not grow at all. Of memory the least of
several looks counts: what a commit or a collection needs for a moment comes on top now and then, a leak is always there.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.campaign import Say
from chaos.minio import MinioServer
from chaos.objects import S3Objects
from chaos.scene import ChaosError, needed, until
from chaos.vitals import Vitals, held, look, slope
from ckptd.demo.cluster import Cluster, Plan
from ckptd.demo.process import Process

TRAINER: Final = Path(__file__).with_name("flat_trainer.py")
JOB: Final = "flat"
EVERY: Final = 10  # checkpoints between two looks
LEAST_OF: Final = 8  # looks; the least memory that they saw is one point of the slope
WARM: Final = 0.5  # the share of the run that doesn't count: pools, caches, the last 1,000 events and the heap find their size
GROWTH_BYTES: Final = 200.0
"""Growth of private memory per checkpoint that is refused. docs/long-runs.md: what was measured."""
STUCK_SECONDS: Final = 60.0
GRACE_SECONDS: Final = 4.0  # retired checkpoints go so soon that many rounds of collection fall into the run
KEEP_LAST: Final = 5
COLLECTED: Final = 1.25  # objects come one by one and go in rounds; in a store that keeps them all their number goes up by half


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at everything; ``objects`` are those in the store but for the log's records, which stay for ever."""

    checkpoints: int
    daemon: Vitals
    coordinator: Vitals
    shm_files: int
    shm_bytes: int
    objects: int

    def __str__(self) -> str:
        parts = [
            f"{name} {vitals.private_bytes / 1024:.0f} KiB, {vitals.fds} fds, {vitals.threads} threads"
            for name, vitals in (("daemon", self.daemon), ("coordinator", self.coordinator))
        ]
        parts.append(f"{self.shm_files} files of shared memory, {self.shm_bytes} bytes; {self.objects} objects")
        return f"{self.checkpoints} checkpoints: {'; '.join(parts)}"


def run(directory: Path, say: Say, checkpoints: int = 2000, leak_bytes: int = 0) -> None:
    """Do it. Raises ChaosError with all that grew. ``leak_bytes``: per checkpoint, to see whether that is found."""
    os.environ |= {"CKPTD_EXECUTABLE": f"{sys.executable} -m chaos.measured", "LEAK_BYTES": str(leak_bytes)}
    directory = Path(tempfile.mkdtemp(prefix="flat-", dir=directory)) / "nodes"
    directory.mkdir()
    minio = MinioServer()
    try:
        minio.start()
        store = minio.make_bucket("flat")
        environment = {
            "CKPTD_STORE__STORAGE_OPTIONS": json.dumps(minio.storage_options),
            "CKPTD_COORDINATOR__KEEP_LAST": str(KEEP_LAST),
            "CKPTD_COORDINATOR__GRACE_SECONDS": str(GRACE_SECONDS),
        }
        cluster = Cluster(Plan(JOB, store, TRAINER, [], environment=environment), directory, ["--every", "1"])
        try:
            sights = _watch(cluster, S3Objects(minio.client(), "flat"), checkpoints, say)
        finally:
            cluster.close()
    finally:
        minio.close()
    for name in ("daemon", "coordinator"):
        say(f"memory of the {name} grows by {growth(sights, name):.0f} bytes a checkpoint")
    problems = judge(sights)
    if problems:
        raise ChaosError("; ".join(problems))


def _watch(cluster: Cluster, objects: S3Objects, checkpoints: int, say: Say) -> list[Sight]:
    cluster.start_coordinator()
    node = cluster.node("a")
    node.start_daemon()
    command = [sys.executable, str(TRAINER), "--until", str(checkpoints)]
    trainer = Process("trainer", command, {**node.environment, "CKPTD_JOB": JOB}, cluster.output)
    daemon, coordinator = needed(node.daemon).pid, needed(cluster.coordinator).pid
    sights: list[Sight] = []

    def done() -> int:
        return cluster.output.count("trainer", "durable=")

    try:
        while len(sights) * EVERY < checkpoints:
            wanted = len(sights) * EVERY
            until(f"checkpoint {wanted}", lambda wanted=wanted: done() >= wanted or trainer.code is not None, STUCK_SECONDS)  # type: ignore[misc]
            if done() < wanted:
                raise ChaosError(f"the trainer ended with exit code {trainer.code} after {done()} checkpoints")
            sights.append(Sight(done(), look(daemon), look(coordinator), *held(node.arena), _stored(objects)))
            if len(sights) % 50 == 1:
                say(str(sights[-1]))
    finally:
        trainer.stop()
    return sights


def _stored(objects: S3Objects) -> int:
    return len(objects.names(f"{JOB}/")) - len(objects.names(f"{JOB}/log/"))


def _warm(sights: Sequence[Sight]) -> list[Sight]:
    return [sight for sight in sights if sight.checkpoints >= WARM * sights[-1].checkpoints]


def growth(sights: Sequence[Sight], name: str) -> float:
    """Private memory of the daemon or the coordinator after the warm-up, in bytes per checkpoint. Pure."""
    points = [(sight.checkpoints, getattr(sight, name).private_bytes) for sight in _warm(sights)]
    windows = [points[at : at + LEAST_OF] for at in range(0, len(points), LEAST_OF)]
    return slope([min(window, key=lambda point: point[1]) for window in windows])


def judge(sights: Sequence[Sight]) -> list[str]:
    """All that grew after the warm-up. Pure."""
    warm = _warm(sights)
    problems = []
    for name in ("daemon", "coordinator"):
        of = [getattr(sight, name) for sight in warm]
        if (grows := growth(sights, name)) > GROWTH_BYTES:
            problems.append(f"memory of the {name} grows by {grows:.0f} bytes a checkpoint, allowed are {GROWTH_BYTES:.0f}")
        for what in ("fds", "threads", "children"):
            problems += _counted(f"{what} of the {name}", [getattr(vitals, what) for vitals in of])
    problems += _counted("files of shared memory", [sight.shm_files for sight in warm])
    problems += _counted("bytes of shared memory", [sight.shm_bytes for sight in warm])
    problems += _counted("objects in the store", [sight.objects for sight in warm], COLLECTED)
    return problems


def _counted(what: str, values: Sequence[int], allowed: float = 1.0) -> list[str]:
    """What the second half shows that the first never did is growth: pools were filled long before."""
    half = len(values) // 2
    first, second = max(values[:half]), max(values[half:])
    return [f"{what} grew from {first} to {second}"] if second > allowed * first else []
