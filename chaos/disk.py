"""Trials of disks: full ones (a small tmpfs), and stored bytes that change or vanish under a committed checkpoint."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chaos.logbook import Committed
from chaos.scene import JOB, ChaosError, Scene, until
from chaos.stopping import stopped
from chaos.trial import Play, Trial
from chaos.victims import ALONE_STEPS

SETTLED_SECONDS: Final = 1.0
FOUND_SECONDS: Final = 90.0
FULL_SECONDS: Final = 20.0
_FILL_BYTES: Final = 1 << 20


@contextmanager
def small_tmpfs(place: Path, size_mib: int) -> Iterator[None]:
    """A tmpfs of that size at ``place``, as long as the context lasts. Raises ChaosError where mounting isn't permitted."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=0700", "ckptd-chaos", str(place)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode != 0:
        raise ChaosError(f"a full disk needs the right to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)
        place.rmdir()


@contextmanager
def full(directory: Path) -> Iterator[None]:
    """Not a byte is left on the file system of ``directory``; what others free is taken at once."""
    filler, over = directory / "filler", threading.Event()

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            count = _FILL_BYTES
            while not over.is_set():
                try:
                    file.write(bytes(count))
                except OSError:  # ENOSPC: smaller and smaller, and again
                    count = count // 2 or _FILL_BYTES
                    over.wait(0.001)

    filling = threading.Thread(target=fill, name="filler")
    filling.start()
    try:
        until("a full disk", lambda: os.statvfs(directory).f_bavail == 0, FULL_SECONDS)
        yield
    finally:
        over.set()
        filling.join()
        filler.unlink()


def _full_store(scene: Scene, rng: random.Random) -> int:
    """Training goes on; nothing is committed, and nothing half written counts."""
    with full(scene.store):
        before = scene.newest_commit()
        scene.wait_step(time.monotonic(), 5 * ALONE_STEPS)
        if scene.newest_commit() > before + 1:  # one may have been under way
            raise ChaosError("commits on a disk without room")
    return 0


def _full_arena(scene: Scene, rng: random.Random) -> int:
    """Ranks that come anew find no shared memory on their node."""
    node = rng.choice(scene.nodes)
    output, text = scene.cluster.output, "has no room"
    with full(node.arena):
        refused = output.count(f"{node.name}-agent", text)
        os.kill(scene.trainer_pid(node), signal.SIGKILL)
        until("a refusal", lambda: output.count(f"{node.name}-agent", text) > refused, FOUND_SECONDS)
    return 1


Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    """The end is missing."""
    os.truncate(path, rng.randrange(path.stat().st_size))


def remove(path: Path, rng: random.Random) -> None:
    """All of it is missing."""
    path.unlink()


Place = Callable[[Scene, Committed], list[Path]]


def segments(scene: Scene, commit: Committed) -> list[Path]:
    """Its segments in a directory store."""
    return sorted((scene.store / JOB / "data" / commit.attempt).glob("*.seg"))


def index(scene: Scene, commit: Committed) -> list[Path]:
    """Its index."""
    return sorted((scene.store / JOB / "data" / commit.attempt).glob("*.idx"))


def manifest(scene: Scene, commit: Committed) -> list[Path]:
    """Its manifest."""
    return [scene.store / JOB / "manifest" / commit.manifest]


def minio_segments(scene: Scene, commit: Committed) -> list[Path]:
    """MinIO's own files of its segments (a small object lies inside of its ``xl.meta``)."""
    assert scene.minio is not None
    place = scene.minio.directory / "data" / "chaos" / JOB / "data" / commit.attempt
    return [max(found.rglob("*"), key=lambda path: path.stat().st_size) for found in sorted(place.glob("*.seg"))]


def damaged(place: Place, damage: Damage) -> Play:
    """One checkpoint back, the bad one put aside by a record, loudly."""

    def play(scene: Scene, rng: random.Random) -> int:
        newest, before, steps = _restored_after(scene, place, damage, rng)
        ended = scene.inspector.logbook.read().ended.get(newest.seq)
        if ended != "QUARANTINE" or steps != {before.step}:
            raise ChaosError(f"commit {newest.seq} of step {newest.step} was damaged: it was {ended}, and restored was {steps}")
        if not scene.cluster.output.count("coordinator", "quarantined"):
            raise ChaosError("the coordinator said nothing of it")
        return 1

    return play


def rotten(damage: Damage) -> Play:
    """The server's own file is damaged: what its object gives then is the server's to say.

    It may be whole (nobody needs that bit), an error for ever, or gone. Either way a world trains on, from the newest
    checkpoint or from the one before; that no wrong byte gets through is checked as always.
    """

    def play(scene: Scene, rng: random.Random) -> int:
        newest, before, steps = _restored_after(scene, minio_segments, damage, rng)
        if steps not in ({newest.step}, {before.step}):
            raise ChaosError(f"commit {newest.seq} of step {newest.step} was damaged, and restored was {steps}")
        return 1

    return play


def _restored_after(scene: Scene, place: Place, damage: Damage, rng: random.Random) -> tuple[Committed, Committed, set[int]]:
    """Damage the newest commit, end the world; (it, the one before, the steps that the next world's ranks restored)."""
    scene.wait_commit(scene.newest_commit())  # so that there is one before
    pid = scene.trainer_pid(rng.choice(scene.nodes))
    with stopped([pid]):
        newest = _settled(scene)
        scene.inspector.damaged.add(newest.seq)
        before = next(one for one in reversed(scene.inspector.logbook.read().commits) if one.seq < newest.seq)
        restored = len(scene.restored())
        damage(rng.choice(place(scene, newest)), rng)
        os.kill(pid, signal.SIGKILL)
    until("workers that restore", lambda: len(scene.restored()) > restored or bool(scene.words.wrong), FOUND_SECONDS)
    return newest, before, {one.step for one in scene.restored()[restored:]}


def _settled(scene: Scene) -> Committed:
    """The newest commit, once no more come."""
    since, newest = time.monotonic(), scene.newest_commit()
    while time.monotonic() - since < SETTLED_SECONDS:
        time.sleep(0.05)
        if scene.newest_commit() != newest:
            since, newest = time.monotonic(), scene.newest_commit()
    commit = scene.inspector.logbook.read().newest
    if commit is None:
        raise ChaosError("there is no commit to damage")
    return commit


FULL_STORE: Final = Trial("disk full: store", _full_store, quiet=True)
FULL_ARENA: Final = Trial("disk full: arena", _full_arena)

DAMAGES: Final = [
    Trial("segment flipped", damaged(segments, flip)),
    Trial("segment cut", damaged(segments, cut)),
    Trial("segment removed", damaged(segments, remove)),
    Trial("index flipped", damaged(index, flip)),
    Trial("manifest flipped", damaged(manifest, flip)),
]
MINIO_DAMAGES: Final = [
    Trial("MinIO's file flipped", rotten(flip)),
    Trial("MinIO's file cut", rotten(cut)),
]
