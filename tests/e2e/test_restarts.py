"""Daemons are killed, or replaced, in mid-drain: the very snapshot that was sealed is committed, and no worker notices."""

from __future__ import annotations

import random
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.harness import Job, World
from tests.waiting import eventually_sync

EVERY = 15
MB = 32  # split between two ranks: a drain of half a minute at this pace, for the daemons that are to end in it
SLOW = {"CKPTD_STORE__UPLOAD_BYTES_PER_SECOND": str(1 << 19), "CKPTD_DAEMON__SEGMENT_BYTES": str(1 << 18)}
SLOW |= {"CKPTD_DAEMON__FRAME_BYTES": str(1 << 18), "CKPTD_DAEMON__DRAIN_SECONDS": "0.2"}  # an upgrade doesn't wait for its end
SLOW |= {"CKPTD_COORDINATOR__LEASE_SECONDS": "30"}  # however long a busy machine takes to start a daemon


@contextmanager
def paced(file: Path, last: int) -> Iterator[threading.Event]:
    """A step every 0.4 s, as training does that takes its time: up to ``last``, and on when what is yielded is set."""
    end, go_on = threading.Event(), threading.Event()

    def run() -> None:
        step = 0
        while not end.wait(0.4 if step > EVERY else 0.05):
            if step == last and not go_on.is_set():
                continue
            step += 1
            part = file.with_suffix(".new")
            part.write_text(str(step))
            part.rename(file)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield go_on
    finally:
        end.set()
        thread.join()


def segments(job: Job, step: int) -> dict[str, set[str]]:
    """The keys of a step's segments in the store, by the life of the daemon that wrote them."""
    found: dict[str, set[str]] = {}
    for path in Path(job.store).glob(f"{job.name}/data/*.{step}.*/*.seg"):
        writer, _, _ = path.name.rpartition("-")
        found.setdefault(writer, set()).add(path.name)
    return found


def lives(job: Job, name: str) -> int:
    """How many daemons of a node have written segments of the step."""
    return sum(1 for writer in segments(job, EVERY) if writer.startswith(f"{name}."))


def test_a_sealed_snapshot_outlives_its_daemons(tmp_path: Path) -> None:
    """Daemons of both nodes end at random moments of one drain, killed or upgraded: it is committed, no handle stays open.

    The next snapshot would overtake this one: the training waits before it until this one is committed.
    """
    seed = secrets.randbits(32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    file = tmp_path / "pace"
    file.write_text("0")
    with Job(tmp_path, every=EVERY, environment=SLOW) as job, paced(file, last=2 * EVERY - 1) as go_on:
        world = job.world(
            2, ["--mode", "ddp", "--scale-mb", str(MB), "--pause-file", str(file), "--until", "1000000"], ("a", "b")
        )
        pids = [rank.pid for rank in world.ranks]
        world.wait_event("step", step=EVERY, staged=True)
        world.wait_event("step", step=EVERY + 2)  # by now every rank has sealed it: the next step's optimizer joins the copy
        ends = [("a", signal.SIGKILL), ("b", signal.SIGKILL), (rng.choice("ab"), signal.SIGTERM)]
        rng.shuffle(ends)
        for number, (name, how) in enumerate(ends):
            last = name not in [other for other, _ in ends[number + 1 :]]
            renew(job, name, how, rng.uniform(0.0, 1.0), last)
        job.wait_commit(EVERY)
        go_on.set()
        world.wait_event("settled", step=EVERY, durable=True)
        job.wait_commit_after(EVERY)
        check(job, world, pids)
        for rank in world.ranks:
            rank.signal(signal.SIGKILL)


def renew(job: Job, name: str, how: signal.Signals, after_seconds: float, last: bool) -> None:
    """End a node's daemon that has begun to write, by SIGKILL or as an upgrade does, and start the next.

    The ``last`` one has a faster link.
    """
    started = job.cluster.output.count(f"{name}-daemon", "ckptd daemon ready")
    eventually_sync(lambda: lives(job, name) == started, f"a segment of daemon {started} of node {name}")
    threading.Event().wait(after_seconds)
    node = job.cluster.node(name)
    assert node.daemon is not None
    node.daemon.signal(how)
    code = node.daemon.wait(20)
    said = [line.text for line in job.cluster.output if line.source == f"{name}-daemon"]
    assert code == (0 if how is signal.SIGTERM else -how), "\n".join(said[-40:])
    if last:
        del node.environment["CKPTD_STORE__UPLOAD_BYTES_PER_SECOND"]
    job.node(name)


def check(job: Job, world: World, pids: list[int]) -> None:
    """The same processes in the same generation, and no key of one daemon's life in another's."""
    assert [rank.pid for rank in world.ranks if rank.code is None] == pids
    assert len({entry.generation for entry in job.commits()}) == 1
    assert job.cluster.output.count("coordinator", "AskRegroup") == 0
    written = segments(job, EVERY)
    assert len(written) == 5, "three daemons were to end in the drain of the two"
    assert len({key for keys in written.values() for key in keys}) == sum(len(keys) for keys in written.values())
