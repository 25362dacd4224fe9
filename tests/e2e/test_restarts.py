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

EVERY = 15
SLOW = {"CKPTD_STORE__UPLOAD_BYTES_PER_SECOND": str(8 << 20), "CKPTD_DAEMON__SEGMENT_BYTES": str(1 << 20)}
SLOW |= {"CKPTD_DAEMON__DRAIN_SECONDS": "0.2"}  # an upgrade doesn't wait for the drain's end
MB = 32  # split between two ranks: a drain of two seconds


@contextmanager
def paced(file: Path) -> Iterator[None]:
    """A step every fifth of a second, as training does that takes its time."""
    end = threading.Event()

    def run() -> None:
        step = 0
        while not end.wait(0.2):
            step += 1
            part = file.with_suffix(".new")
            part.write_text(str(step))
            part.rename(file)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
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


def test_a_sealed_snapshot_outlives_its_daemons(tmp_path: Path) -> None:
    """Daemons of both nodes end at random moments of one drain, killed or upgraded: it is committed, no handle stays open."""
    seed = secrets.randbits(32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    file = tmp_path / "pace"
    file.write_text("0")
    with Job(tmp_path, every=EVERY, environment=SLOW) as job, paced(file):
        world = job.world(
            2, ["--mode", "ddp", "--scale-mb", str(MB), "--pause-file", str(file), "--until", "1000000"], ("a", "b")
        )
        pids = [rank.pid for rank in world.ranks]
        world.wait_event("step", step=EVERY, staged=True)
        world.wait_event("step", step=EVERY + 2)  # by now every rank has sealed it: the next step's optimizer joins the copy
        ends = [("a", signal.SIGKILL), ("b", signal.SIGKILL), (rng.choice("ab"), signal.SIGTERM)]
        for name, how in rng.sample(ends, 3):
            renew(job, name, how, rng.uniform(0.0, 1.0))
        job.wait_commit(EVERY)
        world.wait_event("settled", step=EVERY, durable=True)
        job.wait_commit_after(EVERY)
        check(job, world, pids)
        for rank in world.ranks:
            rank.signal(signal.SIGKILL)


def renew(job: Job, name: str, how: signal.Signals, after_seconds: float) -> None:
    """End a node's daemon, by SIGKILL or as an upgrade does, and start the next."""
    daemon = job.cluster.node(name).daemon
    assert daemon is not None
    threading.Event().wait(after_seconds)
    daemon.signal(how)
    code = daemon.wait(20)
    said = [line.text for line in job.cluster.output if line.source == f"{name}-daemon"]
    assert code == (0 if how is signal.SIGTERM else -how), "\n".join(said[-40:])
    job.node(name)


def check(job: Job, world: World, pids: list[int]) -> None:
    """The same processes in the same generation, and no key of one daemon's life in another's."""
    assert [rank.pid for rank in world.ranks if rank.code is None] == pids
    assert len({entry.generation for entry in job.commits()}) == 1
    assert job.cluster.output.count("coordinator", "AskRegroup") == 0
    written = segments(job, EVERY)
    assert len(written) >= 3, "the drain was over before a daemon ended"
    assert len({key for keys in written.values() for key in keys}) == sum(len(keys) for keys in written.values())
